"""How good are the masks that a user gets? Dice at the voxels of the volume, by fixed clicks or boxes."""

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
from baps.evaluation.interactive import Ask, Corrections, asker, simulate_corrections, summarise
from baps.evaluation.slices import evenly_spaced
from baps.imaging.canvas import SLICE_AXIS, Canvas, Plane
from baps.imaging.slice_image import canvas_image
from baps.prompts import Prompt
from baps.prompts.simulated import check_prompts

CLICK_SEEDS = 5
_SLICES = 12


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        dice: of each case (an image's name) and label value, one number a set of clicks: the mean over its slices, by
            the first prompt alone.
        skipped: images that could not be used, with reasons.
        black_box_images: that were asked.
        corrections: with further clicks, or None if there was one prompt a slice.
    """

    dice: Mapping[str, Mapping[int, Sequence[float]]]
    skipped: Mapping[str, str]
    black_box_images: int
    corrections: Corrections | None = None

    @property
    def by_case(self) -> dict[str, float]:
        """Mean over the labels of each case."""
        return {name: float(np.mean(list(labels.values()))) for name, labels in self.dice.items()}

    @property
    def mean(self) -> float:
        """Over labels, then cases."""
        return float(np.mean(list(self.by_case.values())))

    @property
    def std(self) -> float:
        """Spread of the mean over the sets of clicks."""
        sets = [np.mean(list(labels.values()), axis=0) for labels in self.dice.values()]
        return float(np.mean(sets, axis=0).std())

    def record(self) -> dict[str, object]:
        """As JSON. ``cases`` is how many there are; what ``corrections`` holds is there if they are."""
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
    """Measure a black box, adapted or not, as a user meets it: one click or box on a slice, the mask on its voxels.

    With more clicks the user goes on: each further one goes where the last mask is most wrong (``draw_correction``).
    The first prompts depend on the seed, the case and the slice alone, so that two evaluations can be compared.

    Args:
        black_box: the model.
        cases: labelled images, the labels of one image after another.
        adapter: of the black box, or None for the model as it is.
        prompt: ``click`` or ``box``, to begin with.
        seed: of the clicks; five sets of them are drawn on up to 12 slices of each case and label.
        progress: told (cases done, cases).
        clicks: on a slice, 1 to 10; a box to begin with counts as one. Where a mask needs none any more, its Dice
            stays, and the black box is not asked again.

    Raises:
        InputError: if no case can be used, or the black box does not understand the clicks.
    """
    check_prompts(prompt, seed, clicks)
    able = black_box.capabilities
    if clicks > 1 and not (able.clicks and able.negative_clicks):
        raise InputError(
            f"{able.name} does not understand both foreground and background clicks, so its masks cannot be corrected. "
            "Evaluate it with clicks=1."
        )
    asked, reader = black_box.images_queried, CaseReader()
    found: dict[str, dict[int, NDArray[np.float64]]] = {}
    skipped: dict[str, str] = {}
    for number, case in enumerate(cases):
        try:
            scores = _score(black_box, case, reader, adapter, prompt, seed, clicks)
            found.setdefault(case.image.name, {})[case.value] = scores
        except InputError as error:
            skipped[f"{case.image.name}, label {case.value}"] = str(error)
        if progress:
            progress(number + 1, len(cases))
    if not found:
        raise InputError(f"No case can be evaluated. {next(iter(skipped.values()), 'There are none.')}")
    dice = {
        name: {value: scores[..., 0].mean(axis=0).tolist() for value, scores in labels.items()}
        for name, labels in found.items()
    }
    corrections = summarise([labels.values() for labels in found.values()]) if clicks > 1 else None
    return Evaluation(dice, skipped, black_box.images_queried - asked, corrections)


def _score(
    black_box: BlackBox,
    case: Case,
    reader: CaseReader,
    adapter: Adapter | None,
    kind: str,
    seed: int,
    clicks: int,
) -> NDArray[np.float64]:
    """Dice of each slice with each set of clicks after each click, (slices, sets, clicks)."""
    volume, organ, window = reader.read(case)
    side = black_box.capabilities.input_size
    shown = slices_showing(organ, Canvas.fit(volume, Plane(SLICE_AXIS, 0), side), case.covered)
    scores = []
    for index in evenly_spaced(shown, _SLICES):
        plane = Plane(SLICE_AXIS, index)
        canvas, truth = Canvas.fit(volume, plane, side), plane.extract(organ)
        place = [crc32(case.image.name.encode()), case.value, index]
        randoms = [np.random.default_rng([seed, n, *place]) for n in range(CLICK_SEEDS)]
        ask = asker(black_box, adapter, canvas_image(volume, plane, canvas, window))

        def masks(prompts: Sequence[Prompt], ask: Ask = ask, canvas: Canvas = canvas) -> list[NDArray[np.bool_]]:
            return [canvas.restore(one) > 0.5 for one in ask([prompt.mapped(canvas.to_canvas) for prompt in prompts])]

        scores.append(simulate_corrections(masks, truth, kind, clicks, randoms))
    if not scores:
        raise InputError("The organ is on no slice that its label covers.")
    return np.array(scores)
