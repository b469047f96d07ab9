from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import baps.evaluation.cases
from baps.errors import InputError, NotFoundError
from baps.evaluation.cases import Case, CaseReader, labelled_slices, load_cases
from baps.imaging.volume import Volume
from baps.imaging.windowing import Window
from baps.io import read_volume, write_nifti

Phantom = tuple[Volume, NDArray[np.bool_]]


@pytest.fixture
def new_case(tmp_path: Path, new_phantom: Callable[..., Phantom]) -> Callable[..., Case]:
    """Return a function that writes a phantom and its label 3; ``change`` may damage the label."""

    def make(
        name: str = "one",
        patient: str = "a",
        value: int = 3,
        change: Callable[[NDArray[np.uint8]], NDArray[np.generic]] = lambda voxels: voxels,
        **phantom: object,
    ) -> Case:
        volume, ball = new_phantom(**phantom)
        labels = change(ball.astype(np.uint8) * 3)
        write_nifti(tmp_path / f"{name}.nii.gz", volume)
        write_nifti(tmp_path / f"{name}_label.nii.gz", Volume(labels, volume.affine))
        return Case(tmp_path / f"{name}.nii.gz", tmp_path / f"{name}_label.nii.gz", value, patient)

    return make


def test_slices_contain_the_organ(new_case: Callable[..., Case]) -> None:
    slices = labelled_slices(new_case(), side=64, max_slices=24)
    assert 3 <= len(slices) <= 12
    for piece in slices:
        assert piece.patient == "a"
        assert piece.image.shape == (64, 64, 3)
        assert piece.image.dtype == np.uint8
        assert piece.target.shape == (64, 64)
        assert piece.target.sum() >= 10
        assert piece.size == (58, 64)  # The slice is 40 x 36 mm.
        assert piece.image[:58].any()
        assert not piece.image[58:].any()
        assert piece.window.source == "percentiles"
        assert (piece.image[..., 0] == piece.image[..., 2]).all()
        inside, outside = piece.image[piece.target, 0].mean(), piece.image[:40, :40, 0][~piece.target[:40, :40]].mean()
        assert inside > outside + 100


def test_slices_are_limited_and_evenly_spaced(new_case: Callable[..., Case]) -> None:
    case = new_case(shape=(40, 36, 40), spacing=(1.0, 1.0, 1.0))
    every = labelled_slices(case, 64, 100)
    three = labelled_slices(case, 64, 3)
    assert len(every) > 10
    assert len(three) == 3
    for chosen, row in zip(three, (0, (len(every) - 1) / 2, len(every) - 1), strict=True):
        assert any(np.array_equal(chosen.image, every[near].image) for near in {int(row), round(row), int(row + 0.5)})


def test_thin_ends_of_the_organ_are_skipped(new_case: Callable[..., Case]) -> None:
    def cone(voxels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        voxels[:] = 0
        voxels[10:30, 10:30, 4:8] = 3
        voxels[10:15, 10:15, 2:4] = 3  # A sixteenth of the largest cross-section.
        return voxels

    assert len(labelled_slices(new_case(change=cone), 64, 24)) == 4


def test_a_given_window_is_used(new_case: Callable[..., Case]) -> None:
    window = Window(0, 2000)
    slices = labelled_slices(new_case(), 64, 3, window)
    assert all(piece.window is window for piece in slices)
    assert max(int(piece.image.max()) for piece in slices) < 40


def test_mask_and_image_are_aligned_for_anisotropic_voxels(new_case: Callable[..., Case]) -> None:
    for piece in labelled_slices(new_case(shape=(40, 18, 9), spacing=(1.0, 2.5, 3.0)), 96, 2):
        bright = piece.image[..., 0] > 128
        assert (bright & piece.target).sum() > 0.9 * (bright | piece.target).sum()


def test_label_without_the_organ_is_refused(new_case: Callable[..., Case]) -> None:
    with pytest.raises(InputError, match=r"one_label\.nii\.gz has no voxel of value 4"):
        labelled_slices(new_case(value=4), 64, 24)
    with pytest.raises(InputError, match="has no voxel of value 3"):
        labelled_slices(new_case(change=np.zeros_like), 64, 24)


def test_too_small_organ_is_refused(new_case: Callable[..., Case]) -> None:
    def dot(voxels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        voxels[:] = 0
        voxels[20, 20, 5] = 3
        return voxels

    with pytest.raises(InputError, match="smaller than 10 pixels of a canvas of 64"):
        labelled_slices(new_case(change=dot), 64, 24)


def test_labels_of_another_geometry_are_refused(new_case: Callable[..., Case]) -> None:
    with pytest.raises(InputError, match="geometry of the image"):
        labelled_slices(new_case(change=lambda voxels: voxels[:, :, 1:]), 64, 24)


def test_missing_files_are_errors(new_case: Callable[..., Case]) -> None:
    case = new_case()
    case.labels.unlink()
    with pytest.raises(NotFoundError, match="one_label"):
        labelled_slices(case, 64, 24)


def test_one_broken_file_does_not_stop_the_others(new_case: Callable[..., Case]) -> None:
    good, second, other = new_case("one", "a"), new_case("two", "a", seed=1), new_case("three", "b", seed=2)
    broken, empty = new_case("four", "c"), new_case("five", "d", change=np.zeros_like)
    broken.image.write_bytes(b"rubbish")
    slices, skipped = load_cases([good, broken, second, empty, other], 64, 2)
    assert {patient: len(pieces) for patient, pieces in slices.items()} == {"a": 4, "b": 2}
    assert set(skipped) == {"four.nii.gz, label 3", "five.nii.gz, label 3"}
    assert "cannot be read" in skipped["four.nii.gz, label 3"]
    assert "no voxel of value 3" in skipped["five.nii.gz, label 3"]


def test_no_usable_case_is_an_error() -> None:
    assert load_cases([], 64, 2) == ({}, {})


def test_unannotated_slices_are_ignored(new_case: Callable[..., Case]) -> None:
    case = new_case(shape=(40, 36, 40), spacing=(1.0, 1.0, 1.0))
    every = labelled_slices(case, 64, 100)
    first = 20 - len(every) // 2  # The ball is in the middle.
    some = labelled_slices(replace(case, annotated_slices=frozenset({0, first + 3, first + 5, 39})), 64, 100)
    assert len(some) == 2
    for chosen, row in zip(some, (3, 5), strict=True):
        np.testing.assert_array_equal(chosen.image, every[row].image)
        np.testing.assert_array_equal(chosen.target, every[row].target)


def test_largest_annotated_slice_is_the_reference(new_case: Callable[..., Case]) -> None:
    """Thin slices are skipped if a large one is annotated; if only thin ones are annotated, they are used."""

    def cone(voxels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        voxels[:] = 0
        voxels[10:30, 10:30, 4:8] = 3
        voxels[10:15, 10:15, 2:4] = 3
        return voxels

    case = new_case(change=cone)
    assert len(labelled_slices(replace(case, annotated_slices=frozenset({2, 3, 4})), 64, 24)) == 1
    assert len(labelled_slices(replace(case, annotated_slices=frozenset({2, 3})), 64, 24)) == 2


@pytest.mark.parametrize("covered", [frozenset(), frozenset({0}), frozenset({99})])
def test_organ_on_no_annotated_slice_is_refused(new_case: Callable[..., Case], covered: frozenset[int]) -> None:
    with pytest.raises(InputError, match="every annotated slice"):
        labelled_slices(replace(new_case(), annotated_slices=covered), 64, 24)


@pytest.fixture
def files_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the names of the volumes that are read from disk."""
    names: list[str] = []

    def read(path: Path) -> Volume:
        names.append(path.name)
        return read_volume(path)

    monkeypatch.setattr(baps.evaluation.cases, "read_volume", read)
    return names


def _halves(voxels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    voxels[:20][voxels[:20] > 0] = 1
    return voxels


def test_volume_is_read_once_for_all_its_labels(new_case: Callable[..., Case], files_read: list[str]) -> None:
    left = new_case("one", change=_halves, value=1)
    reader = CaseReader()
    volume, organ, window = reader.read(left)
    again, other, same = reader.read(replace(left, value=3))
    assert files_read == ["one.nii.gz"]
    assert again is volume
    assert same is window
    assert organ.any()
    assert other.any()
    assert not (organ & other).any()
    reader.read(new_case("two"))
    reader.read(left)
    assert files_read == ["one.nii.gz", "two.nii.gz", "one.nii.gz"]  # Only one volume is cached.


def test_other_labels_of_the_same_image_are_read(new_case: Callable[..., Case]) -> None:
    first, other = new_case("one"), new_case("other", change=_halves)
    reader = CaseReader()
    _, voxels, _ = reader.read(first)
    _, half, _ = reader.read(replace(first, labels=other.labels))
    assert 0 < half.sum() < voxels.sum()


def test_reader_reads_again_after_an_error(new_case: Callable[..., Case]) -> None:
    case, reader = new_case(), CaseReader()
    original = case.labels.read_bytes()
    case.labels.write_bytes(b"rubbish")
    for _ in range(2):
        with pytest.raises(InputError, match="cannot be read"):
            reader.read(case)
    case.labels.write_bytes(original)
    assert reader.read(case)[1].any()


def test_loading_reads_each_volume_once(new_case: Callable[..., Case], files_read: list[str]) -> None:
    cases = [replace(new_case(name, name, change=_halves), value=value) for name in "ab" for value in (1, 3)]
    slices, skipped = load_cases(cases, 64, 2)
    assert {patient: len(pieces) for patient, pieces in slices.items()} == {"a": 4, "b": 4}
    assert skipped == {}
    assert files_read == ["a.nii.gz", "b.nii.gz"]


def test_loaded_slices_equal_those_of_the_cases(new_case: Callable[..., Case], tmp_path: Path) -> None:
    cases = [new_case("one", "a"), new_case("two", "b", seed=1)]
    slices, _ = load_cases(cases, 64, 3, tmp_path / "work")
    for case in cases:
        for original, piece in zip(slices[case.patient], labelled_slices(case, 64, 3), strict=True):
            np.testing.assert_array_equal(original.image, piece.image)
            np.testing.assert_array_equal(original.target, piece.target)
            assert (original.patient, original.window) == (piece.patient, piece.window)
    assert list((tmp_path / "work").iterdir()) == []
