"""All prompts with every request: the answer goes on from that to the prompts before."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from baps.adapters.volumes.adapter import ShownVolume
from baps.imaging.windowing import Window
from baps.inference.volume_segmenter import VolumeSegmenter
from baps.prompts.volume_prompts import VolumeBox, VolumePoint
from baps.registry.store import AdapterStore
from tests.support.bright_volumes import BrightVolumesBlackBox

SHAPE = (20, 16, 9)
FIRST, SECOND, BESIDE = VolumePoint((3, 3, 3), True), VolumePoint((14, 10, 5), True), VolumePoint((14, 10, 4), False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "image.nii.gz"
    path.write_bytes(b"image")
    return path


def image() -> ShownVolume:
    voxels = np.full(SHAPE, 40, np.uint8)
    voxels[2:6, 2:6, 2:5] = voxels[12:17, 9:13, 3:8] = 200
    return ShownVolume(voxels, (1.0, 1.0, 3.0), Window(0, 255))


def segmenter(black_box: BrightVolumesBlackBox) -> VolumeSegmenter:
    return VolumeSegmenter(lambda: black_box, AdapterStore(Path("no adapters here")))


def test_a_further_click_corrects_the_last_answer(file: Path) -> None:
    black_box = BrightVolumesBlackBox()
    viewer = segmenter(black_box)
    first = viewer.segment_all(file, image(), [FIRST])
    second = viewer.segment_all(file, image(), [FIRST, SECOND])
    third = viewer.segment_all(file, image(), [FIRST, SECOND, BESIDE])
    starts = [mask for _, mask in black_box.asked]
    assert starts[0] is None
    assert np.array_equal(starts[1], first)
    assert np.array_equal(starts[2], second)
    assert [mask.sum() for mask in (first, second, third)] == [48, 148, 48 + 1]  # Both clicks' voxels are as clicked.


def test_the_same_prompts_again_are_not_asked_again(file: Path) -> None:
    black_box = BrightVolumesBlackBox()
    viewer = segmenter(black_box)
    once = viewer.segment_all(file, image(), [FIRST, SECOND])
    twice = viewer.segment_all(file, image(), [SECOND, FIRST])
    assert np.array_equal(once, twice)
    assert len(black_box.asked) == 2
    once[:] = False  # Whoever changes an answer does not change what is remembered.
    assert viewer.segment_all(file, image(), [FIRST, SECOND]).sum() == 148


def test_what_is_not_remembered_goes_on_from_the_first_prompt(file: Path) -> None:
    black_box = BrightVolumesBlackBox()
    box = VolumeBox((1, 1, 1), (7, 7, 6), True)
    segmenter(black_box).segment_all(file, image(), [box, SECOND, BESIDE])
    assert [prompts for prompts, _ in black_box.asked] == [[box], [box, SECOND, BESIDE]]
    assert black_box.asked[1][1] is not None


def test_a_click_that_was_taken_back_does_not_count(file: Path) -> None:
    black_box = BrightVolumesBlackBox()
    viewer = segmenter(black_box)
    for prompts in ([FIRST], [FIRST, SECOND], [FIRST, BESIDE]):
        mask = viewer.segment_all(file, image(), prompts)
    assert mask.sum() == 48


def test_a_file_that_changed_starts_anew(file: Path) -> None:
    black_box = BrightVolumesBlackBox()
    viewer = segmenter(black_box)
    viewer.segment_all(file, image(), [FIRST])
    os.utime(file, (1, 1))
    viewer.segment_all(file, image(), [FIRST])
    assert [mask for _, mask in black_box.asked] == [None, None]


def test_a_model_that_cannot_start_from_a_mask_gets_all_prompts_at_once(file: Path) -> None:
    black_box = BrightVolumesBlackBox(masks=False)
    viewer = segmenter(black_box)
    viewer.segment_all(file, image(), [FIRST])
    viewer.segment_all(file, image(), [FIRST, SECOND])
    assert [(len(prompts), mask) for prompts, mask in black_box.asked] == [(1, None), (2, None)]
