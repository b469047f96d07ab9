"""The adapter of a 3D black box."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from baps.adapters.adapter import Adapter
from baps.adapters.adapter_file import read_adapter, read_with, write_adapter
from baps.adapters.visual_prompt import build_visual_prompt
from baps.adapters.volumes.adapter import (
    CubeView,
    VolumeAdapter,
    cube_around_prompts,
    volume_adapter_from_record,
)
from baps.adapters.volumes.adapter_file import read_volume_adapter
from baps.adapters.volumes.head import VolumeHead
from baps.adapters.volumes.tone import VolumeTone
from baps.errors import InputError
from baps.imaging.metrics import dice
from baps.imaging.windowing import Window
from baps.prompts.volume_prompts import VolumeBox, VolumePoint
from tests.support.bright_volumes import BrightVolumesBlackBox
from tests.support.flood import FloodBlackBox, leaky_volume

CLICK = (VolumePoint((20, 22, 12), True),)


def separating_tone() -> VolumeTone:
    """Stretch the contrast so that the brighter tissue is told apart."""
    tone = VolumeTone()
    with torch.no_grad():
        tone.constant[1] = 1.0  # Twice the contrast around the middle.
    return tone


def test_without_parts_the_answer_is_that_of_the_black_box() -> None:
    volume = leaky_volume(0).image
    direct = FloodBlackBox().predict(volume.voxels, volume.spacing, CLICK)
    assert np.array_equal(VolumeAdapter().predict(FloodBlackBox(), volume, CLICK), direct)


@pytest.mark.parametrize("width", [40.0, 60.0])
def test_an_untrained_adapter_changes_nothing_inside_its_cube(width: float) -> None:
    labelled = leaky_volume(0, gap=80)  # The black box does not leak.
    untrained = VolumeAdapter(width, VolumeTone(), VolumeHead())
    untrained.load_state_dict(untrained.state_dict())
    mask = untrained.predict(FloodBlackBox(), labelled.image, CLICK) > 0.5
    direct = VolumeAdapter().predict(FloodBlackBox(), labelled.image, CLICK) > 0.5
    assert dice(mask, labelled.target) > 0.8
    assert dice(mask, labelled.target) > dice(direct, labelled.target) - 0.05


def test_a_tone_curve_separates_what_the_black_box_does_not() -> None:
    labelled = leaky_volume(1)
    plain = VolumeAdapter(60.0).predict(FloodBlackBox(), labelled.image, CLICK) > 0.5
    toned = VolumeAdapter(60.0, separating_tone()).predict(FloodBlackBox(), labelled.image, CLICK) > 0.5
    assert dice(plain, labelled.target) < 0.7
    assert dice(toned, labelled.target) > 0.8


def test_nothing_outside_the_cube_is_changed() -> None:
    volume = leaky_volume(0).image
    cube = cube_around_prompts(CLICK, None, 24.0, volume.spacing, 64)
    part = cube.part(volume.shape)
    mask = np.zeros(volume.shape, bool)
    mask[0, 0, 0] = mask[20, 22, 12] = True
    answer = VolumeAdapter(24.0).predict(FloodBlackBox(), volume, CLICK) > 0.5
    inside = answer[part].sum()
    assert answer.sum() == inside > 0
    # A mask that is corrected widens the cube, and is kept outside of it.
    corrected = VolumeAdapter(24.0).predict(FloodBlackBox(), volume, CLICK, mask) > 0.5
    assert corrected.shape == mask.shape


@pytest.mark.parametrize("width", [None, 60.0])
def test_the_head_sees_the_mask_to_be_corrected(width: float | None) -> None:
    """It learned from corrections, so it must be told of one when it serves."""
    volume, seen = leaky_volume(0).image, []
    mask = np.zeros(volume.shape, bool)
    mask[15:25, 17:27, 8:16] = True

    class Watched(VolumeHead):
        def refine(self, features: torch.Tensor, probability: torch.Tensor) -> torch.Tensor:
            seen.append(features[0, -1])
            return super().refine(features, probability)

    adapter = VolumeAdapter(width, head=Watched().eval())
    adapter.predict(FloodBlackBox(), volume, CLICK)
    adapter.predict(FloodBlackBox(), volume, CLICK, mask)
    assert (seen[0] == 0).all()
    assert seen[1].max() == 1
    assert seen[1].min() == -1


def test_the_cube_holds_a_box_that_is_larger() -> None:
    box = (VolumeBox((2, 2, 2), (46, 40, 22), True),)
    cube = cube_around_prompts(box, None, 20.0, (1.0, 1.0, 2.0), 64)
    assert cube.side == 64
    assert np.allclose(np.array(cube.step) * 64 * (1, 1, 2), 1.1 * 44)
    assert (cube.positions(np.array([[2, 2, 2], [45, 39, 21]])) > 0).all()


def test_the_level_is_that_of_the_clicked_tissue() -> None:
    volume = leaky_volume(2).image
    cube = cube_around_prompts(CLICK, None, 60.0, volume.spacing, 64)
    assert CubeView.of(volume, CLICK, cube).level == pytest.approx(140 / 255, abs=0.02)
    box = (VolumeBox((10, 13, 7), (31, 32, 18), True),)
    assert CubeView.of(volume, box, cube_around_prompts(box, None, 60.0, volume.spacing, 64)).level == pytest.approx(
        140 / 255, abs=0.03
    )
    bright = (VolumePoint((40, 22, 12), True),)
    assert CubeView.of(volume, bright, cube_around_prompts(bright, None, 20.0, volume.spacing, 64)).level > 150 / 255


@pytest.mark.parametrize("parts", [(None, False, False), (50.0, True, True), (50.0, False, True), (None, False, True)])
def test_a_file_holds_everything(parts: tuple[float | None, bool, bool], tmp_path: Path) -> None:
    width, tone, head = parts
    adapter = VolumeAdapter(width, separating_tone() if tone else None, VolumeHead(3) if head else None)
    if adapter.head:
        torch.nn.init.normal_(adapter.head.last.weight)
        adapter.head.eval()
    write_adapter(tmp_path / "a.safetensors", adapter, {"adapter": adapter.to_dict()})

    def build(record: dict[str, object], state: dict[str, torch.Tensor]) -> VolumeAdapter:
        loaded = volume_adapter_from_record(record["adapter"])  # type: ignore[arg-type]
        loaded.load_state_dict(state)
        return loaded

    loaded, _ = read_with(tmp_path / "a.safetensors", build)
    volume = leaky_volume(3).image
    before, after = (one.predict(FloodBlackBox(), volume, CLICK) for one in (adapter, loaded))
    assert np.array_equal(before, after)


def test_a_tone_curve_needs_a_cube() -> None:
    with pytest.raises(InputError, match="Give its width"):
        VolumeAdapter(None, VolumeTone())


@pytest.mark.parametrize("width", [None, 40.0])
@pytest.mark.parametrize(
    ("prompts", "sentence"),
    [
        ((), "understands none"),
        ((VolumePoint((20, 22, 12), False),), "understands none"),
        ((VolumePoint((-1, 22, 12), True),), "outside the volume"),
        ((VolumePoint((20, 22, 24), True),), "outside the volume"),
    ],
)
def test_prompts_that_cannot_be_answered_are_refused_in_a_cube_too(
    width: float | None, prompts: tuple[VolumePoint, ...], sentence: str
) -> None:
    volume = leaky_volume(0).image
    for mask in (None, np.zeros(volume.shape, bool)):
        with pytest.raises(InputError, match=sentence):
            VolumeAdapter(width).predict(FloodBlackBox(), volume, prompts, mask)


@pytest.mark.parametrize("width", [None, 40.0])
def test_a_mask_is_removed_by_a_click_beside_the_object(width: float | None) -> None:
    labelled = leaky_volume(0)
    beside = (VolumePoint((20, 22, 12), False),)
    mask = labelled.image.voxels > 100
    adapter = VolumeAdapter(width, head=VolumeHead().eval())
    answer = adapter.predict(BrightVolumesBlackBox(), labelled.image, beside, mask) > 0.5
    assert answer.sum() < 0.01 * mask.sum()


def test_a_mask_smaller_than_a_voxel_of_the_cube_is_corrected() -> None:
    volume = leaky_volume(0).image
    mask = np.zeros(volume.shape, bool)
    mask[20, 22, 12] = True
    black_box = BrightVolumesBlackBox()
    VolumeAdapter(500.0).predict(black_box, volume, (VolumePoint((40, 40, 20), False),), mask)
    ((_, start),) = black_box.asked
    assert start is not None
    assert start.any()


def test_an_adapter_of_the_other_kind_of_model_is_a_sentence(tmp_path: Path) -> None:
    ours, other = tmp_path / "volume.safetensors", tmp_path / "slices.safetensors"
    write_adapter(ours, VolumeAdapter(40.0), {"dimension": 3, "adapter": VolumeAdapter(40.0).to_dict()})
    slices = Adapter(build_visual_prompt("tone"))
    write_adapter(other, slices, {"adapter": slices.to_dict()})
    with pytest.raises(InputError, match="is the adapter of a 3D black box"):
        read_adapter(ours)
    with pytest.raises(InputError, match="is not the adapter of a 3D black box"):
        read_volume_adapter(other)


def test_a_cube_of_one_grey_value_is_not_shown_to_the_model() -> None:
    """nninteractive-server refuses it, and a tone curve in training may make one."""
    black_box = BrightVolumesBlackBox()
    volume = replace(leaky_volume(0).image, window=Window(900, 1000))
    assert not VolumeAdapter(40.0).predict(black_box, volume, CLICK).any()
    mask = np.zeros(volume.shape, bool)
    mask[12:28, 14:30, 8:16] = True
    kept = VolumeAdapter(60.0).predict(black_box, volume, CLICK, mask) > 0.5
    assert dice(kept, mask) > 0.9
    assert not black_box.asked
