"""The loop, on features of which one tells the organ."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from baps.errors import InputError
from baps.fseft.adapters import FewShotAdapter, build_adapter
from baps.fseft.fitting import Example, FitSettings, fit
from baps.fseft.models import FoundationModel

SETTINGS = FitSettings(learning_rate=0.1, epochs=40, crop=6)


def _example(seed: int = 0, voxels: int = 3) -> Example:
    """64 features of noise; the first is high in a cube of the organ."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn((64, 10, 9, 8), generator=generator)
    target = torch.zeros(1, 10, 9, 8, dtype=torch.bool)
    target[0, 2 : 2 + voxels, 2 : 2 + voxels, 2 : 2 + voxels] = True
    inputs[0] += 4 * target[0]
    return Example(inputs, target)


def _dice(adapter: FewShotAdapter, example: Example) -> float:
    with torch.no_grad():
        mask = adapter(example.inputs[None])[0] > 0
    return 2 * int((mask & example.target).sum()) / (int(mask.sum()) + int(example.target.sum()))


def test_it_learns_and_generalises(unet: FoundationModel) -> None:
    adapter = build_adapter("linear_probe", unet, "heart")
    before = _dice(adapter, _example(1))
    fitted = fit(adapter, [_example(0), _example(2)], SETTINGS)
    assert fitted.losses[-1] < 0.5 * fitted.losses[0]
    assert _dice(adapter, _example(1)) > before + 0.3
    assert fitted.penalties == ()
    assert not adapter.training


def test_a_seed_tells_the_fit(unet: FoundationModel) -> None:
    settings = replace(SETTINGS, epochs=3)
    runs = []
    for seed in (0, 0, 1):
        adapter = build_adapter("spatial_pointwise", unet, "liver")
        runs.append((fit(adapter, [_example()], replace(settings, seed=seed)), adapter.state_dict()))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(value, runs[1][1][key]) for key, value in runs[0][1].items())
    assert runs[0][0] != runs[2][0]


def test_the_rate_falls_along_a_cosine(unet: FoundationModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def watched(self: torch.optim.AdamW) -> None:
        rates.append(self.param_groups[0]["lr"])
        assert self.param_groups[0]["weight_decay"] == 0
        step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    fit(build_adapter("linear_probe", unet, "liver"), [_example()], replace(SETTINGS, epochs=8, learning_rate=0.02))
    expected = 0.01 * (1 + torch.cos(torch.pi * torch.arange(8) / 8))
    torch.testing.assert_close(torch.tensor(rates), expected)


def test_it_ends_on_a_plateau(unet: FoundationModel) -> None:
    fitted = fit(
        build_adapter("linear_probe", unet, "liver"),
        [_example()],
        replace(SETTINGS, learning_rate=1e-9, crop=0, epochs=60),
    )
    assert len(fitted.losses) == 30


def test_unlabelled_slices_teach_nothing(unet: FoundationModel) -> None:
    """What stands there, image or label, does not change the fit."""
    labelled = torch.zeros(1, 10, 9, 8, dtype=torch.bool)
    labelled[..., 2:5] = True
    example = _example()
    other = replace(example, inputs=torch.where(labelled, example.inputs, 7.0), target=example.target & labelled)
    states = []
    for each in (example, other):
        adapter = build_adapter("linear_probe", unet, "liver")
        fit(adapter, [replace(each, labelled=labelled)], replace(SETTINGS, epochs=4, crop=0))
        states.append(adapter.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_the_size_of_query_volumes_is_held(unet: FoundationModel) -> None:
    """In a volume where everything looks like the organ, the size alone says that it is not."""
    example = _example()
    brighter = example.inputs.clone()
    brighter[0] += 3
    sizes = []
    for queries in ([], [brighter, brighter]):
        adapter = build_adapter("linear_probe", unet, "heart")
        settings = replace(SETTINGS, epochs=60, weight=1.0)
        fitted = fit(adapter, [example], settings, queries)
        with torch.no_grad():
            sizes.append(float(adapter(brighter[None]).sigmoid().sum()))
    expected = int(example.target.sum())
    assert len(fitted.penalties) == len(fitted.losses) - 30
    assert abs(sizes[1] - expected) < 0.5 * abs(sizes[0] - expected)
    assert fitted.penalties[-1] < fitted.penalties[0]


def test_before_the_middle_no_plateau_is_looked_for(unet: FoundationModel) -> None:
    adapter = build_adapter("linear_probe", unet, "liver")
    settings = replace(SETTINGS, learning_rate=1e-9, crop=0, epochs=80)
    assert len(fit(adapter, [_example()], settings, [_example(1).inputs]).losses) == 70


def test_a_model_is_tuned_on_images(unet: FoundationModel) -> None:
    """Its own decoder, on whole small images."""
    target = torch.zeros(1, 16, 16, 16, dtype=torch.bool)
    target[0, 4:10, 4:10, 4:10] = True
    image = 0.5 * target.float() + 0.2 * torch.rand((1, 16, 16, 16), generator=torch.Generator().manual_seed(0))
    adapter = build_adapter("decoder", unet, "heart")
    frozen = {k: v.detach().clone() for k, v in adapter.named_parameters() if not v.requires_grad}
    fitted = fit(adapter, [Example(image, target)], FitSettings(learning_rate=1e-3, epochs=8, crop=16))
    assert fitted.losses[-1] < fitted.losses[0] - 0.1
    assert frozen
    assert all(torch.equal(value, adapter.get_parameter(key)) for key, value in frozen.items())


def test_images_are_made_brighter_or_darker(unet: FoundationModel) -> None:
    """Half of them, by up to a tenth."""
    images, generator = torch.full((200, 1, 2, 2, 2), 0.5), torch.Generator().manual_seed(0)
    augment = build_adapter("decoder", unet, "liver").augment(images, generator)
    assert torch.equal(augment, augment[..., :1, :1, :1].expand_as(augment)), "all voxels of an image are shifted alike"
    shifts = (augment[:, 0, 0, 0, 0] - 0.5)[augment[:, 0, 0, 0, 0] != 0.5]
    assert 70 < len(shifts) < 130
    assert -0.1 <= shifts.min() < -0.08
    assert 0.08 < shifts.max() <= 0.1


def test_what_is_shown_is_varied(unet: FoundationModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the adapter, with the numbers that the seed of the fit gives."""
    adapter = build_adapter("linear_probe", unet, "liver")
    shown: list[float] = []

    def augment(inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        shown.append(float(torch.rand((), generator=generator)))
        return inputs

    monkeypatch.setattr(adapter, "augment", augment)
    for _ in range(2):
        fit(adapter, [_example()], replace(SETTINGS, epochs=2))
    assert len(shown) == 4
    assert len(set(shown)) == 2


def test_progress_is_told_and_may_stop_it(unet: FoundationModel) -> None:
    heard: list[tuple[int, float]] = []

    def progress(epoch: int, dice: float) -> None:
        heard.append((epoch, dice))
        if epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(build_adapter("linear_probe", unet, "liver"), [_example()], SETTINGS, progress=progress)
    assert [epoch for epoch, _ in heard] == [1, 2, 3]


def test_without_a_label_there_is_nothing_to_learn(unet: FoundationModel) -> None:
    with pytest.raises(InputError, match="no labelled volume"):
        fit(build_adapter("linear_probe", unet, "liver"), [], SETTINGS)
