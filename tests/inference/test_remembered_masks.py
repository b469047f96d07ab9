from __future__ import annotations

import numpy as np

from baps.inference.remembered_masks import RememberedMasks
from baps.prompts.volume_prompts import VolumeBox, VolumePoint

FIRST, SECOND, THIRD = (VolumePoint((n, n, n), n != 2) for n in (1, 2, 3))
BOX = VolumeBox((0, 0, 0), (3, 3, 3), True)
SHAPE = (7, 5, 3)


def mask(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(SHAPE) > 0.5


def test_the_mask_of_most_of_the_prompts_is_found() -> None:
    remembered = RememberedMasks()
    assert remembered.find("image", [FIRST]) is None
    remembered.add("image", [FIRST], mask(1))
    remembered.add("image", [BOX, FIRST], mask(2))
    for prompts, complete, seed in (
        ([FIRST], True, 1),
        ([FIRST, SECOND], False, 1),
        ([FIRST, BOX], True, 2),
        ([THIRD, FIRST, BOX, SECOND], False, 2),
    ):
        found = remembered.find("image", prompts)
        assert found is not None
        assert found[0] == complete
        assert np.array_equal(found[1], mask(seed))


def test_masks_of_other_prompts_and_images_are_not() -> None:
    remembered = RememberedMasks()
    remembered.add("image", [FIRST, SECOND], mask(1))
    assert remembered.find("image", [FIRST]) is None
    assert remembered.find("image", [FIRST, VolumePoint(SECOND.voxel, True)]) is None
    assert remembered.find("other image", [FIRST, SECOND]) is None


def test_the_oldest_masks_are_forgotten_and_those_that_are_too_large_are_not_kept() -> None:
    remembered = RememberedMasks(max_bytes=2 * -(-int(np.prod(SHAPE)) // 8))
    for number, prompt in enumerate((FIRST, SECOND, THIRD)):
        remembered.add("image", [prompt], mask(number))
    assert [remembered.find("image", [one]) is not None for one in (FIRST, SECOND, THIRD)] == [False, True, True]
    remembered.add("image", [FIRST], np.ones((50, 50, 50), bool))
    assert [remembered.find("image", [one]) is not None for one in (FIRST, SECOND, THIRD)] == [False, True, True]
