"""Small foundation models with random weights and fixed seeds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from baps.fseft.feature_cache import FeatureCache
from baps.fseft.models import FoundationModel, OrganModel, build_swin_unetr, build_unet
from baps.fseft.predictor import OrganSegmenter
from baps.fseft.preprocessing import preprocess
from baps.fseft.volumes import LabelledVolume
from baps.imaging.volume import Volume
from baps.registry.store import AdapterStore

CLASSES = ("spleen", "liver", "aorta")


@pytest.fixture(scope="session")
def swin() -> FoundationModel:
    """Build a Swin UNETR with 12 penultimate channels, for images of 64 voxels along each axis."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_swin_unetr(CLASSES, 12).eval()


@pytest.fixture(scope="session")
def unet() -> FoundationModel:
    """Build a U-Net for images of 16 voxels along each axis."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_unet(CLASSES).eval()


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    """Draw an image for ``swin``, (1, 1, 64, 64, 64)."""
    return torch.rand((1, 1, 64, 64, 64), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def small_images() -> torch.Tensor:
    """Draw two images for ``unet``, (2, 1, 16, 24, 16)."""
    return torch.rand((2, 1, 16, 24, 16), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def segmenter(unet: FoundationModel, tmp_path: Path) -> OrganSegmenter:
    """Make a segmenter of ``unet`` on voxels of 2 mm, with its own store and feature cache."""
    model = OrganModel("small", unet, "c" * 64, spacing=2.0, side=16)
    return OrganSegmenter(model, AdapterStore(tmp_path / "organs"), FeatureCache(tmp_path / "readings"))


@pytest.fixture
def new_labelled(new_phantom: Callable[..., tuple[Volume, NDArray[np.bool_]]]) -> Callable[..., LabelledVolume]:
    """Return a function that makes a labelled phantom of a new patient: ``new_labelled(seed)``."""

    def make(seed: int) -> LabelledVolume:
        volume, ball = new_phantom(seed=seed)
        prepared = preprocess(volume, 2.0, 16)
        return LabelledVolume(f"patient {seed}", prepared.image, prepared.mask(ball), None)

    return make
