from __future__ import annotations

from typing import Any

import pytest
import torch

from baps.adapters.visual_prompt import (
    CONDITIONS,
    KINDS,
    STATISTICS,
    BasisVisualPrompt,
    ImageStatistics,
    VisualPrompt,
    build_visual_prompt,
    image_statistics,
    visual_prompt_from_record,
)
from baps.errors import BapsError, InputError
from baps.prompts import Prompt

IMAGES = torch.randint(0, 256, (2, 3, 128, 128), generator=torch.Generator().manual_seed(0)).float()
PROMPTS = [Prompt(((3.0, 4.0),)), Prompt(box=(1.0, 2.0, 30.0, 40.0))]


def _set_random_weights(visual_prompt: VisualPrompt) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in visual_prompt.named_parameters():
            if name.startswith(("head", "last")):
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_an_identity_until_it_is_trained(kind: str, condition: str) -> None:
    visual_prompt = build_visual_prompt(kind, 2, condition)
    assert (visual_prompt.kind, visual_prompt.condition) == (kind, "click" if kind == "tone" else condition)
    assert torch.equal(visual_prompt.transform_images(IMAGES, visual_prompt.encoder.features(IMAGES), PROMPTS), IMAGES)


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("kind", ["basis", "concat"])
def test_the_condition_decides_whether_the_click_matters(kind: str, condition: str) -> None:
    visual_prompt = build_visual_prompt(kind, condition=condition)
    _set_random_weights(visual_prompt)
    features = image_statistics(IMAGES)
    first, second = (visual_prompt.transform_images(IMAGES, features, prompts) for prompts in (PROMPTS, PROMPTS[::-1]))
    assert not torch.equal(first, IMAGES)
    assert torch.equal(first, second) == (condition == "label")
    assert visual_prompt.conditioned_on_click == (condition == "click")


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_record_and_state_rebuild_the_same_prompt(kind: str, condition: str) -> None:
    visual_prompt = build_visual_prompt(kind, 7, condition)
    _set_random_weights(visual_prompt)
    results = visual_prompt_from_record(visual_prompt.to_dict())
    results.load_state_dict(visual_prompt.state_dict())
    assert results.to_dict() == visual_prompt.to_dict()
    features = image_statistics(IMAGES)
    assert torch.equal(
        results.transform_images(IMAGES, features, PROMPTS), visual_prompt.transform_images(IMAGES, features, PROMPTS)
    )


def test_defaults() -> None:
    visual_prompt = build_visual_prompt("basis")
    assert (visual_prompt.condition, visual_prompt.encoder.name, visual_prompt.encoder.length) == (
        "label",
        "statistics",
        STATISTICS,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_code_is_differentiable_and_transform_keeps_no_graph(kind: str) -> None:
    visual_prompt = build_visual_prompt(kind)
    features = image_statistics(IMAGES)
    assert visual_prompt.code(features, PROMPTS, IMAGES).requires_grad
    assert not visual_prompt.transform_images(IMAGES, features, PROMPTS).requires_grad


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"kind": "vp"}, "'vp'.*tone, basis, concat"), ({"kind": "basis", "condition": "organ"}, "'organ'.*label, click")],
)
def test_error_for_unknown_names_lists_the_known_ones(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_visual_prompt(**wrong)


def test_an_encoder_with_other_weights_is_refused() -> None:
    record = build_visual_prompt("basis").to_dict()
    record["encoder"]["sha256"] = "abc"
    with pytest.raises(BapsError, match="SHA-256 is abc.*train anew"):
        visual_prompt_from_record(record)


def test_grey_levels_are_rounded_not_truncated() -> None:
    class UnroundedPrompt(BasisVisualPrompt):
        def apply_unrounded(self, images: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
            return code

    levels = UnroundedPrompt(ImageStatistics()).apply_code(
        IMAGES, torch.tensor([-3.0, 0.4, 0.6, 99.5001, 254.7, 300.0])
    )
    assert levels.tolist() == [0, 0, 1, 100, 255, 255]


@pytest.mark.parametrize("kind", KINDS)
def test_several_codes_per_image_equal_single_codes(kind: str) -> None:
    """The first codes of all images come first: D codes for B images have the shape (D * B, ...)."""
    visual_prompt = build_visual_prompt(kind)
    like = visual_prompt.code(image_statistics(IMAGES), PROMPTS, IMAGES)
    codes = 0.2 * torch.randn((3, *like.shape), generator=torch.Generator().manual_seed(2))
    together = visual_prompt.apply_code(IMAGES, codes.flatten(0, 1)).view(3, *IMAGES.shape)
    alone = torch.stack([visual_prompt.apply_code(IMAGES, code) for code in codes])
    assert torch.equal(together, alone)
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("kind", KINDS)
def test_unrounded_images_are_differentiable(kind: str) -> None:
    visual_prompt = build_visual_prompt(kind)
    code = visual_prompt.code(image_statistics(IMAGES), PROMPTS, IMAGES)
    smooth = visual_prompt.apply_unrounded(IMAGES, code)
    slope = torch.autograd.grad(smooth.sum(), code)[0]
    assert bool(torch.isfinite(slope).all())
    assert float(slope.abs().max()) > 0
    torch.testing.assert_close(smooth.round(), visual_prompt.apply_code(IMAGES, code))


def test_forward_pass_returns_the_code() -> None:
    visual_prompt = build_visual_prompt("basis")
    _set_random_weights(visual_prompt)
    features = image_statistics(IMAGES)
    assert torch.equal(visual_prompt(features, PROMPTS, IMAGES), visual_prompt.code(features, PROMPTS, IMAGES))
