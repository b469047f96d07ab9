from __future__ import annotations

import torch

from fseft.adapters.output import OutputAdapter
from fseft.models import FoundationModel


def test_untrained_it_answers_the_class_itself(unet: FoundationModel) -> None:
    probabilities = torch.rand((2, 3, 4, 5, 6), generator=torch.Generator().manual_seed(0))
    found = OutputAdapter(unet, "liver")(probabilities).sigmoid()
    torch.testing.assert_close(found, probabilities[:, 1:2], rtol=1e-4, atol=2e-6)


def test_sure_answers_are_finite(unet: FoundationModel) -> None:
    probabilities = torch.tensor([0.0, 1.0]).view(1, 1, 2, 1, 1).expand(1, 3, 2, 1, 1)
    found = OutputAdapter(unet, "liver")(probabilities)
    assert bool(torch.isfinite(found).all())
    assert found.flatten().sigmoid().round().tolist() == [0, 1]


def test_it_can_combine_classes(unet: FoundationModel) -> None:
    """Two parts of an organ, one of which the model calls by another name."""
    adapter = OutputAdapter(unet, "liver")
    with torch.no_grad():
        adapter.combine.weight.fill_(1)
    odds = torch.tensor([1.0, -2.0, 0.5]).view(1, 3, 1, 1, 1)
    torch.testing.assert_close(adapter(odds.sigmoid()), odds.sum(1, keepdim=True), rtol=1e-4, atol=1e-4)
