"""A label is told as saved only after the stored one has been read back and is the same, voxel by voxel."""

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

_KEPT = (
    "Nothing was kept. The earlier label, if there is one, is unchanged. Submit it again, or ask the operator of the "
    "server to check its disk."
)


def check_same(
    names: Iterable[str],
    sent: Callable[[str], NDArray[np.bool_]],
    stored: Callable[[str], NDArray[np.bool_] | None],
    kept: str,
) -> None:
    """Compare what was stored with what was sent, segment by segment.

    Args:
        names: of the segments.
        sent: where a segment was marked when it was sent, (I, J, K).
        stored: where it is by the stored object; None where that does not have it.
        kept: a sentence that says what is kept where.

    Raises:
        BapsError: if they differ.
    """
    for name in names:
        wanted, found = sent(name), stored(name)
        if found is None or found.shape != wanted.shape or not np.array_equal(wanted, found):
            same = 0 if found is None or found.shape != wanted.shape else int((wanted & found).sum())
            raise BapsError(
                f"The label was not saved: read back, {name} is not what was sent ({same} of its {int(wanted.sum())} "
                f"voxels are there). {kept}"
            )


def check_version(
    sent: LabelMap, values: dict[str, int], image: Volume, source: Path | None
) -> Callable[[Version], None]:
    """Return a check of a version of a label that has been written and is not served yet.

    Args:
        sent: the label map.
        values: which value of it means which label.
        image: the volume.
        source: see ``read_label_map``.

    Returns:
        What reads the version as trainings do. It raises a BapsError if that is not what was sent.
    """

    def check(version: Version) -> None:
        found = read_label_map(version.file, image, source)
        said = label_values(read_label_info(version.info), {}, found.names)
        same_layers = len(found.layers) == len(sent.layers) and all(map(np.array_equal, found.layers, sent.layers))
        if same_layers and said == values:  # Which is quicker than one segment after another.
            return
        names = {value: name for name, value in values.items()}
        segments = {
            names.get(value, f"the value {value}"): value for value in {*names, *sent.values(), *found.values()}
        }

        def stored(name: str) -> NDArray[np.bool_] | None:
            if name in values:
                return found.mask(said[name]) if name in said else None
            return found.mask(segments[name])

        check_same(segments, lambda name: sent.mask(segments[name]), stored, _KEPT)

    return check
