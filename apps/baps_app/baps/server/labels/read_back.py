"""Read a label back after it was stored, and compare it voxel by voxel, before it is reported as saved."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from baps.annotations.history import Version
from baps.annotations.label_info import label_values, read_label_info
from baps.errors import BapsError
from baps.imaging.label_map import LabelMap
from baps.imaging.volume import Volume
from baps.io import read_label_map

_REMEDY = (
    "Nothing was kept. The earlier label, if there is one, is unchanged. Submit it again, or ask the operator of the "
    "server to check its disk."
)


def check_same_segments(
    names: Iterable[str],
    sent: Callable[[str], NDArray[np.bool_]],
    stored: Callable[[str], NDArray[np.bool_] | None],
    remedy: str,
) -> None:
    """Compare what was stored with what was sent, segment by segment.

    Args:
        names: Names of the segments.
        sent: Returns the mask of a segment as it was sent, (I, J, K).
        stored: Returns the mask of a segment as it was stored, (I, J, K), or None if it is missing.
        remedy: Sentences for the message: what was kept, and what to do.

    Raises:
        BapsError: if they differ.
    """
    for name in names:
        expected, actual = sent(name), stored(name)
        if actual is None or actual.shape != expected.shape or not np.array_equal(expected, actual):
            same = 0 if actual is None or actual.shape != expected.shape else int((expected & actual).sum())
            raise BapsError(
                f"The label was not saved: read back, {name} is not what was sent ({same} of its "
                f"{int(expected.sum())} voxels are there). {remedy}"
            )


def check_version(
    sent: LabelMap, values: dict[str, int], image: Volume, source: Path | None
) -> Callable[[Version], None]:
    """Return a check of a version of a label that has been written and is not served yet.

    Args:
        sent: Label map that was sent.
        values: Value of each label in it.
        image: Volume of the label.
        source: DICOM series or file of the image, see ``read_label_map``.

    Returns:
        A function that reads the version as trainings do. It raises a BapsError if the version differs from what was
        sent.
    """

    def check(version: Version) -> None:
        stored_map = read_label_map(version.file, image, source)
        stored_values = label_values(read_label_info(version.info), {}, stored_map.names)
        same_layers = len(stored_map.layers) == len(sent.layers) and all(
            map(np.array_equal, stored_map.layers, sent.layers)
        )
        if same_layers and stored_values == values:  # Faster than to compare each segment.
            return
        names = {value: name for name, value in values.items()}
        segments = {
            names.get(value, f"the value {value}"): value for value in {*names, *sent.values(), *stored_map.values()}
        }

        def stored(name: str) -> NDArray[np.bool_] | None:
            if name in values:
                return stored_map.mask(stored_values[name]) if name in stored_values else None
            return stored_map.mask(segments[name])

        check_same_segments(segments, lambda name: sent.mask(segments[name]), stored, _REMEDY)

    return check
