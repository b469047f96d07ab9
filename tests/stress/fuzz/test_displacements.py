from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from baps.imaging.volume import Volume
from baps.io import read_volume
from stress.fuzz.displacements import Slice, fuzz_displacements, misplaced, write_enhanced, write_series


def _slices(count: int = 4) -> list[Slice]:
    values = np.arange(1, 1 + count * 30, dtype=np.int16).reshape(count, 5, 6)
    return [Slice(values[k], np.array([1.0, 2, 3 + 2 * k]), np.eye(3)[:2], (1.0, 1.5)) for k in range(count)]


@pytest.mark.filterwarnings("ignore")
def test_no_voxel_is_displaced_without_an_error() -> None:
    figures = fuzz_displacements(100, seed=5)
    assert figures["displacement_inputs"] == 100
    assert (figures["displaced"], figures["failures"]) == (0, 0), figures["examples"]
    assert figures["placed"] > 40
    assert figures["refused"] > 10


@pytest.mark.parametrize(
    "spoil",
    [
        lambda volume: Volume(volume.voxels[:, :, ::-1], volume.affine),
        lambda volume: Volume(volume.voxels[::-1], volume.affine),
        lambda volume: Volume(volume.voxels, np.diag([-1.0, -1, 1, 1])),
        lambda volume: Volume(
            volume.voxels, volume.affine @ np.array([[1, 0, 0, 0.6], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        ),
        lambda volume: Volume(volume.voxels[:, :, [0, 2, 1, 3]], volume.affine),
    ],
    ids=["frames reversed", "mirrored", "no geometry", "shifted", "two frames exchanged"],
)
def test_displaced_voxels_are_detected(tmp_path: Path, spoil: Callable[[Volume], Volume]) -> None:
    slices = _slices()
    write_series(tmp_path / "series", slices)
    write_enhanced(tmp_path / "a.dcm", slices[::-1], np.random.default_rng(0))
    for path in (tmp_path / "series", tmp_path / "a.dcm"):
        volume = read_volume(path)
        assert misplaced([volume], slices) == ""
        assert "slices are displaced" in misplaced([spoil(volume)], slices)
