"""Foundation models: networks behind one interface, and their published weights."""

from __future__ import annotations

from .foundation import FoundationModel
from .swin_unetr import build_swin_unetr
from .unet import build_unet

__all__ = ["FoundationModel", "build_swin_unetr", "build_unet"]
