"""The local networks that adapt an image to the black box, and the frozen encoder that they read."""

from __future__ import annotations

from .basis import BasisVisualPrompt
from .building import KINDS, build_visual_prompt, visual_prompt_from_record
from .concat import ConcatVisualPrompt
from .encoder import Encoder
from .interface import CONDITIONS, VisualPrompt
from .loading import ENCODERS, load_encoder
from .pixels import to_pixels, to_tensor
from .statistics import STATISTICS, ImageStatistics, image_statistics

__all__ = [
    "CONDITIONS",
    "ENCODERS",
    "KINDS",
    "STATISTICS",
    "BasisVisualPrompt",
    "ConcatVisualPrompt",
    "Encoder",
    "ImageStatistics",
    "VisualPrompt",
    "build_visual_prompt",
    "image_statistics",
    "load_encoder",
    "to_pixels",
    "to_tensor",
    "visual_prompt_from_record",
]
