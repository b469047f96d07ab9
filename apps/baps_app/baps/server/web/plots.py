"""Compute the coordinates of plots, which templates draw as SVG (``templates/web/plots.html``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from baps.server.web.adapter_table import PatientEvidence
from baps.server.web.trainings import Curve
from baps.site.audit_search import Week


@dataclass(frozen=True)
class Tick:
    """A tick of an axis.

    Attributes:
        at: Its coordinate, in pixels.
        text: Its text.
    """

    at: float
    text: str


@dataclass(frozen=True)
class Axes:
    """A plot's area and axes, in pixels from the upper left corner.

    Attributes:
        width: Width of the picture.
        height: Height of the picture.
        left: Left end of the area.
        right: Right end of the area.
        top: Upper end of the area.
        bottom: Lower end of the area.
        x_ticks: Ticks of the horizontal axis.
        y_ticks: Ticks of the vertical axis.
    """

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class EvidencePlot:
    """The evidence of a version over the patients.

    Attributes:
        axes: The axes.
        zero: Height of gain 0.
        band: Corners of the confidence sequence, for ``points`` of a polygon.
        mean: The mean gain, for ``points`` of a line.
        patients: Place of each patient, and whether the patient came after the training.
    """

    axes: Axes
    zero: float
    band: str
    mean: str
    patients: tuple[tuple[float, float, bool], ...]


@dataclass(frozen=True)
class CurvePlot:
    """Dice during a training.

    Attributes:
        axes: The axes.
        lines: Name and ``points`` of each line.
        dots: Places of all points.
    """

    axes: Axes
    lines: tuple[tuple[str, str], ...]
    dots: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class BarPlot:
    """Numbers by week.

    Attributes:
        axes: The axes.
        bars: Left end, top, width and height of each bar, and its text.
    """

    axes: Axes
    bars: tuple[tuple[float, float, float, float, str], ...]


def plot_evidence(patients: Sequence[PatientEvidence], width: float = 420, height: float = 170) -> EvidencePlot | None:
    """Place the evidence of a version in a plot: gain in Dice over the number of patients.

    Args:
        patients: What every patient contributed, in order of arrival.
        width: Width of the picture in pixels.
        height: Height of the picture in pixels.

    Returns:
        The plot, or None without patients.
    """
    if not patients:
        return None
    gains = [patient.difference for patient in patients]
    low, high = min(-0.2, *gains) - 0.05, max(0.3, *gains) + 0.05
    left, right, top, bottom = 40.0, width - 10, 10.0, height - 28

    def x(number: float) -> float:
        return _round(left + (right - left) * number / (len(patients) + 1))

    def y(gain: float) -> float:
        return _round(bottom - (bottom - top) * (min(max(gain, low), high) - low) / (high - low))

    uppers = [f"{x(n)},{y(one.interval[1])}" for n, one in enumerate(patients, 1)]
    lowers = [f"{x(n)},{y(one.interval[0])}" for n, one in enumerate(patients, 1)]
    steps = _steps(low, high, (0.1, 0.2, 0.5))
    axes = Axes(
        width,
        height,
        left,
        right,
        top,
        bottom,
        tuple(Tick(x(n), str(n)) for n in _counts(len(patients))),
        tuple(Tick(y(gain), f"{gain:+.1f}" if round(gain, 6) else "0") for gain in steps),
    )
    return EvidencePlot(
        axes,
        y(0),
        " ".join([*uppers, *reversed(lowers)]),
        " ".join(f"{x(n)},{y(one.mean)}" for n, one in enumerate(patients, 1)),
        tuple((x(n), y(one.difference), one.measured != "cross-fitted") for n, one in enumerate(patients, 1)),
    )


def plot_curves(curves: Sequence[Curve], width: float = 560, height: float = 220) -> CurvePlot | None:
    """Place the Dice of a training in a plot, over the number of images sent to the model.

    Args:
        curves: The curves.
        width: Width of the picture in pixels.
        height: Height of the picture in pixels.

    Returns:
        The plot, or None without points.
    """
    points = [point for curve in curves for point in curve.points]
    if not points:
        return None
    most = max(position for position, _ in points) or 1
    left, right, top, bottom = 40.0, width - 12, 10.0, height - 30

    def x(position: float) -> float:
        return _round(left + (right - left) * position / most)

    def y(dice: float) -> float:
        return _round(bottom - (bottom - top) * min(max(dice, 0), 1))

    axes = Axes(
        width,
        height,
        left,
        right,
        top,
        bottom,
        tuple(Tick(x(position), f"{position:,.0f}") for position in _round_positions(most)),
        tuple(Tick(y(n / 4), f"{n / 4:.2f}".removeprefix("0") or "0") for n in range(5)),
    )
    lines = tuple((curve.name, " ".join(f"{x(p)},{y(dice)}" for p, dice in curve.points)) for curve in curves)
    return CurvePlot(axes, lines, tuple((x(p), y(dice)) for p, dice in points))


def plot_weeks(weeks: list[Week], kind: str, width: float = 420, height: float = 150) -> BarPlot:
    """Place the numbers of each week in a plot.

    Args:
        weeks: The weeks, oldest first.
        kind: Kind of usage.
        width: Width of the picture in pixels.
        height: Height of the picture in pixels.

    Returns:
        The plot.
    """
    counts: list[int] = [week.counts.get(kind, 0) for week in weeks]
    top_value = _round_up(max(counts, default=0))
    left, right, top, bottom = 44.0, width - 8, 10.0, height - 30
    step = (right - left) / max(len(weeks), 1)

    def y(count: float) -> float:
        return _round(bottom - (bottom - top) * count / top_value)

    every = max(1, -(-len(weeks) // 6))
    shown = [n for n in range(len(weeks)) if (len(weeks) - 1 - n) % every == 0]
    axes = Axes(
        width,
        height,
        left,
        right,
        top,
        bottom,
        tuple(Tick(_round(left + (n + 0.5) * step), f"{weeks[n].monday:%d %b}") for n in shown),
        tuple(Tick(y(value), f"{value:,}") for value in (0, top_value // 2, top_value)),
    )
    bars = tuple(
        (
            _round(left + (n + 0.15) * step),
            y(count),
            _round(0.7 * step),
            _round(bottom - y(count)),
            f"{weeks[n].monday}: {count:,}",
        )
        for n, count in enumerate(counts)
    )
    return BarPlot(axes, bars)


def _round(value: float) -> float:
    return round(value, 1)


def _counts(count: int) -> list[int]:
    """Choose at most eight numbers of patients for the axis, and always the last."""
    step = max(1, -(-count // 8))
    return sorted({*range(count, 0, -step)})


def _round_positions(most: float) -> list[float]:
    """Choose round numbers from 0 up to the largest position, at most six."""
    size = 10.0 ** (len(str(int(most))) - 1)
    step = max(1.0, next(size * factor for factor in (0.2, 0.5, 1, 2) if most / (size * factor) <= 5))
    return [n * step for n in range(int(most / step) + 1)]


def _steps(low: float, high: float, sizes: Sequence[float]) -> list[float]:
    """Choose round numbers between two ends, at most seven."""
    size = next((one for one in sizes if (high - low) / one <= 7), sizes[-1])
    first = -int(-low / size)
    return [n * size for n in range(first, int(high / size) + 1)]


def _round_up(value: int) -> int:
    """Return the smallest of 2, 4, 10, 20, 40, 100, ... that is not below a number."""
    size = 1
    while True:
        for factor in (2, 4, 10):
            if factor * size >= value:
                return factor * size
        size *= 10
