"""The whole of an adaptation: labelled volumes in, a checked candidate out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..blackbox import BlackBox
from ..errors import InputError
from ..visual_prompt import VisualPrompt
from .cases import SlicesByPatient, evenly_spaced
from .checking import Verdict, compare
from .scoring import score_slices
from .settings import AdaptationSettings
from .splitting import Split, patient_hash, split_patients
from .training import CurvePoint, train


@dataclass(frozen=True)
class ProgressReport:
    """How far an adaptation has come.

    Attributes:
        step, steps: of all training runs together, in thousandths.
        images: black-box images asked so far.
        dice: of the training curve's last point, 0 to 1.
    """

    step: int
    steps: int
    images: int
    dice: float


@dataclass(frozen=True)
class Adaptation:
    """What came out.

    Attributes:
        visual_prompt: the candidate.
        verdict: of the check, or None where there was but one patient.
        curve: of the run that made the candidate.
        record: everything needed to audit it; patients appear as hashes.
    """

    visual_prompt: VisualPrompt
    verdict: Verdict | None
    curve: list[CurvePoint]
    record: dict[str, object]


def adapt(
    black_box: BlackBox,
    slices: SlicesByPatient,
    settings: AdaptationSettings,
    split_memory: Path | None = None,
    progress: Callable[[ProgressReport], None] | None = None,
) -> Adaptation:
    """Adapt a black box to labelled volumes and check the candidate on patients that it was not trained on.

    With five patients or more, some are held back for the check, always the same. With two to four, the check leaves
    each out in turn, and the candidate is then trained on all of them. With one there is no check.

    Args:
        black_box: the model; it is asked ``settings.max_images`` images at the most.
        slices: labelled slices of each patient, as ``load_cases`` gives them.
        settings: see there.
        split_memory: file that keeps who is held back.
        progress: told how far it has come.

    Raises:
        InputError: if there is nothing to train on, or the images do not suffice.
    """
    if not slices:
        raise InputError("There are no labels to train on. Segment a volume, save it, and train again.")
    started, begun = black_box.images_asked, time.monotonic()
    split = split_patients(slices, split_memory)
    judges = _judges(split)
    # The check takes a third of the images at the most, however many patients judge.
    affordable = settings.max_images // 3 // (2 * settings.click_sets * max(1, len(judges)))
    judged = {p: evenly_spaced(slices[p], max(1, min(settings.check_slices, affordable))) for p in judges}
    left = settings.max_images - 2 * settings.click_sets * sum(map(len, judged.values()))
    runs = max(1, len(split.folds))
    # Where each patient is left out in turn, half of the rest is for the last run, on all of them, which is kept.
    last_run = left - left // 2 if runs > 1 else left
    per_fold = left // 2 // runs if runs > 1 else left
    runs += runs > 1
    budget, limit = black_box.budget, started + settings.max_images
    black_box.budget = limit if budget is None else min(limit, budget)
    done = 0

    def run(patients: Sequence[str], most: int) -> tuple[VisualPrompt, list[CurvePoint]]:
        nonlocal done
        number, done = done, done + 1
        last = [0.0]

        def report(step: int, steps: int, _images: int, dice: float | None) -> None:
            last[0] = dice if dice is not None else last[0]
            if progress:
                images = black_box.images_asked - started
                progress(ProgressReport(round(1000 * (number + step / steps) / runs), 1000, images, last[0]))

        chosen = [piece for patient in patients for piece in slices[patient]]
        return train(black_box, chosen, settings, most, report)

    try:
        before: list[NDArray[np.float64]] = []
        after: list[NDArray[np.float64]] = []
        owners: list[str] = []
        trained: tuple[VisualPrompt, list[CurvePoint]] | None = None
        for training, judging in split.folds:
            trained = run(training, per_fold)
            for patient in judging:
                for found, visual_prompt in ((before, None), (after, trained[0])):
                    found.append(
                        score_slices(
                            black_box, visual_prompt, judged[patient], settings.prompt, settings.seed + 1,
                            settings.click_sets,
                        )
                    )  # fmt: skip
                owners += [patient] * len(judged[patient])
        if trained is None or len(split.folds) > 1:
            trained = run(split.training, last_run)
    finally:
        black_box.budget = budget
    verdict = compare(np.concatenate(before), np.concatenate(after), owners) if owners else None
    visual_prompt, curve = trained
    able = black_box.capabilities
    windows = {piece.window for pieces in slices.values() for piece in pieces}
    record: dict[str, object] = {
        "black_box": {"name": able.name, "weights_sha256": able.weights_sha256, "input_side": able.input_side},
        "visual_prompt": visual_prompt.kind,
        "settings": asdict(settings),
        "training_patients": [patient_hash(p) for p in split.training],
        "held_back_patients": [patient_hash(p) for p in split.held_back],
        "check": "held back" if split.held_back else "leave one out" if split.folds else "none, one patient only",
        "slices": sum(map(len, slices.values())),
        "windows": [window.record() for window in sorted(windows, key=lambda w: (w.low, w.high, w.source))],
        "verdict": verdict.record() if verdict else None,
        "curve": [[point.images, round(point.dice, 4)] for point in curve],
        "black_box_images": black_box.images_asked - started,
        "seconds": round(time.monotonic() - begun, 1),
    }
    return Adaptation(visual_prompt, verdict, curve, record)


def _judges(split: Split) -> list[str]:
    return [patient for _, judging in split.folds for patient in judging]
