from __future__ import annotations

import torch
from torch import nn

from baps.fseft.adapters.compacter import _Hypercomplex


def _draw(layer: _Hypercomplex) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in (layer.left, layer.right, layer.bias):
            value.copy_(torch.randn(value.shape, generator=generator))


def test_weights_are_sums_of_kronecker_products() -> None:
    module = nn.Linear(24, 24)
    layer = _Hypercomplex(24, module)
    _draw(layer)
    expected = sum(torch.kron(layer.left[i], layer.right[i]) for i in range(4))
    assert isinstance(expected, torch.Tensor)
    torch.testing.assert_close(layer.weight(), expected)
    x = torch.randn((5, 24), generator=torch.Generator().manual_seed(1))
    y = module(x)
    torch.testing.assert_close(layer(x), y + y @ expected + layer.bias)


def test_untrained_layer_adds_nothing_and_can_learn() -> None:
    module = nn.Linear(24, 24)
    layer, x = _Hypercomplex(24, module), torch.randn((5, 24), generator=torch.Generator().manual_seed(1))
    assert torch.equal(layer(x), module(x))
    layer(x).square().sum().backward()
    assert layer.left.grad is not None
    assert layer.left.grad.all()
