"""Write the sample CT as series in other planes, as a scanner might have made them, with their labels."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from numpy.typing import NDArray

from baps.io import read_labels, read_volume
from benchmarks.real_data import ROOT as ROOT_OF_REAL
from tests.support.paths import ROOT

ORIENTATIONS = {
    "axial": ((1, 0, 0), (0, 1, 0)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
}
"""Directions in which columns and rows are counted, LPS."""


@dataclass(frozen=True)
class Series:
    """One series.

    Attributes:
        study: StudyInstanceUID.
        uid: SeriesInstanceUID.
        patient: PatientID.
        affine: voxel [column, row, slice] to patient position in mm (LPS), (4, 4).
        labels: labels, (columns, rows, slices).
    """

    study: str
    uid: str
    patient: str
    affine: NDArray[np.float64]
    labels: NDArray[np.uint8]


def inside(series: Series, value: int = 2) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return a voxel well inside an organ, on its largest slice, and its position in mm (LPS); 2 is the spleen."""
    organ = series.labels == value
    k = int(organ.sum((0, 1)).argmax())
    inside = np.argwhere(organ[:, :, k])
    i, j = inside[((inside - inside.mean(0)) ** 2).sum(1).argmin()]
    voxel = np.array([i, j, k])
    return voxel, series.affine[:3, :3] @ voxel + series.affine[:3, 3]


def write_series(folder: Path, orientation: str, case: str = "ct_01", patient: str = "", skip: int = -1) -> Series:
    """Write a sample volume as a series in a plane, one file per slice; one slice may be missing."""
    first = pydicom.dcmread(ROOT / "sample-data" / "dicom" / "ct_01" / "001.dcm")
    voxels, labels = (  # (x, y, z), LPS, like that series.
        np.asarray(nibabel.load(ROOT / "sample-data" / "ct" / part / f"{case}.nii.gz").dataobj).astype(kind)
        for part, kind in (("images", np.int16), ("labels", np.uint8))
    )
    spacing = np.array([float(first.PixelSpacing[1]), float(first.PixelSpacing[0]), float(first.SliceThickness)])
    origin = np.array(first.ImagePositionPatient, float)
    column, row = (np.array(direction) for direction in ORIENTATIONS[orientation])
    affine = np.eye(4)
    affine[:3, 3] = origin
    for axis_index, direction in enumerate((column, row, np.cross(column, row))):
        (axis,) = np.flatnonzero(direction)
        affine[:3, axis_index] = direction * spacing[axis]
        if direction[axis] < 0:  # Counted from the other end.
            affine[axis, 3] += spacing[axis] * (voxels.shape[axis] - 1)
    order = [int(np.flatnonzero(affine[:3, axis_index])[0]) for axis_index in range(3)]
    reordered = [np.flip(of.transpose(order), np.flatnonzero(affine[order, range(3)] < 0)) for of in (voxels, labels)]
    study, series, frame = (pydicom.uid.generate_uid() for _ in range(3))
    folder.mkdir(parents=True)
    for k in range(reordered[0].shape[2]):
        image = deepcopy(first)
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, series, frame
        image.PatientID = image.PatientName = patient or f"phantom-{orientation}"
        image.SeriesDescription, image.InstanceNumber = f"{orientation} phantom", k + 1
        if orientation == "coronal":  # Some scanners count against the normal.
            image.InstanceNumber = reordered[0].shape[2] - k
        position = affine[:3, 3] + k * affine[:3, 2]
        image.ImagePositionPatient = [f"{value:.4f}" for value in position]
        image.ImageOrientationPatient = [*map(float, column), *map(float, row)]
        steps = np.abs(affine[order, range(3)])
        image.PixelSpacing, image.SliceThickness = [steps[1], steps[0]], steps[2]
        image.Columns, image.Rows = reordered[0].shape[:2]
        image.PixelData = np.ascontiguousarray(reordered[0][:, :, k].T).astype("<i2").tobytes()
        if k == skip:
            continue
        image.save_as(folder / f"{k:03}.dcm")
    return Series(study, series, patient or f"phantom-{orientation}", affine, np.ascontiguousarray(reordered[1]))


def copy_real_series(folder: Path) -> Series | None:
    """Copy TotalSegmentator's example CT, if it is present; its labels are a model's, 1 the liver and 2 the spleen."""
    example = ROOT_OF_REAL / "totalsegmentator_example"
    if not example.is_dir():
        return None
    folder.mkdir(parents=True)
    study, series = str(pydicom.uid.generate_uid()), str(pydicom.uid.generate_uid())
    for number, file in enumerate(sorted((example / "example_ct_dicom").iterdir())):
        image = pydicom.dcmread(file)
        # Anonymisation emptied these, and a PACS refuses images without them.
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID
        image.StudyInstanceUID, image.SeriesInstanceUID, image.PatientID = study, series, "real-patient"
        image.save_as(folder / f"{number:03}.dcm")
    volume = read_volume(folder)
    theirs = read_labels(example / "example_seg_dicom.nii.gz", volume)
    labels = np.where(theirs == 5, 1, np.where(theirs == 1, 2, 0)).astype(np.uint8)
    to_lps = np.diag([-1.0, -1, 1, 1]) @ volume.affine
    return Series(study, series, "real-patient", to_lps, labels)
