"""Settings of an adaptation."""

from __future__ import annotations

import math
from dataclasses import dataclass

from baps.adapters.visual_prompt import CONDITIONS, ENCODERS, KINDS
from baps.errors import InputError
from baps.prompts.simulated import check_prompts

OPTIMISERS = ("prompt_space", "spsa_gc")

HEADS = ("convolutional", "none")

ZOOMS = ("chosen", "none")


@dataclass(frozen=True)
class AdaptationSettings:
    """Everything that an adaptation depends on beside the data and the black box.

    Attributes:
        visual_prompt: ``basis`` (ours) or ``concat`` (as published).
        condition: what the change depends on beside the image: ``label`` (one encoding serves every click) or ``click``
            (as published).
        encoder, encoder_source: what the visual prompt knows of an image, and where its weights are: see
            ``load_encoder``.
        optimiser: ``prompt_space`` (ours) or ``spsa_gc`` (as published).
        zoom: whether the part around the prompt is enlarged: ``chosen`` on the labelled slices (ours), or ``none``.
        head: what corrects the answers: ``convolutional`` (ours) or ``none`` (as published).
        prompt: the kind of prompt trained for, ``click`` or ``box``.
        correction_ratio: Share of the training prompts with corrective clicks; 0, as published, for first prompts only.
        max_images: black-box images in all: training, training curve and check.
        seed: of everything random.
        batch_size: Images per step of prompt-space optimisation; SPSA-GC takes its published 4.
        perturbation_radius: Prompt-space: size of the trial change of a coefficient.
        learning_rate: Prompt-space: step size of Adam on the constant part; a thirtieth of it on what depends on the
            image.
        slices_per_volume: used for training at the most.
        check_slices: of each held-back patient at the most.
        click_sets: fixed sets of clicks that the check is repeated with.
        curve_points, curve_slices: how often, and on how many slices, the training curve is measured.

    Raises:
        InputError: on a value that is unknown or out of range.
    """

    visual_prompt: str = "basis"
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
        for name, known in (
            ("visual_prompt", KINDS), ("condition", CONDITIONS), ("encoder", ENCODERS), ("optimiser", OPTIMISERS),
            ("zoom", ZOOMS), ("head", HEADS),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise InputError(f"There is no {name} named {getattr(self, name)!r}. Known ones: {', '.join(known)}.")
        for name in (
            "max_images", "batch_size", "slices_per_volume", "check_slices", "click_sets", "curve_points",
            "curve_slices",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if not (0 < self.perturbation_radius < math.inf and 0 < self.learning_rate < math.inf):
            raise InputError(
                "perturbation_radius and learning_rate must be positive numbers, not "
                f"{self.perturbation_radius} and {self.learning_rate}."
            )
        if not 0 <= self.correction_ratio <= 1:
            raise InputError(f"correction_ratio must be a share from 0 to 1, not {self.correction_ratio}.")
        check_prompts(self.prompt, self.seed)
