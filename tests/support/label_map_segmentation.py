"""Make Label Map Segmentations for tests, which highdicom 0.22 cannot write."""

from __future__ import annotations

from datetime import datetime, timezone

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from baps.imaging.volume import Volume
from baps.io.dicom.seg import write_segmentation


def make_label_map(headers: list[Dataset], image: Volume, masks: dict[str, NDArray[np.bool_]]) -> Dataset:
    """Make a label map as highdicom 0.28 writes it: one frame per slice, the background as segment 0."""
    when = datetime(2026, 3, 1, 12, 30, 5, tzinfo=timezone.utc)
    everywhere = frozenset(range(image.shape[2]))
    dataset = write_segmentation(headers, image, masks, dict.fromkeys(masks, everywhere), when)
    frames = {}
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        frames.setdefault(tuple(frame.PlanePositionSequence[0].ImagePositionPatient), frame)
        del frame.SegmentIdentificationSequence
    values = np.zeros(image.shape, np.uint8)
    for number, mask in enumerate(masks.values(), start=1):
        values[mask] = number
    positions = [np.array(position, float) * [-1, -1, 1] for position in frames]
    slices = [int(np.rint((np.linalg.inv(image.affine) @ [*position, 1])[2])) for position in positions]
    background = Dataset()
    background.SegmentNumber, background.SegmentLabel, background.SegmentAlgorithmType = 0, "Background", "MANUAL"
    dataset.SegmentSequence = [background, *dataset.SegmentSequence]
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.7"
    dataset.SegmentationType, dataset.PhotometricInterpretation, dataset.PixelPaddingValue = (
        "LABELMAP",
        "MONOCHROME2",
        0,
    )
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PerFrameFunctionalGroupsSequence, dataset.NumberOfFrames = list(frames.values()), len(frames)
    dataset.PixelData = np.stack([values[:, :, k].T for k in slices]).tobytes()
    return dataset
