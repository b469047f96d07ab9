from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from skimage.transform import resize
from torch.nn import functional as F

from baps.blackbox.medsam import MedSamBlackBox
from baps.blackbox.sam import SamBlackBox
from baps.errors import InputError
from baps.prompts import Prompt
from tests.support.sam_networks import random_vit_b, small_sam

BOX = (10.0, 12.0, 61.0, 47.0)
SHAPES = [(90, 192), (192, 75), (250, 250), (64, 101), (301, 170)]


def _image(shape: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    """Draw noise whose levels do not reach 0 and 255."""
    return np.random.default_rng(seed).integers(30, 220, (*shape, 3), np.uint8)


@torch.no_grad()
def _reference(
    model: Sam, image: NDArray[np.uint8], box: tuple[float, ...], whole: Callable[..., NDArray[np.float64]] = np.trunc
) -> NDArray[np.float32]:
    """Segment an image as MedSAM's authors do (MedSAM_Inference.py), on the modules of segment-anything.

    Resized grey levels become whole numbers by ``whole``: the script truncates them.
    """
    side, (height, width) = model.image_encoder.img_size, image.shape[:2]
    square = whole(resize(image, (side, side), order=3, preserve_range=True, anti_aliasing=True)).astype(np.uint8)
    scaled = (square - square.min()) / max(square.max() - square.min(), 1e-8)
    embedding = model.image_encoder(torch.tensor(scaled).float().permute(2, 0, 1)[None])
    corners = np.array([box]) / [width, height, width, height] * side
    sparse, dense = model.prompt_encoder(points=None, boxes=torch.tensor(corners).float()[:, None], masks=None)
    logits, _ = model.mask_decoder(
        image_embeddings=embedding,
        image_pe=model.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=False,
    )
    probability = F.interpolate(logits.sigmoid(), (height, width), mode="bilinear", align_corners=False)
    return probability[0, 0].numpy()


def _assert_equal_to_script(model: Sam, shape: tuple[int, int]) -> None:
    image = _image(shape)
    answer = MedSamBlackBox(model, "random").segment(image[None], [Prompt(box=BOX)])[0]
    np.testing.assert_allclose(answer, _reference(model, image, BOX), atol=1e-4)
    as_sam = SamBlackBox(model, "random").segment(image[None], [Prompt(box=BOX)])[0]
    assert np.abs(as_sam - answer).max() > 1e-2  # The network is sensitive to what it is shown.


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_masks_equal_the_authors_script(shape: tuple[int, int]) -> None:
    """The network is the bundled one; the parts around it are MedSAM's."""
    _assert_equal_to_script(small_sam(), shape)


@pytest.mark.slow
def test_masks_of_vit_b_equal_the_authors_script() -> None:
    _assert_equal_to_script(random_vit_b(), (512, 512))


def test_an_image_of_the_input_size_is_not_resampled() -> None:
    """The script resamples it too. Its spline misses one level in ten by 1e-13, which truncation makes a whole level;
    rounding does not. MedSAM was trained without either (pre_CT_MR.py)."""
    model, image = small_sam(), _image((192, 192))
    answer = MedSamBlackBox(model, "random").segment(image[None], [Prompt(box=BOX)])[0]
    np.testing.assert_allclose(answer, _reference(model, image, BOX, np.rint), atol=1e-4)
    np.testing.assert_allclose(answer, _reference(model, image, BOX), atol=2e-2)


def test_the_image_is_stretched_and_scaled_to_its_own_range() -> None:
    """Neither a darker copy nor one of less contrast changes the mask; the prompt is stretched with the image."""
    black_box, image = MedSamBlackBox(small_sam(), "random"), _image((192, 192))
    low = 2 * (image // 8)
    answers = black_box.segment(np.stack([low, low + 50, 3 * low]), [Prompt(box=BOX)] * 3)
    np.testing.assert_allclose(answers[1:], answers[[0, 0]], atol=1e-6)
    flat = black_box.segment(np.full((1, 90, 70, 3), 77, np.uint8), [Prompt(box=BOX)])
    assert np.isfinite(flat).all()


def test_a_batch_equals_single_images_and_an_encoding() -> None:
    """The range is that of each image, not of the batch."""
    black_box = MedSamBlackBox(small_sam(), "random", batch_size=2)
    images = np.stack([_image((90, 70)), _image((90, 70), 1) // 3])
    answers = black_box.segment(images, [Prompt(box=BOX)] * 2)
    for image, answer in zip(images, answers, strict=True):
        np.testing.assert_allclose(black_box.segment(image[None], [Prompt(box=BOX)])[0], answer, atol=1e-5)
        np.testing.assert_allclose(black_box.decode(black_box.encode(image), Prompt(box=BOX)), answer, atol=1e-5)


def test_the_padding_of_a_canvas_is_not_shown() -> None:
    """Black padding would change both the shape and the range of the image."""
    black_box, image = MedSamBlackBox(small_sam(), "random"), _image((192, 75))
    canvas = np.zeros((1, 192, 192, 3), np.uint8)
    canvas[0, :, :75] = image
    answer = black_box.segment(canvas, [Prompt(box=BOX)], [(192, 75)])[0]
    np.testing.assert_array_equal(answer[:, :75], black_box.segment(image[None], [Prompt(box=BOX)])[0])
    assert not answer[:, 75:].any()


def test_clicks_are_refused() -> None:
    with pytest.raises(InputError, match="random understands boxes only. Draw a box"):
        MedSamBlackBox(small_sam(), "random").segment(_image((64, 64))[None], [Prompt(((9.0, 9.0),))])
