"""The whole of an adaptation: labelled volumes in, a checked candidate out."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..blackbox import BlackBox
from ..errors import InputError
from ..visual_prompt import VisualPrompt, load_encoder
from .checking import Verdict, compare
from .journal import Journal
from .scoring import score_slices
from .settings import AdaptationSettings
from .slices import AnySlice, SlicesByPatient, evenly_spaced
from .splitting import Split, patient_hash, split_patients
from .training import CurvePoint, train

_METHOD = 1
"""To be raised whenever the same data, settings and seeds come to another result than before."""


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
    log: Path | None = None,
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
        log: file of the black box's answers; if the same adaptation was broken off, it goes on from there.

    Raises:
        InputError: if there is nothing to train on, or the images do not suffice.
    """
    if not slices:
        raise InputError("There are no labels to train on. Segment a volume, save it, and train again.")
    begun = time.monotonic()
    split = split_patients(slices, split_memory)
    judged = _judged(split, slices, settings)
    left = settings.max_images - 2 * settings.click_sets * sum(map(len, judged.values()))
    folds = [(training, judging) for training, judging in split.folds if set(judging) & set(judged)]
    runs = max(1, len(folds))
    # Where each patient is left out in turn, half of the rest is for the last run, on all of them, which is kept.
    last_run = left - left // 2 if runs > 1 else left
    per_fold = left // 2 // runs if runs > 1 else left
    runs += runs > 1
    about = training_facts(black_box, slices, settings, split)
    journal = Journal(log, about, black_box)
    budget, limit = black_box.budget, black_box.images_asked + settings.max_images - journal.recalled_images
    black_box.budget = limit if budget is None else min(limit, budget)
    done = 0

    def run(patients: Sequence[str], most: int) -> tuple[VisualPrompt, list[CurvePoint]]:
        nonlocal done
        number, done = done, done + 1
        last = [0.0]

        def report(step: int, steps: int, _images: int, dice: float | None) -> None:
            last[0] = dice if dice is not None else last[0]
            if progress:
                now = round(1000 * (number + step / steps) / runs)
                progress(ProgressReport(now, 1000, journal.images, last[0]))

        chosen = [piece for patient in patients for piece in slices[patient]]
        # A run that only judges is not looked at: its images are better spent on steps.
        points = None if number == runs - 1 else 0
        return train(black_box, chosen, settings, most, journal, f"run {number + 1} of {runs}", points, report)

    def judge(patient: str, visual_prompt: VisualPrompt | None) -> NDArray[np.float64]:
        def asked() -> list[float]:
            return score_slices(
                black_box, visual_prompt, judged[patient], settings.prompt, settings.seed + 1, settings.click_sets
            ).ravel().tolist()  # fmt: skip

        what = {"judge": patient_hash(patient), "arm": "adapted" if visual_prompt else "as it is"}
        return np.array(journal.recall({**what, "seed": settings.seed + 1}, asked)).reshape(-1, settings.click_sets)

    try:
        before: list[NDArray[np.float64]] = []
        after: list[NDArray[np.float64]] = []
        owners: list[str] = []
        trained: tuple[VisualPrompt, list[CurvePoint]] | None = None
        for training, judging in folds:
            trained = run(training, per_fold)
            for patient in (p for p in judging if p in judged):
                before.append(judge(patient, None))
                after.append(judge(patient, trained[0]))
                owners += [patient] * len(judged[patient])
        if trained is None or not split.held_back:
            trained = run(split.training, last_run)
    finally:
        black_box.budget = budget
        journal.close()
    verdict = compare(np.concatenate(before), np.concatenate(after), owners) if owners else None
    visual_prompt, curve = trained
    windows = {piece.window for pieces in slices.values() for piece in pieces}
    record: dict[str, object] = {
        "visual_prompt": visual_prompt.record(),
        **about,
        "fingerprint": fingerprint(about),
        "check": "held back" if split.held_back else "leave one out" if split.folds else "none, one patient only",
        "windows": [window.record() for window in sorted(windows, key=lambda w: (w.low, w.high, w.source))],
        "verdict": verdict.record() if verdict else None,
        "curve": [[point.images, round(point.dice, 4)] for point in curve],
        "black_box_images": journal.images,
        "recalled_images": journal.recalled_images,
        "seconds": round(time.monotonic() - begun, 1),
    }
    return Adaptation(visual_prompt, verdict, curve, record)


def training_facts(
    black_box: BlackBox, slices: SlicesByPatient, settings: AdaptationSettings, split: Split
) -> dict[str, object]:
    """All that the result of an adaptation depends on, as plain JSON; patients appear as hashes."""
    able = black_box.capabilities
    content = hashlib.sha256()
    for patient in sorted(slices):
        content.update(patient_hash(patient).encode())
        for piece in slices[patient]:
            content.update(piece.image.tobytes())
            content.update(piece.truth.tobytes())
    return {
        "method": _METHOD,
        "black_box": {"name": able.name, "weights_sha256": able.weights_sha256, "input_side": able.input_side},
        "settings": asdict(settings),
        "encoder": load_encoder(settings.encoder, settings.encoder_source).record(),
        "training_patients": [patient_hash(p) for p in split.training],
        "held_back_patients": [patient_hash(p) for p in split.held_back],
        "slices": sum(map(len, slices.values())),
        "slices_sha256": content.hexdigest(),
    }


def fingerprint(facts: Mapping[str, object]) -> str:
    """The same for two adaptations that must come to the same result."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _judged(split: Split, slices: SlicesByPatient, settings: AdaptationSettings) -> dict[str, list[AnySlice]]:
    """The slices of each patient that judges. The check takes a third of the images at the most, however many judge."""
    judges = [patient for _, judging in split.folds for patient in judging]
    affordable = settings.max_images // 3 // (2 * settings.click_sets)
    judges = judges[: max(1, affordable)]
    each = max(1, min(settings.check_slices, affordable // max(1, len(judges))))
    return {patient: evenly_spaced(slices[patient], each) for patient in judges}
