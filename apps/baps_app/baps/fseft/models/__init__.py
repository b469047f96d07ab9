"""Foundation models: networks behind one interface, and their published weights."""

from __future__ import annotations

from baps.fseft.models.foundation import FoundationModel
from baps.fseft.models.organ_model import ORGAN_MODELS, OrganModel, load_organ_model
from baps.fseft.models.organ_names import class_index
from baps.fseft.models.published import (
    ATLAS_CLASSES,
    FSEFT_CLASSES,
    PUBLISHED,
    UNIVERSAL_CLASSES,
    build_from_state,
    load_foundation_model,
)
from baps.fseft.models.swin_unetr import build_swin_unetr
from baps.fseft.models.unet import build_unet

__all__ = [
    "ATLAS_CLASSES",
    "FSEFT_CLASSES",
    "ORGAN_MODELS",
    "PUBLISHED",
    "UNIVERSAL_CLASSES",
    "FoundationModel",
    "OrganModel",
    "build_from_state",
    "build_swin_unetr",
    "build_unet",
    "class_index",
    "load_foundation_model",
    "load_organ_model",
]
