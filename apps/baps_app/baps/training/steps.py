"""One training step of a visual prompt: which images are queried, and how the weights are updated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch.func import functional_call, vmap
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from baps.adapters.optimisers.prompt_space import code_gradient
from baps.adapters.optimisers.spsa_gc import SpsaGc
from baps.adapters.visual_prompt import VisualPrompt, to_pixels
from baps.blackbox import BlackBox, Size
from baps.prompts import Prompt
from baps.training.batches import Batch
from baps.training.losses import batch_loss, image_losses
from baps.training.settings import AdaptationSettings

IMAGE_LR_DIVISOR = 30
"""The weights that depend on the image learn this many times slower than the others, because they harm images of
another kind."""

GetOrQuery = Callable[[Callable[[], Sequence[float]]], list[float]]
"""Return the losses of a step: logged ones, or those that the given function queries from the black box."""

BatchLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Compute one loss, or one per image, from the probabilities and the targets of a batch, (B, S, S) each."""


def query_black_box(
    black_box: BlackBox, images: torch.Tensor, prompts: Sequence[Prompt], sizes: Sequence[Size] | None = None
) -> torch.Tensor:
    """Segment images with the black box, after rounding them to whole grey levels.

    Args:
        black_box: the model.
        images: (B, 3, S, S) in [0, 255].
        prompts: one per image, (X, Y) in its pixels.
        sizes: size of the part of each image that shows the slice, or None if there is no padding.

    Returns:
        Probabilities, (B, S, S).
    """
    return torch.from_numpy(black_box.segment(to_pixels(images), prompts, sizes))


def query_losses(
    black_box: BlackBox,
    images: torch.Tensor,
    batch: Batch,
    loss: BatchLoss,
) -> list[float]:
    """Query the black box with a batch under several perturbations, and compute the losses.

    Args:
        black_box: the model.
        images: (P * B, 3, S, S) in [0, 255], all images of the first perturbation first.
        batch: the B labelled slices.
        loss: computes one loss, or one per image, from the probabilities and the targets of a batch, (B, S, S) each.

    Returns:
        The losses, those of the first perturbation first.
    """
    count = len(images) // len(batch.prompts)
    masks = query_black_box(black_box, images, batch.prompts * count, batch.sizes * count)
    masks = masks.view(count, *batch.target.shape)
    losses: list[float] = torch.cat([loss(one, batch.target).reshape(-1) for one in masks]).tolist()
    return losses


class Stepper(ABC):
    """Update the weights of a visual prompt, a batch at a time.

    Attributes:
        batch_size: number of slices per step, if there are that many.
        queries_per_slice: number of black-box images per slice of a step.
    """

    batch_size: int
    queries_per_slice: int

    @abstractmethod
    def start(self, visual_prompt: VisualPrompt, steps: int) -> None:
        """Prepare for training.

        Args:
            visual_prompt: its weights are updated in place.
            steps: number of steps that will be made.
        """

    @abstractmethod
    def step(self, black_box: BlackBox, batch: Batch, generator: torch.Generator, get_or_query: GetOrQuery) -> None:
        """Make one step.

        Args:
            black_box: the model.
            batch: the labelled slices of the step.
            generator: source of the perturbations.
            get_or_query: returns logged losses, or queries new ones.
        """


class PromptSpaceStepper(Stepper):
    """Estimate dL/dcode image by image, backpropagate exactly through the decoder, and step with Adam.

    Args:
        settings: batch size, perturbation radius and learning rate.

    Attributes:
        queries_per_slice: 2, one for either side of the perturbation.
    """

    queries_per_slice = 2

    def __init__(self, settings: AdaptationSettings) -> None:
        self.settings, self.batch_size = settings, settings.batch_size

    def start(self, visual_prompt: VisualPrompt, steps: int) -> None:
        """See ``Stepper.start``.

        Args:
            visual_prompt: its weights are updated in place.
            steps: number of steps that will be made.
        """
        self.visual_prompt, rate = visual_prompt, self.settings.learning_rate
        trainable = [(name, value) for name, value in visual_prompt.named_parameters() if value.requires_grad]
        general = [value for name, value in trainable if name in visual_prompt.general_weights]
        image_dependent = [value for name, value in trainable if name not in visual_prompt.general_weights]
        groups = [{"params": general, "lr": rate}, {"params": image_dependent, "lr": rate / IMAGE_LR_DIVISOR}]
        self.adam = torch.optim.Adam([group for group in groups if group["params"]])
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.adam, steps, rate / 100)

    def step(self, black_box: BlackBox, batch: Batch, generator: torch.Generator, get_or_query: GetOrQuery) -> None:
        """See ``Stepper.step``.

        Args:
            black_box: the model.
            batch: the labelled slices of the step.
            generator: source of the perturbations.
            get_or_query: returns logged losses, or queries new ones.
        """
        code = self.visual_prompt(batch.features, batch.prompts, batch.images)

        def losses(codes: torch.Tensor) -> torch.Tensor:
            def query() -> list[float]:
                images = self.visual_prompt.apply_code(batch.images, codes)
                return query_losses(black_box, images, batch, image_losses)

            return torch.tensor(get_or_query(query))

        directions = self.visual_prompt.sample_directions(code.shape, generator)
        gradient = code_gradient(losses, code.detach(), directions, self.settings.perturbation_radius)
        self.descend((gradient * code).sum().div(len(code)))

    def descend(self, loss: torch.Tensor) -> None:
        """Step down the gradient of a loss.

        Args:
            loss: a scalar that depends on the weights.
        """
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        self.schedule.step()


class SpsaGcStepper(Stepper):
    """SPSA-GC on all weights of the decoder, with the images of all directions in one batch.

    Args:
        visible: keep perturbations above one grey level of the image, because smaller ones are lost in rounding. The
            reference code does not.
        loss: computes the loss of a batch.

    Attributes:
        batch_size: 4, as published.
    """

    batch_size = 4

    def __init__(self, visible: bool = True, loss: BatchLoss = batch_loss) -> None:
        self.optimiser, self.visible, self.loss = SpsaGc(), visible, loss
        self.queries_per_slice = 2 * self.optimiser.settings.directions

    def start(self, visual_prompt: VisualPrompt, steps: int) -> None:
        """See ``Stepper.start``.

        Args:
            visual_prompt: its weights are updated in place.
            steps: number of steps that will be made.
        """
        self.visual_prompt = visual_prompt
        self.theta = parameters_to_vector(visual_prompt.parameters()).detach()

    @torch.no_grad()
    def step(self, black_box: BlackBox, batch: Batch, generator: torch.Generator, get_or_query: GetOrQuery) -> None:
        """See ``Stepper.step``.

        Args:
            black_box: the model.
            batch: the labelled slices of the step.
            generator: source of the perturbations.
            get_or_query: returns logged losses, or queries new ones.
        """

        def transform(thetas: torch.Tensor) -> torch.Tensor:
            return self.visual_prompt.apply_code(batch.images, self._codes(thetas, batch))

        def losses(thetas: torch.Tensor) -> torch.Tensor:
            return torch.tensor(get_or_query(lambda: query_losses(black_box, transform(thetas), batch, self.loss)))

        if self.visible:
            self._keep_visible(transform, generator)
        self.theta = self.optimiser.step(self.theta, losses, generator)
        vector_to_parameters(self.theta, self.visual_prompt.parameters())

    def _codes(self, thetas: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Compute the codes (D * B, ...) of a batch for D vectors of weights, those of the first vector first."""
        weights, offset = {}, 0
        for name, value in self.visual_prompt.named_parameters():
            weights[name] = thetas[:, offset : offset + value.numel()].view(-1, *value.shape)
            offset += value.numel()
        inputs = (batch.features, batch.prompts, batch.images)
        return vmap(lambda candidate: functional_call(self.visual_prompt, candidate, inputs))(weights).flatten(0, 1)

    def _keep_visible(self, transform: Callable[[torch.Tensor], torch.Tensor], generator: torch.Generator) -> None:
        direction = torch.randn(self.theta.shape, generator=generator)
        for _ in range(8):
            unperturbed, perturbed = transform(
                torch.stack([self.theta, self.theta + self.optimiser.perturbation_size() * direction])
            ).chunk(2)
            if float((perturbed - unperturbed).abs().mean()) >= 1.0:
                return
            self.optimiser.enlarge_perturbation(2.0)
