"""Adaptation of a 3D black box, on volumes where it leaks into a neighbour."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from baps.adapters.volumes.adapter import VolumeAdapter
from baps.errors import BapsError, InputError
from baps.evaluation.labelled_volumes import VolumesByPatient
from baps.evaluation.splits import patient_hash
from baps.imaging.metrics import dice
from baps.imaging.windowing import Window
from baps.prompts.simulated_volumes import draw_volume_prompts
from baps.training.adapt import Adaptation
from baps.training.volumes.adapt import adapt_volumes, plan_volume_adaptation
from baps.training.volumes.settings import VolumeSettings
from tests.support.flood import FloodBlackBox, leaky_volume

TONE = VolumeSettings(head="none", max_predictions=150, learning_rate=0.15)


def test_patients_who_were_not_seen_are_segmented_better(volumes: VolumesByPatient) -> None:
    black_box = FloodBlackBox()
    result = adapt_volumes(black_box, volumes, TONE)
    assert black_box.images_queried == result.record["black_box_images"] <= 150
    assert result.comparison is not None
    assert result.comparison.gain > 0.1
    assert "visual prompt" in result.record["parts"]
    scores = []
    for patient in range(20, 25):
        new = leaky_volume(patient)
        (prompt,) = draw_volume_prompts(new.target, new.image.spacing, "click", 1, np.random.default_rng(patient))
        for adapter in (None, result.adapter):
            answer = (
                adapter.predict(black_box, new.image, [prompt])
                if adapter
                else black_box.predict(new.image.voxels, new.image.spacing, [prompt])
            )
            scores.append(dice(answer > 0.5, new.target))
    before, after = np.mean(scores[::2]), np.mean(scores[1::2])
    assert after > before + 0.1


@pytest.mark.slow
def test_a_head_alone_brings_something_too(volumes: VolumesByPatient) -> None:
    result = adapt_volumes(FloodBlackBox(), volumes, VolumeSettings(visual_prompt="none", max_predictions=60))
    assert result.comparison is not None
    assert result.comparison.gain > 0.05
    assert "head" in result.record["parts"]


@pytest.mark.usefixtures("short_heads")
def test_an_interrupted_training_goes_on_and_ends_the_same(volumes: VolumesByPatient, tmp_path: Path) -> None:
    settings = VolumeSettings(max_predictions=90)
    whole = adapt_volumes(FloodBlackBox(), volumes, settings, log=tmp_path / "whole.jsonl")

    class Lost(FloodBlackBox):
        def _predict(self, *arguments):  # type: ignore[no-untyped-def]
            if self.images_queried > 30:
                raise BapsError("The server is gone.")
            return super()._predict(*arguments)

    log = tmp_path / "log.jsonl"
    with pytest.raises(BapsError, match="gone"):
        adapt_volumes(Lost(), volumes, settings, log=log)
    again = FloodBlackBox()
    resumed = adapt_volumes(again, volumes, settings, log=log)
    assert again.images_queried <= whole.record["black_box_images"] - 30 + 2 * settings.batch_size
    assert equal(whole, resumed)
    assert resumed.record["replayed_images"] >= 29


def equal(first: Adaptation[VolumeAdapter], second: Adaptation[VolumeAdapter]) -> bool:
    left, right = first.adapter.state_dict(), second.adapter.state_dict()
    return (
        left.keys() == right.keys()
        and all(torch.equal(left[name], right[name]) for name in left)
        and first.record["scores"] == second.record["scores"]
    )


@pytest.mark.usefixtures("short_heads")
@pytest.mark.parametrize(("optimiser", "limit"), [("prompt_space", 45), ("spsa_gc", 91)])
def test_no_more_predictions_than_allowed(volumes: VolumesByPatient, optimiser: str, limit: int) -> None:
    black_box = FloodBlackBox()
    result = adapt_volumes(black_box, volumes, VolumeSettings(max_predictions=limit, optimiser=optimiser))
    assert black_box.images_queried == result.record["black_box_images"] <= limit
    assert black_box.budget is None


@pytest.mark.usefixtures("short_heads")
def test_corrections_are_not_asked_for_a_head_that_is_dropped(volumes: VolumesByPatient) -> None:
    result = adapt_volumes(FloodBlackBox(), volumes, VolumeSettings(visual_prompt="none", max_predictions=60))
    assert "head" not in result.record["parts"]
    assert result.record["black_box_images"] < 60
    assert any("predictions were not made" in note for note in result.record["notes"])


@pytest.mark.usefixtures("short_heads")
def test_the_record_is_json_without_names(volumes: VolumesByPatient) -> None:
    result = adapt_volumes(FloodBlackBox(), volumes, VolumeSettings(max_predictions=60))
    text = json.dumps(result.record)
    assert "patient 0" not in text
    assert set(result.record["scores"]["candidate"]) == {patient_hash(one) for one in volumes}
    assert "patients" in result.sentence()
    assert result.record["adapter"] == result.adapter.to_dict()


@pytest.mark.usefixtures("short_heads")
def test_one_patient_is_not_judged(volumes: VolumesByPatient) -> None:
    name, one = next(iter(volumes.items()))
    result = adapt_volumes(FloodBlackBox(), {name: one}, VolumeSettings(max_predictions=60))
    assert result.comparison is None
    assert result.scores.candidate == {}
    assert result.adapter.width is not None
    assert result.adapter.head is not None
    assert result.adapter.tone is None


@pytest.mark.usefixtures("short_heads")
def test_volumes_that_were_annotated_on_some_slices_only(volumes: VolumesByPatient) -> None:
    annotated = np.zeros(24, bool)
    annotated[9:15] = True
    some = {
        patient: [replace(one, target=one.target & annotated, annotated=annotated)]
        for patient, (one,) in list(volumes.items())[:3]
    }
    result = adapt_volumes(FloodBlackBox(), some, VolumeSettings(max_predictions=40))
    name, (one,) = next(iter(some.items()))
    (prompt,) = draw_volume_prompts(one.target, one.image.spacing, "click", 1, np.random.default_rng(0))
    mask = FloodBlackBox().predict(one.image.voxels, one.image.spacing, [prompt]) > 0.5
    expected = dice(mask[..., 9:15], one.target[..., 9:15])
    assert result.record["scores"]["unadapted"][patient_hash(name)] == pytest.approx(expected, abs=1e-3)


def test_plans_depend_on_data_settings_and_model(volumes: VolumesByPatient) -> None:
    plans = [
        plan_volume_adaptation(FloodBlackBox(), volumes, TONE),
        plan_volume_adaptation(FloodBlackBox(), volumes, VolumeSettings()),
        plan_volume_adaptation(FloodBlackBox(), dict(list(volumes.items())[:4]), TONE),
    ]
    assert len({plan.fingerprint for plan in plans}) == 3
    assert plans[0].fingerprint == plan_volume_adaptation(FloodBlackBox(), volumes, TONE).fingerprint


def test_refusals(volumes: VolumesByPatient) -> None:
    with pytest.raises(InputError, match="no labels to train on"):
        adapt_volumes(FloodBlackBox(), {}, TONE)
    with pytest.raises(InputError, match="too few to judge"):
        adapt_volumes(FloodBlackBox(), volumes, VolumeSettings(max_predictions=5))
    for wrong in ({"zoom": "big"}, {"max_predictions": 0}, {"learning_rate": float("nan")}, {"prompt": "lasso"}):
        with pytest.raises(InputError):
            VolumeSettings(**wrong)  # type: ignore[arg-type]


def test_plans_depend_on_what_else_is_known_of_volumes(volumes: VolumesByPatient) -> None:
    """Otherwise an old log, or an old candidate, would be taken for one of the data as they are now."""
    name, (one,) = next(iter(volumes.items()))
    some = np.ones(24, bool)
    some[0] = False
    flat = one.image.voxels.reshape(44, 48, 24)
    changed = [
        one,
        replace(one, image=replace(one.image, spacing=(1.0, 1.0, 2.5))),
        replace(one, image=replace(one.image, window=Window(0, 200))),
        replace(one, annotated=some),
        replace(one, image=replace(one.image, voxels=flat), target=one.target.reshape(44, 48, 24)),
    ]
    plans = {plan_volume_adaptation(FloodBlackBox(), {name: [each]}, TONE).fingerprint for each in changed}
    assert len(plans) == len(changed)


def test_several_patients_are_never_left_unjudged(volumes: VolumesByPatient) -> None:
    with pytest.raises(InputError, match="too few to judge"):
        adapt_volumes(FloodBlackBox(), volumes, VolumeSettings(max_predictions=16))
    assert adapt_volumes(FloodBlackBox(), volumes, VolumeSettings(max_predictions=17, head="none")).comparison


@pytest.mark.usefixtures("short_heads")
def test_several_prompts_on_a_volume_are_no_new_evidence(volumes: VolumesByPatient) -> None:
    first, second, third = (one for (one,) in list(volumes.values())[:3])
    result = adapt_volumes(
        FloodBlackBox(), {"a": [first, second], "b": [third]}, VolumeSettings(max_predictions=60, head="none")
    )
    assert result.comparison is not None
    assert (result.comparison.unit, result.comparison.count) == ("volume", 3)
    assert "over 3 volumes" in result.sentence()
