"""Build visual prompts by name, or from the record of an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from baps.adapters.visual_prompt.basis import BasisVisualPrompt
from baps.adapters.visual_prompt.concat import ConcatVisualPrompt
from baps.adapters.visual_prompt.encoder import Encoder
from baps.adapters.visual_prompt.interface import VisualPrompt
from baps.adapters.visual_prompt.loading import load_encoder
from baps.adapters.visual_prompt.statistics import ImageStatistics
from baps.adapters.visual_prompt.tone import ToneVisualPrompt
from baps.errors import BapsError, InputError

KINDS = ("tone", "basis", "concat")
"""Names of the visual prompts."""


def build_visual_prompt(
    kind: str, seed: int = 0, condition: str = "label", encoder: Encoder | None = None
) -> VisualPrompt:
    """Build an untrained visual prompt.

    Args:
        kind: ``tone`` or ``basis`` (ours), or ``concat`` (as published).
        seed: seed of its initial weights.
        condition: see ``VisualPrompt``; ``tone`` always depends on the click.
        encoder: encoder that supplies the features of an image; None for image statistics.

    Returns:
        The visual prompt.

    Raises:
        InputError: if there is no such kind or condition.
    """
    encoder = encoder or ImageStatistics()
    if kind == "basis":
        return BasisVisualPrompt(encoder, seed=seed, condition=condition)
    if kind == "tone":
        return ToneVisualPrompt(encoder)
    if kind == "concat":
        return ConcatVisualPrompt(encoder, seed=seed, condition=condition)
    raise InputError(f"There is no visual prompt named {kind!r}. Known ones: {', '.join(KINDS)}.")


def visual_prompt_from_record(record: Mapping[str, Any]) -> VisualPrompt:
    """Build a visual prompt like the one that ``VisualPrompt.to_dict`` described. Its weights are still to be loaded.

    Args:
        record: what ``VisualPrompt.to_dict`` returned.

    Returns:
        The untrained visual prompt.

    Raises:
        BapsError: if the encoder cannot be loaded, or has other weights than the adapter was trained with.
    """
    expected = record["encoder"]
    encoder = load_encoder(expected["name"], expected["source"])
    sha256 = encoder.to_dict()["sha256"]
    if sha256 != expected["sha256"]:
        raise BapsError(
            f"The adapter was trained with weights of the encoder {encoder.name!r} whose SHA-256 is "
            f"{expected['sha256']}, but {expected['source']} has {sha256}. Put the former ones back, or train anew."
        )
    return build_visual_prompt(record["kind"], condition=record["condition"], encoder=encoder)
