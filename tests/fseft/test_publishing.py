"""Training of the organ model at a site over weeks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from baps.errors import BapsError, InputError
from baps.evaluation.splits import patient_hash, split_patients
from baps.fseft.adaptation import OrganSettings, plan_organ_adaptation
from baps.fseft.predictor import OrganSegmenter
from baps.fseft.publishing import adapt_and_publish_organ
from baps.fseft.volumes import LabelledVolume

New = Callable[[int], LabelledVolume]

QUICK = OrganSettings(method="linear_probe", learning_rate=0.03, epochs=15, crop=12)


def volumes(new_labelled: New, count: int) -> dict[str, list[LabelledVolume]]:
    result = map(new_labelled, range(count))
    return {volume.patient: [volume] for volume in result}


def test_better_candidate_is_served(segmenter: OrganSegmenter, new_labelled: New, tmp_path: Path) -> None:
    progress: list[tuple[int, int, float]] = []
    memory = tmp_path / "split.json"
    volumes_by_patient = volumes(new_labelled, 3)
    outcome = adapt_and_publish_organ(
        segmenter, "heart", volumes_by_patient, QUICK, memory, lambda *now: progress.append(now)
    )
    assert (outcome["version"], outcome["status"]) == ("v0001", "published"), outcome["reason"]
    assert outcome["after"] > 0.5 > outcome["before"]
    assert segmenter.served("heart") == "v0001"
    assert not memory.exists(), "of few nobody has a role, see the next test"
    assert progress[-1][:2] == (4 * 15, 4 * 15)  # Three fits that leave one patient out, and one on all.
    assert not segmenter.store.checkpoint_folder("heart").exists()
    record = segmenter.store.record("heart", "v0001")
    assert "patient 0" not in json.dumps(record)

    again = adapt_and_publish_organ(segmenter, "heart", volumes_by_patient, QUICK, memory)
    assert (again["version"], "Nothing has changed" in again["reason"]) == ("v0001", True)


def test_roles_are_shared_with_the_other_method_for_many_patients(
    segmenter: OrganSegmenter, new_labelled: New, tmp_path: Path
) -> None:
    memory = tmp_path / "split.json"
    volumes_by_patient = volumes(new_labelled, 6)
    few = plan_organ_adaptation(segmenter.model, "heart", volumes_by_patient, QUICK, memory)
    assert (len(few.split.training), few.split.held_back) == (6, ())
    held_back = split_patients(
        volumes_by_patient, memory
    ).held_back  # The other method has several slices of each patient.
    assert len(held_back) == 1
    more = {
        patient: [volume, volume]
        for patient, volume in zip(volumes_by_patient, map(new_labelled, range(6)), strict=True)
    }
    assert plan_organ_adaptation(segmenter.model, "heart", more, QUICK, memory).split.held_back == held_back
    other_file = tmp_path / "other.json"
    plan_organ_adaptation(segmenter.model, "heart", more, QUICK, other_file)
    assert set(json.loads(other_file.read_text())) == {patient_hash(patient) for patient in volumes_by_patient}


def test_one_volume_stays_unverified(segmenter: OrganSegmenter, new_labelled: New) -> None:
    outcome = adapt_and_publish_organ(segmenter, "heart", volumes(new_labelled, 1), QUICK)
    assert outcome["status"] == "unverified"
    assert "Label a volume of another patient" in outcome["reason"]
    assert segmenter.served("heart") is None
    again = adapt_and_publish_organ(segmenter, "heart", volumes(new_labelled, 1), QUICK)
    assert (again["version"], "Nothing has changed" in again["reason"]) == ("v0001", True)


def test_interrupted_run_resumes_to_the_same_result(
    segmenter: OrganSegmenter, new_labelled: New, tmp_path: Path
) -> None:
    volumes_by_patient = volumes(new_labelled, 2)
    paused = 0

    def count() -> None:
        nonlocal paused
        paused += 1

    def stop() -> None:
        count()
        if paused > 40:  # In the second of three fits.
            raise KeyboardInterrupt

    adapt_and_publish_organ(segmenter, "unbroken", volumes_by_patient, QUICK, wait=count)
    epochs, paused = paused, 0
    with pytest.raises(KeyboardInterrupt):
        adapt_and_publish_organ(segmenter, "broken", volumes_by_patient, QUICK, wait=stop)
    store = segmenter.store
    assert store.versions("broken") == []
    assert list(store.checkpoint_folder("broken").glob("*.pt"))
    paused = 0
    adapt_and_publish_organ(segmenter, "broken", volumes_by_patient, QUICK, wait=count)
    assert paused < epochs
    assert not store.checkpoint_folder("broken").exists()
    weights = [store.file(organ, "v0001").read_bytes() for organ in ("unbroken", "broken")]
    heads = [int.from_bytes(content[:8], "little") + 8 for content in weights]
    assert weights[0][heads[0] :] == weights[1][heads[1] :]


def test_candidate_is_compared_with_the_served_version(segmenter: OrganSegmenter, new_labelled: New) -> None:
    first = {patient: result for patient, result in volumes(new_labelled, 3).items() if patient != "patient 2"}
    adapt_and_publish_organ(segmenter, "heart", first, QUICK)
    segmenter.store.publish("heart", "v0001")
    outcome: dict[str, Any] = adapt_and_publish_organ(segmenter, "heart", volumes(new_labelled, 3), QUICK)
    assert outcome["version"] == "v0002"
    assert outcome["against_served"] is not None  # On the new patient.
    assert len(segmenter.store.record("heart", "v0002")["seen_patients"]) == 3


def test_damaged_served_adapter_is_trained_again(segmenter: OrganSegmenter, new_labelled: New) -> None:
    volumes_by_patient = volumes(new_labelled, 2)
    adapt_and_publish_organ(segmenter, "heart", volumes_by_patient, QUICK)
    segmenter.store.publish("heart", "v0001")
    segmenter.store.file("heart", "v0001").write_bytes(b"junk")
    outcome = adapt_and_publish_organ(
        segmenter, "heart", volumes_by_patient, OrganSettings("linear_probe", epochs=2, crop=12, seed=1)
    )
    assert (outcome["version"], outcome["against_served"]) == ("v0002", None)


@pytest.mark.parametrize(
    ("settings", "volumes_by_patient", "message"),
    [(OrganSettings("lora"), 1, "this model has none"), (QUICK, 0, "no labels of heart to train on")],
)
def test_invalid_organs_are_refused(
    segmenter: OrganSegmenter, new_labelled: New, settings: OrganSettings, volumes_by_patient: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        adapt_and_publish_organ(segmenter, "heart", volumes(new_labelled, volumes_by_patient), settings)


def test_full_disk_is_reported(segmenter: OrganSegmenter, new_labelled: New, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("baps.fseft.fitting.checkpoint.torch.save", full)
    with pytest.raises(BapsError, match="Free some space and train again"):
        adapt_and_publish_organ(segmenter, "heart", volumes(new_labelled, 1), QUICK)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "magic"}, "Known ones"),
        ({"decoder": True}, "cannot train the decoder"),
        ({"epochs": 0}, "epochs"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_invalid_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        OrganSettings(**wrong)
