"""The settings of an adaptation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from baps.adapters.visual_prompt import CONDITIONS, ENCODERS, KINDS
from baps.errors import InputError
from baps.prompts.simulated import check_prompts

VISUAL_PROMPTS = (*KINDS, "none")

OPTIMISERS = ("prompt_space", "spsa_gc")

HEADS = ("convolutional", "none")

ZOOMS = ("chosen", "none")


class HasRates(Protocol):
    """Settings of an adaptation that estimates gradients."""

    @property
    def perturbation_radius(self) -> float:
        """Radius by which a coefficient is perturbed."""

    @property
    def learning_rate(self) -> float:
        """Learning rate of Adam."""


def check_choices(settings: object, **choices: Sequence[str]) -> None:
    """Check settings that are one of several words.

    Args:
        settings: the settings.
        **choices: known words by the name of the setting.

    Raises:
        InputError: if a word is unknown.
    """
    for name, known in choices.items():
        if getattr(settings, name) not in known:
            raise InputError(f"There is no {name} named {getattr(settings, name)!r}. Known ones: {', '.join(known)}.")


def check_numbers(settings: HasRates, *counts: str) -> None:
    """Check settings that are numbers, the radius and the learning rate included.

    Args:
        settings: the settings.
        *counts: names of the settings that must be at least 1.

    Raises:
        InputError: if a number is out of range.
    """
    for name in counts:
        if getattr(settings, name) < 1:
            raise InputError(f"{name} must be at least 1, not {getattr(settings, name)}.")
    if not (0 < settings.perturbation_radius < math.inf and 0 < settings.learning_rate < math.inf):
        raise InputError(
            "perturbation_radius and learning_rate must be positive numbers, not "
            f"{settings.perturbation_radius} and {settings.learning_rate}."
        )


@dataclass(frozen=True)
class AdaptationSettings:
    """Everything that an adaptation depends on besides the data and the black box.

    Attributes:
        visual_prompt: ``tone`` (ours, by the clicked grey level), ``basis`` (ours, by the image), ``concat`` (as
            published) or ``none``.
        condition: what ``basis`` and ``concat`` depend on besides the image: ``label`` (one encoding serves every
            click) or ``click`` (as published).
        encoder: features of the image that the visual prompt reads, see ``load_encoder``.
        encoder_source: path of the encoder's weights.
        optimiser: ``prompt_space`` (ours) or ``spsa_gc`` (as published).
        zoom: whether the part around the prompt is enlarged: ``chosen`` on the labelled slices (ours), or ``none``.
        head: output-side head that corrects the masks: ``convolutional`` (ours) or ``none`` (as published).
        prompt: kind of prompt to train for, ``click`` or ``box``.
        correction_ratio: share of the training prompts that have corrective clicks, 0 to 1; 0, as published, for first
            prompts only.
        max_images: maximum number of black-box images in total: training, training curve and evaluation.
        seed: seed of everything random.
        batch_size: slices per step of prompt-space optimisation; SPSA-GC uses its published 4.
        perturbation_radius: radius by which a coefficient is perturbed in prompt-space optimisation.
        learning_rate: learning rate of Adam on the constant part in prompt-space optimisation; a thirtieth of it is
            used for what depends on the image.
        slices_per_volume: maximum number of slices per volume that are trained on.
        check_slices: maximum number of slices of each patient that are judged.
        click_sets: maximum number of prompts on each of them.
        curve_points: number of points of the training curve.
        curve_slices: number of slices that the training curve is measured on.

    Raises:
        InputError: if a value is unknown or out of range.
    """

    visual_prompt: str = "tone"
    condition: str = "label"
    encoder: str = "statistics"
    encoder_source: str = ""
    optimiser: str = "prompt_space"
    zoom: str = "chosen"
    head: str = "convolutional"
    prompt: str = "click"
    correction_ratio: float = 0.5
    max_images: int = 4000
    seed: int = 0
    batch_size: int = 16
    perturbation_radius: float = 0.15
    learning_rate: float = 0.03
    slices_per_volume: int = 24
    check_slices: int = 12
    click_sets: int = 5
    curve_points: int = 8
    curve_slices: int = 16

    def __post_init__(self) -> None:
        check_choices(
            self, visual_prompt=VISUAL_PROMPTS, condition=CONDITIONS, encoder=ENCODERS, optimiser=OPTIMISERS,
            zoom=ZOOMS, head=HEADS,
        )  # fmt: skip
        check_numbers(
            self, "max_images", "batch_size", "slices_per_volume", "check_slices", "click_sets", "curve_points",
            "curve_slices",
        )  # fmt: skip
        if not 0 <= self.correction_ratio <= 1:
            raise InputError(f"correction_ratio must be a share from 0 to 1, not {self.correction_ratio}.")
        check_prompts(self.prompt, self.seed)

    @property
    def prompt_only(self) -> bool:
        """Whether a visual prompt is the only part that the adapter can have, so that it is always trained."""
        return self.zoom == "none" and self.head == "none" and self.visual_prompt != "none"
