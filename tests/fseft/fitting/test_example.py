from __future__ import annotations

import pytest
import torch

from baps.errors import InputError
from baps.fseft.fitting import Example, mean_organ_size


def _example(voxels: int, labelled_slices: int = 4) -> Example:
    target = torch.zeros(1, 4, 4, 4, dtype=torch.bool)
    target.view(-1)[:voxels] = True
    labelled = torch.zeros_like(target)
    labelled[:, :labelled_slices] = True
    return Example(torch.zeros(2, 4, 4, 4), target, labelled)


def test_size_is_the_mean_of_complete_labels() -> None:
    assert mean_organ_size([_example(10), _example(15), _example(50, labelled_slices=3)]) == 12.5


@pytest.mark.parametrize("examples", [[_example(20, labelled_slices=3)], [_example(0)]])
def test_unknown_size_is_refused(examples: list[Example]) -> None:
    with pytest.raises(InputError, match="labelled completely"):
        mean_organ_size(examples)


def test_other_grids_are_refused() -> None:
    mask = torch.zeros(1, 4, 4, 5, dtype=torch.bool)
    with pytest.raises(InputError, match="on the same grid"):
        Example(torch.zeros(2, 4, 4, 4), mask)
    with pytest.raises(InputError, match="masks .* of bool"):
        Example(torch.zeros(2, 4, 4, 5), mask.float())
    with pytest.raises(InputError, match="no labelled voxel"):
        Example(torch.zeros(2, 4, 4, 5), mask, mask)
