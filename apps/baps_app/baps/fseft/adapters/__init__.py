"""Ways to adapt a foundation model to an organ: on its answers, on its features, or inside it."""

from __future__ import annotations

from baps.fseft.adapters.adapter import Answer, FewShotAdapter, Reads
from baps.fseft.adapters.methods import METHODS, Method, build_adapter, method_named, why_not

__all__ = ["METHODS", "Answer", "FewShotAdapter", "Method", "Reads", "build_adapter", "method_named", "why_not"]
