"""A visual prompt that changes all images alike."""

from __future__ import annotations

from baps.adapters.visual_prompt import BasisVisualPrompt, ImageStatistics


def constant_prompt() -> BasisVisualPrompt:
    """Build a visual prompt of which only one set of 12 coefficients is trained, without what depends on the image."""
    result = BasisVisualPrompt(ImageStatistics())
    for name, value in result.named_parameters():
        value.requires_grad_(name == "head.bias")
    return result
