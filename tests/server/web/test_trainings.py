from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from baps.server.train.stats import Stats, read_stats
from baps.server.web.layout import format_duration
from baps.server.web.trainings import Curve, Progress, read_training, read_trainings

START = datetime(2026, 3, 1, 12, 0, 0)
STATS: dict[str, Any] = {
    "start_time": "2026-03-01 12:00:00",
    "epoch": 250,
    "total_epochs": 1000,
    "best_metric": 0.7,
    "label": "spleen",
    "black_box_images": 500,
    "curves": {"spleen": [[100, 0.4], [500, 0.7]]},
    "adapters": {},
    "skipped": {},
    "request": {"label": "spleen"},
}


def test_a_running_training_has_a_curve_and_the_time_left() -> None:
    now = datetime(2026, 3, 1, 12, 10, 0)
    training = read_training("baps", STATS, {"status": "RUNNING"}, now)
    assert training is not None
    assert (training.progress, training.percent, training.images) == (Progress.RUNNING, 25, 500)
    assert training.seconds_left == pytest.approx(30 * 60)
    assert training.curves == (Curve("spleen", ((100, 0.4), (500, 0.7))),)


@pytest.mark.parametrize(
    ("task", "changes", "progress"),
    [
        ({"status": "SUBMITTED"}, {}, Progress.STARTING),
        ({"status": "STOPPED"}, {}, Progress.STOPPED),
        (None, {}, Progress.STOPPED),  # The server ended meanwhile.
        (None, {"total_time": "60 s"}, Progress.DONE),
        ({"status": "DONE"}, {"total_time": "60 s"}, Progress.DONE),
        ({"status": "ERROR"}, {"total_time": "60 s", "error": "There are no labels."}, Progress.FAILED),
        ({"status": "ERROR"}, {}, Progress.FAILED),  # Its process was killed.
    ],
)
def test_progress(task: dict[str, str] | None, changes: dict[str, str], progress: Progress) -> None:
    training = read_training("baps", {**STATS, **changes}, task, START)
    assert training is not None
    assert training.progress is progress
    assert bool(training.error) == (progress is Progress.FAILED)
    assert training.is_active == (progress is Progress.STARTING)


def test_without_a_training() -> None:
    assert read_training("baps", {}, None, START) is None
    assert read_trainings({"baps": {}, "organs": {}}, None) == []


def test_the_running_training_is_first() -> None:
    task = {"status": "RUNNING", "request": {"model": "organs"}}
    done = {**STATS, "total_time": "9 s", "start_time": "2026-03-02 12:00:00"}
    trainings = read_trainings({"baps": done, "organs": STATS}, task)
    assert [(one.model, one.progress) for one in trainings] == [
        ("organs", Progress.RUNNING), ("baps", Progress.DONE)
    ]  # fmt: skip


def test_statistics_of_an_earlier_release_or_by_hand_are_read() -> None:
    odd = {"start_time": "yesterday", "curves": [1], "adapters": "none", "request": None, "epoch": 3}
    training = read_training("baps", odd, {"status": "RUNNING"}, START)
    assert training is not None
    assert (training.started, training.curves, training.results, training.seconds_left) == (None, (), (), None)


@pytest.mark.parametrize(
    "damage",
    [
        {"epoch": "many"},
        {"best_metric": None},
        {"total_epochs": float("nan")},
        {"curves": {"spleen": [[1]]}},
        {"adapters": {"spleen": 5}},
        {"black_box_images": float("nan")},
    ],
)
def test_statistics_that_cannot_be_read_leave_the_other_training(damage: dict[str, object]) -> None:
    trainings = read_trainings({"baps": {**STATS, **damage}, "organs": STATS}, None)
    assert {one.model: "cannot be read" in one.error for one in trainings} == {"baps": True, "organs": False}


def test_a_curve_leaves_out_what_is_no_number() -> None:
    (training,) = read_trainings({"baps": {**STATS, "curves": {"spleen": [[float("nan"), 0.5], [1, 0.5]]}}}, None)
    assert training.curves[0].points == ((1.0, 0.5),)


def test_a_curve_stays_short_and_has_its_ends(tmp_path: Path) -> None:
    stats = Stats.reset(tmp_path / "train_stats.json", {"label": "spleen"})
    for number in range(1000):
        stats.report("spleen", number, 1000, number / 1000, black_box_images=10 * number)
        stats.report("spleen", number, 1000, number / 1000, black_box_images=10 * number + 5)  # The same Dice.
    stats.end()
    read = read_stats(tmp_path / "train_stats.json")
    points = read["curves"]["spleen"]
    assert 20 < len(points) <= 100
    assert (points[0], points[-1]) == ([0, 0.0], [9990, 0.999])
    assert points == sorted(points)
    assert read["request"] == {"label": "spleen"}


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (-1, "0 s"), (61, "61 s"), (600, "10 min"), (7500, "2 h 05 min")]
)
def test_durations(seconds: float | None, text: str) -> None:
    assert format_duration(seconds) == text
