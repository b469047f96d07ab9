"""Write the report of the demo: one HTML file that contains its pictures."""

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
    from baps.demo.click import DemoClick

mpl.use("Agg")
_HERE = Path(__file__).resolve().parent
_COLOURS = {"zero_shot": "#ff9d2e", "window": "#4aa8ff", "adapted": "#36d17c", "reference": "#ffffff"}
_TITLES = {"zero_shot": "unadapted", "window": "best window", "adapted": "adapted", "reference": "reference"}


def write_report(
    path: Path,
    images: Path,
    organ: str,
    clicks: list[DemoClick],
    means: dict[str, dict[str, float]],
    summary: dict[str, Any],
    result: dict[str, Any],
) -> None:
    """Write the report.

    Args:
        path: The file.
        images: Folder of the volumes.
        organ: The organ.
        clicks: All clicks, with their masks.
        means: Dice by model and case.
        summary: Content of summary.json.
        result: Result of the training, from its statistics.
    """
    template = jinja2.Environment(loader=jinja2.FileSystemLoader(_HERE), autoescape=True).get_template("report.html.j2")
    pictures = [
        (case, _png(_draw_clicks(images / f"{case}.nii.gz", [click for click in clicks if click.case == case])))
        for case in means["adapted"]
    ]
    path.write_text(
        template.render(
            organ=organ,
            means=means,
            summary=summary,
            result=result,
            curve=_png(_draw_curve(result)),
            pictures=pictures,
        )
    )


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor=figure.get_facecolor())
    return base64.b64encode(buffer.getvalue()).decode()


def _draw_clicks(image: Path, clicks: list[DemoClick]) -> Figure:
    """Draw three slices of a volume: the click, and the outline of each mask on the image."""
    volume = read_volume(image)
    window = choose_window(volume)
    examples = [
        clicks[n] for n in np.linspace(len(clicks) // 6, len(clicks) - 1 - len(clicks) // 6, 3).round().astype(int)
    ]
    figure = Figure(figsize=(12, 7.0), facecolor="#15181c", layout="constrained")
    axes = figure.subplots(len(examples), 5, squeeze=False)
    for row, click in zip(axes, examples, strict=True):
        picture = window.apply(click.plane.extract(volume.voxels)) / 255
        x, y = click.prompt.positive[0]
        for column, name in zip(row, ("click", *_TITLES), strict=True):
            column.imshow(picture, cmap="gray", vmin=0, vmax=1)
            column.set_axis_off()
            mask = click.target if name == "reference" else click.masks.get(name)
            title = f"slice {click.plane.index}" if name == "click" else _TITLES[name]
            if name == "click":
                column.plot(x, y, "+", color="#ff4d6d", markersize=13, markeredgewidth=2.5)
            elif mask is not None:
                overlay = np.zeros((*mask.shape, 4))
                overlay[..., :3] = mpl.colors.to_rgb(_COLOURS[name])
                overlay[..., 3] = 0.28 * mask
                column.imshow(overlay)
                if mask.any():
                    column.contour(mask, [0.5], colors=[_COLOURS[name]], linewidths=1.4)
                column.plot(x, y, "+", color="#ff4d6d", markersize=8, markeredgewidth=1.5)
                if name != "reference":
                    title += f"   Dice {click.dice(name):.2f}"
            column.set_title(title, color="#e6e6e6", fontsize=10)
    return figure


def _draw_curve(result: dict[str, Any]) -> Figure:
    images, scores = zip(*result["curve"], strict=True)
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(images, scores, "o-", color="#1f8a54", label="training slices, fixed clicks")
    if "before" in result:
        end = result["black_box_images"]
        axes.errorbar([end], [result["after"]], [result["after_std"]], fmt="s", color="#1f8a54", label="adapted")
        axes.errorbar(
            [end],
            [result["before"]],
            [result["before_std"]],
            fmt="s",
            color="#d97a00",
            label="unadapted",
        )
    axes.set_xlabel("black-box images")
    axes.set_ylabel("Dice")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure
