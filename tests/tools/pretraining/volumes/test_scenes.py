"""The procedural volumes and their prompts."""

from __future__ import annotations

import torch

from baps.blackbox.volumes.bundled_network import CHANNELS, SIDE, VolumeNetwork, network_input
from tools.pretraining.volumes.bundled import cube_loss
from tools.pretraining.volumes.prompts import draw_volume_targets
from tools.pretraining.volumes.scenes import draw_volume_scenes, smooth_noise


def test_scenes_are_the_same_for_the_same_seed_and_have_objects() -> None:
    first, second = (draw_volume_scenes(torch.Generator().manual_seed(3), 2, 32) for _ in range(2))
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.regions, second.regions)
    assert torch.isfinite(first.images).all()
    assert all(len(torch.unique(one)) > 2 for one in first.regions)
    other = draw_volume_scenes(torch.Generator().manual_seed(4), 2, 32)
    assert not torch.equal(first.images, other.images)


def test_noise_has_unit_spread() -> None:
    noise = smooth_noise(torch.Generator().manual_seed(0), 20, 32, 6)
    assert noise.shape == (20, 32, 32, 32)
    assert 0.6 < float(noise.std()) < 1.6


def test_prompts_mark_the_targets() -> None:
    generator = torch.Generator().manual_seed(1)
    kinds = set()
    for _ in range(12):
        scenes = draw_volume_scenes(generator, 2, 32)
        drawn = draw_volume_targets(generator, scenes, 2)
        assert drawn.targets.shape == drawn.region.shape == (len(drawn.scene), 32, 32, 32)
        for target, mask, positive, negative, region in zip(
            drawn.targets, drawn.masks, drawn.positive, drawn.negative, drawn.region, strict=True
        ):
            assert target.any()
            assert (positive <= target).all()
            assert not (negative * target).any()
            assert positive.any() or region.any() or mask.any()
            if region.any():
                assert (region * target).any()
            kinds.add((bool(mask.any()), bool(positive.any()), bool(negative.any()), bool(region.any())))
    assert len(kinds) > 4


def test_a_step_lowers_the_loss_of_its_own_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    scenes = draw_volume_scenes(generator, 1, SIDE)
    drawn = draw_volume_targets(generator, scenes, 1)
    inputs = network_input(scenes.images[drawn.scene], drawn.masks, drawn.positive, drawn.negative, drawn.region)
    assert inputs.shape == (1, len(CHANNELS), SIDE, SIDE, SIDE)
    network = VolumeNetwork()
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
    losses = []
    for _ in range(4):
        loss = cube_loss(network(inputs)[:, 0], drawn.targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
