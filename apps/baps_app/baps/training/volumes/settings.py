"""The settings of the adaptation of a 3D black box."""

from __future__ import annotations

from dataclasses import dataclass

from baps.prompts.simulated import check_prompts
from baps.training.settings import OPTIMISERS, check_choices, check_numbers

VOLUME_PROMPTS = ("tone", "none")
VOLUME_HEADS = ("convolutional", "none")
VOLUME_ZOOMS = ("chosen", "typical", "none")


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
        check_choices(self, zoom=VOLUME_ZOOMS, visual_prompt=VOLUME_PROMPTS, head=VOLUME_HEADS, optimiser=OPTIMISERS)
        check_numbers(self, "max_predictions", "batch_size", "click_sets")
        check_prompts(self.prompt, self.seed)
