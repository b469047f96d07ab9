from __future__ import annotations

import torch
from torch.nn import functional as F

from baps.fseft.adapters.spatial import SpatialAdapter
from baps.fseft.models import FoundationModel


def test_formula(unet: FoundationModel) -> None:
    """``head(f + Conv(ReLU(Conv(f))))``."""
    generator = torch.Generator().manual_seed(0)
    adapter = SpatialAdapter(unet, "liver", width=3)
    with torch.no_grad():
        adapter.last.weight.copy_(torch.randn(adapter.last.weight.shape, generator=generator))
    features = torch.randn((1, 64, 5, 6, 7), generator=generator)
    changed = features + F.conv3d(
        F.conv3d(features, adapter.first.weight, padding=1).clamp(min=0), adapter.last.weight, padding=1
    )
    expected = F.conv3d(changed, adapter.head.weight, adapter.head.bias)
    torch.testing.assert_close(adapter(features), expected)
