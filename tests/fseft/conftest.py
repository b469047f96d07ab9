"""Small foundation models with random weights. Every seed is fixed."""

from __future__ import annotations

import pytest
import torch

from fseft.models import FoundationModel, build_swin_unetr, build_unet

CLASSES = ("spleen", "liver", "aorta")


@pytest.fixture(scope="session")
def swin() -> FoundationModel:
    """Of 12 penultimate channels; takes images of 64 voxels along each side."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_swin_unetr(CLASSES, 12).eval()


@pytest.fixture(scope="session")
def unet() -> FoundationModel:
    """Takes images of 16 voxels along each side."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_unet(CLASSES).eval()


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    """One image for ``swin``, (1, 1, 64, 64, 64)."""
    return torch.rand((1, 1, 64, 64, 64), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def small_images() -> torch.Tensor:
    """Two images for ``unet``, (2, 1, 16, 24, 16)."""
    return torch.rand((2, 1, 16, 24, 16), generator=torch.Generator().manual_seed(1))
