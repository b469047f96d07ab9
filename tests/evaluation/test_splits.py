from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baps.evaluation.splits import MAX_GROUPS, Split, patient_hash, split_patients


@given(st.sets(st.text(min_size=1), min_size=2, max_size=20))
def test_every_patient_is_left_out_once_and_trained_on_otherwise(patients: set[str]) -> None:
    split = split_patients(patients)
    assert sorted(patient for group in split.groups for patient in group) == sorted(patients)
    assert 2 <= len(split.groups) <= MAX_GROUPS
    for training, held_out in split.folds:
        assert training
        assert held_out
        assert sorted(training + held_out) == sorted(patients)
    assert split.evaluation == "leave some out"


def test_the_order_of_the_patients_does_not_matter() -> None:
    assert split_patients("abcdef") == split_patients("fedcba") == split_patients("abcdefabc")


@pytest.mark.parametrize("patients", ["", "a"])
def test_a_single_patient_is_in_no_group(patients: str) -> None:
    split = split_patients(patients)
    assert split == Split(tuple(patients))
    assert (split.folds, split.evaluation) == ([], "none, one patient only")


def test_hashes_reveal_no_patient_and_stay_the_same() -> None:
    assert patient_hash("patient 0") == patient_hash("patient 0") != patient_hash("patient 1")
    assert len(patient_hash("a")) == 16
    assert int(patient_hash("a"), 16)
