"""Methods that adapt a foundation model to an organ: on its output, on its features, or inside it."""

from __future__ import annotations

from baps.fseft.adapters.adapter import FewShotAdapter, InputKind, ModelOutput
from baps.fseft.adapters.methods import DECODER_RATE, METHODS, Method, build_adapter, get_method, unsupported_reason

__all__ = [
    "DECODER_RATE",
    "METHODS",
    "FewShotAdapter",
    "InputKind",
    "Method",
    "ModelOutput",
    "build_adapter",
    "get_method",
    "unsupported_reason",
]
