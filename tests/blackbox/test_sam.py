from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from segment_anything.modeling import Sam

from baps.blackbox.bundled_model import build_bundled_model
from baps.blackbox.sam import SamBlackBox
from baps.errors import BapsError, InputError
from baps.prompts import Prompt
from tests.support.sam_networks import random_vit_b, small_sam

IMAGE = np.zeros((64, 64, 3), np.uint8)
CLICK = Prompt(((9.0, 9.0),))
PROMPTS = [
    Prompt(((100.0, 50.0),)),
    Prompt(((100.0, 50.0), (30.0, 55.5)), ((20.0, 30.0),)),
    Prompt(box=(10.0, 12.0, 61.0, 57.0)),
    Prompt(((40.0, 50.0),), ((20.0, 30.0),), (10.0, 12.0, 61.0, 57.0)),
]
SHAPES = [(192, 192), (90, 192), (192, 75), (250, 250), (64, 101), (301, 170)]


def _assert_equal_to_predictor(model: Sam, shape: tuple[int, int]) -> None:
    """Segment one image with each of ``PROMPTS`` by the package's predictor and by the black box."""
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    black_box = SamBlackBox(model, "random")
    encoding = black_box.encode(image)
    answers = [black_box.decode(encoding, prompt) for prompt in PROMPTS]
    predictor = SamPredictor(model)
    predictor.set_image(image)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        clicks = [*prompt.positive, *prompt.negative]
        logits, _, _ = predictor.predict(
            np.array(clicks) if clicks else None,
            np.array([1] * len(prompt.positive) + [0] * len(prompt.negative)) if clicks else None,
            box=np.array(prompt.box) if prompt.box else None,
            multimask_output=False,
            return_logits=True,
        )
        np.testing.assert_allclose(answer, 1 / (1 + np.exp(-logits[0])), atol=1e-5)
    assert all(np.abs(one - other).max() > 1e-2 for one, other in itertools.pairwise(answers))
    dimmer = black_box.segment(image[None] // 2, PROMPTS[:1])[0]
    assert np.abs(dimmer - answers[0]).max() > 1e-2  # The network is sensitive to what it is shown.


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_masks_equal_the_packages_predictor(shape: tuple[int, int]) -> None:
    """The network is the bundled one; the parts around it are SAM's."""
    _assert_equal_to_predictor(small_sam(), shape)


@pytest.mark.slow
def test_masks_of_sam_equal_the_packages_predictor() -> None:
    _assert_equal_to_predictor(random_vit_b(), (300, 400))


@pytest.mark.parametrize("size", [(192, 75), (60, 192)], ids=str)
def test_sam_pads_after_the_normalisation(size: tuple[int, int]) -> None:
    """The black padding of a canvas is not shown: SAM's own padding is its mean colour."""
    black_box = SamBlackBox(small_sam(), "random")
    height, width = size
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    canvas = np.zeros((1, 192, 192, 3), np.uint8)
    canvas[0, :height, :width] = image
    prompt = Prompt(((40.0, 30.0),))
    alone = black_box.segment(image[None], [prompt])[0]
    answer = black_box.segment(canvas, [prompt], [size])[0]
    np.testing.assert_array_equal(answer[:height, :width], alone)
    assert answer[height:].max(initial=0) == answer[:, width:].max(initial=0) == 0
    decoded = black_box.decode(black_box.encode(canvas[0], size=size), prompt)
    np.testing.assert_allclose(decoded, answer, atol=1e-6)
    assert np.abs(black_box.segment(canvas, [prompt])[0, :height, :width] - alone).max() > 1e-2


def test_out_of_memory_is_a_sentence_and_the_next_call_may_succeed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_bundled_model(64)
    black_box = SamBlackBox(model, "small")
    encoding = black_box.encode(IMAGE)

    def full(*_: object, **__: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    with monkeypatch.context() as patched:
        patched.setattr(model.image_encoder, "forward", full)
        for call in (lambda: black_box.encode(IMAGE), lambda: black_box.segment(IMAGE[None], [CLICK])):
            with pytest.raises(BapsError, match="GPU has not enough memory.*device=cpu") as caught:
                call()
            assert not isinstance(caught.value, InputError)  # The operator must fix it, so 503 and not 400.
        assert black_box.decode(encoding, CLICK).shape == (64, 64)
    assert black_box.segment(IMAGE[None], [CLICK]).shape == (1, 64, 64)


def test_cached_encodings_are_in_main_memory_and_counted() -> None:
    encoding = SamBlackBox(build_bundled_model(64), "small").encode(IMAGE)
    assert encoding.nbytes == 128 * 8 * 8 * 4
    assert encoding._content.tensors[0].device.type == "cpu"  # type: ignore[attr-defined]
