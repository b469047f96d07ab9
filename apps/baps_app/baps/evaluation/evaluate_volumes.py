"""Evaluate the masks of a 3D black box as a user gets them: one prompt, then clicks on the largest error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from baps.adapters.volumes.adapter import ShownVolume, VolumeAdapter
from baps.blackbox.volumes import VolumeBlackBox
from baps.errors import InputError
from baps.evaluation.cases import Case, CaseReader
from baps.evaluation.surface_distances import surface_distances
from baps.imaging.metrics import dice
from baps.prompts.simulated import check_prompts
from baps.prompts.simulated_volumes import draw_volume_correction, draw_volume_prompts
from baps.prompts.volume_prompts import Mask, VolumePrompt

CLICK_SETS = 3
"""Number of sets of prompts on each volume."""


@dataclass(frozen=True)
class VolumeScores:
    """Scores of one volume: a list for each set of prompts, with a number after each click.

    Attributes:
        patient: the patient.
        dice: Dice, 0 to 1.
        hd95: 95th percentile of the Hausdorff distance, mm; infinite if the mask is empty.
    """

    patient: str
    dice: Sequence[Sequence[float]]
    hd95: Sequence[Sequence[float]]


@dataclass(frozen=True)
class VolumeEvaluation:
    """The result of an evaluation.

    Attributes:
        scores: scores by image name and label value.
        skipped: images that could not be used, with reasons.
        predictions: number of predictions.
    """

    scores: Mapping[str, Mapping[int, VolumeScores]]
    skipped: Mapping[str, str]
    predictions: int

    def by_patient(self, clicks: int = 1) -> dict[str, float]:
        """Average the Dice over labels, volumes and sets of prompts.

        Args:
            clicks: number of clicks.

        Returns:
            Dice, 0 to 1, by patient.
        """
        values: dict[str, list[float]] = {}
        for labels in self.scores.values():
            for one in labels.values():
                values.setdefault(one.patient, []).append(float(np.mean([dice[clicks - 1] for dice in one.dice])))
        return {patient: float(np.mean(one)) for patient, one in values.items()}

    def to_dict(self) -> dict[str, object]:
        """Convert the evaluation to JSON.

        Returns:
            ``mean`` (over patients) and ``std`` (sample standard deviation over patients) of the Dice with one click,
                ``by_clicks`` and ``hd95_by_clicks`` (medians, mm, None where masks are empty), and ``by_case``.
        """
        patients = list(self.by_patient().values())
        every = [one for labels in self.scores.values() for one in labels.values()]
        clicks = len(every[0].dice[0])
        distances = [np.median([hd95[n] for one in every for hd95 in one.hd95]) for n in range(clicks)]
        return {
            "mean": float(np.mean(patients)),
            "std": float(np.std(patients, ddof=1)) if len(patients) > 1 else None,
            "cases": len(self.scores),
            "patients": len(patients),
            "predictions": self.predictions,
            "by_clicks": [float(np.mean(list(self.by_patient(n + 1).values()))) for n in range(clicks)],
            "hd95_by_clicks": [float(one) if np.isfinite(one) else None for one in distances],
            "by_case": {
                name: float(np.mean([dice[0] for one in labels.values() for dice in one.dice]))
                for name, labels in self.scores.items()
            },
            "skipped": dict(self.skipped),
        }


def evaluate_volumes(
    black_box: VolumeBlackBox,
    cases: Sequence[Case],
    adapter: VolumeAdapter | None = None,
    prompt: str = "click",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    clicks: int = 1,
    sets: int = CLICK_SETS,
) -> VolumeEvaluation:
    """Evaluate a 3D black box with or without an adapter.

    Each volume gets a prompt. With more clicks, each further one is placed well inside the largest piece in which the
    last mask is wrong; a model that can start from a mask gets the last one.

    Args:
        black_box: the model.
        cases: labelled images, with the labels of one image next to each other; labels must be of all slices.
        adapter: an adapter of the black box, or None for the unadapted model.
        prompt: kind of the first prompt, ``click`` or ``box``.
        seed: seed of the prompts.
        progress: called with the number of cases done, and of all cases.
        clicks: number of clicks on a volume, 1 to 10; a box counts as one.
        sets: number of sets of prompts.

    Returns:
        The scores.

    Raises:
        InputError: if no case can be used.
    """
    check_prompts(prompt, seed, clicks)
    before, reader = black_box.images_queried, CaseReader()
    scores: dict[str, dict[int, VolumeScores]] = {}
    skipped: dict[str, str] = {}
    for number, case in enumerate(cases):
        try:
            one = _score(black_box, case, reader, adapter or VolumeAdapter(), prompt, seed, clicks, sets)
            scores.setdefault(case.image.name, {})[case.value] = one
        except InputError as error:
            skipped[f"{case.image.name}, label {case.value}"] = str(error)
        if progress:
            progress(number + 1, len(cases))
    if not scores:
        raise InputError(f"No case can be evaluated. {next(iter(skipped.values()), 'There are none.')}")
    return VolumeEvaluation(scores, skipped, black_box.images_queried - before)


def _score(
    black_box: VolumeBlackBox,
    case: Case,
    reader: CaseReader,
    adapter: VolumeAdapter,
    prompt: str,
    seed: int,
    clicks: int,
    sets: int,
) -> VolumeScores:
    if case.annotated_slices is not None:
        raise InputError("Only some slices were annotated, so the mask of a whole organ cannot be judged.")
    volume, target, window = reader.read(case)
    image = ShownVolume.of(volume, window)
    random = np.random.default_rng([seed, crc32(case.image.name.encode()), case.value])
    all_dice, all_hd95 = [], []
    for first in draw_volume_prompts(target, volume.spacing, prompt, sets, random):
        masks = _corrected_masks(black_box, adapter, image, target, first, clicks, random)
        all_dice.append([dice(mask, target) for mask in masks])
        all_hd95.append([surface_distances(mask, target, np.array(volume.spacing))[0] for mask in masks])
    return VolumeScores(case.patient, all_dice, all_hd95)


def _corrected_masks(
    black_box: VolumeBlackBox,
    adapter: VolumeAdapter,
    image: ShownVolume,
    target: Mask,
    first: VolumePrompt,
    clicks: int,
    random: np.random.Generator,
) -> list[Mask]:
    """Return the mask after each click."""
    prompts: list[VolumePrompt] = [first]
    masks = [adapter.predict(black_box, image, prompts) > 0.5]
    for _ in range(clicks - 1):
        correction = draw_volume_correction(masks[-1], target, image.spacing, random)
        if correction is None:
            masks.append(masks[-1])
            continue
        prompts.append(correction)
        masks.append(adapter.predict(black_box, image, prompts, masks[-1]) > 0.5)
    return masks
