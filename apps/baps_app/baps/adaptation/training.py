"""The training loop: batches of labelled slices, a step of the optimiser on each, the curve now and then.

Whatever the black box is asked goes through the journal, so that a run that was broken off goes on from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from ..blackbox import BlackBox, Prompt
from ..errors import InputError
from ..optimisers.prompt_space import code_gradient
from ..optimisers.spsa_gc import SpsaGc
from ..simulated_prompts import draw_prompt
from ..visual_prompt import Encoder, VisualPrompt, build_visual_prompt, load_encoder, to_pixels, to_tensor
from .journal import Journal
from .losses import batch_loss, image_losses
from .scoring import score_slices
from .settings import AdaptationSettings
from .slices import AnySlice, evenly_spaced

_PUBLISHED_BATCH = 4

_CURVE_SHARE = 5
"""The training curve takes one in so many of a run's images at the most."""

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
    """Slices as tensors, with their frozen features, computed once for those that are used."""

    def __init__(self, slices: Sequence[AnySlice], encoder: Encoder) -> None:
        self.slices, self._encoder = slices, encoder
        self._features: dict[int, torch.Tensor] = {}

    def batch(self, rows: Sequence[int], kind: str, random: np.random.Generator) -> _Batch:
        images = to_tensor(np.stack([self.slices[row].image for row in rows]))
        truths = [self.slices[row].truth for row in rows]
        for row, image in zip(rows, images, strict=True):
            if row not in self._features:
                self._features[row] = self._encoder.features(image[None])
        return _Batch(
            images,
            torch.cat([self._features[row] for row in rows]),
            torch.from_numpy(np.stack(truths)).float(),
            [draw_prompt(truth, kind, random) for truth in truths],
        )


Recall = Callable[[Callable[[], Sequence[float]]], list[float]]
"""Gives the next answer of a step: the journal's, or else what the function brings back from the black box."""


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

    def step(self, black_box: BlackBox, batch: _Batch, generator: torch.Generator, recall: Recall) -> None:
        code = self.visual_prompt.code(batch.features, batch.prompts, batch.images.shape[-1])

        def losses(trial: torch.Tensor) -> torch.Tensor:
            def asked() -> list[float]:
                changed = self.visual_prompt.apply_code(batch.images, trial)
                return image_losses(ask(black_box, changed, batch.prompts), batch.truth).tolist()

            return torch.tensor(recall(asked))

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
    def step(self, black_box: BlackBox, batch: _Batch, generator: torch.Generator, recall: Recall) -> None:
        def changed(theta: torch.Tensor) -> torch.Tensor:
            vector_to_parameters(theta, self.visual_prompt.parameters())
            return self.visual_prompt.change(batch.images, batch.features, batch.prompts)

        def loss(theta: torch.Tensor) -> float:
            return recall(lambda: [float(batch_loss(ask(black_box, changed(theta), batch.prompts), batch.truth))])[0]

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
    slices: Sequence[AnySlice],
    settings: AdaptationSettings,
    max_images: int,
    journal: Journal | None = None,
    run: str = "",
    curve_points: int | None = None,
    progress: Progress | None = None,
) -> tuple[VisualPrompt, list[CurvePoint]]:
    """Train a visual prompt.

    Args:
        black_box: what is adapted to; it is asked ``max_images`` images at the most.
        slices: to train on. The curve is measured on some of them, with fixed prompts.
        settings: see there.
        max_images: for this run, its curve included.
        journal: where the answers are kept, if they are.
        run: what the journal calls this run.
        curve_points: another number than the settings'; 0 for a run whose curve nobody looks at.
        progress: told after every step.

    Returns:
        The visual prompt and the training curve; its first point is the unadapted model. Empty where images are few.

    Raises:
        InputError: if the images do not suffice for a single step.
    """
    journal = journal or Journal(None, {}, black_box)
    started = journal.images
    encoder = load_encoder(settings.encoder, settings.encoder_source)
    visual_prompt = build_visual_prompt(settings.visual_prompt, settings.seed, settings.condition, encoder)
    data = _Data(slices, encoder)
    points = settings.curve_points if curve_points is None else curve_points
    affordable = max(0, max_images) // _CURVE_SHARE // (points + 1) if points else 0
    curve_slices = evenly_spaced(slices, min(settings.curve_slices, affordable))
    curve_images = (points + 1) * len(curve_slices)
    published = settings.optimiser == "spsa_gc"
    batch_size = min(_PUBLISHED_BATCH if published else settings.batch, len(slices))
    stepper: _PromptSpace | _SpsaGcTraining
    per_step = (_SpsaGcTraining if published else _PromptSpace).images_per_step(batch_size)
    steps = (max_images - curve_images) // per_step
    if steps < 1:
        raise InputError(
            f"Of max_images, {max_images} are left for a training run, but one step takes {per_step}. Raise max_images."
        )
    stepper = _SpsaGcTraining(visual_prompt) if published else _PromptSpace(visual_prompt, settings, steps)
    curve: list[CurvePoint] = []

    def measure(step: int) -> float:
        def asked() -> list[float]:
            scores = score_slices(black_box, visual_prompt, curve_slices, settings.prompt, settings.seed, 1)
            return [float(scores.mean())]

        dice = journal.recall({"run": run, "curve": step, "seed": settings.seed}, asked)[0]
        curve.append(CurvePoint(journal.images - started, dice))
        return dice

    marks = {round(steps * (n + 1) / points) for n in range(points)} if curve_slices else set()
    if marks:
        measure(0)
    order: list[int] = []
    for step in range(1, steps + 1):
        random = np.random.default_rng([settings.seed, step])
        seed = int(random.integers(2**62))
        while len(order) < batch_size:  # Every slice comes once before any comes again.
            order += [int(row) for row in np.random.default_rng([settings.seed, step, 1]).permutation(len(slices))]
        rows, order = order[:batch_size], order[batch_size:]
        recall = partial(journal.recall, {"run": run, "step": step, "seed": seed})
        batch = data.batch(rows, settings.prompt, random)
        stepper.step(black_box, batch, torch.Generator().manual_seed(seed), recall)
        dice = measure(step) if step in marks else None
        if progress:
            progress(step, steps, journal.images - started, dice)
    return visual_prompt, curve
