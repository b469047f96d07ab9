"""Two annotators on one image: what the one drew stays when the other submits."""

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


def _voxels(kept: MergedLabels) -> NDArray[np.integer[Any]]:
    (voxels,) = kept.label_map.layers
    return voxels


def test_an_organ_that_the_new_file_does_not_list_stays() -> None:
    kept = _merge(_row(0, 0, 2), _info({"spleen": 2}, "ben"), _row(1, 1, 0), _info({"liver": 1}, "anna"))
    np.testing.assert_array_equal(_voxels(kept), _row(1, 1, 2))
    assert (kept.values, kept.organs, kept.notes) == (
        {"spleen": 2, "liver": 1},
        ("liver",),
        ("liver by anna was kept.",),
    )


def test_so_does_one_that_it_lists_and_does_not_mark() -> None:
    """Slicer lists all segments, also those that nobody drew in."""
    info = _info({"liver": 5, "spleen": 6}, "ben")
    kept = _merge(_row(0, 0, 6), info, _row(1, 1, 0), _info({"liver": 1}, "anna"))
    np.testing.assert_array_equal(_voxels(kept), _row(5, 5, 6))
    assert kept.values == {"liver": 5, "spleen": 6}


def test_a_value_that_means_something_else_is_changed() -> None:
    kept = _merge(_row(0, 0, 1), _info({"spleen": 1}, "ben"), _row(1, 1, 0), _info({"liver": 1}, "anna"))
    np.testing.assert_array_equal(_voxels(kept), _row(2, 2, 1))
    assert kept.values == {"spleen": 1, "liver": 2}


def test_the_new_one_holds_where_they_overlap_and_it_is_said() -> None:
    kept = _merge(_row(0, 2, 2), _info({"spleen": 2}, "ben"), _row(1, 1, 0), _info({"liver": 1}, "anna"))
    np.testing.assert_array_equal(_voxels(kept), _row(1, 2, 2))
    assert kept.notes == ("liver by anna was kept, except 1 voxels that are marked differently now.",)


def test_an_organ_that_is_covered_whole_is_said_to_be_gone() -> None:
    kept = _merge(_row(2, 2, 2), _info({"spleen": 2}, "ben"), _row(1, 1, 0), _info({"liver": 1}, "anna"))
    assert kept.organs == ()
    assert kept.notes == ("liver by anna was kept, except 2 voxels that are marked differently now.",)


def test_of_an_organ_that_both_marked_the_new_one_holds() -> None:
    kept = _merge(_row(0, 1, 1), _info({"liver": 1}, "ben"), _row(1, 1, 0), _info({"liver": 1}, "anna"))
    np.testing.assert_array_equal(_voxels(kept), _row(0, 1, 1))
    assert kept.notes == ("liver by anna was replaced; the earlier version is kept on the server.",)


def test_authors_may_clear_what_is_their_own() -> None:
    earlier = _info({"liver": 1, "kidney": 3}, "ben", authors={"liver": "anna", "kidney": "ben"})
    kept = _merge(_row(0, 0, 2), _info({"spleen": 2}, "ben"), _row(1, 3, 0), earlier)
    np.testing.assert_array_equal(_voxels(kept), _row(1, 0, 2))
    assert kept.organs == ("liver",)


def test_whoever_has_no_name_is_another_one() -> None:
    kept = _merge(_row(0, 0, 2), _info({"spleen": 2}, ""), _row(1, 1, 0), _info({"liver": 1}, ""))
    assert kept.notes == ("liver by an unnamed annotator was kept.",)


def test_an_organ_that_was_looked_for_and_is_not_there_is_cleared() -> None:
    info = _info({"liver": 1, "spleen": 2}, "ben", slices=[0])
    kept = _merge(_row(0, 0, 2), info, _row(1, 1, 0), _info({"liver": 1}, "anna"))
    np.testing.assert_array_equal(_voxels(kept), _row(0, 0, 2))


def test_overlaps_of_the_other_annotator_survive() -> None:
    """A tumour inside a liver, in two layers."""
    earlier = LabelMap((_row(1, 1, 1, 0), _row(0, 7, 0, 0)))
    info = _info({"liver": 1, "tumour": 7}, "anna")
    kept = merge_concurrent_labels(
        LabelMap((_row(0, 0, 2, 2),)), {"spleen": 2}, _info({"spleen": 2}, "ben"), "ben", earlier, info, LABELS
    )
    masks = {name: kept.label_map.mask(value).ravel().tolist() for name, value in kept.values.items()}
    assert masks == {
        "spleen": [False, False, True, True],
        "liver": [True, True, False, False],
        "tumour": [False, True, False, False],
    }
    assert kept.notes == (
        "liver by anna was kept, except 1 voxels that are marked differently now.",
        "tumour by anna was kept.",
    )


def test_names_in_the_earlier_file_hold_where_nothing_was_said() -> None:
    """One that was laid into the folder by hand."""
    earlier = LabelMap((_row(1, 0),), {1: "tumour"})
    kept = merge_concurrent_labels(
        LabelMap((_row(0, 2),)), {"spleen": 2}, _info({"spleen": 2}, "ben"), "ben", earlier, read_label_info({}), LABELS
    )
    assert kept.values == {"spleen": 2, "tumour": 3}
