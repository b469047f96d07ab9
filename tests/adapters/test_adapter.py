"""Adapters around a cheap black box."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from baps.adapters.adapter import Adapter, adapter_from_record, identity_adapter, segment_adapted
from baps.adapters.adapter_file import read_adapter, write_adapter
from baps.adapters.output_head import OutputHead
from baps.adapters.visual_prompt import CONDITIONS, KINDS, build_visual_prompt
from baps.prompts import Prompt

PROMPTS = [Prompt(((3.0, 4.0),)), Prompt(box=(1.0, 2.0, 30.0, 28.0)), Prompt(((8.0, 9.0),), ((20.0, 3.0),))]
LEAST, MOST = 0.002, 0.998
"""Bounds of a probability when a head takes its log odds."""


def _pixels(side: int = 32) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (3, side, side, 3)).astype(np.uint8)


def _trained_adapter(kind: str, condition: str, head: bool, zoom: float = 1.0) -> Adapter:
    adapter = Adapter(build_visual_prompt(kind, 1, condition), OutputHead(1).eval() if head else None, zoom)
    generator = torch.Generator().manual_seed(0)
    for value in adapter.state_dict().values():
        if value.is_floating_point():
            value.add_(0.3 * torch.rand(value.shape, generator=generator))
    return adapter


@pytest.mark.parametrize("zoom", [1.0, 0.5])
@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_adapter_is_read_back_bit_for_bit(
    new_black_box: Callable[..., Any], tmp_path: Path, kind: str, condition: str, head: bool, zoom: float
) -> None:
    adapter, pixels = _trained_adapter(kind, condition, head, zoom), _pixels()
    write_adapter(tmp_path / "a", adapter, {"adapter": adapter.to_dict()})
    back, record = read_adapter(tmp_path / "a")
    assert record == {"adapter": json.loads(json.dumps(adapter.to_dict()))}
    assert back.to_dict() == adapter.to_dict()
    assert back.state_dict().keys() == adapter.state_dict().keys()
    for key, value in adapter.state_dict().items():
        assert back.state_dict()[key].numpy().tobytes() == value.numpy().tobytes(), key
    boxes = [new_black_box(), new_black_box()]
    answers = [
        segment_adapted(box, current, pixels, PROMPTS) for box, current in zip(boxes, (adapter, back), strict=True)
    ]
    assert answers[0].tobytes() == answers[1].tobytes()
    assert boxes[0].queries[0][0].tobytes() == boxes[1].queries[0][0].tobytes()
    assert (boxes[0].queries[0][0] != pixels).any()


@pytest.mark.parametrize("side", [32, 64, 100, 224])
@pytest.mark.parametrize("kind", KINDS)
def test_untrained_adapter_changes_neither_image_nor_mask(
    new_black_box: Callable[..., Any], kind: str, side: int
) -> None:
    """No grey level changes, and the head changes masks only within the bound of the log odds."""
    pixels, black_box = _pixels(side), new_black_box(side=side)
    plain = segment_adapted(black_box, None, pixels, PROMPTS)
    np.testing.assert_array_equal(plain, new_black_box(side=side).segment(pixels, PROMPTS))
    bare = Adapter(build_visual_prompt(kind))
    np.testing.assert_array_equal(segment_adapted(black_box, bare, pixels, PROMPTS), plain)
    headed = Adapter(build_visual_prompt(kind), OutputHead().eval())
    np.testing.assert_allclose(
        segment_adapted(black_box, headed, pixels, PROMPTS), plain.clip(LEAST, MOST), atol=1e-5, rtol=0
    )
    assert [prompts for _, prompts in black_box.queries] == [PROMPTS] * 3
    for images, _ in black_box.queries:
        np.testing.assert_array_equal(images, pixels)


@given(st.lists(st.floats(0, 1, width=32), min_size=9, max_size=9), st.sampled_from([32, 64, 96, 100]))
def test_untrained_head_keeps_probabilities_within_the_bound(values: list[float], side: int) -> None:
    answers = np.resize(np.array(values, np.float32), (3, side, side))
    adapter = Adapter(build_visual_prompt("basis"), OutputHead().eval())
    refined = adapter.refine_masks(adapter.crop(_pixels(side), PROMPTS), answers)
    np.testing.assert_allclose(refined, answers.clip(LEAST, MOST), atol=1e-5, rtol=0)
    np.testing.assert_array_equal(refined > 0.5, answers.clip(LEAST, MOST) > 0.5)


def test_identity_adapter_changes_nothing(new_black_box: Callable[..., Any]) -> None:
    pixels = _pixels()
    crops = identity_adapter().crop(pixels, PROMPTS)
    np.testing.assert_array_equal(identity_adapter().transform_images(crops), pixels)
    answers = np.random.default_rng(1).random((3, 32, 32)).astype(np.float32)
    np.testing.assert_array_equal(identity_adapter().refine_masks(crops, answers), answers)
    assert identity_adapter().head is None


def test_head_gets_the_original_image_and_the_mask_of_the_changed_one(
    new_black_box: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor, Sequence[Prompt]]] = []

    def refine(images: torch.Tensor, probability: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
        seen.append((images, probability, prompts))
        return 1 - probability

    adapter, pixels, black_box = _trained_adapter("basis", "label", True), _pixels(), new_black_box()
    assert adapter.head is not None
    monkeypatch.setattr(adapter.head, "refine_masks", refine)
    result = segment_adapted(black_box, adapter, pixels, PROMPTS)
    ((images, probability, prompts),) = seen
    changed = adapter.transform_images(adapter.crop(pixels, PROMPTS))
    assert (changed != pixels).any()
    np.testing.assert_array_equal(images.permute(0, 2, 3, 1).numpy(), pixels)
    np.testing.assert_array_equal(black_box.queries[0][0], changed)
    np.testing.assert_array_equal(probability.numpy(), new_black_box().segment(changed, PROMPTS))
    np.testing.assert_array_equal(result, 1 - probability.numpy())
    assert list(prompts) == PROMPTS


def test_images_and_masks_are_not_changed_in_place(new_black_box: Callable[..., Any]) -> None:
    adapter, pixels = _trained_adapter("basis", "label", True), _pixels()
    answers = new_black_box().segment(pixels, PROMPTS)
    before = pixels.copy(), answers.copy()
    crops = adapter.crop(pixels, PROMPTS)
    adapter.transform_images(crops)
    adapter.refine_masks(crops, answers)
    np.testing.assert_array_equal(pixels, before[0])
    np.testing.assert_array_equal(answers, before[1])


@pytest.mark.parametrize("head", [False, True])
def test_record_describes_the_parts(head: bool) -> None:
    adapter = _trained_adapter("concat", "click", head, 0.5)
    record = json.loads(json.dumps(adapter.to_dict()))
    back = adapter_from_record(record)
    assert back.to_dict() == adapter.to_dict()
    assert (back.visual_prompt.kind, back.visual_prompt.condition, back.zoom) == ("concat", "click", 0.5)
    assert (back.head is not None) == head
    back.load_state_dict(adapter.state_dict())
    assert all(torch.equal(back.state_dict()[key], value) for key, value in adapter.state_dict().items())
    assert not back.visual_prompt.training
    assert back.head is None or not back.head.training


def test_a_state_that_does_not_fit_is_refused() -> None:
    adapter = _trained_adapter("basis", "label", True)
    state = adapter.state_dict()
    for missing in ("visual_prompt.head.bias", "head.last.bias", "head.normalise.running_mean"):
        with pytest.raises(RuntimeError, match=missing.partition(".")[2]):
            adapter.load_state_dict({key: value for key, value in state.items() if key != missing})
    with pytest.raises(RuntimeError):
        adapter.load_state_dict({**state, "head.more": torch.zeros(1)})
    with pytest.raises(RuntimeError):
        Adapter(build_visual_prompt("concat"), OutputHead()).load_state_dict(state)
    with pytest.raises(RuntimeError):
        replace(adapter, head=OutputHead()).load_state_dict(Adapter(adapter.visual_prompt).state_dict())
