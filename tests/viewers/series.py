"""The sample CT as series that a scanner might have made in other planes, each with its labels."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from numpy.typing import NDArray

from server import ROOT

ORIENTATIONS = {
    "axial": ((1, 0, 0), (0, 1, 0)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
}
"""In which directions the columns and the rows are counted, LPS."""


@dataclass(frozen=True)
class Series:
    """One series.

    Attributes:
        study, uid: StudyInstanceUID and SeriesInstanceUID.
        affine: from voxel [column, row, slice] to mm, LPS.
        labels: (columns, rows, slices).
    """

    study: str
    uid: str
    affine: NDArray[np.float64]
    labels: NDArray[np.uint8]


def write_series(folder: Path, orientation: str) -> Series:
    """The sample series cut anew along another plane, a file a slice."""
    files = [pydicom.dcmread(file) for file in sorted((ROOT / "sample-data" / "dicom" / "ct_01").glob("*.dcm"))]
    first = files[0]
    voxels = np.stack([file.pixel_array.T for file in files], -1)  # (x, y, z), LPS
    labels = np.asarray(nibabel.load(ROOT / "sample-data" / "ct" / "labels" / "ct_01.nii.gz").dataobj).astype(np.uint8)
    assert labels.shape == voxels.shape
    spacing = np.array([float(first.PixelSpacing[1]), float(first.PixelSpacing[0]), float(first.SliceThickness)])
    origin = np.array(first.ImagePositionPatient, float)
    column, row = (np.array(direction) for direction in ORIENTATIONS[orientation])
    affine = np.eye(4)
    affine[:3, 3] = origin
    for place, direction in enumerate((column, row, np.cross(column, row))):
        (axis,) = np.flatnonzero(direction)
        affine[:3, place] = direction * spacing[axis]
        if direction[axis] < 0:  # Counted from the other end.
            affine[axis, 3] += spacing[axis] * (voxels.shape[axis] - 1)
    order = [int(np.flatnonzero(affine[:3, place])[0]) for place in range(3)]
    turned = [np.flip(of.transpose(order), np.flatnonzero(affine[order, range(3)] < 0)) for of in (voxels, labels)]
    study, series, frame = (pydicom.uid.generate_uid() for _ in range(3))
    folder.mkdir(parents=True)
    for k in range(turned[0].shape[2]):
        image = deepcopy(first)
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, series, frame
        image.PatientID = image.PatientName = f"phantom-{orientation}"
        image.SeriesDescription, image.InstanceNumber = f"{orientation} phantom", k + 1
        position = affine[:3, 3] + k * affine[:3, 2]
        image.ImagePositionPatient = [f"{value:.4f}" for value in position]
        image.ImageOrientationPatient = [*map(float, column), *map(float, row)]
        steps = np.abs(affine[order, range(3)])
        image.PixelSpacing, image.SliceThickness = [steps[1], steps[0]], steps[2]
        image.Columns, image.Rows = turned[0].shape[:2]
        image.PixelData = np.ascontiguousarray(turned[0][:, :, k].T).astype("<i2").tobytes()
        image.save_as(folder / f"{k:03}.dcm")
    return Series(study, series, affine, np.ascontiguousarray(turned[1]))
