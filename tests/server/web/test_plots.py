from __future__ import annotations

import pytest

from baps.server.web.adapter_table import PatientEvidence
from baps.server.web.plots import plot_curves, plot_evidence
from baps.server.web.trainings import Curve


def _patient(gain: float, interval: tuple[float, float], measured: str = "cross-fitted") -> PatientEvidence:
    return PatientEvidence("p", (), 0.4, 0.4 + gain, None, gain, measured, interval, gain)


def _points(text: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in text.split())]


def test_evidence_is_placed_by_gain_and_order() -> None:
    patients = [_patient(0.2, (-1, 1)), _patient(-0.1, (-0.1, 0.2)), _patient(0.3, (0.0, 0.3), "after training")]
    plot = plot_evidence(patients)
    assert plot is not None
    xs = [x for x, _, _ in plot.patients]
    assert xs == sorted(xs)
    heights = [plot.zero - y for _, y, _ in plot.patients]  # Upwards.
    assert heights[0] > 0 > heights[1]
    assert heights[0] / heights[1] == pytest.approx(0.2 / -0.1, rel=0.02)
    assert [later for _, _, later in plot.patients] == [False, False, True]
    band = _points(plot.band)
    assert len(band) == 2 * len(patients)
    assert all(plot.axes.top <= y <= plot.axes.bottom for _, y in band)  # Wide intervals are clipped to the area.
    assert band[2][1] == plot.patients[2][1]  # The upper end of the last interval is the last gain.
    assert len(_points(plot.mean)) == 3


def test_an_axis_of_many_patients_has_few_ticks() -> None:
    plot = plot_evidence([_patient(0.1, (0, 0.2))] * 100)
    assert plot is not None
    texts = [tick.text for tick in plot.axes.x_ticks]
    assert len(texts) <= 9
    assert texts[-1] == "100"


def test_curves_are_placed_by_images_and_dice() -> None:
    plot = plot_curves([Curve("spleen", ((0, 0.0), (500, 1.0))), Curve("liver", ((250, 0.5),))])
    assert plot is not None
    first, last = _points(plot.lines[0][1])
    assert first == (plot.axes.left, plot.axes.bottom)
    assert last == (plot.axes.right, plot.axes.top)
    assert _points(plot.lines[1][1]) == [((first[0] + last[0]) / 2, (first[1] + last[1]) / 2)]
    assert [name for name, _ in plot.lines] == ["spleen", "liver"]


@pytest.mark.parametrize("most", [1, 7, 432, 1034, 4000, 99_999])
def test_ticks_are_round_and_few(most: int) -> None:
    plot = plot_curves([Curve("spleen", ((most, 0.5),))])
    assert plot is not None
    texts = [tick.text for tick in plot.axes.x_ticks]
    assert 2 <= len(texts) <= 6
    assert texts[0] == "0"
    assert len(set(texts)) == len(texts)
    assert len(texts[1].replace(",", "").rstrip("0")) == 1  # As in 200 or 1,000.


def test_without_data_there_is_no_plot() -> None:
    assert plot_evidence([]) is None
    assert plot_curves([Curve("spleen", ())]) is None
