from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from baps.adapters.visual_prompt.local_mean import local_mean


def _pooled(x: torch.Tensor, width: int) -> torch.Tensor:
    return F.avg_pool2d(x, width, 1, width // 2, count_include_pad=False)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 9).map(lambda half: 2 * half + 1), st.integers(0, 1000))
def test_pixels_outside_the_image_are_ignored(height: int, width: int, square: int, seed: int) -> None:
    x = torch.rand((2, 3, height, width), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(local_mean(x, square), _pooled(x, square), atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", [32, 64, 1024])
@pytest.mark.parametrize("width", [3, 25])
def test_a_constant_is_unchanged(side: int, width: int) -> None:
    x = torch.full((1, 1, side, side), 0.7)
    torch.testing.assert_close(local_mean(x, width), x, atol=1e-5, rtol=0)


def test_local_mean_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0, 6.0], [4.0, 5.0, 6.0]])
    expected = torch.tensor([[3.0, 4.0, 4.75], [3.0, 4.0, 4.75]])
    torch.testing.assert_close(local_mean(x, 3), expected)


def test_square_larger_than_the_image_gives_the_mean_of_the_image() -> None:
    x = torch.rand((1, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(local_mean(x, 25), x.mean((2, 3), keepdim=True).expand_as(x))


def test_input_with_a_graph_or_a_view_is_not_changed() -> None:
    image = torch.rand((1, 3, 20, 20), generator=torch.Generator().manual_seed(0), requires_grad=True)
    part = image[:, :, 3:17, ::2]
    before = part.detach().clone()
    result = local_mean(part, 5)
    assert not result.requires_grad
    torch.testing.assert_close(result, _pooled(before, 5), atol=1e-5, rtol=0)
    assert torch.equal(part, before)
