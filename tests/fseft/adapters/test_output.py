from __future__ import annotations

import torch

from baps.fseft.adapters.output import OutputAdapter

CLASSES = ("spleen", "liver", "aorta")


def test_untrained_adapter_returns_the_class() -> None:
    probabilities = torch.rand((2, 3, 4, 5, 6), generator=torch.Generator().manual_seed(0))
    result = OutputAdapter(CLASSES, "liver")(probabilities).sigmoid()
    torch.testing.assert_close(result, probabilities[:, 1:2], rtol=1e-4, atol=2e-6)


def test_certain_probabilities_give_finite_logits() -> None:
    probabilities = torch.tensor([0.0, 1.0]).view(1, 1, 2, 1, 1).expand(1, 3, 2, 1, 1)
    result = OutputAdapter(CLASSES, "liver")(probabilities)
    assert bool(torch.isfinite(result).all())
    assert result.flatten().sigmoid().round().tolist() == [0, 1]


def test_adapter_can_combine_classes() -> None:
    """An organ in two parts, one of which the model assigns to another class."""
    adapter = OutputAdapter(CLASSES, "liver")
    with torch.no_grad():
        adapter.combine.weight.fill_(1)
    odds = torch.tensor([1.0, -2.0, 0.5]).view(1, 3, 1, 1, 1)
    torch.testing.assert_close(adapter(odds.sigmoid()), odds.sum(1, keepdim=True), rtol=1e-4, atol=1e-4)
