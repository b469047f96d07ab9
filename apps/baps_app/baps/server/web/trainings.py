"""Describe the trainings for the pages: the one that runs, and the last one of each trainer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Any

from monailabel.utils.async_tasks.utils import processes, tasks

from baps.server.train.stats import TIME_FORMAT

if TYPE_CHECKING:
    from baps.server.app import BapsApp


class Progress(str, Enum):
    """Progress of a training.

    Attributes:
        STARTING: It was requested, and its process starts.
        RUNNING: It trains.
        DONE: It has finished.
        FAILED: It ended with an error.
        STOPPED: A person stopped it, or the server ended meanwhile. It can go on.
    """

    STARTING = "starting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Curve:
    """Dice during the training of an adapter.

    Attributes:
        name: The organ, or ``shared``.
        points: Number of black-box images (of the 3D model: predictions; of organ models: steps), and Dice.
    """

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Training:
    """A training.

    Attributes:
        model: Name of the trainer: ``baps``, ``organs`` or ``volume``.
        progress: Its progress.
        started: When it began, or None.
        organ: The organ that is trained now, or was last, or "".
        done: Finished steps.
        total: All steps, at least 1.
        images: Number of images sent to the black box (of the 3D model: predictions), or None for organ models.
        best: Best Dice during the training, 0 to 1.
        seconds_left: Estimate of the time left, or None.
        curves: The curve of each adapter.
        results: Organ and sentence of each adapter that is finished.
        skipped: Reasons by image for those that were not used.
        error: Sentence about the error, or "".
        request: Options that it was started with.
    """

    model: str
    progress: Progress
    started: datetime | None
    organ: str
    done: int
    total: int
    images: int | None
    best: float
    seconds_left: float | None
    curves: tuple[Curve, ...]
    results: tuple[tuple[str, str], ...]
    skipped: Mapping[str, str]
    error: str
    request: Mapping[str, Any]

    @property
    def is_active(self) -> bool:
        """Whether it is starting or running."""
        return self.progress in (Progress.STARTING, Progress.RUNNING)

    @property
    def percent(self) -> int:
        """Share of the finished steps, 0 to 100."""
        return min(100, 100 * self.done // self.total)


def read_training(
    model: str, stats: Mapping[str, Any], task: Mapping[str, Any] | None, now: datetime
) -> Training | None:
    """Describe the last training of a trainer.

    Args:
        model: Name of the trainer.
        stats: Its statistics.
        task: MONAI Label's last task if it is of this trainer, else None.
        now: The time, as a local time without a zone.

    Returns:
        The training, or None if there was none.
    """
    status = str(task.get("status")) if task else ""
    if status == "SUBMITTED":
        return _describe(model, {}, Progress.STARTING, now, task)
    if not stats:
        return None
    if status == "RUNNING":
        progress = Progress.RUNNING
    elif stats.get("error") or status == "ERROR":
        progress = Progress.FAILED
    elif "total_time" in stats:
        progress = Progress.DONE
    else:  # Its process was stopped, or ended together with the server.
        progress = Progress.STOPPED
    return _describe(model, stats, progress, now, task)


def _describe(
    model: str, stats: Mapping[str, Any], progress: Progress, now: datetime, task: Mapping[str, Any] | None
) -> Training:
    started = _parse(stats.get("start_time"))
    done, total = int(stats.get("epoch", 0)), max(1, int(stats.get("total_epochs", 1)))
    left = None
    if progress is Progress.RUNNING and started and done:
        left = (now - started).total_seconds() / done * (total - done)
    images = stats.get("black_box_images")
    error = str(stats.get("error", ""))
    if progress is Progress.FAILED and not error:
        error = "The training ended without a result. The log of the server has the details."
    request = stats.get("request")
    return Training(
        model,
        progress,
        started,
        str(stats.get("label", "")),
        done,
        total,
        int(images) if isinstance(images, (int, float)) else None,
        float(stats.get("best_metric", 0.0)),
        left,
        _curves(stats.get("curves")),
        tuple((name, str(result.get("reason", ""))) for name, result in _items(stats.get("adapters"))),
        {name: str(reason) for name, reason in _items(stats.get("skipped"))},
        error,
        request if isinstance(request, Mapping) else {},
    )


def _curves(curves: object) -> tuple[Curve, ...]:
    return tuple(
        Curve(name, tuple((float(x), float(dice)) for x, dice in points if math.isfinite(x) and math.isfinite(dice)))
        for name, points in _items(curves)
        if isinstance(points, Sequence)
    )


def _items(value: object) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, Mapping) else []


def _parse(text: object) -> datetime | None:
    try:
        return datetime.strptime(str(text), TIME_FORMAT)
    except ValueError:
        return None


def last_task() -> Mapping[str, Any] | None:
    """Return MONAI Label's last training, or None.

    A training counts as submitted for a minute; then its process has started, or never will.
    """
    listed = tasks("train")
    if not listed:
        return None
    task: dict[str, Any] = dict(listed[-1])
    if task.get("status") == "SUBMITTED":
        started = _parse(task.get("start_ts"))
        if started is None or (datetime.now() - started).total_seconds() > 60:
            task["status"] = "ERROR"
    if task.get("status") == "RUNNING" and not processes("train"):
        task["status"] = "ERROR"
    return task


def read_trainings(stats: Mapping[str, Mapping[str, Any]], task: Mapping[str, Any] | None) -> list[Training]:
    """Describe the last training of every trainer, the one that runs first.

    Args:
        stats: Statistics by the name of the trainer.
        task: MONAI Label's last training, or None.

    Returns:
        The trainings.
    """
    model = str((task or {}).get("request", {}).get("model", ""))
    trainings = [_read_safely(name, of, task if name == model else None) for name, of in stats.items()]
    return sorted((one for one in trainings if one), key=lambda one: (not one.is_active, -_time_of(one)))


def _read_safely(model: str, stats: Mapping[str, Any], task: Mapping[str, Any] | None) -> Training | None:
    try:
        return read_training(model, stats, task, datetime.now())
    except (TypeError, ValueError, AttributeError, OverflowError):  # Of another release, or edited by hand.
        error = "The statistics of this training cannot be read. The next training replaces them."
        return Training(model, Progress.FAILED, None, "", 0, 1, None, 0.0, None, (), (), {}, error, {})


def _time_of(training: Training) -> float:
    return training.started.timestamp() if training.started else 0.0


def trainer_stats(app: BapsApp) -> dict[str, dict[str, Any]]:
    """Return the statistics of the last training of each trainer, by its name.

    Args:
        app: The app.
    """
    return {name: trainer.stats() for name, trainer in app._trainers.items()}
