from __future__ import annotations

import numpy as np
import pytest

from baps.inference.packed_mask import PackedMask

SHAPE = (7, 5, 3)


@pytest.mark.parametrize("where", [(slice(1, 4), slice(0, 5), slice(2, 3)), (slice(0),) * 3, (slice(None),) * 3])
def test_a_mask_is_unpacked_as_it_was_in_a_new_array(where: tuple[slice, slice, slice]) -> None:
    mask = np.zeros(SHAPE, bool)
    mask[where] = np.random.default_rng(0).random(mask[where].shape) > 0.3
    packed = PackedMask.of(mask)
    assert packed.bits.nbytes == -(-mask[packed.where].size // 8) if packed.where else not mask.any()
    once = packed.unpack()
    assert np.array_equal(once, mask)
    once[:] = True
    assert np.array_equal(packed.unpack(), mask)


def test_an_empty_mask_takes_no_memory() -> None:
    for packed in (PackedMask.empty(SHAPE), PackedMask.of(np.zeros(SHAPE, bool))):
        assert (packed.where, packed.bits.nbytes, packed.unpack().shape) == (None, 0, SHAPE)
        assert not packed.unpack().any()
