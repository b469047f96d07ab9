"""What a site does with the organ model over weeks."""

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


def test_a_candidate_that_is_better_is_served(segmenter: OrganSegmenter, new_labelled: New, tmp_path: Path) -> None:
    progress: list[tuple[int, int, float]] = []
    memory = tmp_path / "split.json"
    given = volumes(new_labelled, 3)
    outcome = adapt_and_publish_organ(segmenter, "heart", given, QUICK, memory, lambda *now: progress.append(now))
    assert (outcome["version"], outcome["status"]) == ("v0001", "published"), outcome["reason"]
    assert outcome["after"] > 0.5 > outcome["before"]
    assert segmenter.served("heart") == "v0001"
    assert not memory.exists(), "of few nobody has a role, see the next test"
    assert progress[-1][:2] == (4 * 15, 4 * 15)  # three that leave one out, and one of all
    assert not segmenter.store.checkpoint_folder("heart").exists()
    record = segmenter.store.record("heart", "v0001")
    assert "patient 0" not in json.dumps(record)

    again = adapt_and_publish_organ(segmenter, "heart", given, QUICK, memory)
    assert (again["version"], "Nothing has changed" in again["reason"]) == ("v0001", True)


def test_roles_are_shared_with_the_other_method_once_patients_are_not_few(
    segmenter: OrganSegmenter, new_labelled: New, tmp_path: Path
) -> None:
    memory = tmp_path / "split.json"
    given = volumes(new_labelled, 6)
    few = plan_organ_adaptation(segmenter.model, "heart", given, QUICK, memory)
    assert (len(few.split.training), few.split.held_back) == (6, ())
    held_back = split_patients(given, memory).held_back  # The other method has slices of them, several each.
    assert len(held_back) == 1
    more = {patient: [volume, volume] for patient, volume in zip(given, map(new_labelled, range(6)), strict=True)}
    assert plan_organ_adaptation(segmenter.model, "heart", more, QUICK, memory).split.held_back == held_back
    other = tmp_path / "other.json"
    plan_organ_adaptation(segmenter.model, "heart", more, QUICK, other)
    assert set(json.loads(other.read_text())) == {patient_hash(patient) for patient in given}


def test_one_volume_trains_and_stays_unverified(segmenter: OrganSegmenter, new_labelled: New) -> None:
    outcome = adapt_and_publish_organ(segmenter, "heart", volumes(new_labelled, 1), QUICK)
    assert outcome["status"] == "unverified"
    assert "Label a volume of another patient" in outcome["reason"]
    assert segmenter.served("heart") is None
    again = adapt_and_publish_organ(segmenter, "heart", volumes(new_labelled, 1), QUICK)
    assert (again["version"], "Nothing has changed" in again["reason"]) == ("v0001", True)


def test_a_run_that_is_broken_off_goes_on_and_comes_to_the_same(
    segmenter: OrganSegmenter, new_labelled: New, tmp_path: Path
) -> None:
    given = volumes(new_labelled, 2)
    paused = 0

    def count() -> None:
        nonlocal paused
        paused += 1

    def stop() -> None:
        count()
        if paused > 40:  # in the second of three fits
            raise KeyboardInterrupt

    adapt_and_publish_organ(segmenter, "unbroken", given, QUICK, wait=count)
    whole, paused = paused, 0
    with pytest.raises(KeyboardInterrupt):
        adapt_and_publish_organ(segmenter, "broken", given, QUICK, wait=stop)
    store = segmenter.store
    assert store.versions("broken") == []
    assert list(store.checkpoint_folder("broken").glob("*.pt"))
    paused = 0
    adapt_and_publish_organ(segmenter, "broken", given, QUICK, wait=count)
    assert paused < whole
    assert not store.checkpoint_folder("broken").exists()
    weights = [store.file(organ, "v0001").read_bytes() for organ in ("unbroken", "broken")]
    heads = [int.from_bytes(content[:8], "little") + 8 for content in weights]
    assert weights[0][heads[0] :] == weights[1][heads[1] :]


def test_a_candidate_is_compared_with_what_is_served(segmenter: OrganSegmenter, new_labelled: New) -> None:
    first = {patient: result for patient, result in volumes(new_labelled, 3).items() if patient != "patient 2"}
    adapt_and_publish_organ(segmenter, "heart", first, QUICK)
    segmenter.store.publish("heart", "v0001")
    outcome: dict[str, Any] = adapt_and_publish_organ(segmenter, "heart", volumes(new_labelled, 3), QUICK)
    assert outcome["version"] == "v0002"
    assert outcome["against_served"] is not None  # on the patient who came since
    assert len(segmenter.store.record("heart", "v0002")["seen_patients"]) == 3


def test_a_served_adapter_that_is_broken_is_trained_anew(segmenter: OrganSegmenter, new_labelled: New) -> None:
    given = volumes(new_labelled, 2)
    adapt_and_publish_organ(segmenter, "heart", given, QUICK)
    segmenter.store.publish("heart", "v0001")
    segmenter.store.file("heart", "v0001").write_bytes(b"junk")
    outcome = adapt_and_publish_organ(
        segmenter, "heart", given, OrganSettings("linear_probe", epochs=2, crop=12, seed=1)
    )
    assert (outcome["version"], outcome["against_served"]) == ("v0002", None)


@pytest.mark.parametrize(
    ("settings", "given", "message"),
    [(OrganSettings("lora"), 1, "this model has none"), (QUICK, 0, "no labels of heart to train on")],
)
def test_what_cannot_be_trained_is_refused(
    segmenter: OrganSegmenter, new_labelled: New, settings: OrganSettings, given: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        adapt_and_publish_organ(segmenter, "heart", volumes(new_labelled, given), settings)


def test_a_full_disk_ends_it_with_a_sentence(
    segmenter: OrganSegmenter, new_labelled: New, monkeypatch: pytest.MonkeyPatch
) -> None:
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
def test_settings_that_cannot_be_used(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        OrganSettings(**wrong)
