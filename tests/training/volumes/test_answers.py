"""What a 3D black box is asked for heads to learn from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from baps.adapters.volumes.adapter import VolumeAdapter
from baps.evaluation.labelled_volumes import LabelledVolume, VolumesByPatient
from baps.prompts.volume_prompts import VolumeBox, VolumePoint
from baps.training.query_log import QueryLog
from baps.training.volumes.answers import CubeAnswer, ask_corrections, ask_first_prompts
from tests.support.flood import FloodBlackBox

WIDTH = 60.0


@pytest.fixture
def every(volumes: VolumesByPatient) -> list[LabelledVolume]:
    return [one for patient in volumes.values() for one in patient]


@pytest.fixture
def black_box() -> FloodBlackBox:
    return FloodBlackBox()


def first(
    black_box: FloodBlackBox, every: list[LabelledVolume], width: float | None = WIDTH, kind: str = "click"
) -> list[CubeAnswer]:
    log = QueryLog(None, {}, black_box)
    return ask_first_prompts(black_box, VolumeAdapter(width), every, kind, 21, 3, log)


def test_first_prompts_are_drawn_on_all_volumes_in_cubes_of_different_widths(
    black_box: FloodBlackBox, every: list[LabelledVolume]
) -> None:
    answers = first(black_box, every)
    assert black_box.images_queried == len(answers) == 21
    assert [one.trial.volume.patient for one in answers[:5]] == [one.patient for one in every]
    widths = [one.cube.side * one.cube.step[0] for one in answers if isinstance(one.trial.prompts[0], VolumePoint)]
    assert WIDTH * np.exp(-0.3) <= min(widths) < 0.9 * WIDTH
    assert 1.1 * WIDTH < max(widths) <= WIDTH * np.exp(0.3)
    for one in answers:
        (prompt,) = one.trial.prompts
        if isinstance(prompt, VolumePoint):
            assert one.trial.volume.target[prompt.voxel]


@pytest.mark.parametrize(("kind", "other"), [("click", VolumeBox), ("box", VolumePoint)])
def test_every_fourth_prompt_is_of_the_other_kind(
    black_box: FloodBlackBox, every: list[LabelledVolume], kind: str, other: type
) -> None:
    answers = first(black_box, every, kind=kind)
    assert [isinstance(one.trial.prompts[0], other) for one in answers] == [15 <= n < 20 for n in range(21)]


def test_no_box_for_a_model_that_understands_none(black_box: FloodBlackBox, every: list[LabelledVolume]) -> None:
    black_box._capabilities = replace(black_box.capabilities, boxes=False)
    assert all(isinstance(one.trial.prompts[0], VolumePoint) for one in first(black_box, every))


@pytest.mark.parametrize("width", [WIDTH, None])
def test_corrections_are_clicks_where_the_last_mask_is_wrong(
    black_box: FloodBlackBox, every: list[LabelledVolume], width: float | None
) -> None:
    known = first(black_box, every[:2], width)
    corrected = ask_corrections(black_box, VolumeAdapter(width), known, 7, 3, QueryLog(None, {}, black_box))
    assert black_box.images_queried == 21 + len(corrected) == 28
    assert {len(one.trial.prompts) for one in corrected} == {2, 3, 4}
    for one in corrected:
        click = one.trial.prompts[-1]
        assert isinstance(click, VolumePoint)
        assert one.trial.volume.target[click.voxel] == click.include
        assert one.start is not None
        position = tuple(one.cube.positions(np.array([click.voxel]))[0].round().astype(int).tolist())
        assert one.start[position] != click.include
        assert one.view().start is not None


def test_corrections_of_annotated_slices_only(black_box: FloodBlackBox, every: list[LabelledVolume]) -> None:
    annotated = np.zeros(24, bool)
    annotated[9:15] = True
    some = [replace(one, target=one.target & annotated, annotated=annotated) for one in every[:2]]
    known = first(black_box, some)
    corrected = ask_corrections(black_box, VolumeAdapter(WIDTH), known, 9, 3, QueryLog(None, {}, black_box))
    clicks = [one.trial.prompts[-1] for one in corrected]
    assert clicks
    assert all(isinstance(click, VolumePoint) and annotated[click.voxel[2]] for click in clicks)


def test_no_corrections_for_a_model_that_does_not_understand_them(
    black_box: FloodBlackBox, every: list[LabelledVolume]
) -> None:
    known = first(black_box, every[:2])
    black_box._capabilities = replace(black_box.capabilities, negative=False)
    assert not ask_corrections(black_box, VolumeAdapter(WIDTH), known, 7, 3, QueryLog(None, {}, black_box))
