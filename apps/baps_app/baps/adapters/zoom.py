"""Crop around the prompt and upscale, so that small objects are resolved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from baps.prompts import Prompt

_GRID_STEPS = 16
"""Number of positions of a crop along each side. Nearby clicks share a crop, so its encoding can be reused."""

_MARGIN = 1.3
"""Factor by which a crop is wider than the clicks that it has to contain, if it was too small for them."""


@dataclass(frozen=True)
class Crop:
    """A square part of a square image.

    Attributes:
        left: first column, pixels.
        top: first row, pixels.
        size: width and height, pixels.
    """

    left: int
    top: int
    size: int


def crop_for_prompt(prompt: Prompt, image_size: int, share: float) -> Crop:
    """Choose the crop for a prompt.

    It is centred on the first positive click, or on the box, and is enlarged until it contains all positive clicks.

    Args:
        prompt: the prompt, in pixels of the image.
        image_size: width and height of the image, pixels.
        share: smallest width of the crop, as a share of the image's, above 0 and up to 1.

    Returns:
        The crop; the whole image if the share is 1.
    """
    if share >= 1:
        return Crop(0, 0, image_size)
    corners = [] if prompt.box is None else [prompt.box[:2], prompt.box[2:]]
    points = np.array([*prompt.positive, *corners])
    size = round(share * image_size)
    crop = _crop_around(np.mean(corners, axis=0) if corners else points[0], size, image_size)
    last = np.array([crop.left, crop.top]) + crop.size - 1
    if (points < [crop.left, crop.top]).any() or (points > last).any():
        low, high = points.min(0), points.max(0)
        wide = round(_MARGIN * float((high - low).max() + 1)) + image_size // _GRID_STEPS
        crop = _crop_around((low + high) / 2, max(size, wide), image_size)
    return crop


def _crop_around(centre: NDArray[np.float64], size: int, image_size: int) -> Crop:
    """Return the crop of about a given size that is centred on a point (X, Y), as far as the image allows."""
    size, step = min(size, image_size), max(1, image_size // _GRID_STEPS)
    left, top = (int(np.clip(round((c - size / 2) / step) * step, 0, image_size - size)) for c in centre)
    return Crop(left, top, size)


def crop_images(images: torch.Tensor, crops: Sequence[Crop]) -> torch.Tensor:
    """Crop images and enlarge the crops to the size of the images.

    Args:
        images: images, (B, C, S, S).
        crops: one crop per image.

    Returns:
        The enlarged crops, (B, C, S, S).
    """
    image_size = images.shape[-1]
    if all(crop.size == image_size for crop in crops):
        return images
    parts = [image[:, c.top : c.top + c.size, c.left : c.left + c.size] for image, c in zip(images, crops, strict=True)]
    return torch.cat(
        [F.interpolate(part[None], (image_size, image_size), mode="bilinear", align_corners=False) for part in parts]
    )


def prompt_to_crop(prompt: Prompt, crop: Crop, image_size: int) -> Prompt:
    """Map a prompt to an enlarged crop. Negative clicks outside the crop are dropped.

    Args:
        prompt: the prompt, in pixels of the image.
        crop: the crop.
        image_size: width and height of the image and of the enlarged crop, pixels.

    Returns:
        The prompt, in pixels of the enlarged crop.
    """
    if crop.size == image_size:
        return prompt
    scale = image_size / crop.size

    def shift(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(x - crop.left, y - crop.top) for x, y in points]

    inside = [p for p in shift(prompt.negative) if 0 <= p[0] <= crop.size - 1 and 0 <= p[1] <= crop.size - 1]
    box = None
    if prompt.box is not None:
        (x0, y0), (x1, y1) = shift([prompt.box[:2], prompt.box[2:]])
        box = (x0, y0, x1, y1)
    return Prompt(tuple(shift(prompt.positive)), tuple(inside), box).scaled(scale, scale)


def size_in_crop(size: tuple[int, int], crop: Crop, image_size: int) -> tuple[int, int]:
    """Map the size of the part of an image that shows the slice to an enlarged crop.

    Args:
        size: height and width of that part, pixels from the upper left corner of the image.
        crop: the crop.
        image_size: width and height of the image and of the enlarged crop, pixels.

    Returns:
        Height and width of the same part of the enlarged crop, pixels; at least 1.
    """
    scale = image_size / crop.size
    height, width = (round((length - start) * scale) for length, start in zip(size, (crop.top, crop.left), strict=True))
    return min(image_size, max(1, height)), min(image_size, max(1, width))


def paste_crops(probability: torch.Tensor, crops: Sequence[Crop], image_size: int) -> torch.Tensor:
    """Paste predictions on enlarged crops into their images.

    Args:
        probability: predictions, (B, T, T) of any size T.
        crops: one crop per image.
        image_size: S, width and height of the images, pixels.

    Returns:
        Predictions on the images, (B, S, S); zero outside the crops.
    """
    if probability.shape[-1] == image_size and all(crop.size == image_size for crop in crops):
        return probability
    restored = probability.new_zeros(len(probability), image_size, image_size)
    for part, target, c in zip(probability, restored, crops, strict=True):
        resized = F.interpolate(
            part[None, None], (c.size, c.size), mode="bilinear", align_corners=False, antialias=c.size < image_size
        )
        target[c.top : c.top + c.size, c.left : c.left + c.size] = resized[0, 0]
    return restored
