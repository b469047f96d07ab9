"""The training loop, on features of which one marks the organ."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from baps.errors import InputError
from baps.fseft.adapters import FewShotAdapter, build_adapter
from baps.fseft.fitting import Example, FitSettings, fit
from baps.fseft.fitting.fit import _forward
from baps.fseft.losses import dice_loss
from baps.fseft.models import FoundationModel

SETTINGS = FitSettings(learning_rate=0.1, epochs=40, crop=6)


def _example(seed: int = 0, voxels: int = 3) -> Example:
    """Make 64 features of noise, the first of which is high in a cube of the organ."""
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


def test_fit_generalises(unet: FoundationModel) -> None:
    adapter = build_adapter("linear_probe", unet, "heart")
    before = _dice(adapter, _example(1))
    fitted = fit(adapter, [_example(0), _example(2)], SETTINGS)
    assert fitted.losses[-1] < 0.5 * fitted.losses[0]
    assert _dice(adapter, _example(1)) > before + 0.3
    assert fitted.penalties == ()
    assert not adapter.training


def test_fit_is_fixed_by_the_seed(unet: FoundationModel) -> None:
    settings = replace(SETTINGS, epochs=3)
    runs = []
    for seed in (0, 0, 1):
        adapter = build_adapter("spatial_pointwise", unet, "liver")
        runs.append((fit(adapter, [_example()], replace(settings, seed=seed)), adapter.state_dict()))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(value, runs[1][1][key]) for key, value in runs[0][1].items())
    assert runs[0][0] != runs[2][0]


def test_learning_rate_follows_a_cosine(unet: FoundationModel, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_fit_ends_on_a_plateau(unet: FoundationModel) -> None:
    fitted = fit(
        build_adapter("linear_probe", unet, "liver"),
        [_example()],
        replace(SETTINGS, learning_rate=1e-9, crop=0, epochs=60),
    )
    assert len(fitted.losses) == 30


def test_unlabelled_slices_are_ignored(unet: FoundationModel) -> None:
    """The image and the label of these slices do not change the fit."""
    labelled = torch.zeros(1, 10, 9, 8, dtype=torch.bool)
    labelled[..., 2:5] = True
    example = _example()
    changed = replace(example, inputs=torch.where(labelled, example.inputs, 7.0), target=example.target & labelled)
    states = []
    for volume in (example, changed):
        adapter = build_adapter("linear_probe", unet, "liver")
        fit(adapter, [replace(volume, labelled=labelled)], replace(SETTINGS, epochs=4, crop=0))
        states.append(adapter.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_size_of_the_organ_in_query_volumes_is_constrained(unet: FoundationModel) -> None:
    """In a volume where everything looks like the organ, only the size prevents a full mask."""
    example = _example()
    brighter = example.inputs.clone()
    brighter[0] += 3
    sizes = []
    for unlabelled in ([], [brighter, brighter]):
        adapter = build_adapter("linear_probe", unet, "heart")
        settings = replace(SETTINGS, epochs=80, weight=1.0)
        fitted = fit(adapter, [example], settings, unlabelled)
        with torch.no_grad():
            sizes.append(float(adapter(brighter[None]).sigmoid().sum()))
    expected = int(example.target.sum())
    assert len(fitted.penalties) == len(fitted.losses) - 40
    assert abs(sizes[1] - expected) < 0.5 * abs(sizes[0] - expected)
    assert fitted.penalties[-1] < fitted.penalties[0]


def test_plateau_is_ignored_before_the_middle(unet: FoundationModel) -> None:
    adapter = build_adapter("linear_probe", unet, "liver")
    settings = replace(SETTINGS, learning_rate=1e-9, crop=0, epochs=80)
    assert len(fit(adapter, [_example()], settings, [_example(1).inputs]).losses) == 70


def test_model_is_fitted_on_images(unet: FoundationModel) -> None:
    """The model's decoder is fitted on whole small images."""
    target = torch.zeros(1, 16, 16, 16, dtype=torch.bool)
    target[0, 4:10, 4:10, 4:10] = True
    image = 0.5 * target.float() + 0.2 * torch.rand((1, 16, 16, 16), generator=torch.Generator().manual_seed(0))
    adapter = build_adapter("decoder", unet, "heart")
    frozen = {k: v.detach().clone() for k, v in adapter.named_parameters() if not v.requires_grad}
    fitted = fit(adapter, [Example(image, target)], FitSettings(learning_rate=1e-3, epochs=8, crop=16))
    assert fitted.losses[-1] < fitted.losses[0] - 0.1
    assert frozen
    assert all(torch.equal(value, adapter.get_parameter(key)) for key, value in frozen.items())


def test_many_cubes_give_the_gradient_of_all_at_once(unet: FoundationModel) -> None:
    """Cubes go through the model two at a time, and the step is that of one batch."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((5, 1, 16, 16, 16), generator=generator)
    target = (torch.rand(images.shape, generator=generator) < 0.2).float()
    sizes: list[int] = []
    gradients = []
    for run in (lambda adapter: adapter(images), lambda adapter: _forward(adapter, images)):
        adapter = build_adapter("bias", unet, "liver")
        adapter.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
        dice_loss(run(adapter).sigmoid(), target).backward()
        gradients.append({name: value.grad for name, value in adapter.trainable_parameters().items()})
    assert sizes[0] == 5
    assert max(sizes[1:]) == 2
    for name, gradient in gradients[0].items():
        assert gradient is not None
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-6)


def test_brightness_of_images_is_augmented(unet: FoundationModel) -> None:
    """A fifth of the images change by up to a tenth, as MONAI does with the authors' settings."""
    images, generator = torch.full((500, 1, 2, 2, 2), 0.5), torch.Generator().manual_seed(0)
    augment = build_adapter("decoder", unet, "liver").augment(images, generator)
    assert torch.equal(augment, augment[..., :1, :1, :1].expand_as(augment)), "all voxels of an image are shifted alike"
    shifts = (augment[:, 0, 0, 0, 0] - 0.5)[augment[:, 0, 0, 0, 0] != 0.5]
    assert 70 < len(shifts) < 130
    assert -0.1 <= shifts.min() < -0.08
    assert 0.08 < shifts.max() <= 0.1


def test_inputs_are_augmented(unet: FoundationModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapter augments them, with random numbers from the seed of the fit."""
    adapter = build_adapter("linear_probe", unet, "liver")
    seen_values: list[float] = []

    def augment(inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        seen_values.append(float(torch.rand((), generator=generator)))
        return inputs

    monkeypatch.setattr(adapter, "augment", augment)
    for _ in range(2):
        fit(adapter, [_example()], replace(SETTINGS, epochs=2))
    assert len(seen_values) == 4
    assert len(set(seen_values)) == 2


def test_progress_is_reported_and_can_stop_the_fit(unet: FoundationModel) -> None:
    heard: list[tuple[int, float]] = []

    def progress(epoch: int, dice: float) -> None:
        heard.append((epoch, dice))
        if epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(build_adapter("linear_probe", unet, "liver"), [_example()], SETTINGS, progress=progress)
    assert [epoch for epoch, _ in heard] == [1, 2, 3]


def test_fit_without_labels_is_refused(unet: FoundationModel) -> None:
    with pytest.raises(InputError, match="no labelled volume"):
        fit(build_adapter("linear_probe", unet, "liver"), [], SETTINGS)
