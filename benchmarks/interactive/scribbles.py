"""Compare methods that convert scribbles to prompts, on scribbles drawn by people, with the bundled model.

``python -m benchmarks.interactive.scribbles`` needs the real images beside the repository (see ``real_data``), in
particular MedScribble: 2D images of twelve tasks, each with the scribbles of three people. It prints tables and writes
``benchmarks/results/scribbles.json``. The default is chosen on every second image and reported on the others. Users in
a hurry paint less than these people did, so each method is measured on the whole strokes, and on the half and the
quarter of their pixels that are nearest to the deepest pixel.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import ndimage
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import dijkstra

from baps.blackbox import load_black_box
from baps.imaging.canvas import Plane
from baps.imaging.metrics import dice
from baps.inference.scribbles import MAX_NEGATIVE, MAX_POSITIVE, choose_clicks, keep_strokes
from baps.inference.segmenter import Segmenter
from baps.prompts import Point, Prompt
from baps.registry.store import AdapterStore
from benchmarks.paths import RESULTS
from benchmarks.real_data import ROOT

Strokes = NDArray[np.bool_]
Points = tuple[Point, ...]
PlaceClicks = Callable[[Strokes, int, np.random.Generator], Points]

SHARES = (1.0, 0.5, 0.25)
"""Shares of the foreground strokes that are used."""


def parts(strokes: Strokes, max_clicks: int, _: np.random.Generator) -> Points:
    """Click in the middle of equal parts of the strokes, as the package does."""
    return choose_clicks(strokes, max_clicks)


def farthest(strokes: Strokes, max_clicks: int, _: np.random.Generator) -> Points:
    """Click on the deepest pixel, then repeatedly on the pixel farthest from all chosen ones."""
    pixels = np.argwhere(strokes)
    chosen = [pixels[_depth(strokes)[strokes].argmax()]] if len(pixels) else []
    while len(chosen) < min(max_clicks, len(pixels)):
        away = np.min([np.hypot(*(pixels - one).T) for one in chosen], axis=0)
        chosen.append(pixels[away.argmax()])
    return _points(chosen)


def deepest(strokes: Strokes, max_clicks: int, _: np.random.Generator) -> Points:
    """Click repeatedly on the deepest pixel, and exclude a circle three times as wide as it is deep."""
    depth, chosen = _depth(strokes), np.empty((0, 2))
    rows, columns = np.indices(strokes.shape)
    while len(chosen) < max_clicks and depth.any():
        row, column = np.unravel_index(depth.argmax(), depth.shape)
        chosen = np.append(chosen, [[row, column]], axis=0)
        depth[np.hypot(rows - row, columns - column) <= 3 * depth.max()] = 0
    return _points(chosen)


def along(strokes: Strokes, max_clicks: int, _: np.random.Generator) -> Points:
    """Click at equal distances along the strokes, from one end of each to the other, at the deepest pixel across."""
    pieces, count = ndimage.label(strokes, np.ones((3, 3)))
    if not count:
        return ()
    measured = [(np.argwhere(pieces == n), _from_one_end(pieces == n)) for n in range(1, count + 1)]
    lengths = np.array([distance.max() + 1 for _, distance in measured])
    ends, depth, chosen = np.cumsum(lengths), _depth(strokes), []
    for position in (np.arange(max_clicks) + 0.5) / max_clicks * lengths.sum():
        piece = int(np.searchsorted(ends, position))
        pixels, distance = measured[piece]
        distance_to_position = np.abs(distance - (position - ends[piece] + lengths[piece]))
        chosen.append(
            pixels[
                np.where(
                    distance_to_position <= max(2, distance_to_position.min()), depth[tuple(pixels.T)], -1
                ).argmax()
            ]
        )
    return tuple(dict.fromkeys(_points(chosen)))


def at_random(strokes: Strokes, max_clicks: int, random: np.random.Generator) -> Points:
    """Click on random pixels."""
    pixels = np.argwhere(strokes)
    return _points(random.permutation(pixels)[:max_clicks])


PLACEMENTS: dict[str, PlaceClicks] = {
    "parts": parts,
    "farthest": farthest,
    "along": along,
    "deepest": deepest,
    "at random": at_random,
}


def _depth(strokes: Strokes) -> NDArray[np.float64]:
    depth: NDArray[np.float64] = ndimage.distance_transform_edt(np.pad(strokes, 1))[1:-1, 1:-1]
    return depth


def _points(pixels: Any) -> Points:
    return tuple((float(column), float(row)) for row, column in pixels)


def _from_one_end(piece: Strokes) -> NDArray[np.float64]:
    """Compute the distance of each pixel of a connected piece from one of its ends, within the piece."""
    pixels = np.argwhere(piece)
    number = np.full(np.add(piece.shape, 2), -1)
    number[tuple(pixels.T + 1)] = np.arange(len(pixels))
    starts, ends, steps = [], [], []
    for step in ((0, 1), (1, 0), (1, 1), (1, -1)):
        neighbour = number[tuple((pixels + 1 + step).T)]
        is_stroke = neighbour >= 0
        starts.append(np.flatnonzero(is_stroke))
        ends.append(neighbour[is_stroke])
        steps.append(np.full(int(is_stroke.sum()), np.hypot(*step)))
    graph = coo_matrix((np.concatenate(steps), (np.concatenate(starts), np.concatenate(ends))), (len(pixels),) * 2)
    first = dijkstra(graph.tocsr(), directed=False, indices=0)
    distance: NDArray[np.float64] = dijkstra(graph.tocsr(), directed=False, indices=int(first.argmax()))
    return distance


@dataclass(frozen=True)
class Choice:
    """A method that converts strokes to a prompt.

    Attributes:
        way: a key of ``PLACEMENTS``, or "" for no clicks.
        positive: maximum number of foreground clicks.
        negative: maximum number of background clicks.
        box: "" for no box, ``strokes`` for a box around the strokes, or ``organ`` for a box around the organ, as a user
            would draw it.
        wider: margin of the box on each side, as a fraction of its size.
        longest: use only the longest stroke.
    """

    way: str = ""
    positive: int = 0
    negative: int = 0
    box: str = ""
    wider: float = 0.0
    longest: bool = False

    def prompt(self, foreground: Strokes, background: Strokes, organ: Strokes, random: np.random.Generator) -> Prompt:
        """Build the prompt of one image from masks (rows, columns)."""
        if self.longest:
            pieces, _ = ndimage.label(foreground, np.ones((3, 3)))
            foreground = pieces == 1 + np.bincount(pieces[foreground])[1:].argmax()
        box = around(organ if self.box == "organ" else foreground, self.wider) if self.box else None
        if not self.way:
            return Prompt(box=box)
        choose = PLACEMENTS[self.way]
        return Prompt(choose(foreground, self.positive, random), choose(background, self.negative, random), box)


DEFAULT = Choice("parts", MAX_POSITIVE, MAX_NEGATIVE)
"""The method of the package."""

ONE_CLICK, STROKES_BOX = Choice("deepest", 1, longest=True), Choice(box="strokes")

CANDIDATES = [
    *(Choice(way, positive) for way in PLACEMENTS for positive in (1, 2, 3, 4, 6, 8, 12)),
    *(
        Choice(way, positive, negative)
        for way in ("parts", "farthest", "along")
        for positive in (2, 3, 4, 6)
        for negative in (1, 2, 4)
    ),
    *(Choice("parts", positive, 0, "strokes", wider) for positive in (1, 2, 3, 4) for wider in (0.0, 0.1, 0.25, 0.5)),
]
"""Choices among which the default is chosen."""

BOXES = (0.05, 0.25, 0.5)
"""Margins of a box drawn around the organ. Slicer's box has three dimensions, and fits tightly on few slices."""

OTHERS = [ONE_CLICK, STROKES_BOX, *(Choice("parts", MAX_POSITIVE, MAX_NEGATIVE, "organ", wider) for wider in BOXES)]


def around(mask: Strokes, wider: float) -> tuple[float, float, float, float]:
    """Compute the box around a mask (rows, columns) with a margin, (X0, Y0, X1, Y1) clipped to the image."""
    rows, columns = np.nonzero(mask)
    edges = np.array([columns.min(), rows.min(), columns.max(), rows.max()], float)
    edges += wider * np.tile(edges[2:] - edges[:2] + 1, 2) * (-1, -1, 1, 1)
    x0, y0, x1, y1 = np.clip(edges, 0, np.tile(np.subtract(mask.shape[::-1], 1), 2)).tolist()
    return x0, y0, x1, y1


def share_of(strokes: Strokes, share: float) -> Strokes:
    """Keep the share of the pixels of strokes that lies nearest to the deepest of them."""
    pixels = np.argwhere(strokes)
    middle = pixels[_depth(strokes)[strokes].argmax()]
    near = np.argsort(np.hypot(*(pixels - middle).T), kind="stable")[: max(1, round(share * len(pixels)))]
    part = np.zeros_like(strokes)
    part[tuple(pixels[near].T)] = True
    return part


STROKES_KEPT = "strokes kept"

Scores = dict[tuple[Choice, float, str], list[float]]
"""Dice of each person's strokes, by choice, share, and treatment of the mask."""


def measure(segmenter: Segmenter, image: Path) -> Scores:
    """Score the masks of all choices on one image: raw, with strokes kept, and with strokes kept cropped to a box."""
    with np.load(image) as arrays:
        target, scribbles = arrays["seg"] > 0, arrays["scribbles"] > 0
    scores: Scores = {}
    for person, (painted, background) in enumerate(scribbles):
        for share in SHARES:
            foreground, random = share_of(painted, share), np.random.default_rng(person)
            for choice in dict.fromkeys([*CANDIDATES, *OTHERS, DEFAULT]):
                prompt = choice.prompt(foreground, background, target, random)
                mask = segmenter.segment(image, Plane(2, 0), prompt).mask
                with_strokes = keep_strokes(mask, foreground, background)
                answers = {"raw": mask, STROKES_KEPT: with_strokes}
                for wider in BOXES if choice == DEFAULT else (choice.wider,) if choice.box == "organ" else ():
                    answers[f"{STROKES_KEPT}, cropped to a box {wider:.0%} wider"] = with_strokes & _inside(
                        around(target, wider), target.shape
                    )
                for what, answer in answers.items():
                    scores.setdefault((choice, share, what), []).append(dice(answer, target))
    return scores


def _inside(box: tuple[float, float, float, float], shape: tuple[int, ...]) -> Strokes:
    rows, columns = np.indices(shape)
    x0, y0, x1, y1 = box
    inside: Strokes = (columns >= x0) & (columns <= x1) & (rows >= y0) & (rows <= y1)
    return inside


def rows_of(cases: list[Scores]) -> Iterator[dict[str, Any]]:
    """Summarise the Dice by share, on the images for choosing and for reporting: mean, spread over images, gain over
    one click."""
    for choice, what in dict.fromkeys((choice, what) for choice, _, what in cases[0]):
        row: dict[str, Any] = {**asdict(choice), "answer": what}
        for name, images_of_half in (("chosen_by", cases[0::2]), ("reported", cases[1::2])):
            means, click = (
                np.array([[np.mean(case[compared, share, answer]) for share in SHARES] for case in images_of_half])
                for compared, answer in ((choice, what), (ONE_CLICK, "raw"))
            )
            gain = means - click
            row[name] = {"dice": means.mean(0).tolist(), "std": means.std(0).tolist(), "all": float(means.mean())}
            row[name] |= {"gain": gain.mean(0).tolist(), "gain_std": gain.std(0).tolist()}
        yield row


def table(title: str, rows: list[dict[str, Any]]) -> Table:
    """Build a table of the Dice on the reported images, by share of the strokes."""
    table_of_rows = Table(
        "clicks", "positive", "negative", "box", "answer", "chosen by", *map(str, SHARES), title=title
    )
    for row in rows:
        box = f"{row['box']} +{row['wider']:.0%}" if row["box"] else ""
        way = f"{row['way']}{', longest stroke' if row['longest'] else ''}"
        dices = [f"{m:.3f} ± {s:.3f}" for m, s in zip(row["reported"]["dice"], row["reported"]["std"], strict=True)]
        counts = (str(row["positive"]), str(row["negative"]))
        table_of_rows.add_row(way, *counts, box, row["answer"], f"{row['chosen_by']['all']:.3f}", *dices)
    return table_of_rows


def main(out: Annotated[Path, typer.Option()] = RESULTS / "scribbles.json") -> None:
    """Measure all choices on all images."""
    images = sorted((ROOT / "medscribble").glob("*/*.npz"))
    if not images:
        raise SystemExit(f"There is no MedScribble below {ROOT}. Set BAPS_REAL_DATA to the folder that holds it.")
    black_box = load_black_box("bundled", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        segmenter = Segmenter(black_box, AdapterStore(Path(folder)))
        cases = []
        for image in images:
            cases.append(measure(segmenter, image))
            typer.echo(f"{len(cases)} of {len(images)}: {image.parent.name}", err=True)
    rows = sorted(rows_of(cases), key=lambda row: -row["chosen_by"]["all"])
    candidates = [asdict(choice) for choice in CANDIDATES]
    best = next(
        row for row in rows if {key: row[key] for key in candidates[0]} in candidates and row["answer"] == STROKES_KEPT
    )
    console = Console(width=160)
    console.print(
        table("The best on the images for choosing", [row for row in rows if row["answer"] == STROKES_KEPT][:12])
    )
    console.print(table("All others", [row for row in rows if row["negative"] in (0, MAX_NEGATIVE)]))
    record = {
        "images": len(images),
        "reported_images": len(images[1::2]),
        "black_box_images": black_box.images_queried,
        "weights_sha256": black_box.capabilities.weights_sha256,
        "default": asdict(DEFAULT),
        "best": best,
        "rows": rows,
    }
    console.print(
        f"{len(images)} images, {black_box.images_queried} black-box images. Best: {best}. Default: {DEFAULT}"
    )
    out.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    typer.run(main)
