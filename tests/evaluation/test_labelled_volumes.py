"""Labelled volumes of 3D black boxes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from baps.evaluation.cases import Case
from baps.evaluation.labelled_volumes import load_volumes
from baps.imaging.cube import Cube

SHAPE, SPACING = (20, 18, 10), (1.0, 1.5, 3.0)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    organ = np.zeros(SHAPE, np.uint8)
    organ[4:12, 5:11, 3:7] = 2
    for name, voxels in (
        ("image.nii.gz", np.random.default_rng(0).integers(-100, 200, SHAPE, np.int16)),
        ("label.nii.gz", organ),
    ):
        nibabel.Nifti1Image(voxels, np.diag([*SPACING, 1])).to_filename(tmp_path / name)
    return Case(tmp_path / "image.nii.gz", tmp_path / "label.nii.gz", 2, "anna")


def test_a_volume_is_kept_on_disk_as_it_is(case: Case, tmp_path: Path) -> None:
    volumes, skipped = load_volumes([case], tmp_path / "kept")
    assert not skipped
    (volume,) = volumes["anna"]
    assert np.array_equal(volume.image.voxels, np.asarray(nibabel.load(case.image).dataobj))
    assert np.array_equal(volume.target, np.asarray(nibabel.load(case.labels).dataobj) == 2)
    assert isinstance(volume.image.voxels, np.memmap)
    assert volume.image.spacing == pytest.approx(SPACING)
    assert volume.longest_side == pytest.approx(max(8 * 1.0, 6 * 1.5, 4 * 3.0))
    assert list((tmp_path / "kept").iterdir()) == []  # The files have no name.


def test_what_cannot_be_used_is_skipped_with_a_reason(case: Case, tmp_path: Path) -> None:
    nearly_empty = replace(case, annotated_slices=frozenset({9}))
    missing = replace(case, value=7)
    volumes, skipped = load_volumes([nearly_empty, missing, case], tmp_path)
    assert len(volumes["anna"]) == 1
    assert "fewer than 30 voxels on the annotated slices" in skipped["image.nii.gz, label 2"]
    assert "no voxel of value 7" in skipped["image.nii.gz, label 7"]


def test_slices_that_were_not_annotated_do_not_count(case: Case, tmp_path: Path) -> None:
    volumes, _ = load_volumes([replace(case, annotated_slices=frozenset({4, 5}))], tmp_path)
    (volume,) = volumes["anna"]
    label = np.asarray(nibabel.load(case.labels).dataobj) == 2
    assert np.array_equal(volume.target[..., 4:6], label[..., 4:6])
    assert volume.target.sum() == label[..., 4:6].sum()
    everything = np.ones(SHAPE, bool)
    assert volume.dice(label) == 1
    assert volume.dice(everything) == pytest.approx(2 * 96 / (96 + 2 * 20 * 18))
    part = (slice(4, 12), slice(5, 11), slice(0, 10))
    assert volume.dice(everything[part], part) == 1
    cube = Cube.around(np.array([8.0, 8, 4.5]), 30.0, SPACING, 10)  # One voxel of the cube per slice.
    assert volume.known(cube).tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0]
    beyond = Cube.around(np.array([8.0, 8, 9.5]), 30.0, SPACING, 10)
    assert volume.known(beyond).tolist() == [1, 0, 0, 0, 0, 1, 1, 1, 1, 1]
