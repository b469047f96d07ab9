"""Showing the black box a part of the image around the prompt, enlarged: small objects are seen better so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from baps.prompts import Prompt

_RASTER = 16
"""Parts begin at so many places along a side: near clicks see the same one, whose encoding can be kept."""

_AROUND = 1.3
"""A part that was too small becomes so many times as wide as what it must show."""


@dataclass(frozen=True)
class View:
    """A square part of a square image: its first column and row, and its side; pixels."""

    left: int
    top: int
    size: int


def crop_for_prompt(prompt: Prompt, side: int, share: float) -> View:
    """The part that goes with a prompt.

    It lies around the first foreground click, or around the box, and is enlarged where another click on the object
    would be left out.

    Args:
        prompt: in pixels of the image.
        side: of the image, pixels.
        share: of that side that a part has at least, up to 1: all of it.
    """
    if share >= 1:
        return View(0, 0, side)
    corners = [] if prompt.box is None else [prompt.box[:2], prompt.box[2:]]
    points = np.array([*prompt.positive, *corners])
    size = round(share * side)
    view = _around(np.mean(corners, axis=0) if corners else points[0], size, side)
    last = np.array([view.left, view.top]) + view.size - 1
    if (points < [view.left, view.top]).any() or (points > last).any():
        low, high = points.min(0), points.max(0)
        wide = round(_AROUND * float((high - low).max() + 1)) + side // _RASTER
        view = _around((low + high) / 2, max(size, wide), side)
    return view


def _around(place: NDArray[np.float64], size: int, side: int) -> View:
    """The part of about this size that has a place (X, Y) in its middle, as far as the image reaches."""
    size, step = min(size, side), max(1, side // _RASTER)
    left, top = (int(np.clip(round((c - size / 2) / step) * step, 0, side - size)) for c in place)
    return View(left, top, size)


def crop(images: torch.Tensor, views: Sequence[View]) -> torch.Tensor:
    """Parts of images (B, C, S, S), enlarged to the same."""
    side = images.shape[-1]
    if all(view.size == side for view in views):
        return images
    parts = [image[:, v.top : v.top + v.size, v.left : v.left + v.size] for image, v in zip(images, views, strict=True)]
    return torch.cat([F.interpolate(part[None], (side, side), mode="bilinear", align_corners=False) for part in parts])


def move(prompt: Prompt, view: View, side: int) -> Prompt:
    """A prompt in pixels of its enlarged part. Background clicks beside the part are left out."""
    if view.size == side:
        return prompt
    scale = side / view.size

    def shifted(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(x - view.left, y - view.top) for x, y in points]

    inside = [p for p in shifted(prompt.negative) if 0 <= p[0] <= view.size - 1 and 0 <= p[1] <= view.size - 1]
    box = None
    if prompt.box is not None:
        (x0, y0), (x1, y1) = shifted([prompt.box[:2], prompt.box[2:]])
        box = (x0, y0, x1, y1)
    return Prompt(tuple(shifted(prompt.positive)), tuple(inside), box).scaled(scale, scale)


def paste(answers: torch.Tensor, views: Sequence[View], side: int) -> torch.Tensor:
    """Answers on enlarged parts (B, T, T) back in their images, (B, side, side); zero around the parts."""
    if answers.shape[-1] == side and all(view.size == side for view in views):
        return answers
    whole = answers.new_zeros(len(answers), side, side)
    for answer, target, v in zip(answers, whole, views, strict=True):
        part = F.interpolate(
            answer[None, None], (v.size, v.size), mode="bilinear", align_corners=False, antialias=v.size < side
        )
        target[v.top : v.top + v.size, v.left : v.left + v.size] = part[0, 0]
    return whole
