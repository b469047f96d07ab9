"""Draw the pictures of the guides: ``PYTHONPATH=apps/baps_app .venv/bin/python docs/make_pictures.py``.

The masks are the bundled model's on the phantoms of ``sample-data``, computed by the code that serves clicks, without
a server. Arguments select pictures, as in ``make_pictures.py clicks box``. ``adapted`` takes one to three minutes,
because it adapts the model first. The pictures of the site's page (``make_pictures.py page-overview``) are screenshots
of the last run of ``tests/viewers/test_site_page.py``.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle
from numpy.typing import NDArray
from PIL import Image

from baps.blackbox import load_black_box
from baps.evaluation.cases import Case, load_cases
from baps.evaluation.gate import judge_training
from baps.imaging.metrics import dice
from baps.inference.requests.click import Click, read_click
from baps.inference.segmenter import Segmenter
from baps.io import read_labels
from baps.prompts.simulated import draw_prompt
from baps.registry.store import AdapterStore
from baps.training.adapt import adapt
from baps.training.settings import AdaptationSettings

mpl.use("Agg")
HERE = Path(__file__).resolve().parent
SAMPLES = HERE.parent / "sample-data"
VALUES = {"liver": 1, "spleen": 2, "kidneys": 3, "stomach": 4, "aorta": 5}
TRAINING_CASES, TEST_CASES = [f"ct_{n:02d}" for n in range(1, 9)], ["ct_09", "ct_10", "ct_11"]
"""Phantoms to adapt to, and phantoms on which the adapted model is shown."""

BACKGROUND_COLOUR, TEXT = "#15181c", "#f0f0f0"
MASK, ADAPTED, REFERENCE = "#ff9d2e", "#36d17c", "#ffffff"
FOREGROUND, BACKGROUND, BOX = "#3dff5a", "#ff5470", "#5ab4ff"


@cache
def segmenter() -> Segmenter:
    """Load the bundled model, with a temporary store of adapters."""
    return Segmenter(load_black_box(), AdapterStore(Path(tempfile.mkdtemp())))


def image_of(case: str) -> Path:
    """Return the path of a phantom's image."""
    return SAMPLES / case[:2] / "images" / f"{case}.nii.gz"


def labels_of(case: str) -> Path:
    """Return the path of a phantom's labels."""
    return SAMPLES / case[:2] / "labels" / f"{case}.nii.gz"


def segment(
    case: str, organ: str, request: dict[str, object], adapted: bool = False
) -> tuple[Click, NDArray[np.bool_], NDArray[np.bool_]]:
    """Segment a request of 3D Slicer; return the parsed click, the mask, and the reference mask."""
    volume, _ = segmenter().volume(image_of(case))
    click = read_click({"label": organ, **request}, volume, list(VALUES))
    adapter = segmenter().load_adapter(click.label) if adapted else None
    mask = segmenter().segment(image_of(case), click.plane, click.prompt, adapter).mask
    reference = click.plane.extract(read_labels(labels_of(case), volume) == VALUES[organ])
    return click, mask, reference


def draw_slice(
    axes: Axes,
    case: str,
    click: Click,
    mask: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    title: str,
    colour: str = MASK,
) -> None:
    """Draw a slice, its prompt, the mask, and the reference as a thin line.

    The phantoms' axes run left, back and up.
    """
    volume, window = segmenter().volume(image_of(case))
    upward = click.plane.axis != 2
    across, down = (volume.spacing[axis] for axis in range(3) if axis != click.plane.axis)
    picture = window.apply(click.plane.extract(volume.voxels))
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, origin="lower" if upward else "upper", aspect=down / across)
    overlay = np.zeros((*mask.shape, 4))
    overlay[..., :3] = mpl.colors.to_rgb(colour)
    overlay[..., 3] = 0.35 * mask
    axes.imshow(overlay, origin="lower" if upward else "upper", aspect=down / across)
    if mask.any():
        axes.contour(mask, [0.5], colors=[colour], linewidths=2)
    axes.contour(reference, [0.5], colors=[REFERENCE], linewidths=0.9, linestyles="--")
    for points, face, sign in ((click.prompt.positive, FOREGROUND, "+"), (click.prompt.negative, BACKGROUND, "_")):
        for x, y in points:
            axes.plot(x, y, "o", color=face, markersize=11, markeredgecolor="black", markeredgewidth=1.2)
            axes.plot(x, y, sign, color="black", markersize=6, markeredgewidth=1.6)
    if click.prompt.box is not None:
        x0, y0, x1, y1 = click.prompt.box
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=BOX, linewidth=2))
    rows, columns = np.nonzero(picture > 60)  # Crops to the body.
    axes.set_xlim(columns.min() - 3, columns.max() + 3)
    low, high = rows.min() - (0.5 if upward else 3), rows.max() + (0.5 if upward else 3)
    axes.set_ylim((low, high) if upward else (high, low))
    axes.set_anchor("N")
    axes.set_axis_off()
    axes.set_title(f"{title}\nDice {dice(mask, reference):.2f}", color=TEXT, fontsize=12)


def new_figure(
    width: float, height: float, columns: int, caption: str, ratios: tuple[float, ...] | None = None
) -> tuple[Figure, list[Axes]]:
    """Create a dark figure, sized in inches, with axes in a row and a caption below."""
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.1)
    figure = Figure(figsize=(width, height), facecolor=BACKGROUND_COLOUR, layout=layout)
    figure.supxlabel(caption, color=TEXT, fontsize=11)
    return figure, list(figure.subplots(1, columns, squeeze=False, width_ratios=ratios)[0])


LEGEND = "dashed: the true outline    + foreground point    − background point"


def clicks() -> Figure:
    """Draw one click, then a foreground click where the mask is missing, then a background click where it spills."""
    case, organ, index = "ct_02", "liver", 13
    foreground: list[list[int]] = [[38, 60, index]]
    background: list[list[int]] = []
    figure, row = new_figure(9.6, 3.2, 3, LEGEND)
    request: dict[str, object] = {"foreground": foreground, "background": background, "slice": index}
    draw_slice(row[0], case, *segment(case, organ, request), "1. one click")
    foreground.append([39, 36, index])
    draw_slice(row[1], case, *segment(case, organ, request), "2. foreground where it is missing")
    background.append([15, 73, index])
    draw_slice(row[2], case, *segment(case, organ, request), "3. background where it spills")
    return figure


def planes() -> Figure:
    """Draw the same click on three planes."""
    case, organ = "ct_03", "liver"
    figure, row = new_figure(9.6, 3.5, 3, LEGEND.partition("    −")[0], (1.45, 1.45, 1))
    for axes, plane in zip(row, ("axial", "coronal", "sagittal"), strict=True):
        draw_slice(axes, case, *segment(case, organ, {"foreground": [[39, 60, 14]], "plane": plane}), plane)
    return figure


def box() -> Figure:
    """Draw a click and a box on the same slice."""
    case, organ, index = "ct_04", "spleen", 15
    figure, row = new_figure(8.0, 3.8, 2, f"{LEGEND.partition('    −')[0]}    blue: the box")
    roi = [92, 112, 64, 88, index - 1, index + 1]
    point = {"foreground": [[102, 76, index]], "slice": index}
    draw_slice(row[0], case, *segment(case, organ, point), "one click")
    draw_slice(row[1], case, *segment(case, organ, {**point, "roi": roi}), "the same click and a box")
    return figure


def adapted() -> Figure:
    """Draw unadapted and adapted masks of the same clicks at the quartiles of the gain, on phantoms not trained on."""
    organ, store, model = "spleen", segmenter().store, segmenter().black_box
    cases = [Case(image_of(n), labels_of(n), VALUES[organ], n) for n in TRAINING_CASES]
    slices, _ = load_cases(cases, model.capabilities.input_size, 24)
    result = adapt(model, slices, AdaptationSettings(max_images=1500))
    status = judge_training(result.scores.differences)
    if not status.serves:
        raise SystemExit("The adapter was rejected; use another organ or seed.")
    print(f"{status.sentence()}. {result.sentence()}")
    store.publish(organ, store.add(organ, result.adapter, result.record))
    random = np.random.default_rng(0)
    gains_of_clicks: list[tuple[float, str, dict[str, object]]] = []
    for case in TEST_CASES:
        organ_voxels = read_labels(labels_of(case), segmenter().volume(image_of(case))[0]) == VALUES[organ]
        areas = organ_voxels.sum((0, 1))
        for index in np.flatnonzero(areas >= areas.max() / 3).tolist():
            x, y = draw_prompt(organ_voxels[:, :, index].T, "click", random).positive[0]
            request: dict[str, object] = {"foreground": [[x, y, index]], "slice": index}
            before, after = (dice(*segment(case, organ, request, on)[1:]) for on in (False, True))
            gains_of_clicks.append((after - before, case, request))
    gains_of_clicks.sort(key=lambda entry: entry[0])
    quartiles = [gains_of_clicks[len(gains_of_clicks) * quarter // 4] for quarter in (1, 2, 3)]
    gains = ", ".join(f"{gain:.2f}" for gain, _, _ in quartiles)
    mean = np.mean([gain for gain, _, _ in gains_of_clicks])
    print(f"{len(gains_of_clicks)} clicks, mean gain {mean:.3f}, shown {gains}")
    figure = Figure(figsize=(9.6, 5.6), facecolor=BACKGROUND_COLOUR, layout="constrained")
    figure.supxlabel("dashed: true outline    + click", color=TEXT, fontsize=11)
    for column, (_, case, request) in zip(figure.subplots(2, 3).T, quartiles, strict=True):
        draw_slice(column[0], case, *segment(case, organ, request), "unadapted")
        draw_slice(column[1], case, *segment(case, organ, request, True), "adapted", ADAPTED)
    return figure


def panel() -> Figure:
    """Draw the panel of Slicer's module; it is not a screenshot."""
    figure = Figure(figsize=(7.3, 9.4), facecolor="#e9ebee")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 73)
    axes.set_ylim(94, 0)
    axes.set_axis_off()
    ink, line, field = "#1c2733", "#8a97a5", "#ffffff"

    def text(x: float, y: float, label: str, **style: Any) -> None:
        axes.text(x, y, label, color=ink, fontsize=11, va="center", **style)

    def rectangle(x: float, y: float, width: float, height: float, face: str, edge: str = line) -> None:
        shape = FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.6", fc=face, ec=edge, lw=1)
        axes.add_patch(shape)

    def entry(x: float, y: float, width: float, label: str, choice: bool = False) -> None:
        rectangle(x, y - 1.6, width, 3.2, field)
        text(x + 1, y, label)
        if choice:
            axes.plot(x + width - 1.8, y, "v", color=line, markersize=6)

    def button(x: float, y: float, width: float, label: str) -> None:
        rectangle(x, y - 1.7, width, 3.4, "#d3dbe4")
        text(x + width / 2, y, label, ha="center")

    def section(y: float, height: float, label: str) -> None:
        rectangle(2, y, 62, height, "#f6f7f9")
        rectangle(2, y, 62, 3.6, "#c3ccd6")
        text(3.4, y + 1.8, label, weight="bold")

    def bar(y: float, label: str, share: float) -> None:
        text(4, y, label)
        rectangle(18, y - 1.4, 44, 2.8, field)
        rectangle(18, y - 1.4, 44 * share, 2.8, "#7fb2e5", "none")
        text(40, y, f"{share:.0%}", ha="center")

    def number(y: float, label: int, x: float = 68.5) -> None:
        axes.add_patch(Circle((x, y), 1.9, fc="#c2410c", ec="none"))
        axes.text(x, y, str(label), color="white", fontsize=12, weight="bold", ha="center", va="center_baseline")

    text(2, 3.6, "MONAI Label server:")
    entry(22, 3.6, 37.5, "http://127.0.0.1:8000", True)
    button(60.5, 3.6, 3.5, "↻")
    number(3.6, 1)
    text(2, 8, "Source Volume:")
    entry(22, 8, 25, "ct_01")
    button(48.5, 8, 15.5, "Upload Volume")
    number(8, 2)

    section(11.5, 16, "Options  (with Developer Mode only)")
    text(4, 17.6, "Section:")
    entry(12, 17.6, 17, "infer", True)
    text(33, 17.6, "Name:")
    entry(40, 17.6, 22, "baps", True)
    entry(4, 21.6, 25, "plane")
    entry(29, 21.6, 33, "as stored", True)
    entry(4, 24.9, 25, "adapter")
    entry(29, 24.9, 33, "as clicked", True)
    number(21, 3)

    section(29, 28, "Active Learning")
    text(4, 35, "Strategy:")
    entry(18, 35, 18, "random", True)
    button(38, 35, 24, "Next Sample")
    number(35, 4)
    bar(39.4, "Labelled", 0.45)
    button(18, 43.6, 44, "Submit Label")
    number(43.6, 5)
    text(4, 48, "Model:")
    entry(18, 48, 18, "baps", True)
    button(38, 48, 14, "Train")
    button(53, 48, 9, "Stop")
    number(48, 6)
    bar(51.6, "Status:", 0.62)
    bar(54.9, "Accuracy:", 0.71)
    number(53.3, 7)

    section(58.5, 3.6, "Segment Editor")
    number(60.5, 8)

    section(64, 21, "SmartEdit")
    text(4, 70, "Model:")
    entry(18, 70, 22, "baps", True)
    button(43, 70, 19, "Update")
    number(70, 9)
    text(4, 74.2, "Label:")
    entry(18, 74.2, 22, "spleen", True)
    rectangle(43, 73.2, 2, 2, field)
    axes.plot([43.4, 43.9, 44.7], [74.2, 74.8, 73.5], color=ink, linewidth=1.6)
    text(46, 74.2, "Auto")
    number(74.2, 10)
    for x, label, colour in ((4, "Foreground:", "#2ca24a"), (32, "Background:", "#3557d6")):
        text(x, 78.4, label)
        button(x + 14, 78.4, 4, "")
        axes.plot(x + 16, 78.4, "o", color=colour, markersize=8)
        button(x + 19, 78.4, 6, "bin")
    number(78.4, 11)
    text(4, 82.6, "ROI:")
    button(18, 82.6, 4, "")
    axes.add_patch(Rectangle((18.9, 81.8), 2.2, 1.6, fill=False, edgecolor=ink, linewidth=1.4))
    button(23, 82.6, 6, "bin")
    number(82.6, 12)

    label = "Drawn, not a screenshot: the module looks a little different,\nand names may differ between versions."
    axes.text(33, 90, label, color="#4a5866", fontsize=11, style="italic", ha="center", va="center")
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {
    "panel": panel,
    "clicks": clicks,
    "planes": planes,
    "box": box,
    "adapted": adapted,
}

SCREENSHOTS = {
    "page-overview": "page-overview-trained-1280",
    "page-version": "page-version-1280",
    "page-train": "page-train-1280",
    "page-labels": "page-label-1280",
}
"""Pictures of the site's page, and the screenshots that they are made of."""


def save_screenshot(name: str, path: Path) -> None:
    """Save the top of a screenshot of the browser tests with few colours."""
    picture = Image.open(HERE.parent / "tests-output" / "viewers" / f"{SCREENSHOTS[name]}.png").convert("RGB")
    top = picture.crop((0, 0, picture.width, min(picture.height, 1500)))
    top.quantize(128, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    """Draw the pictures that the arguments name, or all but the screenshots."""
    (HERE / "pictures").mkdir(exist_ok=True)
    for name in sys.argv[1:] or PICTURES:
        path = HERE / "pictures" / f"{name}.png"
        if name in SCREENSHOTS:
            save_screenshot(name, path)
        else:
            figure = PICTURES[name]()
            figure.savefig(path, dpi=110, facecolor=figure.get_facecolor())
        print(f"{path.relative_to(HERE.parent)}: {path.stat().st_size // 1000} KB")


if __name__ == "__main__":
    main()
