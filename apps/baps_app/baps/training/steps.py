"""One step of training a visual prompt: which images the black box is asked, and how the weights move."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch.func import functional_call, vmap
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from baps.adapters.optimisers.prompt_space import code_gradient
from baps.adapters.optimisers.spsa_gc import SpsaGc
from baps.adapters.visual_prompt import VisualPrompt, to_pixels
from baps.blackbox import BlackBox
from baps.prompts import Prompt
from baps.training.batches import Batch
from baps.training.losses import batch_loss, image_losses
from baps.training.settings import AdaptationSettings

SLOWER = 30
"""How much slower than its constant part the visual prompt learns what depends on the image: that part harms images of
another kind."""

Recall = Callable[[Callable[[], Sequence[float]]], list[float]]
"""Gives the losses of a step: the journal's, or else what the function brings back from the black box."""


def ask(black_box: BlackBox, images: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
    """Probabilities (B, S, S) for images (B, 3, S, S) of whole grey levels."""
    return torch.from_numpy(black_box.segment(to_pixels(images), prompts))


class Stepper(ABC):
    """Moves the weights of a visual prompt, a batch at a time."""

    batch: int
    """Slices a step, where there are so many."""

    asked_each: int
    """Images that are asked for each slice of a step."""

    @abstractmethod
    def start(self, visual_prompt: VisualPrompt, steps: int) -> None:
        """Get ready to train a visual prompt in so many steps."""

    @abstractmethod
    def step(self, black_box: BlackBox, batch: Batch, generator: torch.Generator, get_or_query: Recall) -> None:
        """One step."""


class PromptSpaceStepper(Stepper):
    """Estimate dL/dcode image by image, backpropagate exactly through the decoder, step with Adam.

    Args:
        settings: batch, radius and rate.
    """

    asked_each = 2

    def __init__(self, settings: AdaptationSettings) -> None:
        self.settings, self.batch = settings, settings.batch_size

    def start(self, visual_prompt: VisualPrompt, steps: int) -> None:
        self.visual_prompt, rate = visual_prompt, self.settings.learning_rate
        moved = [(name, value) for name, value in visual_prompt.named_parameters() if value.requires_grad]
        constant = [value for name, value in moved if name == "head.bias"]
        rest = [value for name, value in moved if name != "head.bias"]
        groups = [{"params": constant, "lr": rate}, {"params": rest, "lr": rate / SLOWER}]
        self.adam = torch.optim.Adam([group for group in groups if group["params"]])
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.adam, steps, rate / 100)

    def step(self, black_box: BlackBox, batch: Batch, generator: torch.Generator, get_or_query: Recall) -> None:
        code = self.visual_prompt(batch.features, batch.prompts, batch.images.shape[-1])

        def losses(codes: torch.Tensor) -> torch.Tensor:
            def asked() -> list[float]:
                changed = self.visual_prompt.apply_code(batch.images, codes)
                return image_losses(ask(black_box, changed, batch.prompts * 2), batch.truth.repeat(2, 1, 1)).tolist()

            return torch.tensor(get_or_query(asked))

        directions = self.visual_prompt.sample_directions(code.shape, generator)
        gradient = code_gradient(losses, code.detach(), directions, self.settings.perturbation_radius)
        self.descend((gradient * code).sum().div(len(code)))

    def descend(self, loss: torch.Tensor) -> None:
        """Step down the gradient of a loss."""
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        self.schedule.step()


class SpsaGcStepper(Stepper):
    """SPSA-GC on all weights of the decoder, the images of all directions in one batch.

    Args:
        visible: perturbations are kept above one grey level of the image, which a fault of the reference code does not
            do: less would be lost in rounding.
    """

    batch = 4

    def __init__(self, visible: bool = True) -> None:
        self.optimiser, self.visible = SpsaGc(), visible
        self.asked_each = 2 * self.optimiser.settings.directions

    def start(self, visual_prompt: VisualPrompt, steps: int) -> None:
        self.visual_prompt = visual_prompt
        self.theta = parameters_to_vector(visual_prompt.parameters()).detach()

    @torch.no_grad()
    def step(self, black_box: BlackBox, batch: Batch, generator: torch.Generator, get_or_query: Recall) -> None:
        def changed(thetas: torch.Tensor) -> torch.Tensor:
            return self.visual_prompt.apply_code(batch.images, self._codes(thetas, batch))

        def losses(thetas: torch.Tensor) -> torch.Tensor:
            def asked() -> list[float]:
                answers = ask(black_box, changed(thetas), batch.prompts * len(thetas))
                return [float(batch_loss(one, batch.truth)) for one in answers.view(len(thetas), *batch.truth.shape)]

            return torch.tensor(get_or_query(asked))

        if self.visible:
            self._keep_visible(changed, generator)
        self.theta = self.optimiser.step(self.theta, losses, generator)
        vector_to_parameters(self.theta, self.visual_prompt.parameters())

    def _codes(self, thetas: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Codes (D * B, ...) of a batch for D vectors of weights, the first vector's first."""
        weights, place = {}, 0
        for name, value in self.visual_prompt.named_parameters():
            weights[name] = thetas[:, place : place + value.numel()].view(-1, *value.shape)
            place += value.numel()
        inputs = (batch.features, batch.prompts, batch.images.shape[-1])
        return vmap(lambda one: functional_call(self.visual_prompt, one, inputs))(weights).flatten(0, 1)

    def _keep_visible(self, changed: Callable[[torch.Tensor], torch.Tensor], generator: torch.Generator) -> None:
        trial = torch.randn(self.theta.shape, generator=generator)
        for _ in range(8):
            now, moved = changed(
                torch.stack([self.theta, self.theta + self.optimiser.perturbation_size() * trial])
            ).chunk(2)
            if float((moved - now).abs().mean()) >= 1.0:
                return
            self.optimiser.enlarge_perturbation(2.0)
