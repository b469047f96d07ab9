"""Two annotators on one image: organs of one stay when the other submits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from baps.annotations.label_info import LabelInfo, name_values, read_label_info
from baps.annotations.merge import MergedLabels, merge_concurrent_labels
from baps.imaging.label_map import LabelMap

LABELS = {"liver": 1, "spleen": 2, "kidney": 3}


def _row(*values: int) -> NDArray[np.uint8]:
    return np.array(values, np.uint8).reshape(-1, 1, 1)


def _info(names: dict[str, int], author: str, **more: object) -> LabelInfo:
    return read_label_info(
        {"label_info": [{"name": name, "idx": idx} for name, idx in names.items()], "author": author, **more}
    )


def _merge(
    voxels: NDArray[np.uint8], message: LabelInfo, earlier_voxels: NDArray[np.uint8], earlier: LabelInfo
) -> MergedLabels:
    new = LabelMap((voxels,))
    return merge_concurrent_labels(
        new, name_values(message, new, LABELS), message, message.author, LabelMap((earlier_voxels,)), earlier, LABELS
    )


def _voxels(merged: MergedLabels) -> NDArray[np.integer[Any]]:
    (voxels,) = merged.label_map.layers
    return voxels


def test_organ_missing_from_the_new_file_is_kept() -> None:
    merged = _merge(_row(0, 0, 2), _info({"spleen": 2}, "ben"), _row(1, 1, 0), _info({"liver": 1}, "anna"))
    np.testing.assert_array_equal(_voxels(merged), _row(1, 1, 2))
    assert (merged.values, merged.organs, merged.notes) == (
        {"spleen": 2, "liver": 1},
        ("liver",),
        ("liver by anna was kept.",),
    )


def test_listed_but_empty_organ_is_kept() -> None:
    """Slicer lists all segments, including empty ones."""
    info = _info({"liver": 5, "spleen": 6}, "ben")
    merged = _merge(_row(0, 0, 6), info, _row(1, 1, 0), _info({"liver": 1}, "anna"))
    np.testing.assert_array_equal(_voxels(merged), _row(5, 5, 6))
    assert merged.values == {"liver": 5, "spleen": 6}


def test_conflicting_value_is_changed() -> None:
    merged = _merge(_row(0, 0, 1), _info({"spleen": 1}, "ben"), _row(1, 1, 0), _info({"liver": 1}, "anna"))
    np.testing.assert_array_equal(_voxels(merged), _row(2, 2, 1))
    assert merged.values == {"spleen": 1, "liver": 2}


def test_new_label_wins_in_overlaps_with_a_note() -> None:
    merged = _merge(_row(0, 2, 2), _info({"spleen": 2}, "ben"), _row(1, 1, 0), _info({"liver": 1}, "anna"))
    np.testing.assert_array_equal(_voxels(merged), _row(1, 2, 2))
    assert merged.notes == ("liver by anna was kept, except 1 voxels that are marked differently now.",)


def test_completely_covered_organ_is_reported_as_removed() -> None:
    merged = _merge(_row(2, 2, 2), _info({"spleen": 2}, "ben"), _row(1, 1, 0), _info({"liver": 1}, "anna"))
    assert merged.organs == ()
    assert merged.notes == ("liver by anna was kept, except 2 voxels that are marked differently now.",)


def test_new_label_replaces_the_same_organ() -> None:
    merged = _merge(_row(0, 1, 1), _info({"liver": 1}, "ben"), _row(1, 1, 0), _info({"liver": 1}, "anna"))
    np.testing.assert_array_equal(_voxels(merged), _row(0, 1, 1))
    assert merged.notes == ("liver by anna was replaced; the earlier version is kept on the server.",)


def test_authors_may_remove_their_own_organs() -> None:
    earlier = _info({"liver": 1, "kidney": 3}, "ben", authors={"liver": "anna", "kidney": "ben"})
    merged = _merge(_row(0, 0, 2), _info({"spleen": 2}, "ben"), _row(1, 3, 0), earlier)
    np.testing.assert_array_equal(_voxels(merged), _row(1, 0, 2))
    assert merged.organs == ("liver",)


def test_unnamed_author_counts_as_another_person() -> None:
    merged = _merge(_row(0, 0, 2), _info({"spleen": 2}, ""), _row(1, 1, 0), _info({"liver": 1}, ""))
    assert merged.notes == ("liver by an unnamed annotator was kept.",)


def test_organ_absent_on_checked_slices_is_removed() -> None:
    info = _info({"liver": 1, "spleen": 2}, "ben", slices=[0])
    merged = _merge(_row(0, 0, 2), info, _row(1, 1, 0), _info({"liver": 1}, "anna"))
    np.testing.assert_array_equal(_voxels(merged), _row(0, 0, 2))


def test_overlapping_segments_of_the_other_annotator_are_kept() -> None:
    """A tumour inside a liver, in two layers."""
    earlier = LabelMap((_row(1, 1, 1, 0), _row(0, 7, 0, 0)))
    info = _info({"liver": 1, "tumour": 7}, "anna")
    merged = merge_concurrent_labels(
        LabelMap((_row(0, 0, 2, 2),)), {"spleen": 2}, _info({"spleen": 2}, "ben"), "ben", earlier, info, LABELS
    )
    masks = {name: merged.label_map.mask(value).ravel().tolist() for name, value in merged.values.items()}
    assert masks == {
        "spleen": [False, False, True, True],
        "liver": [True, True, False, False],
        "tumour": [False, True, False, False],
    }
    assert merged.notes == (
        "liver by anna was kept, except 1 voxels that are marked differently now.",
        "tumour by anna was kept.",
    )


def test_names_of_the_earlier_file_are_used_without_info() -> None:
    """The earlier label was copied into the folder by hand."""
    earlier = LabelMap((_row(1, 0),), {1: "tumour"})
    merged = merge_concurrent_labels(
        LabelMap((_row(0, 2),)), {"spleen": 2}, _info({"spleen": 2}, "ben"), "ben", earlier, read_label_info({}), LABELS
    )
    assert merged.values == {"spleen": 2, "tumour": 3}
