"""Visual prompts by name, and back from the record of an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from baps.adapters.visual_prompt.basis import BasisVisualPrompt
from baps.adapters.visual_prompt.concat import ConcatVisualPrompt
from baps.adapters.visual_prompt.encoder import Encoder
from baps.adapters.visual_prompt.interface import VisualPrompt
from baps.adapters.visual_prompt.loading import load_encoder
from baps.adapters.visual_prompt.statistics import ImageStatistics
from baps.errors import BapsError, InputError

KINDS = ("basis", "concat")


def build_visual_prompt(
    kind: str, seed: int = 0, condition: str = "label", encoder: Encoder | None = None
) -> VisualPrompt:
    """An untrained visual prompt.

    Args:
        kind: ``basis`` (ours) or ``concat`` (as published).
        seed: of its weights.
        condition: see ``VisualPrompt``.
        encoder: what it knows of an image; without one, image statistics.

    Raises:
        InputError: if there is no such kind or condition.
    """
    encoder = encoder or ImageStatistics()
    if kind == "basis":
        return BasisVisualPrompt(encoder, seed=seed, condition=condition)
    if kind == "concat":
        return ConcatVisualPrompt(encoder, seed=seed, condition=condition)
    raise InputError(f"There is no visual prompt named {kind!r}. Known ones: {', '.join(KINDS)}.")


def visual_prompt_from_record(record: Mapping[str, Any]) -> VisualPrompt:
    """A visual prompt like the one that ``VisualPrompt.record`` described; its state is still to be loaded.

    Raises:
        BapsError: if the encoder cannot be loaded, or has other weights than the adapter was trained with.
    """
    made_for = record["encoder"]
    encoder = load_encoder(made_for["name"], made_for["source"])
    found = encoder.record()["sha256"]
    if found != made_for["sha256"]:
        raise BapsError(
            f"The adapter was trained with weights of the encoder {encoder.name!r} whose SHA-256 is "
            f"{made_for['sha256']}, but {made_for['source']} has {found}. Put the former ones back, or train anew."
        )
    return build_visual_prompt(record["kind"], condition=record["condition"], encoder=encoder)
