"""Adapt a black box: from labelled volumes to a candidate adapter that was compared on held-out patients."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baps.adapters.adapter import Adapter
from baps.adapters.visual_prompt import load_encoder
from baps.blackbox import BlackBox
from baps.errors import BapsError, InputError
from baps.evaluation.acceptance import Acceptance
from baps.evaluation.scoring import score_slices
from baps.evaluation.slices import AnySlice, SlicesByPatient, evenly_spaced
from baps.evaluation.splits import Split, cross_validation_limit, patient_hash, split_patients
from baps.training.budget import holdout_budget, run_budgets
from baps.training.folds import Arm, train_folds
from baps.training.plan import AdaptationPlan, ServedAdapter
from baps.training.query_log import QueryLog
from baps.training.settings import AdaptationSettings
from baps.training.training import Callback, CurvePoint, train

_METHOD_VERSION = 4
"""Increase it whenever the same data, settings and seeds give another result than before."""

_HOLDOUT_PATIENT = "judge"
"""Key of the held-out patient in query logs, also in those of version 0.1, which a training resumes."""

_MAX_DICE_DIFFERENCE = 0.02
"""Largest difference in Dice (0 to 1) between a model's answers to the same query."""


@dataclass(frozen=True)
class ProgressReport:
    """Progress of an adaptation.

    Attributes:
        step: progress of all training runs together, in thousandths.
        steps: 1000.
        images: black-box images queried so far.
        dice: last point of the training curve, 0 to 1.
    """

    step: int
    steps: int
    images: int
    dice: float


@dataclass(frozen=True)
class Adaptation:
    """The result of an adaptation.

    Attributes:
        adapter: the candidate.
        acceptance: whether the candidate is to be published.
        curve: training curve of the run that made the candidate.
        record: everything needed to audit it; patients appear as hashes.
    """

    adapter: Adapter
    acceptance: Acceptance
    curve: list[CurvePoint]
    record: dict[str, Any]


def plan_adaptation(
    black_box: BlackBox,
    slices: SlicesByPatient,
    settings: AdaptationSettings,
    split_memory: Path | None = None,
    served: ServedAdapter[Adapter] | None = None,
) -> AdaptationPlan:
    """Split the patients, and record what the result will depend on.

    Args:
        black_box: the model.
        slices: labelled slices of each patient, see ``load_cases``.
        settings: the settings of the adaptation.
        split_memory: file that keeps which patients are held back, or None.
        served: the adapter that is served now, or None.

    Returns:
        The plan, to be given to ``adapt``.

    Raises:
        InputError: if there is nothing to train on.
    """
    if not slices:
        raise InputError("There are no labels to train on. Segment a volume, save it, and train again.")
    seen = served.trained_on if served else frozenset()
    split = split_patients(slices, split_memory, seen, cross_validation_limit(slices))
    return AdaptationPlan(split, _facts(black_box, slices, settings, split))


def adapt(
    black_box: BlackBox,
    slices: SlicesByPatient,
    settings: AdaptationSettings,
    plan: AdaptationPlan | None = None,
    progress: Callable[[ProgressReport], None] | None = None,
    log: Path | None = None,
    served: ServedAdapter[Adapter] | None = None,
    callback: Callback | None = None,
) -> Adaptation:
    """Adapt a black box to labelled volumes, and evaluate the candidate on patients that it was not trained on.

    With five patients or more, some are held back for the evaluation: always the same ones, plus the last patient who
    came since the served adapter was trained. With two to four patients (two to twelve if each has a single slice),
    cross-validation leaves out each of them (or a quarter of them) in turn, restricted to patients who came since if
    there are any, and the candidate is then trained on all. With one patient there is no evaluation.

    Args:
        black_box: the model; at most ``settings.max_images`` images are queried.
        slices: labelled slices of each patient, see ``load_cases``.
        settings: the settings of the adaptation.
        plan: the plan of these slices and settings, or None to make one.
        progress: called with the progress after every step.
        log: file of the black box's answers; an interrupted adaptation continues from it.
        served: the adapter that is served now, or None. Training starts from it if it was not trained on the held-out
            patients, and the candidate is compared with it on them.
        callback: called with the candidate at every point of its training curve.

    Returns:
        The candidate, its acceptance, and its record.

    Raises:
        InputError: if there is nothing to train on, or ``max_images`` is too small.
        BapsError: if a remote model was replaced during the training.
    """
    start = time.monotonic()
    plan = plan or plan_adaptation(black_box, slices, settings, served=served)
    split = plan.split
    trained_on = served.trained_on if served else frozenset()
    holdout_slices = _holdout_slices(split, slices, settings, arms=3 if served else 2)
    new_to_served = [patient for patient in holdout_slices if served and patient_hash(patient) not in trained_on]
    check_queries = sum(
        len(pieces) * (3 if patient in new_to_served else 2) for patient, pieces in holdout_slices.items()
    )
    folds = [(training, held_out) for training, held_out in split.folds if set(held_out) & set(holdout_slices)]
    keep_fold_adapter = bool(split.held_back)
    budgets = run_budgets(
        settings.max_images, check_queries, len(folds), keep_fold_adapter, settings, black_box.capabilities.resends
    )
    runs = len(folds) + (not keep_fold_adapter)
    log_facts = {**plan.facts, "started_from": served.record.get("fingerprint") if served else None}
    query_log = QueryLog(log, log_facts, black_box)
    budget, limit = black_box.budget, black_box.images_queried + settings.max_images - query_log.replayed_images
    black_box.budget = limit if budget is None else min(limit, budget)

    def train_run(number: int, patients: Sequence[str], held_out: Sequence[str]) -> tuple[Adapter, list[CurvePoint]]:
        max_images = budgets.per_fold if held_out else budgets.last_run
        last = [0.0]

        def report(step: int, steps: int, _images: int, dice: float | None) -> None:
            last[0] = dice if dice is not None else last[0]
            if progress:
                thousandths = round(1000 * (number + step / steps) / runs)
                progress(ProgressReport(thousandths, 1000, query_log.images, last[0]))

        training_slices = [piece for patient in patients for piece in slices[patient]]
        # Nobody looks at the curve of a run whose adapter is not kept: its images are better spent on steps.
        points = None if number == runs - 1 else 0
        start_from = served.adapter if served and not trained_on & set(map(patient_hash, held_out)) else None
        name, run_callback = f"run {number + 1} of {runs}", callback if points is None else None
        return train(
            black_box, training_slices, settings, max_images, query_log, name, points, report, start_from, run_callback
        )

    def score_patient(patient: str, arm: Arm, adapter: Adapter | None) -> NDArray[np.float64]:
        def query() -> list[float]:
            return score_slices(
                black_box, adapter, holdout_slices[patient], settings.prompt, settings.seed + 1, settings.click_sets
            ).ravel().tolist()  # fmt: skip

        key: dict[str, int | str] = {_HOLDOUT_PATIENT: patient_hash(patient), "arm": arm, "seed": settings.seed + 1}
        return np.array(query_log.get_or_query(key, query)).reshape(-1, settings.click_sets)

    try:
        (adapter, curve), scores = train_folds(split, folds, train_run, score_patient, served, holdout_slices)
        if scores.unadapted and black_box.capabilities.resends:
            patient, kept = next(iter(scores.unadapted.items()))
            with query_log.count_queries():
                again = score_slices(
                    black_box,
                    None,
                    holdout_slices[patient][:1],
                    settings.prompt,
                    settings.seed + 1,
                    settings.click_sets,
                )
            if np.abs(again[0] - kept[0]).max() > _MAX_DICE_DIFFERENCE:
                query_log.discard()
                raise BapsError(
                    f"The model {black_box.capabilities.name} was replaced during the training: it answers differently "
                    "under the same name. Nothing of this training is served, and its log was removed. Train again."
                )
    finally:
        black_box.budget = budget
        query_log.close()
    acceptance = scores.check(served)
    windows = {piece.window for pieces in slices.values() for piece in pieces}
    record: dict[str, Any] = {
        "adapter": adapter.to_dict(),
        **log_facts,
        "fingerprint": plan.fingerprint,
        "seen_patients": sorted({*map(patient_hash, split.training), *trained_on}),
        "check": split.evaluation,
        "windows": [window.to_dict() for window in sorted(windows, key=lambda w: (w.low, w.high, w.source))],
        **acceptance.to_dict(),
        "curve": [[point.images, round(point.dice, 4)] for point in curve],
        "black_box_images": query_log.images,
        "replayed_images": query_log.replayed_images,
        "seconds": round(time.monotonic() - start, 1),
    }
    return Adaptation(adapter, acceptance, curve, record)


def _facts(black_box: BlackBox, slices: SlicesByPatient, settings: AdaptationSettings, split: Split) -> dict[str, Any]:
    """Collect all that the result of an adaptation depends on, as plain JSON; patients appear as hashes."""
    capabilities = black_box.capabilities
    content = hashlib.sha256()
    for patient in sorted(slices):
        content.update(patient_hash(patient).encode())
        for piece in slices[patient]:
            content.update(piece.image.tobytes())
            content.update(piece.target.tobytes())
    return {
        "method": _METHOD_VERSION,
        "black_box": {
            "name": capabilities.name,
            "weights_sha256": capabilities.weights_sha256,
            "input_side": capabilities.input_size,
            # Not written for the canvas, so that fingerprints and logs of version 0.1 stay valid.
            **({} if capabilities.preprocessing == "canvas" else {"preprocessing": capabilities.preprocessing}),
        },
        "settings": asdict(settings),
        "encoder": load_encoder(settings.encoder, settings.encoder_source).to_dict(),
        "training_patients": [patient_hash(p) for p in split.training],
        "held_back_patients": [patient_hash(p) for p in split.held_back],
        "slices": sum(map(len, slices.values())),
        "slices_sha256": content.hexdigest(),
    }


def _holdout_slices(
    split: Split, slices: SlicesByPatient, settings: AdaptationSettings, arms: int
) -> dict[str, list[AnySlice]]:
    """Choose the slices of each held-out patient."""
    held_out = [patient for _, held_out in split.folds for patient in held_out]
    count, each = holdout_budget(settings.max_images, len(held_out), settings, arms)
    return {patient: evenly_spaced(slices[patient], each) for patient in held_out[:count]}
