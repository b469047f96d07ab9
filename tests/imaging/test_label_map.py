"""Label maps: overlapping segments in as few layers as they need."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from baps.imaging.label_map import LabelMap, Overlaps, values_of

Masks = dict[int, NDArray[np.bool_]]

MASKS = st.dictionaries(st.integers(1, 400), arrays(bool, (3, 4, 2)), max_size=5)


@given(MASKS, MASKS)
def test_masks_survive_in_layers(masks: Masks, more: Masks) -> None:
    first = LabelMap.of_masks(masks.items())
    kept = [layer.copy() for layer in first.layers]
    added = {value: mask for value, mask in more.items() if value not in masks}
    both = first.with_masks(added, {})
    for value, mask in {**masks, **added}.items():
        np.testing.assert_array_equal(both.mask(value), mask)
    assert both.values() == sorted(value for value, mask in {**masks, **added}.items() if mask.any())
    for layer, before in zip(first.layers, kept, strict=True):
        np.testing.assert_array_equal(layer, before)  # What was given does not change.
    for value in masks:
        assert value not in both.without(value).values()
        assert set(both.without(value).values()) == set(both.values()) - {value}
    if masks or added:
        np.testing.assert_array_equal(both.marked(), np.logical_or.reduce([*masks.values(), *added.values()]))


def test_segments_that_do_not_overlap_share_a_layer() -> None:
    voxels = np.arange(24).reshape(2, 3, 4)
    assert len(LabelMap.of_masks((value, voxels == value) for value in range(1, 24)).layers) == 1
    assert len(LabelMap.of_masks((value, voxels > 3) for value in range(1, 4)).layers) == 3


@given(arrays(np.int32, (3, 4, 2), elements=st.integers(-5, 1 << 20)))
def test_the_different_values_are_found(voxels: NDArray[np.int32]) -> None:
    assert values_of(voxels) == set(np.unique(voxels).tolist())


def _random(seed: int) -> LabelMap:
    """Some layers of some values, as 8 or 32 bits; no value in two layers."""
    random = np.random.default_rng(seed)
    values = random.permutation(np.array([1, 2, 3, 7, 200, 255, 300, 60000]))
    layers, rest = [], values.tolist()
    for _ in range(int(random.integers(1, 4))):
        mine = [rest.pop() for _ in range(int(random.integers(0, 3)))]
        kind = np.uint8 if all(value < 256 for value in mine) else np.int32
        layers.append(random.choice(np.array([0, 0, *mine], kind), (5, 4, 6)))
    return LabelMap(tuple(layers))


@given(st.integers(0, 1 << 30))
def test_what_is_found_in_one_pass_is_what_the_masks_say(seed: int) -> None:
    old, new = _random(seed), _random(seed + 1000)
    assert new.slices() == {value: np.flatnonzero(new.mask(value).any((0, 1))).tolist() for value in new.values()}
    pairs = [(one, other) for one in [0, *old.values()] for other in [0, 9, *new.values()]]
    found = Overlaps.of(old, new, pairs)
    for n, (one, other) in enumerate(pairs):
        before = old.mask(one) if one else np.zeros(old.shape, bool)
        after = new.mask(other) if other else np.zeros(old.shape, bool)
        for k in range(old.shape[2]):
            wanted = before[:, :, k].sum(), after[:, :, k].sum(), (before & after)[:, :, k].sum()
            assert (found.old[k, n], found.new[k, n], found.both[k, n]) == wanted
    kept = old.values()[::2]
    numbers = {value: 1000 + value for value in kept}
    filled = new.filled(old, numbers, {})
    for value in new.values():
        np.testing.assert_array_equal(filled.mask(value), new.mask(value))
    for value in kept:
        np.testing.assert_array_equal(filled.mask(1000 + value), old.mask(value) & ~new.marked())
    assert filled.values() == sorted({*new.values(), *(1000 + v for v in kept if (old.mask(v) & ~new.marked()).any())})


def test_hundreds_of_masks_that_overlap_at_their_end_take_no_time() -> None:
    """Each is in a layer of its own; compared whole, each with all before it, they took minutes."""
    masks = np.zeros((200, 64, 64, 32), bool)
    for n, mask in enumerate(masks):
        mask[:, n % 64, n % 32] = True
        mask[-1, -1, -1] = True
    found = LabelMap.of_masks(enumerate(masks, start=1))
    assert len(found.layers) == 200
    assert all((layer > 0).sum() == mask.sum() for layer, mask in zip(found.layers, masks, strict=True))
