from __future__ import annotations

import pytest
import torch

from baps.fseft.fitting import Example
from baps.fseft.fitting.points import PointSampler


def _example(labelled: torch.Tensor | None = None) -> Example:
    """Make an input whose channels hold the voxel's indices, one axis per channel."""
    inputs = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in (60, 50, 4)), indexing="ij"))
    target = torch.zeros(1, 60, 50, 4, dtype=torch.bool)
    target[0, 2:6, 12:15, 1] = True
    return Example(inputs, target, labelled)


def test_points_are_drawn_from_organ_surroundings_and_rest() -> None:
    example = _example()
    (draw,) = PointSampler(example, 700).draw(torch.Generator().manual_seed(0))
    assert (draw.inputs.shape, draw.target.shape, draw.weights.shape) == ((3, 700, 1, 1), *[(1, 700, 1, 1)] * 2)
    i, j, k = draw.inputs.long()[..., 0, 0]
    assert torch.equal(example.target[0, i, j, k], draw.target[0, :, 0, 0])
    near = (i < 6 + 12) & (j < 15 + 12)
    assert [int(draw.target.sum()), int((near & ~draw.target[0, :, 0, 0]).sum()), int((~near).sum())] == [100, 300, 300]


def test_weighted_sums_equal_those_over_the_volume() -> None:
    example = _example()
    points, generator = PointSampler(example, 700), torch.Generator().manual_seed(0)
    draws = [draw for _ in range(50) for draw in points.draw(generator)]
    assert float(draws[0].weights.sum()) == pytest.approx(60 * 50 * 4)
    for axis in range(3):
        means = [float((draw.inputs[axis] * draw.weights[0]).sum()) for draw in draws]
        assert sum(means) / len(means) == pytest.approx(float(example.inputs[axis].sum()), rel=0.02)


def test_unlabelled_voxels_are_never_drawn() -> None:
    labelled = torch.zeros(1, 60, 50, 4, dtype=torch.bool)
    labelled[..., 1] = True
    (draw,) = PointSampler(_example(labelled), 700).draw(torch.Generator().manual_seed(0))
    assert set(draw.inputs[2].flatten().tolist()) == {1}
    assert float(draw.weights.sum()) == pytest.approx(60 * 50)


def test_points_of_a_volume_without_the_organ() -> None:
    example = Example(torch.zeros(2, 9, 8, 7), torch.zeros(1, 9, 8, 7, dtype=torch.bool))
    (draw,) = PointSampler(example, 70).draw(torch.Generator().manual_seed(0))
    assert not draw.target.any()
    assert float(draw.weights.sum()) == pytest.approx(9 * 8 * 7)


def test_large_regions_are_subsampled_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baps.fseft.fitting.points._MAX_VOXELS", 100)
    points, generator = PointSampler(_example(), 700), torch.Generator().manual_seed(0)
    draws = [draw for _ in range(20) for draw in points.draw(generator)]
    rest = torch.cat([draw.inputs[:, -300:, 0, 0] for draw in draws], 1).T.unique(dim=0)
    assert 90 <= len(rest) <= 100
    assert rest[:, 0].max() > 55
    assert float(draws[0].weights.sum()) == pytest.approx(60 * 50 * 4), "they stand for the others"
