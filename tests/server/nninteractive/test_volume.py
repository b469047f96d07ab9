"""The state of an image in a session: prompts, masks and undo."""

from __future__ import annotations

import numpy as np
import pytest

from baps.errors import BapsError, InputError
from baps.imaging.windowing import Window
from baps.inference.volume_predictor import VolumeAnswer, VolumeImage
from baps.prompts.volume_prompts import VolumePoint, VolumePrompt, VolumeRegion
from baps.server.nninteractive.volume import MAX_PROMPTS, Mask, SegmentedVolume, bytes_needed

SHAPE = (4, 5, 6)


def volume() -> SegmentedVolume:
    return SegmentedVolume(VolumeImage("test", np.zeros(SHAPE, np.int16), Window(0, 1)))


def mark(image: VolumeImage, prompts: tuple[VolumePrompt, ...], new: int, mask: Mask) -> VolumeAnswer:
    """Mark the voxels of the new clicks."""
    changed = mask.copy()
    for prompt in prompts[len(prompts) - new :]:
        assert isinstance(prompt, VolumePoint)
        changed[prompt.voxel] = prompt.include
    return VolumeAnswer(changed, None, True)


def fail(*_: object) -> VolumeAnswer:
    raise BapsError("The model is gone.")


def test_each_prompt_goes_on_from_the_last_mask_and_can_be_undone() -> None:
    state, masks = volume(), [np.zeros(SHAPE, bool)]
    for voxel, include in (((1, 2, 3), True), ((3, 4, 5), True), ((1, 2, 3), False)):
        state.add(VolumePoint(voxel, include), mark)
        masks.append(state.mask)
    assert [int(mask.sum()) for mask in masks] == [0, 1, 2, 1]
    for earlier in reversed(masks[:-1]):
        assert state.undo()
        assert np.array_equal(state.mask, earlier)
    assert not state.undo()


def test_a_prompt_whose_prediction_fails_is_not_added() -> None:
    state = volume()
    state.add(VolumePoint((1, 2, 3), True), mark)
    with pytest.raises(BapsError):
        state.add(VolumePoint((2, 2, 2), True), fail)
    assert state.mask.sum() == 1
    assert state.pending == 0
    assert state.undo()
    assert not state.undo()


def test_waiting_prompts_are_predicted_together() -> None:
    state = volume()
    state.add(VolumePoint((1, 1, 1), True), None)
    state.add(VolumePoint((2, 2, 2), True), None)
    assert state.pending == 2
    assert state.predict(mark) is not None
    assert state.predict(mark) is None
    assert state.mask.sum() == 2


def test_the_client_gets_where_the_object_is_and_where_it_was() -> None:
    state = volume()
    assert state.changed_part()[0] is None
    state.add(VolumePoint((1, 2, 3), True), mark)
    box, values = state.changed_part()
    assert (box, values.all()) == ([[1, 2], [2, 3], [3, 4]], True)
    state.add(VolumePoint((1, 2, 3), False), mark)
    box, values = state.changed_part()
    assert (box, values.any()) == ([[1, 2], [2, 3], [3, 4]], False)
    assert state.changed_part()[0] is None


def test_prompts_and_painted_voxels_are_bounded() -> None:
    state = volume()
    for _ in range(MAX_PROMPTS):
        state.add(VolumePoint((1, 1, 1), True), None)
    with pytest.raises(InputError, match="more are not possible"):
        state.add(VolumePoint((1, 1, 1), True), None)
    state.reset()
    region = VolumeRegion.of(np.ones(SHAPE), (0, 0, 0), False, True)
    for _ in range(SHAPE[0] * SHAPE[1] * SHAPE[2] // region.nbytes):
        state.add(region, None)
    with pytest.raises(InputError, match="more are not possible"):
        state.add(region, None)


def test_the_memory_of_a_large_shape_is_counted_without_overflow() -> None:
    assert bytes_needed((1, 1 << 40, 1 << 40, 1 << 40), 0) > 1 << 120
