from __future__ import annotations

import torch
from torch import nn

from baps.fseft.adapters.compacter import _Hypercomplex


def test_weights_are_sums_of_kronecker_products() -> None:
    generator = torch.Generator().manual_seed(0)
    shared = nn.Parameter(torch.randn((4, 4, 4), generator=generator))
    layer = _Hypercomplex(shared, 24, 16)
    expected = sum(torch.kron(shared[i], layer.left[i] @ layer.right[i]) for i in range(4))
    assert isinstance(expected, torch.Tensor)
    torch.testing.assert_close(layer.weight(), expected)
    x = torch.randn((5, 24), generator=generator)
    torch.testing.assert_close(layer(x), x @ expected + layer.bias)
