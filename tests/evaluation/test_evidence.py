"""The evidence of a candidate counts a patient once and reads back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baps.errors import BapsError, InputError
from baps.evaluation.evidence import EvidenceStream

ENTRIES = st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(-1, 1), st.sampled_from(["", "v", "w"])), max_size=20)


def stream_of(entries: list[tuple[str, float, str]]) -> EvidenceStream:
    stream = EvidenceStream("v0001", "sam")
    for patient, difference, volume in entries:
        if volume:
            stream.add_volume(patient, patient + volume, "label", difference)
        else:
            stream.add(patient, difference)
    return stream


@given(ENTRIES)
def test_a_patient_counts_once_in_order_of_arrival(entries: list[tuple[str, float, str]]) -> None:
    stream = stream_of(entries)
    assert stream.patients == tuple(dict.fromkeys(patient for patient, _, _ in entries))
    assert len(stream) == len(stream.differences()) == len(set(stream.patients))


@given(ENTRIES)
def test_a_stream_reads_back(entries: list[tuple[str, float, str]]) -> None:
    stream = stream_of(entries)
    again = EvidenceStream.from_dict(json.loads(json.dumps(stream.to_dict(), allow_nan=False)))
    assert again.to_dict() == stream.to_dict()
    assert again.key == stream.key


def test_a_label_that_is_submitted_again_replaces_the_difference() -> None:
    stream = stream_of([("a", 0.1, "v"), ("b", 0.2, "v"), ("a", -0.1, "v")])
    assert stream.differences().tolist() == [-0.1, 0.2]


def test_two_volumes_of_a_patient_are_one_patient() -> None:
    stream = stream_of([("a", 0.1, "v"), ("a", 0.3, "w")])
    assert stream.differences().tolist() == [0.2]


def test_a_patient_of_the_training_is_never_prospective() -> None:
    stream = stream_of([("a", 0.1, ""), ("a", 0.9, "v")])
    assert stream.differences().tolist() == [0.1]
    assert stream.measured() == ["cross-fitted"]


def test_what_was_measured_on_a_label_that_changed_or_is_gone_is_dropped() -> None:
    stream = stream_of([("a", 0.1, "v"), ("a", 0.3, "w"), ("b", 0.2, "v"), ("c", 0.4, ""), ("d", 0.5, "")])
    stream.remember_label("c", "cv", "label")
    stream.remember_label("nobody", "x", "label")
    assert stream.knows("av", "label")
    assert stream.knows("cv", "label")
    assert not stream.knows("av", "newer label")
    assert not stream.knows("x", "label")
    same = {"av": "label", "aw": "label", "bv": "label", "cv": "label"}
    assert stream.drop_changed(same) == stream.drop_changed({}) == 0  # What is not listed stays.
    assert stream.drop_changed({"av": "label", "aw": "newer", "bv": "", "cv": "newer"}) == 3
    assert stream.patients == ("a", "d")
    assert stream.differences().tolist() == [0.1, 0.5]


def test_differences_of_chosen_patients_leave_out_those_without_evidence() -> None:
    stream = EvidenceStream("v0001", "sam")
    stream.add("b", 0.2)
    assert stream.differences(["b", "a"]).tolist() == [0.2]
    assert "a" not in stream


def test_who_loses_is_counted() -> None:
    stream = EvidenceStream("v0001", "sam")
    assert stream.worst is None
    for number, difference in enumerate([0.3, -0.05, -0.06, -0.2]):
        stream.add(str(number), difference)
    assert stream.worse_count == 2
    assert stream.worst == -0.2


@pytest.mark.parametrize("difference", [float("nan"), float("inf"), 1.01, -2])
def test_what_is_no_difference_of_dice_is_refused(difference: float) -> None:
    stream = EvidenceStream("v0001", "sam")
    with pytest.raises(InputError, match="from -1 to 1"):
        stream.add("a", difference)
    assert not len(stream)


@pytest.mark.parametrize(
    "record",
    [
        {},
        None,
        [],
        {"candidate": "v0001", "black_box": "sam"},
        {"candidate": "v0001", "black_box": 3, "patients": []},
        {"candidate": "v0001", "black_box": "sam", "patients": [["a", 0.1]]},
        {"candidate": "v0001", "black_box": "sam", "patients": [["a", None, {}]]},
        {"candidate": "v0001", "black_box": "sam", "patients": [["a", 10**400, {}]]},
        {"candidate": "v0001", "black_box": "sam", "patients": [], "ignored": ["v"]},
        {"candidate": "v0001", "black_box": "sam", "patients": [], "ignored": {"v": 1}},
        {"candidate": "v0001", "black_box": "sam", "patients": [["a", None, {"v": ["label"]}]]},
        {"candidate": "v0001", "black_box": "sam", "patients": [["a", None, ["v"]]]},
        {"candidate": "v0001", "black_box": "sam", "patients": [["a", "much", {}]]},
        {"candidate": "v0001", "black_box": "sam", "patients": [["a", 5, {}]]},
        {"candidate": "v0001", "black_box": "sam", "patients": [["a", 0.1, {}], ["a", 0.2, {}]]},
        {"candidate": "v0001", "black_box": "sam", "patients": [["a", float("nan"), {}]]},
    ],
)
def test_a_damaged_record_is_refused_with_a_sentence(record: object) -> None:
    with pytest.raises(BapsError, match="cannot be read"):
        EvidenceStream.from_dict(record)  # type: ignore[arg-type]


def test_what_is_not_to_be_judged_is_known_after_a_restart() -> None:
    stream = EvidenceStream("v0001", "sam")
    stream.ignore("v", "label")
    again = EvidenceStream.from_dict(json.loads(json.dumps(stream.to_dict())))
    assert (again.knows("v", "label"), again.knows("v", "newer"), len(again)) == (True, False, 0)


def test_no_patient_has_no_differences() -> None:
    assert EvidenceStream("v0001", "sam").differences().shape == (0,)
    assert EvidenceStream("v0001", "sam").differences().dtype == np.float64
