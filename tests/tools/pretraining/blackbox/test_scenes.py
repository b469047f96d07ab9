from __future__ import annotations

import pytest
import torch

from tools.pretraining.blackbox.scenes import Scenes, draw_scenes, smooth_noise


def _draw(seed: int, size: int = 64, photographs: torch.Tensor | None = None) -> Scenes:
    return draw_scenes(torch.Generator().manual_seed(seed), 3, size, photographs)


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("seed", range(4))
def test_range_and_shapes_of_scenes(seed: int, size: int) -> None:
    scenes = _draw(seed, size)
    assert scenes.images.shape == (3, 3, size, size)
    assert scenes.regions.shape == (3, size, size)
    assert bool(torch.isfinite(scenes.images).all())
    assert float(scenes.images.min()) >= 0
    assert float(scenes.images.max()) <= 255
    assert torch.equal(scenes.images, scenes.images.round())
    assert not scenes.regions.is_floating_point()
    assert int(scenes.regions.min()) >= 0


@pytest.mark.parametrize("seed", range(3))
def test_scenes_are_fixed_by_the_seed(seed: int) -> None:
    torch.manual_seed(1)
    first = _draw(seed)
    torch.manual_seed(2)
    same, different = _draw(seed), _draw(seed + 100)
    assert torch.equal(first.images, same.images)
    assert torch.equal(first.regions, same.regions)
    assert not torch.equal(first.images, different.images)
    assert not torch.equal(first.regions, different.regions)


def test_scenes_differ_and_have_objects() -> None:
    scenes = [_draw(seed) for seed in range(6)]
    images = torch.cat([scene.images for scene in scenes])
    assert float(images.std((1, 2, 3)).median()) > 10
    assert not torch.equal(images[0], images[1])
    objects = [len(region.unique()) for scene in scenes for region in scene.regions]
    assert max(objects) > 4


def test_photographs_supply_textures() -> None:
    photographs = torch.randint(0, 256, (2, 3, 80, 80), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    scenes = _draw(1, photographs=photographs)
    assert scenes.images.shape == (3, 3, 64, 64)
    assert float(scenes.images.max()) <= 255


def test_smooth_noise_is_smooth_and_of_about_unit_size() -> None:
    field = smooth_noise(torch.Generator().manual_seed(0), 200, 64, 4)
    assert field.shape == (200, 64, 64)
    assert float(field.std()) == pytest.approx(1, abs=0.3)
    assert float((field[:, 1:] - field[:, :-1]).abs().mean()) < 0.2
