"""Label maps: overlapping segments in as few layers as they need."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from baps.label_map import LabelMap, values_of

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
