"""Is what a PACS has of a label what it was sent? Voxel by voxel, by the reader that trainings use."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from baps.errors import InputError
from baps.imaging.volume import Volume
from baps.server.datastores.dicomweb.stored_segments import Slices, read_label

_WHOSE = ("PatientID", "StudyInstanceUID")


def check_same_masks(label: Dataset, masks: Mapping[str, NDArray[np.bool_]], image: Volume, slices: Slices) -> None:
    """Refuse an object that does not read as the masks that it was made of.

    Args:
        label: the object; it is changed by reading.
        masks: by label, (I, J, K).
        image: the volume that it belongs to.
        slices: of the image.

    Raises:
        InputError: if it reads otherwise.
    """
    found = {segment.name: segment.mask for segment in read_label(label, image, slices)}
    for name in masks.keys() | found.keys():
        if name not in found or name not in masks:
            raise InputError(f"The segment {name!r} is not found again under its name (SegmentLabel, ROIName).")
        if not np.array_equal(found[name], masks[name]):
            different = int((found[name] != masks[name]).sum())
            raise InputError(f"{different} voxels of {name!r} come back at other places than they were marked.")


def check_same_owner(label: Dataset, stored: Dataset) -> None:
    """Refuse an object that a PACS filed under another patient or study than it was sent for.

    Raises:
        InputError: if it did.
    """
    for keyword in _WHOSE:
        if str(label.get(keyword) or "").strip() != str(stored.get(keyword) or "").strip():
            raise InputError(f"The PACS has the label under another {keyword} than its image.")
