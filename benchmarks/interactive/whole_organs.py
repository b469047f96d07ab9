"""Evaluate whole organs from a few clicked slices, by the number of clicked slices, unadapted and adapted.

``make bench-whole-organ`` adapts the bundled model to each organ on the training and validation patients, with the
default settings, once (the adapter is kept in ``benchmarks/runs/whole_organs``), and measures on the test patients: 1,
2, 3 and 5 clicks on different slices, whose masks are propagated through the volume; compared with shape-based
interpolation between the same clicked slices, and with the clicked slices only. The same numbers of clicks are also
measured with each click where the mask is worst. The script prints a table and writes
``benchmarks/results/whole_organs.json``.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated
from zlib import crc32

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console

from baps.blackbox import BlackBox, load_black_box
from baps.errors import InputError
from baps.evaluation.cases import Case, CaseReader
from baps.evaluation.gate import judge_training
from baps.imaging.canvas import SLICE_AXIS, Plane
from baps.imaging.metrics import dice
from baps.inference.propagation import deepest_point, interpolate_shape
from baps.inference.requests.click import OrganClicks
from baps.inference.segmenter import Segmenter
from baps.inference.whole_organ import segment_organ
from baps.prompts.simulated import draw_correction, draw_prompt
from baps.registry.store import AdapterStore
from baps.training.adapt import adapt
from baps.training.settings import AdaptationSettings
from benchmarks.paths import RESULTS, RUNS
from benchmarks.real_data import DOMAINS, ROOT, Domain, cases, slices

ORGANS = ("BTCV spleen, CT", "BTCV liver, CT", "CHAOS liver, MR")
COUNTS = (1, 2, 3, 5)
ORDERS = ("spread", "worst")
_MIN_AREA_SHARE = 0.1
"""Smallest share of the largest cross-section on which users click."""

console = Console(soft_wrap=True, highlight=False)


@dataclass(frozen=True)
class Run:
    """One patient with one set of clicks.

    Attributes:
        organ: name of the domain.
        patient: the patient.
        adapted: whether an adapter was used.
        order: order of the clicks: on slices ``spread`` over the organ, or each on the slice where the mask is
            ``worst``.
        clicks: number of clicks.
        dice: Dice of the volume, with propagation.
        interpolated: Dice of the volume, with the same clicked slices and shapes interpolated between them.
        alone: Dice of the volume, with the clicked slices only.
        images: black-box images.
        seconds: time that the answer took.
    """

    organ: str
    patient: str
    adapted: bool
    order: str
    clicks: int
    dice: float
    interpolated: float
    alone: float
    images: int
    seconds: float


def spread_slices(areas: NDArray[np.int64], count: int) -> list[int]:
    """Choose the slice of the largest area, and others spread over the extent: the middle slice of each part."""
    slices_with_organ = np.flatnonzero(areas >= _MIN_AREA_SHARE * areas.max())
    first, extent, best = slices_with_organ[0], slices_with_organ[-1] - slices_with_organ[0] + 1, int(areas.argmax())
    spread = [int(first + extent * (2 * part + 1) // (2 * count)) for part in range(count)]
    spread[int(np.argmin([abs(index - best) for index in spread]))] = best
    return sorted(set(spread))


def click_where_worst(
    clicks: OrganClicks, mask: NDArray[np.bool_], organ: NDArray[np.bool_], random: np.random.Generator
) -> OrganClicks:
    """Add a click on the slice with most wrong voxels, as a user would.

    It is the first click of a slice without any; on a clicked slice it is where the mask is most wrong; on a slice
    without the organ it is a background click where the mask is deepest.
    """
    index = int((mask ^ organ).sum((0, 1)).argmax())
    predicted, target = Plane(SLICE_AXIS, index).extract(mask), Plane(SLICE_AXIS, index).extract(organ)
    if not target.any():
        points = (*clicks.background.get(index, ()), deepest_point(predicted))
        return replace(clicks, background={**clicks.background, index: points})
    if index in clicks.prompts:
        prompt = draw_correction(clicks.prompts[index], predicted, target, random) or clicks.prompts[index]
    else:
        prompt = draw_prompt(target, "click", random)
    return replace(clicks, prompts=dict(sorted({**clicks.prompts, index: prompt}.items())))


def interpolate(masks: dict[int, NDArray[np.bool_]], shape: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Interpolate shapes between clicked slices by signed distance, (I, J, K); beyond them the mask is empty."""
    volume_mask = np.zeros(shape, bool)
    for index, mask in masks.items():
        Plane(SLICE_AXIS, index).insert(volume_mask, mask)
    for lower, upper in itertools.pairwise(sorted(masks)):
        for index in range(lower + 1, upper):
            between = interpolate_shape(masks[lower], masks[upper], (index - lower) / (upper - lower))
            Plane(SLICE_AXIS, index).insert(volume_mask, between)
    return volume_mask


def measure(black_box: BlackBox, store: AdapterStore, case: Case, label: str, adapted: bool) -> list[Run]:
    """Measure all orders and numbers of clicks on one patient."""
    volume, organ, _ = CaseReader().read(case)
    areas, last = organ.sum((0, 1)), volume.shape[SLICE_AXIS] - 1
    random = np.random.default_rng([crc32(case.patient.encode()), case.value])
    first_clicks = {  # Every run has the same click on a slice.
        index: draw_prompt(Plane(SLICE_AXIS, index).extract(organ), "click", random)
        for count in COUNTS
        for index in spread_slices(areas, count)
    }

    def run(order: str, count: int, clicks: OrganClicks) -> tuple[Run, NDArray[np.bool_]]:
        segmenter = Segmenter(black_box, store)  # A new one, without encodings of another run.
        segmenter.volume(case.image)
        images_before, start = black_box.images_queried, time.perf_counter()
        adapter = segmenter.load_adapter(label) if adapted else None
        mask = segment_organ(segmenter, case.image, clicks, adapter).mask.astype(bool)
        seconds, images = time.perf_counter() - start, black_box.images_queried - images_before
        masks = {index: Plane(SLICE_AXIS, index).extract(mask) for index in clicks.prompts}
        between, alone = interpolate(masks, volume.shape), np.zeros(volume.shape, bool)
        for index, slice_mask in masks.items():
            Plane(SLICE_AXIS, index).insert(alone, slice_mask)
        scores = dice(mask, organ), dice(between, organ), dice(alone, organ)
        return Run(label, case.patient, adapted, order, count, *scores, images, seconds), mask

    results = []
    for count in COUNTS:
        prompts = {index: first_clicks[index] for index in spread_slices(areas, count)}
        results.append(run("spread", count, OrganClicks(label, prompts, {}, 0, last))[0])
    clicks = OrganClicks(label, {int(areas.argmax()): first_clicks[int(areas.argmax())]}, {}, 0, last)
    for count in range(1, max(COUNTS) + 1):
        answer, mask = run("worst", count, clicks)
        if count in COUNTS:
            results.append(answer)
        clicks = click_where_worst(clicks, mask, organ, random)
    return results


def train(domain: Domain, black_box: BlackBox, store: AdapterStore) -> None:
    """Train an adapter on the training and validation patients, if there is none, and publish it if it may help."""
    if store.versions(domain.name):
        return
    side = black_box.capabilities.input_size
    training = {p[0].patient: p for part in ("train", "validation") for p in slices(domain, part, side, 24)}
    result = adapt(black_box, training, AdaptationSettings())
    record = {
        "adapter": result.adapter.to_dict(),
        "black_box": {
            "weights_sha256": black_box.capabilities.weights_sha256,
            "preprocessing": black_box.capabilities.preprocessing,
        },
    }
    version, status = store.add(domain.name, result.adapter, record), judge_training(result.scores.differences)
    if status.serves:  # Otherwise the unadapted model is still served.
        store.publish(domain.name, version)
    console.print(f"{domain.name}: {status.sentence()}; zoom {result.adapter.zoom:g}.")


def table(runs: Sequence[Run]) -> list[str]:
    """Format a Markdown table."""
    lines = [
        "| organ | patients | model | clicks | Dice, spread | interpolated | alone | Dice, each where worst | "
        "images | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for organ, adapted, count in itertools.product(ORGANS, (False, True), COUNTS):
        group = [run for run in runs if (run.organ, run.adapted, run.clicks) == (organ, adapted, count)]
        spread, worst = ([run for run in group if run.order == order] for order in ORDERS)
        if not spread:
            continue
        cells = [
            organ,
            str(len(spread)),
            "adapted" if adapted else "unadapted",
            str(count),
            _spread([run.dice for run in spread]),
            f"{np.mean([run.interpolated for run in spread]):.3f}",
            f"{np.mean([run.alone for run in spread]):.3f}",
            _spread([run.dice for run in worst]),
            f"{np.mean([run.images for run in spread]):.0f}",
            f"{np.mean([run.seconds for run in spread]):.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values):.3f}"


def main(
    out: Annotated[Path, typer.Option(help="The JSON file of all results.")] = RESULTS / "whole_organs.json",
    runs: Annotated[Path, typer.Option(help="Folder of the adapters.")] = RUNS / "whole_organs",
) -> None:
    """Run the benchmark."""
    if not ROOT.is_dir():
        raise SystemExit(f"There are no real images at {ROOT}. Set BAPS_REAL_DATA to the folder that holds them.")
    torch.set_num_threads(1)
    black_box, store = load_black_box(), AdapterStore(runs)
    results: list[Run] = []
    for domain in (domain for domain in DOMAINS if domain.name in ORGANS):
        train(domain, black_box, store)
        for case, adapted in itertools.product(cases(domain, "test"), (False, True)):
            try:
                results += measure(black_box, store, case, domain.name, adapted)
            except InputError as error:  # The patient does not have the organ.
                console.print(f"{case.image.name} is skipped: {error}")
                continue
            best = max(run.dice for run in results[-len(COUNTS) :])
            console.print(f"{domain.name}, {case.patient}, {'adapted' if adapted else 'unadapted'}: up to {best:.3f}")
    for line in table(results):
        print(line)
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps([asdict(run) for run in results], indent=1))
    console.print(str(out))


if __name__ == "__main__":
    typer.run(main)
