"""The head of volumes and its features."""

from __future__ import annotations

import torch

from baps.adapters.volumes.features import GRID, VOLUME_FEATURES, volume_head_features
from baps.adapters.volumes.head import VolumeHead

SIDE = 64


def inputs(positive: bool = True, region: bool = False) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    image, probability = (torch.rand((1, SIDE, SIDE, SIDE), generator=generator) for _ in range(2))
    marks = torch.zeros((3, 1, SIDE, SIDE, SIDE))
    if positive:
        marks[0, 0, 20, 30, 40] = 1
    marks[1, 0, 5, 6, 7] = 1
    if region:
        marks[2, 0, 10:40, 12:30, 20:50] = 1
    return (image, probability, *marks)


def test_features_have_the_declared_shape_and_about_unit_scale() -> None:
    for kind in ({}, {"region": True}, {"positive": False, "region": True}):
        features = volume_head_features(*inputs(**kind))
        assert features.shape == (1, VOLUME_FEATURES, GRID, GRID, GRID)
        assert torch.isfinite(features).all()
        assert features.abs().max() < 20


def test_features_have_no_direction() -> None:
    """Turned input gives turned features."""
    parts = inputs(region=True)
    turned = [one.permute(0, 3, 1, 2).flip(-1) for one in parts]
    expected = volume_head_features(*parts).permute(0, 1, 4, 2, 3).flip(-1)
    assert torch.allclose(volume_head_features(*turned), expected, atol=1e-4)


def test_distances_are_measured_from_the_marks() -> None:
    near = volume_head_features(*inputs())[0, 17]
    assert near.flatten().argmin() == (10 * GRID + 15) * GRID + 20
    assert torch.isclose(near[10, 15, 28] * 16, torch.tensor(8.0))


def test_the_mask_to_be_corrected_is_told_from_no_mask() -> None:
    parts = inputs()
    start = torch.zeros((1, SIDE, SIDE, SIDE), dtype=torch.bool)
    start[0, :32] = True
    without, with_mask = volume_head_features(*parts), volume_head_features(*parts, start)
    assert torch.equal(without[:, :-1], with_mask[:, :-1])
    assert (without[:, -1] == 0).all()
    assert (with_mask[0, -1, :16] == 1).all()
    assert (with_mask[0, -1, 16:] == -1).all()


def test_an_untrained_head_changes_nothing() -> None:
    parts = inputs()
    probability = parts[1].clamp(0.01, 0.99)
    refined = VolumeHead().eval().refine(volume_head_features(*parts), probability)
    assert torch.allclose(refined, probability, atol=1e-5)
