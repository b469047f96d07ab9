"""Trying the parts of an adapter, on a black box that sees large objects alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from baps.adapters.visual_prompt import build_visual_prompt, load_encoder
from baps.evaluation.slices import LabelledSlice
from baps.imaging.windowing import Window
from baps.prompts import Prompt
from baps.training.batches import Batches
from baps.training.budget import divide_images
from baps.training.cross_fitting import Parts
from baps.training.part_training import PartTrainer
from baps.training.query_log import QueryLog
from baps.training.settings import AdaptationSettings

SIDE = 64
SETTINGS = AdaptationSettings(head="none", visual_prompt="none")


def _slices(radius: int, patients: int, each: int) -> list[LabelledSlice]:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    found = []
    for number in range(patients * each):
        target = (rows - 30 - number % 3) ** 2 + (columns - 28 - number % 5) ** 2 <= radius**2
        image = np.repeat((target * np.uint8(200))[..., None], 3, axis=-1)
        found.append(LabelledSlice(f"p{number // each}", image, target, Window(0, 255)))
    return found


@pytest.fixture
def short_sighted(new_black_box: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Answers what is bright, if it covers a fifth of what is shown and touches neither the left nor the right edge."""
    black_box = new_black_box(side=SIDE)

    def segment(images: NDArray[np.uint8], prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        bright = images[..., 0] > 100
        seen = (bright.mean((1, 2)) > 0.2) & ~(bright[:, :, 0] | bright[:, :, -1]).any(1)
        return (bright & seen[:, None, None]).astype(np.float32)

    monkeypatch.setattr(black_box, "_segment", segment)
    return black_box


def trainer(
    black_box: Any, slices: list[LabelledSlice], settings: AdaptationSettings = SETTINGS, max_images: int = 400
) -> PartTrainer:
    patients, settings = len({piece.patient for piece in slices}), replace(settings, max_images=max_images)
    budget = divide_images(max_images, patients, settings, 0, resends=False)
    return PartTrainer(
        black_box,
        Batches(slices, load_encoder()),
        settings,
        budget,
        QueryLog(None, {}, black_box),
        lambda _: (build_visual_prompt("basis"), False),
        lambda _: None,
    )


@pytest.mark.parametrize(("patients", "each"), [(4, 2), (1, 8)])
@pytest.mark.parametrize(("radius", "expected"), [(9, 0.5), (20, 1.0)])
def test_the_best_zoom_is_chosen(short_sighted: Any, radius: int, expected: float, patients: int, each: int) -> None:
    """A zoom that helps nobody is tried on a quarter of the prompts only."""
    training = trainer(short_sighted, _slices(radius, patients, each))
    adapter, parts = training.train()
    assert adapter.zoom == parts.zoom == expected
    assert parts.name == ("zoom" if expected < 1 else "unadapted")
    prompts = 400 // 8 // patients * patients
    screening = prompts // 4
    assert short_sighted.images_queried == (2 * prompts + screening if expected < 1 else prompts + 2 * screening)
    assert set(training.cross_fit.scores) == {Parts(), Parts(expected)}
    evidence, images = training.notes(parts)
    unit = "patients" if patients > 1 else "groups of slices of one patient"
    outcome = r"kept \(\+0.\d{3}\)" if expected < 1 else rf"dropped \(-0.\d{{3}} on {screening} prompts\)"
    assert re.fullmatch(rf"Gain in Dice of each part, cross-fitted on 4 {unit}: zoom {outcome}\.", evidence)
    assert images == f"Stopped early: {400 - short_sighted.images_queried} of 400 images were not queried."


def test_without_a_zoom_nothing_is_enlarged(short_sighted: Any) -> None:
    training = trainer(short_sighted, _slices(9, 4, 2), replace(SETTINGS, zoom="none"))
    adapter, parts = training.train()
    assert (adapter.zoom, parts) == (1.0, Parts())
    assert training.notes(parts) == ["Stopped early: 352 of 400 images were not queried."]
    assert short_sighted.images_queried == 48


def test_patients_are_judged_in_four_groups_and_blocks_of_one_patient_too(short_sighted: Any) -> None:
    many = trainer(short_sighted, _slices(9, 6, 2))
    assert many.cross_fit.groups.tolist() == [0, 1, 2, 3, 0, 1]
    assert many.evaluation.patients == [f"p{n}" for n in range(6)]
    one = trainer(short_sighted, _slices(9, 1, 8))
    assert one.cross_fit.groups.tolist() == [0, 1, 2, 3]
    single = trainer(short_sighted, _slices(9, 1, 1))
    assert single.cross_fit.groups.tolist() == [0]
    assert single.train()[1] == Parts()


def test_scores_are_averaged_over_the_prompts_of_a_slice(short_sighted: Any) -> None:
    training = trainer(short_sighted, _slices(9, 2, 3))  # 25 prompts of each patient on three slices.
    numbers = np.arange(50.0)
    by_patient = training.evaluation.by_patient(numbers)
    assert {patient: scores.shape for patient, scores in by_patient.items()} == {"p0": (3, 1), "p1": (3, 1)}
    first = [n for n in range(0, 50, 2) if (n // 2) % 3 == 0]
    assert by_patient["p0"][0, 0] == pytest.approx(np.mean(first))
