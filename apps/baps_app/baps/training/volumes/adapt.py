"""Adapt a 3D black box: from labelled volumes to a candidate, compared on patients that did not train it."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baps.adapters.volumes.adapter import VolumeAdapter
from baps.blackbox.volumes import VolumeBlackBox
from baps.errors import InputError
from baps.evaluation.comparison import compare
from baps.evaluation.labelled_volumes import LabelledVolume, VolumesByPatient
from baps.evaluation.patient_scores import PatientScores, means_by_hash
from baps.evaluation.splits import patient_hash, split_patients
from baps.training.adapt import Adaptation, ProgressReport
from baps.training.cross_fitting import Parts
from baps.training.plan import AdaptationPlan
from baps.training.query_log import QueryLog
from baps.training.volumes.part_training import EvaluationTrials, VolumePartTrainer
from baps.training.volumes.settings import VolumeSettings

logger = logging.getLogger(__name__)

_METHOD_VERSION = 3
"""Increase it whenever the same data, settings and seeds give another result than before."""


def plan_volume_adaptation(
    black_box: VolumeBlackBox, volumes: VolumesByPatient, settings: VolumeSettings
) -> AdaptationPlan:
    """Record what the result of an adaptation will depend on.

    Args:
        black_box: the model.
        volumes: labelled volumes of each patient, see ``load_volumes``.
        settings: the settings of the adaptation.

    Returns:
        The plan, to be given to ``adapt_volumes``.

    Raises:
        InputError: if there is nothing to train on.
    """
    if not volumes:
        raise InputError("There are no labels to train on. Segment a volume, save it, and train again.")
    split = split_patients(volumes)
    capabilities, content = black_box.capabilities, hashlib.sha256()
    for patient in sorted(volumes):
        content.update(patient_hash(patient).encode())
        for one in volumes[patient]:
            content.update(_describe(one).encode())
            content.update(np.ascontiguousarray(one.image.voxels).data)
            content.update(np.packbits(one.target).data)
    facts = {
        "method": _METHOD_VERSION,
        "dimension": 3,
        "black_box": {
            "name": capabilities.name,
            "weights_sha256": capabilities.weights_sha256,
            "preprocessing": capabilities.identity[1],
        },
        "settings": asdict(settings),
        "training_patients": [patient_hash(patient) for patient in split.patients],
        "volumes": sum(map(len, volumes.values())),
        "volumes_sha256": content.hexdigest(),
    }
    return AdaptationPlan(split, facts)


def adapt_volumes(
    black_box: VolumeBlackBox,
    volumes: VolumesByPatient,
    settings: VolumeSettings,
    plan: AdaptationPlan | None = None,
    progress: Callable[[ProgressReport], None] | None = None,
    log: Path | None = None,
) -> Adaptation[VolumeAdapter]:
    """Adapt a 3D black box to labelled volumes, and evaluate the procedure on every patient by cross-fitting.

    Args:
        black_box: the model; at most ``settings.max_predictions`` predictions are made.
        volumes: labelled volumes of each patient, see ``load_volumes``.
        settings: the settings of the adaptation.
        plan: the plan of these volumes and settings, or None to make one.
        progress: called with the progress after every step.
        log: file of the black box's answers; an interrupted adaptation continues from it.

    Returns:
        The candidate, its comparison with the unadapted model, its scores, and its record.

    Raises:
        InputError: if there is nothing to train on, or ``max_predictions`` is too small.
        BapsError: if the black box cannot be reached.
    """
    start = time.monotonic()
    plan = plan or plan_volume_adaptation(black_box, volumes, settings)
    ordered = {patient: volumes[patient] for patient in plan.split.patients}
    query_log = QueryLog(log, plan.facts, black_box)
    budget = black_box.budget
    limit = black_box.images_queried + settings.max_predictions - query_log.replayed_images
    black_box.budget = limit if budget is None else min(limit, budget)

    def report(dice: float) -> None:
        if progress:
            thousandths = min(999, 1000 * query_log.images // settings.max_predictions)
            progress(ProgressReport(thousandths, 1000, query_log.images, dice))

    try:
        trainer = VolumePartTrainer(black_box, ordered, settings, query_log, report)
        adapter, parts = trainer.train()
    finally:
        black_box.budget = budget
        query_log.close()
    if progress:
        progress(ProgressReport(1000, 1000, query_log.images, trainer.curve[-1].dice))
    patients, cross_fit = trainer.evaluation.patients, trainer.cross_fit

    def by_patient(dice: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        return {patient: dice[cross_fit.unit == row][:, None] for row, patient in enumerate(patients)}

    unadapted: dict[str, NDArray[np.float64]] = {}
    candidate: dict[str, NDArray[np.float64]] = {}
    of_parts: dict[str, NDArray[np.float64]] = {}
    if trainer.can_judge:
        unadapted = by_patient(cross_fit.scores[Parts()])
        candidate = by_patient(cross_fit.score_choice())
        of_parts = cross_fit.score_parts()
    comparison = None
    if trainer.can_judge:
        by_volume = partial(_by_volume, trainer.evaluation)
        comparison = compare(by_volume(unadapted), by_volume(candidate), "volume")
    scores = PatientScores(
        means_by_hash(unadapted),
        means_by_hash(candidate),
        {},
        {name: means_by_hash(by_patient(dice)) for name, dice in of_parts.items()},
    )
    notes = trainer.notes(parts)
    for note in notes:
        logger.info("%s", note)
    record: dict[str, Any] = {
        "adapter": adapter.to_dict(),
        **plan.facts,
        "fingerprint": plan.fingerprint,
        "seen_patients": [patient_hash(patient) for patient in plan.split.patients],
        "check": plan.split.evaluation,
        "verdict": comparison.to_dict() if comparison else None,
        "against_served": None,
        "parts": list(parts.names),
        "scores": scores.to_dict(),
        "notes": notes,
        "curve": [[point.images, round(point.dice, 4)] for point in trainer.curve],
        "black_box_images": query_log.images,
        "replayed_images": query_log.replayed_images,
        "seconds": round(time.monotonic() - start, 1),
    }
    return Adaptation(adapter, comparison, scores, trainer.curve, notes, record)


def _describe(volume: LabelledVolume) -> str:
    """Describe all of a labelled volume but its voxels and its mask, as JSON."""
    image, annotated = volume.image, volume.annotated
    return json.dumps(
        {
            "shape": image.shape,
            "type": image.voxels.dtype.str,
            "spacing": image.spacing,
            "window": image.window.to_dict(),
            "annotated": None if annotated is None else np.flatnonzero(annotated).tolist(),
        }
    )


def _by_volume(
    evaluation: EvaluationTrials, scores: Mapping[str, NDArray[np.float64]]
) -> dict[str, NDArray[np.float64]]:
    """Average the Dice over the prompts of each volume, (volumes, 1): prompts on one volume are no new evidence."""
    result = {}
    for row, patient in enumerate(evaluation.patients):
        volume = np.array(
            [id(one.volume) for one, unit in zip(evaluation.trials, evaluation.unit, strict=True) if unit == row]
        )
        result[patient] = np.array([[scores[patient][volume == one].mean()] for one in dict.fromkeys(volume.tolist())])
    return result
