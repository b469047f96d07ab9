from __future__ import annotations

import pytest
import torch

from fseft.fitting import Example
from fseft.fitting.crops import Crops


def _example(labelled: torch.Tensor | None = None) -> Example:
    """Each voxel of the input holds its place, one axis a channel."""
    inputs = torch.stack(torch.meshgrid(torch.arange(20.0), torch.arange(16.0), torch.arange(5.0), indexing="ij"))
    truth = torch.zeros(1, 20, 16, 5, dtype=torch.bool)
    truth[0, 2:4, 12:15, 1] = True
    return Example(inputs, truth, labelled)


def test_all_is_cut_alike() -> None:
    example, generator = _example(), torch.Generator().manual_seed(0)
    for _ in range(20):
        crop = Crops(example, 8).draw(generator)
        assert crop.inputs.shape == (3, 8, 8, 5)
        i, j, k = (int(n) for n in crop.inputs[:, 0, 0, 0])
        assert torch.equal(crop.inputs, example.inputs[:, i : i + 8, j : j + 8, k : k + 8])
        assert torch.equal(crop.truth, example.truth[:, i : i + 8, j : j + 8, k : k + 8])


def test_half_are_around_the_organ() -> None:
    example, generator = _example(), torch.Generator().manual_seed(1)
    holds = [bool(Crops(example, 1).draw(generator).truth.any()) for _ in range(2000)]
    assert sum(holds) / len(holds) == pytest.approx(0.5, abs=0.04)


def test_only_labelled_voxels_are_cut_around() -> None:
    labelled = torch.zeros(1, 20, 16, 5, dtype=torch.bool)
    labelled[..., 1] = True
    example, generator = _example(labelled), torch.Generator().manual_seed(2)
    crops = [Crops(example, 1).draw(generator) for _ in range(50)]
    assert {int(crop.inputs[2]) for crop in crops} == {1}
    assert all(bool((crop.weights == 1).all()) for crop in crops)
    around = Crops(example, 3).draw(generator)
    assert torch.equal(around.weights > 0, around.inputs[2:] == 1)


def test_without_the_organ_any_voxel_will_do() -> None:
    example = Example(torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 4, 4, dtype=torch.bool))
    generator = torch.Generator().manual_seed(3)
    assert {tuple(Crops(example, 2).draw(generator).inputs.shape) for _ in range(10)} == {(1, 2, 2, 2)}


def test_no_side_is_the_whole() -> None:
    example = _example()
    draw = Crops(example, 0).draw(torch.Generator())
    assert (draw.inputs, draw.truth) == (example.inputs, example.truth)
    assert bool((draw.weights == 1).all())


def test_a_seed_tells_the_crop() -> None:
    example = _example()
    first, again, other = (Crops(example, 3).draw(torch.Generator().manual_seed(seed)) for seed in (4, 4, 9))
    assert torch.equal(first.inputs, again.inputs)
    assert not torch.equal(first.inputs, other.inputs)
