from __future__ import annotations

import pytest
import torch

from baps.fseft.fitting import Example
from baps.fseft.fitting.crops import CubeSampler


def _example(labelled: torch.Tensor | None = None) -> Example:
    """Make an input whose channels hold the voxel's indices, one axis per channel."""
    inputs = torch.stack(torch.meshgrid(torch.arange(20.0), torch.arange(16.0), torch.arange(5.0), indexing="ij"))
    target = torch.zeros(1, 20, 16, 5, dtype=torch.bool)
    target[0, 2:4, 12:15, 1] = True
    return Example(inputs, target, labelled)


def test_all_tensors_are_cropped_alike() -> None:
    example, generator = _example(), torch.Generator().manual_seed(0)
    for crop in (crop for _ in range(10) for crop in CubeSampler(example, 8, 2).draw(generator)):
        assert crop.inputs.shape == (3, 8, 8, 5)
        i, j, k = (int(n) for n in crop.inputs[:, 0, 0, 0])
        assert torch.equal(crop.inputs, example.inputs[:, i : i + 8, j : j + 8, k : k + 8])
        assert torch.equal(crop.target, example.target[:, i : i + 8, j : j + 8, k : k + 8])


@pytest.mark.parametrize(("count", "around"), [(1, 1), (2, 1), (5, 3), (8, 4)])
def test_half_of_the_crops_are_around_the_organ(count: int, around: int) -> None:
    example, generator = _example(), torch.Generator().manual_seed(1)
    for _ in range(20):
        assert sum(bool(crop.target.any()) for crop in CubeSampler(example, 1, count).draw(generator)) == around


def test_crops_are_centred_on_labelled_voxels_only() -> None:
    labelled = torch.zeros(1, 20, 16, 5, dtype=torch.bool)
    labelled[..., 1] = True
    example, generator = _example(labelled), torch.Generator().manual_seed(2)
    crops = CubeSampler(example, 1, 50).draw(generator)
    assert {int(crop.inputs[2]) for crop in crops} == {1}
    assert all(bool((crop.weights == 1).all()) for crop in crops)
    (around,) = CubeSampler(example, 3, 1).draw(generator)
    assert torch.equal(around.weights > 0, around.inputs[2:] == 1)


def test_crops_without_the_organ_are_anywhere() -> None:
    example = Example(torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 4, 4, dtype=torch.bool))
    generator = torch.Generator().manual_seed(3)
    assert {tuple(crop.inputs.shape) for crop in CubeSampler(example, 2, 10).draw(generator)} == {(1, 2, 2, 2)}


def test_crop_size_0_is_the_whole_volume() -> None:
    example = _example()
    (draw,) = CubeSampler(example, 0, 2).draw(torch.Generator())
    assert (draw.inputs, draw.target) == (example.inputs, example.target)
    assert bool((draw.weights == 1).all())


def test_crops_are_fixed_by_the_seed() -> None:
    first, again, different = (
        torch.stack([crop.inputs for crop in CubeSampler(_example(), 3, 4).draw(torch.Generator().manual_seed(seed))])
        for seed in (4, 4, 9)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, different)
