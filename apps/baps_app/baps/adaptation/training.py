"""The training loop: batches of labelled slices, a step of the optimiser on each, the curve now and then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from ..blackbox import BlackBox, Prompt
from ..clicks import draw_prompt
from ..errors import InputError
from ..optimisers.prompt_space import code_gradient
from ..optimisers.spsa_gc import SpsaGc
from ..visual_prompt import VisualPrompt, build_visual_prompt, image_statistics, to_pixels, to_tensor
from .cases import LabelledSlice, evenly_spaced
from .losses import batch_loss, image_losses
from .scoring import score_slices
from .settings import AdaptationSettings

_PUBLISHED_BATCH = 4

Progress = Callable[[int, int, int, float | None], None]
"""Called with (step, steps, black-box images so far, Dice of the curve's last point or None)."""


@dataclass(frozen=True)
class CurvePoint:
    """Dice on the fixed slices of the training curve after so many black-box images."""

    images: int
    dice: float


@dataclass(frozen=True)
class _Batch:
    """Images (B, 3, S, S) in [0, 255], features (B, F), truth (B, S, S) float, and a prompt an image."""

    images: torch.Tensor
    features: torch.Tensor
    truth: torch.Tensor
    prompts: list[Prompt]


class _Data:
    """Slices as tensors, with their frozen features, computed once."""

    def __init__(self, slices: Sequence[LabelledSlice]) -> None:
        self.slices = slices
        self.features = torch.cat([image_statistics(to_tensor(s.image[None])) for s in slices])

    def batch(self, rows: Sequence[int], kind: str, random: np.random.Generator) -> _Batch:
        picked = [self.slices[row] for row in rows]
        return _Batch(
            to_tensor(np.stack([s.image for s in picked])),
            self.features[list(rows)],
            torch.from_numpy(np.stack([s.truth for s in picked])).float(),
            [draw_prompt(s.truth, kind, random) for s in picked],
        )


def ask(black_box: BlackBox, images: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
    """Probabilities (B, S, S) for images (B, 3, S, S) of whole grey levels."""
    return torch.from_numpy(black_box.segment(to_pixels(images), prompts))


class _PromptSpace:
    """Estimate dL/dcode image by image, backpropagate exactly through the decoder, step with Adam."""

    def __init__(self, visual_prompt: VisualPrompt, settings: AdaptationSettings, steps: int) -> None:
        self.visual_prompt, self.settings = visual_prompt, settings
        constant = [p for name, p in visual_prompt.named_parameters() if name == "head.bias"]
        rest = [p for name, p in visual_prompt.named_parameters() if name != "head.bias"]
        groups = [{"params": constant, "lr": settings.rate}, {"params": rest, "lr": settings.rate / 10}]
        self.adam = torch.optim.Adam([group for group in groups if group["params"]])
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.adam, max(1, steps), settings.rate / 100)

    @staticmethod
    def images_per_step(batch: int) -> int:
        return 2 * batch

    def step(self, black_box: BlackBox, batch: _Batch, generator: torch.Generator) -> None:
        code = self.visual_prompt.code(batch.features, batch.prompts, batch.images.shape[-1])

        def losses(trial: torch.Tensor) -> torch.Tensor:
            changed = self.visual_prompt.apply_code(batch.images, trial)
            return image_losses(ask(black_box, changed, batch.prompts), batch.truth)

        directions = self.visual_prompt.directions(code.shape, generator)
        gradient, _, _ = code_gradient(losses, code.detach(), directions, self.settings.radius)
        self.adam.zero_grad()
        (gradient * code).sum().div(len(code)).backward()
        self.adam.step()
        self.schedule.step()


class _SpsaGcTraining:
    """SPSA-GC on all weights of the decoder; perturbations are kept above one grey level of the image."""

    def __init__(self, visual_prompt: VisualPrompt) -> None:
        self.visual_prompt = visual_prompt
        self.optimiser = SpsaGc()
        self.theta = parameters_to_vector(visual_prompt.parameters()).detach()

    @staticmethod
    def images_per_step(batch: int) -> int:
        return 2 * SpsaGc().settings.directions * batch

    @torch.no_grad()
    def step(self, black_box: BlackBox, batch: _Batch, generator: torch.Generator) -> None:
        def changed(theta: torch.Tensor) -> torch.Tensor:
            vector_to_parameters(theta, self.visual_prompt.parameters())
            return self.visual_prompt.change(batch.images, batch.features, batch.prompts)

        def loss(theta: torch.Tensor) -> float:
            return float(batch_loss(ask(black_box, changed(theta), batch.prompts), batch.truth))

        self._keep_visible(changed, generator)
        self.theta, _ = self.optimiser.step(self.theta, loss, generator)
        vector_to_parameters(self.theta, self.visual_prompt.parameters())

    def _keep_visible(self, changed: Callable[[torch.Tensor], torch.Tensor], generator: torch.Generator) -> None:
        """A change of less than one grey level would be lost in rounding (a fault of the reference code)."""
        trial = torch.randn(self.theta.shape, generator=generator)
        now = changed(self.theta)
        for _ in range(8):
            moved = changed(self.theta + self.optimiser.perturbation_size() * trial)
            if float((moved - now).abs().mean()) >= 1.0:
                return
            self.optimiser.enlarge_perturbation(2.0)


def train(
    black_box: BlackBox,
    slices: Sequence[LabelledSlice],
    settings: AdaptationSettings,
    max_images: int,
    progress: Progress | None = None,
) -> tuple[VisualPrompt, list[CurvePoint]]:
    """Train a visual prompt.

    Args:
        black_box: what is adapted to; it is asked ``max_images`` images at the most.
        slices: to train on. The curve is measured on some of them, with fixed prompts.
        settings: see there.
        max_images: for this run, its curve included.
        progress: told after every step.

    Returns:
        The visual prompt and the training curve; its first point is the unadapted model.

    Raises:
        InputError: if the images do not suffice for a single step.
    """
    started = black_box.images_asked
    visual_prompt = build_visual_prompt(settings.visual_prompt, settings.seed)
    data = _Data(slices)
    curve_slices = evenly_spaced(slices, settings.curve_slices)
    curve_images = (settings.curve_points + 1) * len(curve_slices)
    published = settings.optimiser == "spsa_gc"
    batch_size = min(_PUBLISHED_BATCH if published else settings.batch, len(slices))
    stepper: _PromptSpace | _SpsaGcTraining
    per_step = (_SpsaGcTraining if published else _PromptSpace).images_per_step(batch_size)
    steps = (max_images - curve_images) // per_step
    if steps < 1:
        raise InputError(
            f"{max_images} black-box images do not suffice: a step takes {per_step} and the training curve "
            f"{curve_images}. Raise max_images."
        )
    stepper = _SpsaGcTraining(visual_prompt) if published else _PromptSpace(visual_prompt, settings, steps)
    curve: list[CurvePoint] = []

    def measure() -> float:
        scores = score_slices(black_box, visual_prompt, curve_slices, settings.prompt, settings.seed, 1)
        curve.append(CurvePoint(black_box.images_asked - started, float(scores.mean())))
        return curve[-1].dice

    measure()
    marks = {round(steps * (n + 1) / settings.curve_points) for n in range(settings.curve_points)}
    order: list[int] = []
    for step in range(1, steps + 1):
        random = np.random.default_rng([settings.seed, step])
        generator = torch.Generator().manual_seed(int(random.integers(2**62)))
        while len(order) < batch_size:  # Every slice comes once before any comes again.
            order += [int(row) for row in np.random.default_rng([settings.seed, step, 1]).permutation(len(slices))]
        rows, order = order[:batch_size], order[batch_size:]
        stepper.step(black_box, data.batch(rows, settings.prompt, random), generator)
        dice = measure() if step in marks else None
        if progress:
            progress(step, steps, black_box.images_asked - started, dice)
    return visual_prompt, curve
