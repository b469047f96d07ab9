"""Foundation models: networks behind one interface, and their published weights."""

from __future__ import annotations

from .foundation import FoundationModel
from .published import FSEFT_CLASSES, PUBLISHED, foundation_model_of, load_foundation_model
from .swin_unetr import build_swin_unetr
from .unet import build_unet

__all__ = [
    "FSEFT_CLASSES",
    "PUBLISHED",
    "FoundationModel",
    "build_swin_unetr",
    "build_unet",
    "foundation_model_of",
    "load_foundation_model",
]
