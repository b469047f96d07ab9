"""Change images for the black box with small local networks, which read features of a frozen encoder."""

from __future__ import annotations

from baps.adapters.visual_prompt.basis import BasisVisualPrompt
from baps.adapters.visual_prompt.building import KINDS, build_visual_prompt, visual_prompt_from_record
from baps.adapters.visual_prompt.concat import ConcatVisualPrompt
from baps.adapters.visual_prompt.encoder import Encoder
from baps.adapters.visual_prompt.interface import CONDITIONS, VisualPrompt
from baps.adapters.visual_prompt.loading import ENCODERS, load_encoder
from baps.adapters.visual_prompt.pixels import to_pixels, to_tensor
from baps.adapters.visual_prompt.statistics import STATISTICS, ImageStatistics, image_statistics
from baps.adapters.visual_prompt.tone import ToneVisualPrompt

__all__ = [
    "CONDITIONS",
    "ENCODERS",
    "KINDS",
    "STATISTICS",
    "BasisVisualPrompt",
    "ConcatVisualPrompt",
    "Encoder",
    "ImageStatistics",
    "ToneVisualPrompt",
    "VisualPrompt",
    "build_visual_prompt",
    "image_statistics",
    "load_encoder",
    "to_pixels",
    "to_tensor",
    "visual_prompt_from_record",
]
