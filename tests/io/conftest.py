"""Volumes and writers for the tests of several formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from baps.imaging.volume import Volume


@pytest.fixture
def placed_volume() -> Volume:
    """Draw a volume with random voxels, three different axes, and an origin away from zero."""
    affine = np.diag([-0.7, 0.8, 2.5, 1.0])
    affine[:3, 3] = (10, -20, 30)
    return Volume(np.random.default_rng(0).integers(0, 900, (5, 6, 7)).astype(np.int16), affine)


@pytest.fixture
def save_nifti() -> Callable[..., Path]:
    """Return a function that writes voxels of any type unchanged, ``save_nifti(path, voxels, affine)``."""

    def save(path: Path, voxels: NDArray[np.generic], affine: NDArray[np.float64] | None = None) -> Path:
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)
        return path

    return save
