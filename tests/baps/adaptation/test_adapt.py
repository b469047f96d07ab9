"""Adaptation end to end on a cheap black box that a brighter image helps."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from baps.adaptation.adapt import Adaptation, ProgressReport, adapt
from baps.adaptation.cases import LabelledSlice
from baps.adaptation.scoring import score_slices
from baps.adaptation.settings import AdaptationSettings
from baps.adaptation.splitting import patient_hash, split_patients
from baps.blackbox import BlackBox
from baps.errors import BudgetSpentError, InputError
from baps.visual_prompt import image_statistics

Slices = Callable[..., dict[str, list[LabelledSlice]]]
SETTINGS = AdaptationSettings(
    max_images=1200, batch=8, curve_points=2, curve_slices=4, click_sets=2, check_slices=3, rate=0.05
)


def _same(one: Adaptation, other: Adaptation) -> bool:
    first, second = one.visual_prompt.state_dict(), other.visual_prompt.state_dict()
    records = [{key: value for key, value in made.record.items() if key != "seconds"} for made in (one, other)]
    return all(torch.equal(first[key], second[key]) for key in first) and records[0] == records[1]


def test_it_helps_patients_that_were_held_back(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    slices = dim_slices(6)
    black_box = new_black_box()
    result = adapt(black_box, slices, SETTINGS)
    assert result.verdict is not None
    assert result.verdict.better
    assert result.verdict.before < 0.1
    assert result.verdict.after > 0.8
    assert result.verdict.gain > 0.7
    assert result.record["check"] == "held back"
    assert result.curve[-1].dice > result.curve[0].dice + 0.5


@pytest.mark.parametrize("patients", [1, 3, 5])
def test_images_asked_stay_within_the_bound(
    new_black_box: Callable[..., Any], dim_slices: Slices, patients: int
) -> None:
    black_box = new_black_box()
    result = adapt(black_box, dim_slices(patients), replace(SETTINGS, max_images=700))
    assert 500 < black_box.images_asked <= 700
    assert result.record["black_box_images"] == black_box.images_asked


def test_a_second_adaptation_has_its_own_budget(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    black_box = new_black_box()
    settings = replace(SETTINGS, max_images=300)
    first = adapt(black_box, dim_slices(5), settings)
    second = adapt(black_box, dim_slices(5), settings)
    assert _same(first, second)
    assert black_box.budget is None


def test_the_budget_of_the_black_box_comes_back_after_an_error(
    new_black_box: Callable[..., Any], dim_slices: Slices
) -> None:
    black_box = new_black_box()
    black_box.budget = 5000
    with pytest.raises(InputError, match="do not suffice"):
        adapt(black_box, dim_slices(5), replace(SETTINGS, max_images=20))
    assert black_box.budget == 5000


def test_patients_held_back_are_asked_in_the_check_alone(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    """Every patient's organ lies in a cell of its own, so a click tells whose slice was asked."""
    slices = dim_slices(6)
    (judge,) = split_patients(slices).held_back
    black_box = new_black_box()
    adapt(black_box, slices, SETTINGS)
    judged = []
    for _, prompts in black_box.asked:
        for prompt in prompts:
            ((x, y),) = prompt.positive
            if any(piece.truth[int(y), int(x)] for piece in slices[judge]):
                judged.append(prompt)
    # Three slices, two sets of clicks, with and without the adapter; other clicks than the training curve has.
    again = new_black_box()
    for _ in range(2):
        score_slices(again, None, [slices[judge][row] for row in (0, 2, 3)], "click", SETTINGS.seed + 1, 2)
    assert judged == [prompt for _, prompts in again.asked for prompt in prompts]
    assert len(judged) == 3 * 2 * 2


def test_three_patients_are_left_out_in_turn(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    told: list[ProgressReport] = []
    result = adapt(new_black_box(), dim_slices(3), replace(SETTINGS, max_images=2500), progress=told.append)
    assert result.record["check"] == "leave one out"
    assert result.verdict is not None
    assert (result.verdict.unit, result.verdict.count) == ("patient", 3)
    assert result.verdict.better
    assert result.record["held_back_patients"] == []
    assert len(result.record["training_patients"]) == 3  # type: ignore[arg-type]
    # Three runs for the check and one on everyone.
    shares = [now.step / now.steps for now in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert [now.images for now in told] == sorted(now.images for now in told)
    assert 0 <= told[0].dice <= 1


def test_the_candidate_of_few_patients_is_trained_on_all(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    """The curve is that of the last run, whose slices are those of both patients."""
    slices = dim_slices(2, each=2)
    black_box = new_black_box()
    result = adapt(black_box, slices, replace(SETTINGS, max_images=600, curve_slices=100))
    assert result.curve[0].images == 4


def test_one_patient_is_not_judged(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    result = adapt(new_black_box(), dim_slices(1), replace(SETTINGS, max_images=500))
    assert result.verdict is None
    assert result.record["verdict"] is None
    assert result.record["check"] == "none, one patient only"
    assert result.curve[-1].dice > 0.8


@pytest.mark.parametrize("patients", [3, 5])
def test_the_same_seed_gives_the_same_to_the_last_bit(
    new_black_box: Callable[..., Any], dim_slices: Slices, patients: int
) -> None:
    settings = replace(SETTINGS, max_images=500)
    one, same = (adapt(new_black_box(), dim_slices(patients), settings) for _ in range(2))
    other = adapt(new_black_box(), dim_slices(patients), replace(settings, seed=1))
    assert _same(one, same)
    assert not _same(one, other)
    assert one.verdict == same.verdict
    assert one.curve == same.curve


def test_the_published_method(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    settings = replace(SETTINGS, visual_prompt="concat", condition="click", optimiser="spsa_gc", max_images=300)
    one, same = (adapt(new_black_box(), dim_slices(5), settings) for _ in range(2))
    assert _same(one, same)
    assert (one.visual_prompt.kind, one.visual_prompt.conditioned_on_click) == ("concat", True)
    assert one.verdict is not None


def test_the_record_can_be_kept_and_names_nobody(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    slices = dim_slices(6)
    black_box = new_black_box()
    result = adapt(black_box, slices, SETTINGS)
    text = json.dumps(result.record)
    assert json.loads(text) == result.record
    assert "patient 1" not in text
    split = split_patients(slices)
    assert result.record["training_patients"] == [patient_hash(p) for p in split.training]
    assert result.record["held_back_patients"] == [patient_hash(p) for p in split.held_back]
    assert result.record["black_box"] == {"name": "brightness", "weights_sha256": "b" * 64, "input_side": 32}
    assert result.record["settings"]["seed"] == 0  # type: ignore[index]
    assert result.record["slices"] == 24
    assert result.record["windows"] == [{"low": 0, "high": 255, "source": "given"}]
    assert [point.images for point in result.curve] == [pair[0] for pair in result.record["curve"]]  # type: ignore[attr-defined]


def test_the_record_of_a_single_judged_slice_is_json(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    result = adapt(new_black_box(), dim_slices(5, each=1), replace(SETTINGS, max_images=300))
    assert result.verdict is not None
    assert result.verdict.count == 1
    json.dumps(result.record, allow_nan=False)


def test_roles_are_remembered(new_black_box: Callable[..., Any], dim_slices: Slices, tmp_path: Path) -> None:
    memory = tmp_path / "split.json"
    settings = replace(SETTINGS, max_images=400)
    first = adapt(new_black_box(), dim_slices(5), settings, memory)
    second = adapt(new_black_box(), dim_slices(8), settings, memory)
    assert set(first.record["held_back_patients"]) <= set(second.record["held_back_patients"])  # type: ignore[call-overload]
    assert set(first.record["training_patients"]) <= set(second.record["training_patients"])  # type: ignore[call-overload]


def test_nothing_to_train_on(new_black_box: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="no labels to train on"):
        adapt(new_black_box(), {}, SETTINGS)


def test_a_black_box_that_fails_gives_its_budget_back(
    new_black_box: Callable[..., Any], dim_slices: Slices, monkeypatch: pytest.MonkeyPatch
) -> None:
    black_box = new_black_box()

    def fail(*_: object) -> None:
        raise BudgetSpentError("no more")

    monkeypatch.setattr(black_box, "_segment", fail)
    with pytest.raises(BudgetSpentError):
        adapt(black_box, dim_slices(5), SETTINGS)
    assert black_box.budget is None


def test_on_the_bundled_black_box(bundled: BlackBox, dim_slices: Slices) -> None:
    """Few steps on the real thing: it runs, counts, and changes images within their range."""
    slices = dim_slices(2, each=2, side=bundled.capabilities.input_side)
    before = bundled.images_asked
    result = adapt(bundled, slices, replace(SETTINGS, batch=2, max_images=120, curve_slices=2))
    assert 0 < bundled.images_asked - before <= 120
    assert result.verdict is not None
    piece = slices["patient 0"][0]
    pixels = torch.from_numpy(piece.image[None]).permute(0, 3, 1, 2).float()
    prompts = []
    changed = result.visual_prompt.change(pixels, image_statistics(pixels), prompts)
    assert 0 <= float(changed.min()) <= float(changed.max()) <= 255
    assert not torch.equal(changed, pixels)
    assert score_slices(bundled, result.visual_prompt, [piece], "click", 0, 1).shape == (1, 1)


def test_a_smaller_budget_of_the_black_box_holds(new_black_box: Callable[..., Any], dim_slices: Slices) -> None:
    black_box = new_black_box()
    black_box.budget = 100
    with pytest.raises(BudgetSpentError):
        adapt(black_box, dim_slices(5), replace(SETTINGS, max_images=400))
    assert black_box.images_asked <= 100
