"""Compare a label object with the label that it was made of, voxel by voxel, with the reader that trainings use."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from baps.errors import InputError
from baps.imaging.volume import Volume
from baps.server.datastores.dicomweb.stored_segments import SlicePositions, read_label

_OWNER_KEYWORDS = ("PatientID", "StudyInstanceUID")


def check_same_masks(
    label: Dataset, masks: Mapping[str, NDArray[np.bool_]], image: Volume, positions: SlicePositions
) -> None:
    """Refuse an object that differs from the masks of which it was made.

    Args:
        label: Label object; reading changes it.
        masks: Boolean masks by label, (I, J, K).
        image: Volume of the label.
        positions: Positions of the image's slices.

    Raises:
        InputError: if it differs.
    """
    read_masks = {segment.name: segment.mask for segment in read_label(label, image, positions)}
    for name in masks.keys() | read_masks.keys():
        if name not in read_masks or name not in masks:
            raise InputError(f"The segment {name!r} is not found again under its name (SegmentLabel, ROIName).")
        if not np.array_equal(read_masks[name], masks[name]):
            different = int((read_masks[name] != masks[name]).sum())
            raise InputError(f"{different} voxels of {name!r} are read back at other places than they were marked.")


def check_same_owner(label: Dataset, stored: Dataset) -> None:
    """Refuse an object that a PACS stored under another patient or study than it was sent for.

    Args:
        label: Object as it was sent.
        stored: Object as the PACS returns it.

    Raises:
        InputError: if the patient or the study differs.
    """
    for keyword in _OWNER_KEYWORDS:
        if str(label.get(keyword) or "").strip() != str(stored.get(keyword) or "").strip():
            raise InputError(f"The PACS has the label under another {keyword} than its image.")
