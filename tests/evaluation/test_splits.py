from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baps.evaluation.splits import MAX_CROSS_VALIDATED, MAX_CROSS_VALIDATED_SINGLE, Split, patient_hash, split_patients

PATIENTS = [f"patient {number}" for number in range(40)]


@given(st.sets(st.text(max_size=8), min_size=1, max_size=40))
def test_every_patient_has_one_role(patients: set[str]) -> None:
    split = split_patients(patients)
    assert set(split.training) | set(split.held_back) == patients
    assert not set(split.training) & set(split.held_back)
    assert len(split.training) + len(split.held_back) == len(patients)
    assert split.training
    if len(patients) > MAX_CROSS_VALIDATED:
        assert 1 <= len(split.held_back) <= 0.3 * len(patients)
    else:
        assert not split.held_back


@given(st.permutations(PATIENTS[:9]))
def test_split_does_not_depend_on_the_order(patients: list[str]) -> None:
    assert split_patients(patients) == split_patients(PATIENTS[:9])
    assert split_patients(patients + patients) == split_patients(PATIENTS[:9])


def test_patients_are_ordered_by_hash() -> None:
    split = split_patients(PATIENTS[:10])
    ordered = sorted(PATIENTS[:10], key=patient_hash)
    assert split.held_back == tuple(ordered[:2])
    assert split.training == tuple(ordered[2:])


def test_a_hash_does_not_name_the_patient() -> None:
    assert len({patient_hash(patient) for patient in PATIENTS}) == len(PATIENTS)
    assert patient_hash("Doe^Jane") == patient_hash("Doe^Jane")
    assert "Doe" not in patient_hash("Doe^Jane")


@pytest.mark.parametrize(("count", "held"), [(5, 1), (7, 1), (8, 2), (10, 2), (20, 4), (40, 8)])
def test_a_fifth_is_held_back(count: int, held: int) -> None:
    assert len(split_patients(PATIENTS[:count]).held_back) == held


def test_one_patient_has_no_fold() -> None:
    assert split_patients(["a"]).folds == []


@pytest.mark.parametrize("count", [2, 3, 4])
def test_few_patients_are_left_out_in_turn(count: int) -> None:
    folds = split_patients(PATIENTS[:count]).folds
    assert len(folds) == count
    assert {judging for _, judging in folds} == {(patient,) for patient in PATIENTS[:count]}
    for training, (out,) in folds:
        assert set(training) == set(PATIENTS[:count]) - {out}


def test_many_patients_have_one_fold() -> None:
    split = split_patients(PATIENTS[:6])
    assert split.folds == [(split.training, split.held_back)]
    assert Split(("a", "b"), ("c",)).folds == [(("a", "b"), ("c",))]


def test_roles_stay_when_patients_are_added(tmp_path: Path) -> None:
    memory = tmp_path / "new" / "split.json"
    held: set[str] = set()
    training: set[str] = set()
    for count in range(5, 41):
        split = split_patients(PATIENTS[:count], memory)
        assert held <= set(split.held_back)
        assert training <= set(split.training)
        held, training = set(split.held_back), set(split.training)
    assert len(held) == 8


def test_roles_stay_when_patients_are_removed(tmp_path: Path) -> None:
    memory = tmp_path / "split.json"
    everyone = split_patients(PATIENTS[:20], memory)
    some = [patient for patient in PATIENTS[:20] if patient != everyone.held_back[0]]
    assert set(split_patients(some, memory).held_back) == set(everyone.held_back[1:])
    assert split_patients(PATIENTS[:20], memory) == everyone


def test_another_patient_is_held_back_if_all_are_gone(tmp_path: Path) -> None:
    memory = tmp_path / "split.json"
    everyone = split_patients(PATIENTS[:10], memory)
    rest = split_patients(everyone.training, memory)
    assert len(rest.held_back) == 1
    assert set(rest.training) == set(everyone.training) - set(rest.held_back)
    assert split_patients(everyone.training, memory) == rest


def test_only_held_back_patients_are_left_out_in_turn(tmp_path: Path) -> None:
    memory = tmp_path / "split.json"
    everyone = split_patients(PATIENTS[:30], memory)
    assert len(everyone.held_back) > MAX_CROSS_VALIDATED
    held_back_only = split_patients(everyone.held_back, memory)
    assert (held_back_only.training, held_back_only.held_back) == (everyone.held_back, ())
    assert sorted(p for group in held_back_only.groups for p in group) == sorted(everyone.held_back)
    assert len(held_back_only.folds) == MAX_CROSS_VALIDATED
    assert split_patients(PATIENTS[:30], memory) == everyone


def test_memory_names_no_patient(tmp_path: Path) -> None:
    memory = tmp_path / "split.json"
    split = split_patients(PATIENTS[:10], memory)
    roles = json.loads(memory.read_text())
    assert {patient_hash(p): "held back" for p in split.held_back}.items() <= roles.items()
    assert {patient_hash(p): "training" for p in split.training}.items() <= roles.items()
    assert "patient" not in memory.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["split.json"]


def test_patients_trained_on_early_are_not_held_back_later(tmp_path: Path) -> None:
    memory = tmp_path / "split.json"
    for count in range(1, MAX_CROSS_VALIDATED + 1):
        assert split_patients(PATIENTS[:count], memory).held_back == ()
    assert json.loads(memory.read_text()) == {patient_hash(p): "training" for p in PATIENTS[:MAX_CROSS_VALIDATED]}
    newcomer = PATIENTS[MAX_CROSS_VALIDATED]
    five = split_patients(PATIENTS[: MAX_CROSS_VALIDATED + 1], memory)
    assert five.held_back == (newcomer,)
    assert set(five.training) == set(PATIENTS[:MAX_CROSS_VALIDATED])
    for count in range(MAX_CROSS_VALIDATED + 2, 41):
        split = split_patients(PATIENTS[:count], memory)
        assert not set(split.held_back) & set(PATIENTS[:MAX_CROSS_VALIDATED])
        assert newcomer in split.held_back


def test_few_patients_without_a_memory_write_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    split_patients(PATIENTS[:MAX_CROSS_VALIDATED])
    assert list(tmp_path.iterdir()) == []


def test_same_patients_give_the_same_split_in_the_same_order(tmp_path: Path) -> None:
    """The training depends on the split; another order would give another training."""
    memory = tmp_path / "split.json"
    for count in range(1, 41):
        assert split_patients(PATIENTS[:count], memory) == split_patients(PATIENTS[:count], memory)


@given(st.lists(st.sets(st.sampled_from(PATIENTS[:9]), min_size=1), min_size=1, max_size=6))
def test_trained_patients_are_held_back_only_if_no_new_ones_exist(tmp_path: Path, visits: list[set[str]]) -> None:
    """A trained patient is held back only if there is neither a held-back nor a new patient."""
    memory = tmp_path / "split.json"
    memory.unlink(missing_ok=True)
    trained: set[str] = set()
    judged: set[str] = set()
    for patients in visits:
        split = split_patients(patients, memory)
        again = split_patients(patients, memory)
        assert again == split
        if (set(split.held_back) & trained) - judged:
            assert patients <= trained
            assert not patients & judged
        trained |= set(split.training)
        judged |= set(split.held_back)


def _hashes(patients: Iterable[str]) -> frozenset[str]:
    return frozenset(map(patient_hash, patients))


def test_latest_new_patient_is_compared_too(tmp_path: Path) -> None:
    memory = tmp_path / "split.json"
    first = split_patients(PATIENTS[:6], memory)
    known = _hashes(first.training)
    for count in range(7, 40):
        always = split_patients(PATIENTS[:count], memory)
        split = split_patients(PATIENTS[:count], memory, known)
        last = PATIENTS[count - 1]
        assert set(split.held_back) == {*always.held_back, last}
        assert set(split.training) == set(always.training) - {last}
        assert split == split_patients(PATIENTS[:count], memory, known)
        assert split_patients(PATIENTS[:count], memory) == always
        # Publishing the result and training again changes nothing: the latest patient is still new to it.
        assert split_patients(PATIENTS[:count], memory, known | _hashes(split.training)) == split


def test_without_new_patients_the_same_are_held_back(tmp_path: Path) -> None:
    memory = tmp_path / "split.json"
    first = split_patients(PATIENTS[:10], memory)
    assert split_patients(PATIENTS[:10], memory, _hashes(first.training)) == first


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("known", [1, 2, 3, 4])
def test_of_few_patients_the_new_ones_are_left_out_in_turn(tmp_path: Path, count: int, known: int) -> None:
    split = split_patients(PATIENTS[:count], tmp_path / "split.json", _hashes(PATIENTS[:known]))
    assert set(split.training) == set(PATIENTS[:count])
    assert set(split.groups) == {(patient,) for patient in PATIENTS[known:count] or PATIENTS[:count]}
    assert split.folds == [(tuple(p for p in split.training if p != out), (out,)) for (out,) in split.groups]


@pytest.mark.parametrize("count", range(2, MAX_CROSS_VALIDATED_SINGLE + 1))
def test_of_few_pictures_a_quarter_is_left_out_in_turn(count: int) -> None:
    split = split_patients(PATIENTS[:count], max_cross_validated=MAX_CROSS_VALIDATED_SINGLE)
    assert (set(split.training), split.held_back) == (set(PATIENTS[:count]), ())
    assert len(split.folds) == min(count, MAX_CROSS_VALIDATED)
    judging = [patient for _, judges in split.folds for patient in judges]
    assert sorted(judging) == sorted(PATIENTS[:count])
    for training, judges in split.folds:
        assert set(training) == set(PATIENTS[:count]) - set(judges)
        assert len(judges) in (count // MAX_CROSS_VALIDATED, -(-count // MAX_CROSS_VALIDATED))


def test_of_more_pictures_at_least_three_are_held_back() -> None:
    split = split_patients(PATIENTS[: MAX_CROSS_VALIDATED_SINGLE + 1], max_cross_validated=MAX_CROSS_VALIDATED_SINGLE)
    assert len(split.held_back) == 3


def test_one_patient_is_left_for_training(tmp_path: Path) -> None:
    """All others were held back for another label; the only patient to train on came last."""
    memory = tmp_path / "split.json"
    everyone = split_patients(PATIENTS[:40], memory)
    held, newcomer = everyone.held_back, "newcomer"
    memory.write_text(json.dumps({**json.loads(memory.read_text()), patient_hash(newcomer): "training"}))
    split = split_patients([*held, newcomer], memory, _hashes(everyone.training))
    assert split.training == (newcomer,)
    assert set(split.held_back) == set(held)
