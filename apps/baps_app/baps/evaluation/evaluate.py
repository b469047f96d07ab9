"""Evaluate the masks that a user gets: Dice at the voxels of the volume, from fixed clicks or boxes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from baps.adapters.adapter import Adapter
from baps.blackbox import BlackBox
from baps.errors import InputError
from baps.evaluation.cases import Case, CaseReader, slices_showing
from baps.evaluation.interactive import (
    InteractiveScores,
    SegmentFunction,
    build_segment_function,
    simulate_corrections,
    summarise_corrections,
)
from baps.evaluation.slices import evenly_spaced
from baps.imaging.canvas import SLICE_AXIS, Canvas, Plane
from baps.imaging.slice_image import canvas_image
from baps.prompts import Prompt
from baps.prompts.simulated import check_prompts

CLICK_SEEDS = 5
_MAX_SLICES = 12


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        dice: Dice (0 to 1) by case (an image's name) and label value, one number per set of clicks: the mean over
            slices, from the first prompt only.
        skipped: images that could not be used, with reasons.
        black_box_images: number of images that were queried.
        corrections: Dice with further clicks, or None if each slice had one prompt.
    """

    dice: Mapping[str, Mapping[int, Sequence[float]]]
    skipped: Mapping[str, str]
    black_box_images: int
    corrections: InteractiveScores | None = None

    @property
    def by_case(self) -> dict[str, float]:
        """Mean Dice over the labels of each case."""
        return {name: float(np.mean(list(labels.values()))) for name, labels in self.dice.items()}

    @property
    def mean(self) -> float:
        """Mean Dice over labels, then cases."""
        return float(np.mean(list(self.by_case.values())))

    @property
    def std(self) -> float:
        """Standard deviation of the mean over the sets of clicks."""
        sets = [np.mean(list(labels.values()), axis=0) for labels in self.dice.values()]
        return float(np.mean(sets, axis=0).std())

    def to_dict(self) -> dict[str, object]:
        """Convert the evaluation to JSON.

        Returns:
            The scores. ``cases`` is the number of cases; the fields of ``corrections`` are added if there are any.
        """
        return {
            "mean": self.mean,
            "std": self.std,
            "cases": len(self.dice),
            "black_box_images": self.black_box_images,
            "by_case": self.by_case,
            "by_label": {
                name: {str(value): float(np.mean(sets)) for value, sets in labels.items()}
                for name, labels in self.dice.items()
            },
            "skipped": dict(self.skipped),
            **(asdict(self.corrections) if self.corrections else {}),
        }


def evaluate(
    black_box: BlackBox,
    cases: Sequence[Case],
    adapter: Adapter | None = None,
    prompt: str = "click",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    clicks: int = 1,
) -> Evaluation:
    """Evaluate a black box with or without an adapter, as a user meets it.

    Each slice gets one prompt, and the Dice is computed at the voxels of the mask. With more clicks, each further one
    is placed where the last mask is most wrong (``draw_correction``). The first prompts depend on the seed, the case
    and the slice only, so that two evaluations can be compared.

    Args:
        black_box: the model.
        cases: labelled images, with the labels of one image next to each other.
        adapter: an adapter of the black box, or None for the unadapted model.
        prompt: kind of the first prompt, ``click`` or ``box``.
        seed: seed of the clicks; five sets of clicks are drawn on up to 12 slices of each case and label.
        progress: called with the number of cases done, and of all cases.
        clicks: number of clicks on a slice, 1 to 10; a box counts as one. If a mask needs no more clicks, its Dice
            stays, and the black box is not queried again.

    Returns:
        The scores.

    Raises:
        InputError: if no case can be used, or the black box does not understand the clicks.
    """
    check_prompts(prompt, seed, clicks)
    capabilities = black_box.capabilities
    if clicks > 1 and not (capabilities.clicks and capabilities.negative_clicks):
        raise InputError(
            f"{capabilities.name} does not understand both foreground and background clicks, so its masks cannot be "
            "corrected. Evaluate it with clicks=1."
        )
    images_before, reader = black_box.images_queried, CaseReader()
    scores_by_case: dict[str, dict[int, NDArray[np.float64]]] = {}
    skipped: dict[str, str] = {}
    for number, case in enumerate(cases):
        try:
            scores = _score(black_box, case, reader, adapter, prompt, seed, clicks)
            scores_by_case.setdefault(case.image.name, {})[case.value] = scores
        except InputError as error:
            skipped[f"{case.image.name}, label {case.value}"] = str(error)
        if progress:
            progress(number + 1, len(cases))
    if not scores_by_case:
        raise InputError(f"No case can be evaluated. {next(iter(skipped.values()), 'There are none.')}")
    dice = {
        name: {value: scores[..., 0].mean(axis=0).tolist() for value, scores in labels.items()}
        for name, labels in scores_by_case.items()
    }
    corrections = summarise_corrections([labels.values() for labels in scores_by_case.values()]) if clicks > 1 else None
    return Evaluation(dice, skipped, black_box.images_queried - images_before, corrections)


def _score(
    black_box: BlackBox,
    case: Case,
    reader: CaseReader,
    adapter: Adapter | None,
    kind: str,
    seed: int,
    clicks: int,
) -> NDArray[np.float64]:
    """Compute the Dice of each slice with each set of clicks after each click, (slices, sets, clicks).

    Raises:
        InputError: if the case cannot be read, or the organ is on no annotated slice.
    """
    volume, organ, window = reader.read(case)
    side = black_box.capabilities.input_size
    indices = slices_showing(organ, Canvas.fit(volume, Plane(SLICE_AXIS, 0), side), case.annotated_slices)
    scores = []
    for index in evenly_spaced(indices, _MAX_SLICES):
        plane = Plane(SLICE_AXIS, index)
        canvas, target = Canvas.fit(volume, plane, side), plane.extract(organ)
        seed_parts = [crc32(case.image.name.encode()), case.value, index]
        generators = [np.random.default_rng([seed, n, *seed_parts]) for n in range(CLICK_SEEDS)]
        image = canvas_image(volume, plane, canvas, window)
        segment = build_segment_function(black_box, adapter, image, canvas.size)

        def masks(
            prompts: Sequence[Prompt], segment: SegmentFunction = segment, canvas: Canvas = canvas
        ) -> list[NDArray[np.bool_]]:
            return [
                canvas.restore(probability) > 0.5
                for probability in segment([prompt.mapped(canvas.to_canvas) for prompt in prompts])
            ]

        scores.append(simulate_corrections(masks, target, kind, clicks, generators))
    if not scores:
        raise InputError("The organ is on none of the annotated slices.")
    return np.array(scores)
