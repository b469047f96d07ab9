"""Train an adapter: a step on each batch of labelled slices, the training curve at intervals, and the head at the end.

All queries to the black box go through the query log, so that an interrupted run continues from it. The next batch is
prepared while the black box works.
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

_CURVE_DIVISOR = 5
"""The training curve takes at most this fraction of a run's images: one divided by this number."""

_ZOOM_DIVISOR = 10
"""The choice of a zoom takes at most this fraction of a run's images: one divided by this number."""

_MAX_ZOOM_IMAGES = 256

_HEAD_DIVISOR = 3
"""The masks for the head take this fraction of the remaining images: one divided by this number."""

_MAX_HEAD_IMAGES = 800

Progress = Callable[[int, int, int, float | None], None]
"""Called with the step, the number of steps, the black-box images so far, and the curve's last Dice or None."""

Callback = Callable[[int, Adapter], None]
"""Called with the black-box images so far, and the current adapter."""


@dataclass(frozen=True)
class CurvePoint:
    """A point of the training curve.

    Attributes:
        images: black-box images so far.
        dice: mean Dice on the fixed slices of the curve, 0 to 1.
    """

    images: int
    dice: float


def build_stepper(settings: AdaptationSettings) -> Stepper:
    """Build the stepper that the settings name.

    Args:
        settings: the settings of the adaptation.

    Returns:
        A new stepper.
    """
    return SpsaGcStepper() if settings.optimiser == "spsa_gc" else PromptSpaceStepper(settings)


@dataclass(frozen=True)
class ImageBudget:
    """How the images of a run are divided.

    Attributes:
        zoom: images for choosing the zoom.
        head: images for the head.
        curve_slices: slices that each point of the curve is measured on.
        steps: number of steps.
    """

    zoom: int
    head: int
    curve_slices: int
    steps: int


def allocate_images(
    max_images: int, slices: int, points: int, stepper: Stepper, settings: AdaptationSettings
) -> ImageBudget:
    """Divide a run's images between the zoom, the head, the training curve and the steps.

    Args:
        max_images: images of the run.
        slices: number of labelled slices.
        points: number of points of the training curve.
        stepper: makes the steps.
        settings: the settings of the adaptation.

    Returns:
        The budget.

    Raises:
        InputError: if the images do not suffice for a single step.
    """
    available = max(0, max_images)
    zoom = min(available // _ZOOM_DIVISOR, _MAX_ZOOM_IMAGES) if settings.zoom == "chosen" else 0
    curve_slices = min(slices, settings.curve_slices, available // _CURVE_DIVISOR // (points + 1) if points else 0)
    remaining = max_images - zoom - (points + 1) * curve_slices
    head = min(remaining // _HEAD_DIVISOR, _MAX_HEAD_IMAGES) if settings.head == "convolutional" else 0
    images_per_step = stepper.queries_per_slice * min(stepper.batch_size, slices)
    steps = (remaining - head) // images_per_step
    if steps < 1:
        raise InputError(
            f"Of max_images, {remaining - head} are left for the steps of a training run besides its zoom, curve and "
            f"head, but one step takes {images_per_step}. Raise max_images."
        )
    return ImageBudget(zoom, head, curve_slices, steps)


def train(
    black_box: BlackBox,
    slices: Sequence[AnySlice],
    settings: AdaptationSettings,
    max_images: int,
    query_log: QueryLog | None = None,
    run: str = "",
    curve_points: int | None = None,
    progress: Progress | None = None,
    start_from: Adapter | None = None,
    callback: Callback | None = None,
    visual_prompt: VisualPrompt | None = None,
    stepper: Stepper | None = None,
) -> tuple[Adapter, list[CurvePoint]]:
    """Train an adapter.

    Args:
        black_box: the model; at most ``max_images`` images are queried.
        slices: slices to train on. The curve is measured on some of them, with fixed prompts.
        settings: the settings of the adaptation.
        max_images: black-box images of this run, including its curve.
        query_log: logs the answers, or None.
        run: name of this run in the log.
        curve_points: number of points of the curve instead of the settings'; 0 measures none.
        progress: called after every step.
        start_from: adapter to start from, if its visual prompt is of the same kind; the head is trained anew.
        callback: called with the adapter at every point of the curve; its queries are not counted here.
        visual_prompt: visual prompt to train instead of the settings'.
        stepper: stepper to use instead of the settings'.

    Returns:
        The adapter and the training curve, whose first point is measured before training; empty if there are few
            images.

    Raises:
        InputError: if the images do not suffice for a single step.
    """
    query_log = query_log or QueryLog(None, {}, black_box)
    started = query_log.images
    encoder = load_encoder(settings.encoder, settings.encoder_source)
    visual_prompt = visual_prompt or build_visual_prompt(
        settings.visual_prompt, settings.seed, settings.condition, encoder
    )
    if start_from is not None and start_from.visual_prompt.to_dict() == visual_prompt.to_dict():
        visual_prompt.load_state_dict(start_from.visual_prompt.state_dict())
    stepper = stepper or build_stepper(settings)
    points = settings.curve_points if curve_points is None else curve_points
    budget = allocate_images(max_images, len(slices), points, stepper, settings)
    zoom = choose_zoom(black_box, visual_prompt, slices, settings, budget.zoom, query_log, run)
    batches = Batches(slices, encoder, zoom)
    curve_slices = evenly_spaced(slices, budget.curve_slices)
    steps, batch_size = budget.steps, min(stepper.batch_size, len(slices))
    stepper.start(visual_prompt, steps)
    curve: list[CurvePoint] = []

    def measure(step: int, adapter: Adapter) -> float:
        def query() -> list[float]:
            return [float(score_slices(black_box, adapter, curve_slices, settings.prompt, settings.seed, 1).mean())]

        dice = query_log.get_or_query({"run": run, "curve": step, "seed": settings.seed}, query)[0]
        curve.append(CurvePoint(query_log.images - started, dice))
        if callback:
            callback(query_log.images, adapter)
        return dice

    without_head = Adapter(visual_prompt, zoom=zoom)
    before_head = points - 1 if budget.head else points
    curve_steps = {round(steps * (n + 1) / max(1, before_head)) for n in range(before_head)} if curve_slices else set()
    if curve_slices:
        measure(0, without_head)
    row_order = batches.sample_rows(steps * batch_size, np.random.default_rng([settings.seed, 1]))

    def draw_batch(step: int) -> tuple[Batch, int]:
        random = np.random.default_rng([settings.seed, step])
        seed = int(random.integers(2**62))
        rows = row_order[(step - 1) * batch_size : step * batch_size]
        return batches.draw(rows, settings.prompt, settings.correction_ratio, random), seed

    with ThreadPoolExecutor(1) as executor:
        next_batch: Future[tuple[Batch, int]] = executor.submit(draw_batch, 1)
        for step in range(1, steps + 1):
            batch, seed = next_batch.result()
            if step < steps:
                next_batch = executor.submit(draw_batch, step + 1)
            get_or_query = partial(query_log.get_or_query, {"run": run, "step": step, "seed": seed})
            stepper.step(black_box, batch, torch.Generator().manual_seed(seed), get_or_query)
            dice = measure(step, without_head) if step in curve_steps else None
            if progress:
                progress(step, steps + 1, query_log.images - started, dice)
    adapter = without_head
    if budget.head:
        answers = collect_answers(
            black_box, visual_prompt, batches, settings.prompt, budget.head, settings.seed, query_log, run
        )
        adapter = replace(without_head, head=train_head(batches, answers, settings.seed))
    dice = measure(steps + 1, adapter) if budget.head and curve_slices else None
    if progress:
        progress(steps + 1, steps + 1, query_log.images - started, dice)
    return adapter, curve
