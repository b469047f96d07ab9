"""The committed sample data equals the output of its generator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

from baps.io import read_labels, read_volume
from tools.sample_data import HERE, LABELS, generate


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    generate(folder, ct_cases=1, mr_cases=1)
    return folder


@pytest.mark.parametrize("case", ["ct/images/ct_01", "ct/labels/ct_01", "mr/images/mr_01", "mr/labels/mr_01"])
def test_generator_reproduces_the_committed_volumes(generated: Path, case: str) -> None:
    mine, theirs = (read_volume(root / f"{case}.nii.gz") for root in (generated, HERE))
    assert mine.same_geometry(theirs)
    # Other processors may round a few voxels differently.
    assert (mine.voxels == theirs.voxels).mean() > 0.999


@pytest.mark.parametrize("path", sorted((HERE).glob("*/images/*.nii.gz")), ids=lambda p: p.name)
def test_every_volume_has_every_organ(path: Path) -> None:
    image = read_volume(path)
    labels = read_labels(path.parent.parent / "labels" / path.name, image)
    for name, value in LABELS.items():
        assert (labels == value).sum() > 100, name


def test_dicom_series_equals_the_first_ct() -> None:
    volume = read_volume(HERE / "ct" / "images" / "ct_01.nii.gz")
    slices = [pydicom.dcmread(path) for path in sorted((HERE / "dicom" / "ct_01").glob("*.dcm"))]
    assert len(slices) == volume.voxels.shape[2]
    assert len({slice_.SeriesInstanceUID for slice_ in slices}) == 1
    for index, slice_ in enumerate(slices):
        assert np.array_equal(slice_.pixel_array.T, volume.voxels[:, :, index])
        lps = np.diag([-1, -1, 1]) @ (volume.affine @ [0, 0, index, 1])[:3]
        assert np.allclose(lps, slice_.ImagePositionPatient, atol=1e-3)


def test_the_sample_data_is_small() -> None:
    assert sum(path.stat().st_size for path in HERE.rglob("*") if path.is_file()) < 10_000_000
