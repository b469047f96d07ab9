"""The evidence of a candidate counts a patient once and reads back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baps.errors import BapsError, InputError
from baps.evaluation.evidence import EvidenceStream

ENTRIES = st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(-1, 1), st.booleans()), max_size=20)


@given(ENTRIES)
def test_a_patient_counts_once_in_order_of_arrival(entries: list[tuple[str, float, bool]]) -> None:
    stream = EvidenceStream("v0001", "sam")
    for entry in entries:
        stream.add(*entry)
    assert stream.patients == tuple(dict.fromkeys(patient for patient, _, _ in entries))
    assert len(stream) == len(stream.differences()) == len(set(stream.patients))


@given(ENTRIES)
def test_a_stream_reads_back(entries: list[tuple[str, float, bool]]) -> None:
    stream = EvidenceStream("v0001", "sam")
    for entry in entries:
        stream.add(*entry)
    again = EvidenceStream.from_dict(json.loads(json.dumps(stream.to_dict(), allow_nan=False)))
    assert again.to_dict() == stream.to_dict()
    assert again.key == stream.key


def test_a_label_that_is_submitted_again_replaces_the_difference() -> None:
    stream = EvidenceStream("v0001", "sam")
    stream.add("a", 0.1, prospective=True)
    stream.add("b", 0.2, prospective=True)
    stream.add("a", -0.1, prospective=True)
    assert stream.differences().tolist() == [-0.1, 0.2]


def test_a_patient_of_the_training_is_never_prospective() -> None:
    stream = EvidenceStream("v0001", "sam")
    stream.add("a", 0.1)
    stream.add("a", 0.9, prospective=True)
    assert stream.differences().tolist() == [0.1]
    assert stream.prospective_count == 0


def test_differences_of_chosen_patients_leave_out_those_without_evidence() -> None:
    stream = EvidenceStream("v0001", "sam")
    stream.add("a", 0.1)
    stream.add("b", 0.2)
    stream.remove("a")
    stream.remove("nobody")
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
        {"candidate": "v0001", "black_box": "sam", "patients": [["a", "much", True]]},
        {"candidate": "v0001", "black_box": "sam", "patients": [["a", 5, True]]},
        {"candidate": "v0001", "black_box": "sam", "patients": [["a", 0.1, True], ["a", 0.2, True]]},
        {"candidate": "v0001", "black_box": "sam", "patients": [["a", float("nan"), True]]},
    ],
)
def test_a_damaged_record_is_refused_with_a_sentence(record: object) -> None:
    with pytest.raises(BapsError, match="cannot be read"):
        EvidenceStream.from_dict(record)  # type: ignore[arg-type]


def test_no_patient_has_no_differences() -> None:
    assert EvidenceStream("v0001", "sam").differences().shape == (0,)
    assert EvidenceStream("v0001", "sam").differences().dtype == np.float64
