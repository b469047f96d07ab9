"""Write a CT series of a few small slices in any direction, for tests that need many."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

OBLIQUE = ((0.8, 0.36, -0.48), (-0.6, 0.48, -0.64))
"""Directions of columns and rows, LPS."""

SHAPE = (18, 15, 6)


def write_small_series(
    folder: Path,
    directions: tuple[tuple[float, ...], tuple[float, ...]] = OBLIQUE,
    shape: tuple[int, int, int] = SHAPE,
    uneven: float = 0.0,
    tilt: float = 0.0,
) -> NDArray[np.int16]:
    """Write a series, one file per slice, with names in no order.

    Args:
        folder: path of the folder, which is created.
        directions: directions of columns and rows, LPS.
        shape: columns, rows, slices.
        uneven: additional distance of the slices from the third on, mm; the others are 3 mm apart.
        tilt: shift of each slice along the rows relative to the previous one, mm, as with a tilted gantry.

    Returns:
        The voxels, (columns, rows, slices).
    """
    voxels = np.random.default_rng(1).integers(-100, 900, shape).astype(np.int16)
    study, series, frame = (generate_uid() for _ in range(3))
    normal = np.cross(*directions)
    folder.mkdir(parents=True)
    for k in range(shape[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image = FileDataset("", {}, preamble=b"\0" * 128, file_meta=meta)
        image.is_little_endian, image.is_implicit_VR = True, False
        image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, series, frame
        image.PatientID, image.PatientName, image.PatientBirthDate, image.PatientSex = "p1", "A^B", "19700101", "F"
        image.StudyDate, image.StudyTime, image.StudyID, image.AccessionNumber = "20260101", "120000", "1", "7"
        image.ReferringPhysicianName, image.PositionReferenceIndicator, image.Modality = "", "", "CT"
        image.InstanceNumber, image.SliceThickness, image.PixelSpacing = k + 1, 3.0, [1.25, 0.75]
        position = np.array([-31.5, 12.25, 40.0]) + normal * (3.0 * k + uneven * max(0, k - 2))
        position = position + tilt * k * np.array(directions[0])
        image.ImagePositionPatient = [f"{value:.6f}" for value in position]
        image.ImageOrientationPatient = [f"{value:.6f}" for direction in directions for value in direction]
        image.Columns, image.Rows = shape[:2]
        image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 1
        image.BitsAllocated = image.BitsStored = 16
        image.HighBit, image.RescaleSlope, image.RescaleIntercept = 15, 1, 0
        image.PixelData = np.ascontiguousarray(voxels[:, :, k].T).tobytes()
        image.save_as(folder / f"{(k * 5) % 7}.dcm", write_like_original=False)
    return voxels


def random_segments(seed: int, shape: tuple[int, int, int] = SHAPE) -> list[NDArray[np.bool_]]:
    """Draw one to four masks that may overlap: boxes, balls, shells and noise."""
    random = np.random.default_rng(seed)
    grid = np.moveaxis(np.indices(shape), 0, -1) / np.array(shape)
    masks = []
    for _ in range(random.integers(1, 5)):
        centre, size = random.uniform(0, 1, 3), random.uniform(0.1, 0.6)
        away = np.abs(grid - centre).max(-1) if random.random() < 0.4 else np.linalg.norm(grid - centre, axis=-1)
        mask = away < size
        if random.random() < 0.3:
            mask &= away > size / 2
        if random.random() < 0.3:
            mask &= random.random(shape) < 0.7
        mask[tuple(random.integers(0, shape))] = True
        masks.append(mask)
    return masks
