from __future__ import annotations

import gc
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baps.errors import BapsError
from baps.evaluation.slices import LabelledSlice, SliceFile, StoredSlice, evenly_spaced, shown_sizes
from baps.imaging.windowing import Window


def _piece(seed: int = 0, side: int = 16, colour: bool = False) -> LabelledSlice:
    random = np.random.default_rng(seed)
    image = random.integers(0, 256, (side, side, 3 if colour else 1)).astype(np.uint8)
    target = random.random((side, side)) < 0.3
    return LabelledSlice(
        f"patient {seed}",
        np.broadcast_to(image, (side, side, 3)),
        target,
        Window(seed, seed + 9, "ct"),
        (side, 1 + seed),
    )


def _same(stored: StoredSlice, piece: LabelledSlice) -> bool:
    assert stored.image.dtype == np.uint8
    assert stored.target.dtype == np.bool_
    np.testing.assert_array_equal(stored.image, piece.image)
    np.testing.assert_array_equal(stored.target, piece.target)
    return (stored.patient, stored.window, stored.size) == (piece.patient, piece.window, piece.size)


@pytest.mark.parametrize("colour", [False, True], ids=["grey", "colour"])
@pytest.mark.parametrize("side", [1, 7, 64])
def test_slice_survives_a_round_trip(tmp_path: Path, side: int, colour: bool) -> None:
    piece = _piece(3, side, colour)
    assert _same(SliceFile(tmp_path).keep(piece), piece)


def test_a_single_coloured_pixel_is_not_lost(tmp_path: Path) -> None:
    piece = _piece(side=8)
    image = piece.image.copy()
    image[7, 7] = (1, 1, 2)
    coloured = LabelledSlice("a", image, piece.target, piece.window)
    assert _same(SliceFile(tmp_path).keep(coloured), coloured)


def test_views_of_larger_arrays_survive_a_round_trip(tmp_path: Path) -> None:
    large = _piece(side=32, colour=True)
    part = LabelledSlice("a", large.image[::2, ::-2], large.target.T[::-2, ::2], large.window)
    assert _same(SliceFile(tmp_path).keep(part), part)


def test_a_slice_without_padding_fills_its_image() -> None:
    padded = _piece(3)
    assert shown_sizes([padded, replace(padded, size=None)]) == [(16, 4), (16, 16)]


def test_many_slices_are_kept_and_read_in_any_order(tmp_path: Path) -> None:
    pieces = [_piece(seed, side=5 + seed % 3, colour=seed % 2 == 0) for seed in range(40)]
    file, stored = SliceFile(tmp_path), []
    for number, piece in enumerate(pieces):
        stored.append(file.keep(piece))
        back = number * 7 % len(stored)  # Reading does not change the write position.
        assert _same(stored[back], pieces[back])
    for number in np.random.default_rng(0).permutation(40):
        assert _same(stored[number], pieces[number])


def test_two_files_in_one_folder_are_independent(tmp_path: Path) -> None:
    first, second = SliceFile(tmp_path).keep(_piece(1)), SliceFile(tmp_path).keep(_piece(2))
    assert _same(first, _piece(1))
    assert _same(second, _piece(2))


def test_grey_slices_take_a_third_of_the_space(tmp_path: Path) -> None:
    sizes = []
    for colour in (False, True):
        stored = SliceFile(tmp_path).keep(_piece(side=10, colour=colour))
        sizes.append(os.fstat(stored._file.fileno()).st_size)
    assert sizes == [200, 400]


def test_file_has_no_name_and_is_freed_with_its_last_slice(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "for it"
    file = SliceFile(folder)
    stored = file.keep(_piece())
    assert list(folder.iterdir()) == []
    number = stored._file.fileno()
    del file
    gc.collect()
    assert _same(stored, _piece())  # The slice keeps the file open.
    del stored
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_reported(tmp_path: Path) -> None:
    file = SliceFile(tmp_path)
    stored = file.keep(_piece())
    with Path("/dev/full").open("wb", buffering=0) as full:
        os.dup2(full.fileno(), file._file.fileno())
    with pytest.raises(BapsError, match=r"cannot be kept on disk \(No space left on device\)\. Free some space"):
        file.keep(_piece(side=64))
    del stored


@given(st.integers(1, 60), st.integers(1, 80))
def test_evenly_spaced_items(count: int, maximum: int) -> None:
    chosen = evenly_spaced(range(count), maximum)
    assert len(chosen) == min(count, maximum)
    assert chosen == sorted(set(chosen))
    assert chosen[0] == 0
    if maximum > 1:
        assert chosen[-1] == count - 1
    gaps = np.diff(chosen)
    assert gaps.size == 0 or gaps.max() - gaps.min() <= 1


def test_evenly_spaced_keeps_the_items() -> None:
    assert evenly_spaced("abcde", 3) == ["a", "c", "e"]
    assert evenly_spaced([], 3) == []
