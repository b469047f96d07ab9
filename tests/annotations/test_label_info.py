"""The info that is saved with a label."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from baps.annotations.label_info import (
    LabelInfo,
    label_values,
    list_annotated_slices,
    name_values,
    read_label_info,
    read_request,
    rename_info_keys,
    unnamed_values_note,
)
from baps.errors import InputError
from baps.imaging.label_map import LabelMap

SITE = {"spleen": 1, "liver": 6}
INFO = {"label_info": [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}]}


def test_names_of_the_request_override_the_sites_values() -> None:
    assert label_values(read_label_info(INFO), SITE) == {"liver": 1, "spleen": 2}


@pytest.mark.parametrize("info", [{}, {"label_info": []}, {"label_info": None}, {"ts": 1}], ids=str)
def test_site_values_apply_without_names(info: dict[str, Any]) -> None:
    values = label_values(read_label_info(info), SITE)
    assert values == SITE
    values["more"] = 3
    assert "more" not in SITE


def test_empty_info_means_a_person_drew_the_label() -> None:
    info = read_label_info({})
    assert (info.author, info.model, info.confirmed, info.slices) == ("", "", True, None)


@pytest.mark.parametrize(
    ("fields", "confirmed"),
    [
        ({"model": "baps"}, False),
        ({"model": "baps", "confirmed": True}, True),
        ({"model": "baps", "confirmed": False}, False),
        ({"model": ""}, True),
        ({"author": "anna"}, True),
        ({"author": "anna", "confirmed": False}, False),
    ],
    ids=str,
)
def test_model_mask_is_unconfirmed_unless_stated(fields: dict[str, Any], confirmed: bool) -> None:
    copy = dict(fields)
    assert read_label_info(fields).confirmed is confirmed
    assert fields == copy  # The input is unchanged.


def test_unknown_fields_are_kept_as_extra() -> None:
    segment = {"name": "spleen", "idx": 1}
    info = {"label_info": [segment], "author": "anna", "client": "Slicer", "params": {"a": [1, 2]}}
    copy = read_label_info(info).model_dump(mode="json")
    assert copy.items() >= info.items()
    assert read_label_info(copy) == read_label_info(info)


def test_info_survives_a_round_trip() -> None:
    label_info = {**INFO, "model": "baps", "slices": [3, 4]}
    info = read_label_info(label_info)
    assert not info.confirmed
    assert LabelInfo.model_validate_json(info.model_dump_json()) == info


def test_annotated_slices_survive_a_round_trip() -> None:
    fields = {"annotated_slices": {"spleen": [3, 4], "liver": []}}
    info = read_label_info(fields)
    assert info.annotated_slices == {"spleen": {3, 4}, "liver": set()}
    assert read_label_info(info.model_dump(mode="json")) == info
    assert read_label_info({}).annotated_slices is None


def test_the_key_of_version_01_is_read() -> None:
    old = {"covers": {"spleen": [3]}, "author": "anna"}
    assert rename_info_keys(old) == {"annotated_slices": {"spleen": [3]}, "author": "anna"}
    assert read_label_info(old).annotated_slices == {"spleen": {3}}
    both = {"covers": {"spleen": [3]}, "annotated_slices": {"spleen": [4]}}
    assert read_label_info(both).annotated_slices == {"spleen": {4}}
    fields, extra = read_request({"covers": {"spleen": [3]}})
    assert (fields.annotated_slices, extra) == (None, {})


def _read(fields: dict[str, Any]) -> str:
    with pytest.raises(InputError) as error:
        read_label_info(fields)
    assert str(error.value).endswith("Nothing was saved.")
    return str(error.value)


@pytest.mark.parametrize(
    "segments",
    [
        [{"name": "spleen", "idx": 1}, {"name": "spleen", "idx": 2}],
        [{"name": "spleen", "idx": 1}, {"name": "liver", "idx": 1}],
    ],
    ids=["names", "values"],
)
def test_duplicate_names_or_values_are_refused(segments: list[dict[str, Any]]) -> None:
    assert "names a label or a value twice" in _read({"label_info": segments})


@pytest.mark.parametrize(
    ("fields", "field_name"),
    [
        ({"label_info": [{"name": "", "idx": 1}]}, "label_info.0.name"),
        ({"label_info": [{"name": "x" * 101, "idx": 1}]}, "label_info.0.name"),
        ({"label_info": [{"name": "spleen", "idx": 1}, {"name": "liver", "idx": -1}]}, "label_info.1.idx"),
        ({"label_info": [{"name": "spleen", "idx": 1.5}]}, "label_info.0.idx"),
        ({"label_info": [{"name": "spleen"}]}, "label_info.0.idx"),
        ({"label_info": ["spleen"]}, "label_info.0"),
        ({"label_info": {"spleen": 1}}, "label_info"),
        ({"label_info": "spleen"}, "label_info"),
        ({"author": "x" * 201}, "author"),
        ({"author": 5}, "author"),
        ({"model": "x" * 201}, "model"),
        ({"confirmed": "perhaps"}, "confirmed"),
        ({"slices": [1, -1]}, "slices.1"),
        ({"slices": 4}, "slices"),
        ({"slices": ["first"]}, "slices.0"),
        ({"annotated_slices": [1, 2]}, "annotated_slices"),
        ({"annotated_slices": {"spleen": "all"}}, "annotated_slices.spleen"),
        ({"annotated_slices": {"spleen": ["first"]}}, "annotated_slices.spleen.0"),
    ],
    ids=str,
)
def test_malformed_info_is_refused_with_the_field(fields: dict[str, Any], field_name: str) -> None:
    assert f"({field_name}: " in _read(fields)


@pytest.fixture
def voxels() -> np.ndarray[Any, Any]:
    """Liver (6) on slices 1 and 2, spleen (1) on slice 2."""
    labels = np.zeros((4, 4, 5), np.uint8)
    labels[0, 0, 1:3] = 6
    labels[3, 3, 2] = 1
    return labels


def _covered(fields: dict[str, Any], voxels: np.ndarray[Any, Any], complete: bool = False) -> dict[str, list[int]]:
    info, result = read_label_info(fields), LabelMap((voxels,))
    return list_annotated_slices(info, result, name_values(info, result, SITE), complete)


def test_slices_default_to_marked_slices(voxels: np.ndarray[Any, Any]) -> None:
    assert _covered({}, voxels) == {"spleen": [2], "liver": [1, 2]}


def test_complete_labels_cover_all_slices(voxels: np.ndarray[Any, Any]) -> None:
    assert _covered({}, voxels, complete=True) == {name: [0, 1, 2, 3, 4] for name in SITE}
    voxels[voxels == 1] = 0  # Slicer also lists empty segments, which mean nothing.
    assert _covered({}, voxels, complete=True)["spleen"] == []
    assert _covered({"slices": [2]}, voxels, complete=True)["liver"] == [2]


def test_given_slices_apply_to_every_label(voxels: np.ndarray[Any, Any]) -> None:
    assert _covered({"slices": [4, 2, 1, 2]}, voxels) == {"spleen": [1, 2, 4], "liver": [1, 2, 4]}
    assert _covered({"slices": []}, voxels) == {"spleen": [], "liver": []}


def test_slices_belong_to_the_given_values(voxels: np.ndarray[Any, Any]) -> None:
    fields = {"label_info": [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 6}, {"name": "kidney", "idx": 9}]}
    assert _covered(fields, voxels) == {"liver": [2], "spleen": [1, 2], "kidney": []}
    assert all(type(index) is int for index in _covered(fields, voxels)["liver"])  # They can be written as JSON.


@pytest.mark.parametrize(
    ("fields", "of_file", "renumbered", "expected"),
    [
        ({}, {}, False, {"spleen": 1, "liver": 6}),
        ({}, {1: "aorta", 6: "heart"}, False, {"aorta": 1, "heart": 6}),
        ({"aorta": 1}, {1: "heart", 6: "lung"}, False, {"aorta": 1, "lung": 6}),
        ({"aorta": 1, "bone": 9}, {1: "heart", 6: "lung"}, False, {"aorta": 1, "lung": 6, "bone": 9}),
        ({"heart": 6, "lung": 1}, {1: "heart", 6: "lung"}, True, {"heart": 1, "lung": 6}),
    ],
    ids=["the site", "the file", "given by value", "given for missing values", "a value used twice in the file"],
)
def test_names_of_info_take_precedence_over_the_file(
    voxels: np.ndarray[Any, Any],
    fields: dict[str, int],
    of_file: dict[int, str],
    renumbered: bool,
    expected: dict[str, int],
) -> None:
    info = read_label_info({"label_info": [{"name": name, "idx": idx} for name, idx in fields.items()]})
    assert name_values(info, LabelMap((voxels,), of_file, renumbered), SITE) == expected


@pytest.mark.parametrize(
    ("fields", "of_file", "words"),
    [
        ({"spleen": 1}, {}, r"The values \[6\] of the label have no name \(1 is spleen\)"),
        ({}, {1: "spleen"}, r"The values \[6\] of the label have no name"),
        ({"lung": 1}, {1: "heart", 6: "lung"}, "Two segments of the label are called 'lung'"),
    ],
)
def test_every_value_needs_its_own_name(
    voxels: np.ndarray[Any, Any], fields: dict[str, int], of_file: dict[int, str], words: str
) -> None:
    info = read_label_info({"label_info": [{"name": name, "idx": idx} for name, idx in fields.items()]})
    with pytest.raises(InputError, match=words):
        name_values(info, LabelMap((voxels,), of_file), SITE)


def test_without_info_one_value_must_be_known(voxels: np.ndarray[Any, Any]) -> None:
    assert name_values(read_label_info({}), LabelMap((voxels,)), {"spleen": 1}) == {"spleen": 1}
    (note,) = unnamed_values_note(LabelMap((voxels,)), {"spleen": 1})
    assert note == "The values [6] are not labels of this site. They were kept, but are not trained on."
    with pytest.raises(InputError, match=r"The values \[1, 6\] of the label have no name"):
        name_values(read_label_info({}), LabelMap((voxels,)), {"kidney": 3})


def test_request_sets_only_allowed_fields() -> None:
    label_info = {**INFO, "author": "anna", "model": "baps", "confirmed": True, "slices": [1], "client": "Slicer"}
    ours = {
        "annotated_slices": {"a": [1]},
        "authors": {"a": "b"},
        "restored": "x",
        "found": True,
        "version": "v",
        "ts": 1,
    }
    info, extra = read_request({**label_info, **ours, "note\x1b": "\x1b[2J", "basis": {}, "disputed": {}})
    assert (info.author, info.model, info.confirmed, info.slices) == ("anna", "baps", True, [1])
    assert (info.annotated_slices, info.authors, info.basis, info.disputed) == (None, {}, {}, {})
    assert extra == {"client": "Slicer", "note": "[2J"}


def test_authors_and_models_have_no_control_characters() -> None:
    info, _ = read_request({"client_id": "\x1b[31manna\u202e", "model": "ba\x9bps", "confirmed": True})
    assert (info.author, info.model) == ("[31manna", "baps")
    assert read_request({"client_id": 5})[0].author == ""


def _nested(depth: int) -> Any:
    result: Any = 1
    for _ in range(depth):
        result = [result]
    return result


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"label_info": [{"name": "spleen\x1b", "idx": 1}]}, "cannot be shown"),
        ({"label_info": [{"name": " ", "idx": 1}]}, "cannot be shown"),
        ({"label_info": [{"name": "a\nb", "idx": 1}]}, "cannot be shown"),
        ({"label_info": [{"name": f"n{n}", "idx": n} for n in range(1025)]}, "label_info"),
        ({"slices": list(range(65537))}, "slices"),
        ({"note": "x" * 20000}, "bytes of JSON"),
        ({f"n{n}": 1 for n in range(5000)}, "bytes of JSON"),
        ({"deep": _nested(40)}, "levels"),
        ({"label_info": [{"name": "spleen", "idx": 1, "note": "x" * 20000}]}, "bytes of JSON"),
        ({"label_info": [{"name": "spleen", "idx": 1, "deep": _nested(40)}]}, "levels"),
    ],
)
def test_request_fields_are_limited(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        read_request(fields)
    assert len(str(error.value)) < 1000


def test_many_names_do_not_scan_the_volume_each(monkeypatch: pytest.MonkeyPatch, voxels: NDArray[np.uint8]) -> None:
    """One mask per name took 46 seconds on a CT."""
    monkeypatch.setattr(LabelMap, "mask", None)
    info = {"label_info": [{"name": f"n{n}", "idx": n} for n in range(1, 1001)]}
    assert _covered(info, voxels)["n6"] == [1, 2]


def test_annotated_slices_are_limited(voxels: NDArray[np.uint8]) -> None:
    info = read_label_info({"label_info": [{"name": f"n{n}", "idx": n} for n in range(1, 1001)], "slices": range(200)})
    with pytest.raises(InputError, match="Name fewer segments"):
        list_annotated_slices(info, LabelMap((voxels,)), {f"n{n}": n for n in range(1, 1001)})
