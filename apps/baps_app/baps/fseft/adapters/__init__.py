"""Ways to adapt a foundation model to an organ: on its answers, on its features, or inside it."""

from __future__ import annotations

from .adapter import Answer, FewShotAdapter, Reads
from .methods import METHODS, Method, build_adapter, method_named, why_not

__all__ = ["METHODS", "Answer", "FewShotAdapter", "Method", "Reads", "build_adapter", "method_named", "why_not"]
