"""The demo's report: one HTML file with its pictures inside."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from baps.imaging.windowing import choose_window
from baps.io import read_volume

if TYPE_CHECKING:
    from baps.demo.question import Question

mpl.use("Agg")
_HERE = Path(__file__).resolve().parent
_COLOURS = {"zero_shot": "#ff9d2e", "window": "#4aa8ff", "adapted": "#36d17c", "truth": "#ffffff"}
_TITLES = {"zero_shot": "unadapted", "window": "best window", "adapted": "adapted", "truth": "truth"}


def write_report(
    path: Path,
    images: Path,
    organ: str,
    asked: list[Question],
    means: dict[str, dict[str, float]],
    summary: dict[str, Any],
    result: dict[str, Any],
) -> None:
    """Write the report.

    Args:
        path: the file.
        images: folder of the volumes.
        organ: what was clicked on.
        asked: every click with its masks.
        means: Dice by arm and case.
        summary: as summary.json.
        result: of the training, from its stats.
    """
    template = jinja2.Environment(loader=jinja2.FileSystemLoader(_HERE), autoescape=True).get_template("report.html.j2")
    pictures = [
        (case, _png(_clicks(images / f"{case}.nii.gz", [q for q in asked if q.case == case])))
        for case in means["adapted"]
    ]
    path.write_text(
        template.render(
            organ=organ,
            means=means,
            summary=summary,
            result=result,
            curve=_png(_curve(result)),
            pictures=pictures,
        )
    )


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor=figure.get_facecolor())
    return base64.b64encode(buffer.getvalue()).decode()


def _clicks(image: Path, asked: list[Question]) -> Figure:
    """Three slices of a volume: the click, and each mask's outline over the image."""
    volume = read_volume(image)
    window = choose_window(volume)
    shown = [asked[n] for n in np.linspace(len(asked) // 6, len(asked) - 1 - len(asked) // 6, 3).round().astype(int)]
    figure = Figure(figsize=(12, 7.0), facecolor="#15181c", layout="constrained")
    axes = figure.subplots(len(shown), 5, squeeze=False)
    for row, q in zip(axes, shown, strict=True):
        picture = window.apply(q.plane.extract(volume.voxels)) / 255
        x, y = q.prompt.positive[0]
        for column, arm in zip(row, ("click", *_TITLES), strict=True):
            column.imshow(picture, cmap="gray", vmin=0, vmax=1)
            column.set_axis_off()
            mask = q.truth if arm == "truth" else q.masks.get(arm)
            said = f"slice {q.plane.index}" if arm == "click" else _TITLES[arm]
            if arm == "click":
                column.plot(x, y, "+", color="#ff4d6d", markersize=13, markeredgewidth=2.5)
            elif mask is not None:
                overlay = np.zeros((*mask.shape, 4))
                overlay[..., :3] = mpl.colors.to_rgb(_COLOURS[arm])
                overlay[..., 3] = 0.28 * mask
                column.imshow(overlay)
                if mask.any():
                    column.contour(mask, [0.5], colors=[_COLOURS[arm]], linewidths=1.4)
                column.plot(x, y, "+", color="#ff4d6d", markersize=8, markeredgewidth=1.5)
                if arm != "truth":
                    said += f"   Dice {q.dice(arm):.2f}"
            column.set_title(said, color="#e6e6e6", fontsize=10)
    return figure


def _curve(result: dict[str, Any]) -> Figure:
    images, scores = zip(*result["curve"], strict=True)
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(images, scores, "o-", color="#1f8a54", label="training slices, fixed clicks")
    if "before" in result:
        end = result["black_box_images"]
        axes.errorbar(
            [end], [result["after"]], [result["after_std"]], fmt="s", color="#1f8a54", label="held back, adapted"
        )
        axes.errorbar(
            [end], [result["before"]], [result["before_std"]], fmt="s", color="#d97a00", label="held back, unadapted"
        )
    axes.set_xlabel("black-box images asked")
    axes.set_ylabel("Dice")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure
