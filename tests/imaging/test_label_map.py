"""Label maps store overlapping segments in as few layers as they need."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from baps.imaging.label_map import LabelMap, Overlaps, unique_values

Masks = dict[int, NDArray[np.bool_]]

MASKS = st.dictionaries(st.integers(1, 400), arrays(bool, (3, 4, 2)), max_size=5)


@given(MASKS, MASKS)
def test_masks_are_stored_in_layers_without_loss(masks: Masks, more: Masks) -> None:
    first = LabelMap.from_masks(masks.items())
    layers_before = [layer.copy() for layer in first.layers]
    added = {value: mask for value, mask in more.items() if value not in masks}
    both = first.with_masks(added, {})
    for value, mask in {**masks, **added}.items():
        np.testing.assert_array_equal(both.mask(value), mask)
    assert both.values() == sorted(value for value, mask in {**masks, **added}.items() if mask.any())
    for layer, before in zip(first.layers, layers_before, strict=True):
        np.testing.assert_array_equal(layer, before)  # The original label map does not change.
    for value in masks:
        assert value not in both.without(value).values()
        assert set(both.without(value).values()) == set(both.values()) - {value}
    if masks or added:
        np.testing.assert_array_equal(both.foreground(), np.logical_or.reduce([*masks.values(), *added.values()]))


def test_segments_that_do_not_overlap_share_a_layer() -> None:
    voxels = np.arange(24).reshape(2, 3, 4)
    assert len(LabelMap.from_masks((value, voxels == value) for value in range(1, 24)).layers) == 1
    assert len(LabelMap.from_masks((value, voxels > 3) for value in range(1, 4)).layers) == 3


@given(arrays(np.int32, (3, 4, 2), elements=st.integers(-5, 1 << 20)))
def test_unique_values(voxels: NDArray[np.int32]) -> None:
    assert unique_values(voxels) == set(np.unique(voxels).tolist())


def _random(seed: int) -> LabelMap:
    """Draw a label map of some layers, of 8 or 32 bits, in which no value is in two layers."""
    random = np.random.default_rng(seed)
    values = random.permutation(np.array([1, 2, 3, 7, 200, 255, 300, 60000]))
    layers, rest = [], values.tolist()
    for _ in range(int(random.integers(1, 4))):
        mine = [rest.pop() for _ in range(int(random.integers(0, 3)))]
        kind = np.uint8 if all(value < 256 for value in mine) else np.int32
        layers.append(random.choice(np.array([0, 0, *mine], kind), (5, 4, 6)))
    return LabelMap(tuple(layers))


@given(st.integers(0, 1 << 30))
def test_one_pass_gives_the_same_as_the_masks(seed: int) -> None:
    old, new = _random(seed), _random(seed + 1000)
    assert new.slices_by_value() == {
        value: np.flatnonzero(new.mask(value).any((0, 1))).tolist() for value in new.values()
    }
    pairs = [(first, second) for first in [0, *old.values()] for second in [0, 9, *new.values()]]
    result = Overlaps.count(old, new, pairs)
    for n, (first, second) in enumerate(pairs):
        before = old.mask(first) if first else np.zeros(old.shape, bool)
        after = new.mask(second) if second else np.zeros(old.shape, bool)
        for k in range(old.shape[2]):
            expected = before[:, :, k].sum(), after[:, :, k].sum(), (before & after)[:, :, k].sum()
            assert (result.old[k, n], result.new[k, n], result.both[k, n]) == expected
    layers_before = old.values()[::2]
    numbers = {value: 1000 + value for value in layers_before}
    filled = new.filled_from(old, numbers, {})
    for value in new.values():
        np.testing.assert_array_equal(filled.mask(value), new.mask(value))
    for value in layers_before:
        np.testing.assert_array_equal(filled.mask(1000 + value), old.mask(value) & ~new.foreground())
    assert filled.values() == sorted(
        {*new.values(), *(1000 + v for v in layers_before if (old.mask(v) & ~new.foreground()).any())}
    )


def test_hundreds_of_masks_that_overlap_in_their_last_slices_are_fast() -> None:
    """Each mask gets a layer of its own. Comparing it in full with all layers before took minutes."""
    masks = np.zeros((200, 64, 64, 32), bool)
    for n, mask in enumerate(masks):
        mask[:, n % 64, n % 32] = True
        mask[-1, -1, -1] = True
    result = LabelMap.from_masks(enumerate(masks, start=1))
    assert len(result.layers) == 200
    assert all((layer > 0).sum() == mask.sum() for layer, mask in zip(result.layers, masks, strict=True))
