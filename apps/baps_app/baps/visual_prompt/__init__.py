"""The local networks that adapt an image to the black box, and the frozen encoder that they read."""

from __future__ import annotations

from ..errors import InputError
from .basis import BasisVisualPrompt
from .concat import ConcatVisualPrompt
from .encoder import STATISTICS, image_statistics
from .interface import VisualPrompt
from .pixels import change_pixels, to_pixels, to_tensor

KINDS = ("basis", "concat")


def build_visual_prompt(kind: str, seed: int = 0) -> VisualPrompt:
    """An untrained visual prompt on image statistics: ``basis`` (ours) or ``concat`` (as published).

    Raises:
        InputError: if there is no such kind.
    """
    if kind == "basis":
        return BasisVisualPrompt(STATISTICS, seed=seed)
    if kind == "concat":
        return ConcatVisualPrompt(STATISTICS, seed=seed)
    raise InputError(f"There is no visual prompt named {kind!r}. Known ones: {', '.join(KINDS)}.")


__all__ = [
    "KINDS",
    "STATISTICS",
    "BasisVisualPrompt",
    "ConcatVisualPrompt",
    "VisualPrompt",
    "build_visual_prompt",
    "change_pixels",
    "image_statistics",
    "to_pixels",
    "to_tensor",
]
