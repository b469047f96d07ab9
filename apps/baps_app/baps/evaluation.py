"""How good are the masks that a user gets? Dice at the voxels of the volume, by fixed clicks or boxes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from .adaptation.cases import Case, CaseReader, slices_showing
from .adaptation.slices import evenly_spaced
from .blackbox import BlackBox, Prompt
from .errors import InputError
from .geometry import AXES, Canvas, Plane
from .intensity import choose_window
from .metrics import dice
from .simulated_prompts import draw_prompt
from .slice_image import canvas_image
from .visual_prompt import VisualPrompt, change_pixels

CLICK_SEEDS = 5
_SLICES = 12


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        dice: of each case (an image's name) and label value, one number a set of clicks: the mean over its slices.
        left_out: images that could not be used, with reasons.
        black_box_images: that were asked.
    """

    dice: Mapping[str, Mapping[int, Sequence[float]]]
    left_out: Mapping[str, str]
    black_box_images: int

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
        """As JSON. ``cases`` is how many there are."""
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
            "left_out": dict(self.left_out),
        }


def evaluate(
    black_box: BlackBox,
    cases: Sequence[Case],
    visual_prompt: VisualPrompt | None = None,
    prompt: str = "click",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure a black box, adapted or not, as a user meets it: one click or box on a slice, the mask on its voxels.

    The clicks depend on the seed, the case and the slice alone, so that two evaluations can be compared.

    Args:
        black_box: the model.
        cases: labelled images, the labels of one image after another.
        visual_prompt: the adaptation, or None for the model as it is.
        prompt: ``click`` or ``box``.
        seed: of the clicks; five sets of them are drawn on up to 12 slices of each case and label.
        progress: told (cases done, cases).

    Raises:
        InputError: if no case can be used.
    """
    asked, reader = black_box.images_asked, CaseReader()
    found: dict[str, dict[int, list[float]]] = {}
    left_out: dict[str, str] = {}
    for number, case in enumerate(cases):
        try:
            scores = _score(black_box, case, reader, visual_prompt, prompt, seed)
            found.setdefault(case.image.name, {})[case.value] = scores
        except InputError as error:
            left_out[f"{case.image.name}, label {case.value}"] = str(error)
        if progress:
            progress(number + 1, len(cases))
    if not found:
        raise InputError(f"No case can be evaluated. {next(iter(left_out.values()), 'There are none.')}")
    return Evaluation(found, left_out, black_box.images_asked - asked)


def _score(
    black_box: BlackBox, case: Case, reader: CaseReader, visual_prompt: VisualPrompt | None, kind: str, seed: int
) -> list[float]:
    """Mean Dice over slices for each set of clicks."""
    volume, organ = reader.read(case)
    window, side = choose_window(volume), black_box.capabilities.input_side
    shown = slices_showing(organ, Canvas.fit(volume, Plane(AXES["K"], 0), side), case.covered)
    scores = []
    for index in evenly_spaced(shown, _SLICES):
        plane = Plane(AXES["K"], index)
        canvas, truth = Canvas.fit(volume, plane, side), plane.of(organ)
        place = [crc32(case.image.name.encode()), case.value, index]
        drawn = [draw_prompt(truth, kind, np.random.default_rng([seed, n, *place])) for n in range(CLICK_SEEDS)]
        image = canvas_image(volume, plane, canvas, window)
        answers = _ask(black_box, visual_prompt, image, [canvas.place(one) for one in drawn])
        scores.append([dice(canvas.restore(probability) > 0.5, truth) for probability in answers])
    if not scores:
        raise InputError("The organ is on no slice that its label covers.")
    return [float(value) for value in np.mean(scores, axis=0)]


def _ask(
    black_box: BlackBox, visual_prompt: VisualPrompt | None, image: NDArray[np.uint8], prompts: Sequence[Prompt]
) -> Sequence[NDArray[np.float32]]:
    """Probabilities for several prompts on one image; it is encoded once where that can be."""
    if black_box.capabilities.encodings and not (visual_prompt and visual_prompt.conditioned_on_click):
        shown = change_pixels(visual_prompt, image[None], prompts[:1])[0] if visual_prompt else image
        encoding = black_box.encode(shown)
        return [black_box.decode(encoding, one) for one in prompts]
    images = np.repeat(image[None], len(prompts), axis=0)
    return list(black_box.segment(change_pixels(visual_prompt, images, prompts) if visual_prompt else images, prompts))
