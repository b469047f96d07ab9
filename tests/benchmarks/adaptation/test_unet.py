from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from baps.adapters.visual_prompt import to_tensor
from baps.evaluation.scoring import score_slices
from baps.evaluation.slices import LabelledSlice
from baps.imaging.windowing import Window
from baps.prompts import Prompt
from benchmarks.adaptation import unet
from benchmarks.adaptation.arms import Arena
from benchmarks.adaptation.unet import UNetBlackBox, network_inputs, train_unet, unet_from_scratch


def _disks(count: int, seed: int) -> list[LabelledSlice]:
    """Make slices with two bright disks, of which only one is the object."""
    random, pieces = np.random.default_rng(seed), []
    rows, columns = np.mgrid[:64, :64]
    for number in range(count):
        centres = random.permutation([[16, 14], [16, 34]]) + random.uniform(-3, 3, (2, 2))
        masks = [np.hypot(rows - y, columns - x) < 8 for y, x in centres]
        grey = np.where(masks[0] | masks[1], 170, 60) + random.normal(0, 5, (64, 64))
        image = np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, -1)
        pieces.append(LabelledSlice(f"patient {number // 4}", image, masks[0], Window(0, 255)))
    return pieces


def test_it_learns_disks_and_which_of_them_was_clicked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unet, "_SIDE", 64)
    notes: dict[str, object] = {}
    network = train_unet(_disks(16, 0), _disks(8, 1), 64, 0, notes, steps=60)
    found = score_slices(UNetBlackBox(network, 64), None, _disks(8, 2), "click", 0, 1).mean()
    assert found > 0.75  # Both disks alike would be 0.67 at best.
    assert notes["checkpoint"] in (50, 60)


def test_clicks_are_drawn_where_they_are() -> None:
    image = np.full((1, 64, 64, 3), 51, np.uint8)
    inputs = network_inputs(to_tensor(image), [Prompt(((14.0, 16.0),), ((34.0, 20.0),))])
    assert inputs.shape == (1, 5, 128, 128)
    torch.testing.assert_close(inputs[:, :3], torch.full((1, 3, 128, 128), -0.6))
    for channel, (x, y) in ((3, (14, 16)), (4, (34, 20))):
        # The centre of the pixel lies between two pixels of the network.
        assert 0.9 < inputs[0, channel, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].min() <= inputs[0, channel].max() <= 1
        assert inputs[0, channel, 2 * y + 20, 2 * x] < 0.01


def test_answers_have_the_size_of_the_image() -> None:
    model = UNetBlackBox(torch.nn.Conv2d(5, 1, 1), 64)
    answer = model.segment(np.zeros((2, 64, 64, 3), np.uint8), [Prompt(((1.0, 1.0),))] * 2)
    assert answer.shape == (2, 64, 64)


def test_it_queries_no_black_box_and_is_repeatable(
    new_black_box: Callable[..., Any], dim_slices: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unet, "_STEPS", 2)
    patients = dim_slices(4, per_patient=2)
    weights = []
    for seed in (0, 0, 1):
        arena = Arena(new_black_box(), new_black_box(), patients, [], seed, 100)
        model, adapter = unet_from_scratch(arena)
        assert adapter is None
        assert arena.black_box.images_queried == 0
        assert isinstance(model, UNetBlackBox)
        weights.append(torch.nn.utils.parameters_to_vector(model.network.parameters()))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_training_stops_early_and_keeps_the_best_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    dice = iter([0.5, 0.6, 0.4, 0.3, 0.2])
    monkeypatch.setattr(unet, "_CHECK_STEPS", 1)
    monkeypatch.setattr(unet, "_PATIENCE", 2)
    kept: list[torch.Tensor] = []

    def score(model: UNetBlackBox, *_: object) -> Any:
        kept.append(torch.nn.utils.parameters_to_vector(model.network.parameters()).detach().clone())
        return np.array([next(dice)])

    monkeypatch.setattr(unet, "score_slices", score)
    notes: dict[str, object] = {}
    network = train_unet(_disks(4, 0), _disks(2, 1), 64, 0, notes, steps=9)
    assert notes == {"steps": 4, "checkpoint": 2}
    assert torch.equal(torch.nn.utils.parameters_to_vector(network.parameters()), kept[1])
