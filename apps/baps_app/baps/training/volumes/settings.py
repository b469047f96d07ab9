"""The settings of the adaptation of a 3D black box."""

from __future__ import annotations

import math
from dataclasses import dataclass

from baps.errors import InputError
from baps.prompts.simulated import check_prompts

VOLUME_PROMPTS = ("tone", "none")
VOLUME_HEADS = ("convolutional", "none")
VOLUME_ZOOMS = ("chosen", "typical", "none")
VOLUME_OPTIMISERS = ("prompt_space", "spsa_gc")


@dataclass(frozen=True)
class VolumeSettings:
    """Everything that the adaptation of a 3D black box depends on besides the data and the black box.

    Attributes:
        zoom: whether the part around the prompt is shown instead of the whole volume: ``chosen`` on the labelled
            volumes, ``typical`` for a cube of about twice the organ's size, or ``none``.
        visual_prompt: ``tone`` or ``none``.
        head: head that corrects the answers: ``convolutional`` or ``none``.
        optimiser: ``prompt_space`` (ours) or ``spsa_gc`` (as published), of the visual prompt.
        prompt: kind of prompt to train for, ``click`` or ``box``.
        max_predictions: maximum number of predictions in total: training and evaluation.
        seed: seed of everything random.
        batch_size: predictions on either side of the perturbation in a step.
        perturbation_radius: radius by which coefficients are perturbed.
        learning_rate: learning rate of Adam.
        click_sets: maximum number of prompts on each volume that is judged.

    Raises:
        InputError: if a value is unknown or out of range.
    """

    zoom: str = "chosen"
    visual_prompt: str = "tone"
    head: str = "convolutional"
    optimiser: str = "prompt_space"
    prompt: str = "click"
    max_predictions: int = 400
    seed: int = 0
    batch_size: int = 4
    perturbation_radius: float = 0.15
    learning_rate: float = 0.05
    click_sets: int = 3

    def __post_init__(self) -> None:
        for name, known in (
            ("zoom", VOLUME_ZOOMS), ("visual_prompt", VOLUME_PROMPTS), ("head", VOLUME_HEADS),
            ("optimiser", VOLUME_OPTIMISERS),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise InputError(f"There is no {name} named {getattr(self, name)!r}. Known ones: {', '.join(known)}.")
        for name in ("max_predictions", "batch_size", "click_sets"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if not (0 < self.perturbation_radius < math.inf and 0 < self.learning_rate < math.inf):
            raise InputError(
                "perturbation_radius and learning_rate must be positive numbers, not "
                f"{self.perturbation_radius} and {self.learning_rate}."
            )
        check_prompts(self.prompt, self.seed)
