"""The training loop: batches of labelled slices, a step on each, the curve now and then, and the head at the end.

Whatever the black box is asked goes through the journal, so that a run that was broken off goes on from it. While the
black box works, the next batch is got ready.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from baps.adapters.adapter import Adapter
from baps.adapters.visual_prompt import VisualPrompt, build_visual_prompt, load_encoder
from baps.blackbox import BlackBox
from baps.errors import InputError
from baps.evaluation.scoring import score_slices
from baps.evaluation.slices import AnySlice, evenly_spaced
from baps.training.batches import Batch, Batches
from baps.training.head_training import collect_answers, train_head
from baps.training.query_log import QueryLog
from baps.training.settings import AdaptationSettings
from baps.training.steps import PromptSpaceStepper, SpsaGcStepper, Stepper
from baps.training.zooming import choose_zoom

_CURVE_SHARE = 5
"""The training curve takes one in so many of a run's images at the most."""

_ZOOM_SHARE = 10
"""Choosing a zoom takes one in so many of a run's images at the most."""

_ZOOM_MOST = 256

_HEAD_SHARE = 3
"""The head's answers take one in so many of the others."""

_HEAD_MOST = 800

Progress = Callable[[int, int, int, float | None], None]
"""Called with (step, steps, black-box images so far, Dice of the curve's last point or None)."""

Watch = Callable[[int, Adapter], None]
"""Shown (black-box images so far, the adapter as it is then)."""


@dataclass(frozen=True)
class CurvePoint:
    """Dice on the fixed slices of the training curve after so many black-box images."""

    images: int
    dice: float


def build_stepper(settings: AdaptationSettings) -> Stepper:
    """What moves the weights of a visual prompt."""
    return SpsaGcStepper() if settings.optimiser == "spsa_gc" else PromptSpaceStepper(settings)


@dataclass(frozen=True)
class Shares:
    """Images for choosing the zoom and for the head, slices that the curve is measured on, and steps."""

    zoom: int
    head: int
    curve_slices: int
    steps: int


def share_out(max_images: int, slices: int, points: int, stepper: Stepper, settings: AdaptationSettings) -> Shares:
    """What a run's images are spent on.

    Raises:
        InputError: if they do not suffice for a single step.
    """
    most = max(0, max_images)
    zoom = min(most // _ZOOM_SHARE, _ZOOM_MOST) if settings.zoom == "chosen" else 0
    curve_slices = min(slices, settings.curve_slices, most // _CURVE_SHARE // (points + 1) if points else 0)
    left = max_images - zoom - (points + 1) * curve_slices
    head = min(left // _HEAD_SHARE, _HEAD_MOST) if settings.head == "convolutional" else 0
    per_step = stepper.asked_each * min(stepper.batch, slices)
    steps = (left - head) // per_step
    if steps < 1:
        raise InputError(
            f"Of max_images, {left - head} are left for a training run beside its zoom, curve and head, but one step "
            f"takes {per_step}. Raise max_images."
        )
    return Shares(zoom, head, curve_slices, steps)


def train(
    black_box: BlackBox,
    slices: Sequence[AnySlice],
    settings: AdaptationSettings,
    max_images: int,
    query_log: QueryLog | None = None,
    run: str = "",
    curve_points: int | None = None,
    progress: Progress | None = None,
    start: Adapter | None = None,
    watch: Watch | None = None,
    visual_prompt: VisualPrompt | None = None,
    stepper: Stepper | None = None,
) -> tuple[Adapter, list[CurvePoint]]:
    """Train an adapter.

    Args:
        black_box: what is adapted to; it is asked ``max_images`` images at the most.
        slices: to train on. The curve is measured on some of them, with fixed prompts.
        settings: see there.
        max_images: for this run, its curve included.
        journal: where the answers are kept, if they are.
        run: what the journal calls this run.
        curve_points: another number than the settings'; 0 for a run whose curve nobody looks at.
        progress: told after every step.
        start: an adapter to go on from, if its visual prompt is of the same kind; its head is learned anew.
        watch: shown the adapter at every point of the curve; what it asks the black box is not counted here.
        visual_prompt, stepper: others than those of the settings.

    Returns:
        The adapter and the training curve; its first point is where the training started. Empty where images are few.

    Raises:
        InputError: if the images do not suffice for a single step.
    """
    query_log = query_log or QueryLog(None, {}, black_box)
    started = query_log.images
    encoder = load_encoder(settings.encoder, settings.encoder_source)
    visual_prompt = visual_prompt or build_visual_prompt(
        settings.visual_prompt, settings.seed, settings.condition, encoder
    )
    if start is not None and start.visual_prompt.to_dict() == visual_prompt.to_dict():
        visual_prompt.load_state_dict(start.visual_prompt.state_dict())
    stepper = stepper or build_stepper(settings)
    points = settings.curve_points if curve_points is None else curve_points
    shares = share_out(max_images, len(slices), points, stepper, settings)
    zoom = choose_zoom(black_box, visual_prompt, slices, settings, shares.zoom, query_log, run)
    batches = Batches(slices, encoder, zoom)
    curve_slices = evenly_spaced(slices, shares.curve_slices)
    steps, batch_size = shares.steps, min(stepper.batch, len(slices))
    stepper.start(visual_prompt, steps)
    curve: list[CurvePoint] = []

    def measure(step: int, adapter: Adapter) -> float:
        def asked() -> list[float]:
            return [float(score_slices(black_box, adapter, curve_slices, settings.prompt, settings.seed, 1).mean())]

        dice = query_log.get_or_query({"run": run, "curve": step, "seed": settings.seed}, asked)[0]
        curve.append(CurvePoint(query_log.images - started, dice))
        if watch:
            watch(query_log.images, adapter)
        return dice

    plain = Adapter(visual_prompt, zoom=zoom)
    before_head = points - 1 if shares.head else points
    marks = {round(steps * (n + 1) / max(1, before_head)) for n in range(before_head)} if curve_slices else set()
    if curve_slices:
        measure(0, plain)
    order = batches.order(steps * batch_size, np.random.default_rng([settings.seed, 1]))

    def prepare(step: int) -> tuple[Batch, int]:
        random = np.random.default_rng([settings.seed, step])
        seed = int(random.integers(2**62))
        rows = order[(step - 1) * batch_size : step * batch_size]
        return batches.draw(rows, settings.prompt, settings.correction_ratio, random), seed

    with ThreadPoolExecutor(1) as ahead:
        following: Future[tuple[Batch, int]] = ahead.submit(prepare, 1)
        for step in range(1, steps + 1):
            batch, seed = following.result()
            if step < steps:
                following = ahead.submit(prepare, step + 1)
            get_or_query = partial(query_log.get_or_query, {"run": run, "step": step, "seed": seed})
            stepper.step(black_box, batch, torch.Generator().manual_seed(seed), get_or_query)
            dice = measure(step, plain) if step in marks else None
            if progress:
                progress(step, steps + 1, query_log.images - started, dice)
    adapter = plain
    if shares.head:
        answers = collect_answers(
            black_box, visual_prompt, batches, settings.prompt, shares.head, settings.seed, query_log, run
        )
        adapter = replace(plain, head=train_head(batches, answers, settings.seed))
    dice = measure(steps + 1, adapter) if shares.head and curve_slices else None
    if progress:
        progress(steps + 1, steps + 1, query_log.images - started, dice)
    return adapter, curve
