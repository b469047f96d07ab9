"""Adapt a black box: from labelled volumes to a candidate adapter, compared on patients that did not train it."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypeVar

from baps.adapters.adapter import Adapter
from baps.adapters.visual_prompt import VisualPrompt, build_visual_prompt, load_encoder
from baps.blackbox import BlackBox
from baps.errors import InputError
from baps.evaluation.comparison import PairedComparison, compare, describe_training
from baps.evaluation.patient_scores import PatientScores, means_by_hash
from baps.evaluation.slices import SlicesByPatient
from baps.evaluation.splits import Split, patient_hash, split_patients
from baps.training.batches import Batches
from baps.training.budget import divide_images
from baps.training.cross_fitting import Parts
from baps.training.part_training import PartTrainer
from baps.training.plan import AdaptationPlan, ServedAdapter
from baps.training.query_log import QueryLog
from baps.training.settings import AdaptationSettings
from baps.training.training import Callback, CurvePoint

logger = logging.getLogger(__name__)

AdapterT = TypeVar("AdapterT", default=Adapter)

_METHOD_VERSION = 5
"""Increase it whenever the same data, settings and seeds give another result than before."""


@dataclass(frozen=True)
class ProgressReport:
    """Progress of an adaptation.

    Attributes:
        step: progress in thousandths; where an adaptation stops early, it jumps to the end.
        steps: 1000.
        images: black-box images queried so far.
        dice: last point of the training curve, 0 to 1.
    """

    step: int
    steps: int
    images: int
    dice: float


@dataclass(frozen=True)
class Adaptation(Generic[AdapterT]):
    """The result of an adaptation, of a black box of images or of one that answers in 3D.

    Attributes:
        adapter: the candidate.
        comparison: comparison with the unadapted model, or None if there is only one patient.
        scores: scores of every patient that judged; empty if there is only one patient.
        curve: mean Dice by images, of every part that was tried, and of the visual prompt's last run.
        notes: sentences about which parts were kept or dropped, on which evidence, and the images that were not spent.
        record: everything needed to audit it; patients appear as hashes.
    """

    adapter: AdapterT
    comparison: PairedComparison | None
    scores: PatientScores
    curve: list[CurvePoint]
    notes: list[str]
    record: dict[str, Any]

    def sentence(self) -> str:
        """Describe the outcome in sentences.

        Returns:
            The comparison, and what became of each part.
        """
        return " ".join([describe_training(self.comparison), *self.notes])


def plan_adaptation(black_box: BlackBox, slices: SlicesByPatient, settings: AdaptationSettings) -> AdaptationPlan:
    """Record what the result of an adaptation will depend on.

    Args:
        black_box: the model.
        slices: labelled slices of each patient, see ``load_cases``.
        settings: the settings of the adaptation.

    Returns:
        The plan, to be given to ``adapt``.

    Raises:
        InputError: if there is nothing to train on.
    """
    if not slices:
        raise InputError("There are no labels to train on. Segment a volume, save it, and train again.")
    split = split_patients(slices)
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
    """Adapt a black box to labelled volumes, and evaluate the procedure on every patient by cross-fitting.

    Zoom and head are tried first; they take about a quarter of the images. A visual prompt is trained only where it
    brings more. With two patients or more, each is judged by models that were not trained on the patient, and the
    candidate is then trained on all. With one patient there is no evaluation.

    Args:
        black_box: the model; at most ``settings.max_images`` images are queried.
        slices: labelled slices of each patient, see ``load_cases``.
        settings: the settings of the adaptation.
        plan: the plan of these slices and settings, or None to make one.
        progress: called with the progress after every step.
        log: file of the black box's answers; an interrupted adaptation continues from it.
        served: the adapter that is served now, or None. A visual prompt is trained from it where it does not know the
            patients that judge, and the candidate is compared with it on those.
        callback: called with the candidate at every point of the last run's training curve, and at the end.

    Returns:
        The candidate, its comparison with the unadapted model, its scores, and its record.

    Raises:
        InputError: if there is nothing to train on, or ``max_images`` is too small.
        BapsError: if a remote model was replaced during the training.
    """
    start = time.monotonic()
    plan = plan or plan_adaptation(black_box, slices, settings)
    trained_on = served.trained_on if served else frozenset[str]()
    encoder = load_encoder(settings.encoder, settings.encoder_source)
    new_to_served = {patient for patient in slices if served and patient_hash(patient) not in trained_on}
    resends = black_box.capabilities.resends
    image_budget = divide_images(settings.max_images, len(slices), settings, len(new_to_served), resends)
    log_facts = {**plan.facts, "started_from": served.record.get("fingerprint") if served else None}
    query_log = QueryLog(log, log_facts, black_box)
    budget, limit = black_box.budget, black_box.images_queried + settings.max_images - query_log.replayed_images
    black_box.budget = limit if budget is None else min(limit, budget)

    def new_visual_prompt(unknown: Collection[str]) -> tuple[VisualPrompt, bool]:
        visual_prompt = build_visual_prompt(settings.visual_prompt, settings.seed, settings.condition, encoder)
        known = served.adapter.visual_prompt if served and not trained_on & set(map(patient_hash, unknown)) else None
        if known is None or known.to_dict() != visual_prompt.to_dict():
            return visual_prompt, False
        visual_prompt.load_state_dict(known.state_dict())
        return visual_prompt, True

    def report(dice: float) -> None:
        if progress:
            thousandths = min(999, 1000 * query_log.images // settings.max_images)
            progress(ProgressReport(thousandths, 1000, query_log.images, dice))

    try:
        pieces = [piece for patient in plan.split.patients for piece in slices[patient]]
        trainer = PartTrainer(
            black_box, Batches(pieces, encoder), settings, image_budget, query_log, new_visual_prompt, report, callback
        )
        adapter, parts = trainer.train()
        evaluation = trainer.evaluation
        comparable = len(evaluation.patients) > 1
        judges = new_to_served & set(evaluation.patients) if comparable else set()
        served_scores = evaluation.score(served.adapter, judges) if served and judges else {}
        if resends:
            evaluation.check_model(trainer.unadapted)
    finally:
        black_box.budget = budget
        query_log.close()
    if progress:
        progress(ProgressReport(1000, 1000, query_log.images, trainer.curve[-1].dice))
    unadapted: dict[str, NDArray[np.float64]] = {}
    candidate: dict[str, NDArray[np.float64]] = {}
    if comparable:
        unadapted = evaluation.by_patient(trainer.cross_fit.scores[Parts()])
        candidate = evaluation.by_patient(trainer.score_candidate())
    comparison = compare(unadapted, candidate) if comparable else None
    known = {patient: candidate[patient] for patient in served_scores}
    against_served = compare(served_scores, known) if known else None
    scores = PatientScores(
        means_by_hash(unadapted),
        means_by_hash(candidate),
        means_by_hash(served_scores),
        {
            name: means_by_hash(evaluation.by_patient(dice))
            for name, dice in (trainer.cross_fit.score_parts() if comparable else {}).items()
        },
    )
    notes = [*trainer.notes(parts), *black_box.removed_replicas]
    for note in notes:
        logger.info("%s", note)
    windows = {piece.window for pieces in slices.values() for piece in pieces}
    record: dict[str, Any] = {
        "adapter": adapter.to_dict(),
        **log_facts,
        "fingerprint": plan.fingerprint,
        "seen_patients": sorted({*map(patient_hash, plan.split.patients), *trained_on}),
        "check": plan.split.evaluation,
        "windows": [window.to_dict() for window in sorted(windows, key=lambda w: (w.low, w.high, w.source))],
        "verdict": comparison.to_dict() if comparison else None,
        "against_served": against_served.to_dict() if against_served else None,
        "parts": list(parts.names),
        "scores": scores.to_dict(),
        "notes": notes,
        "curve": [[point.images, round(point.dice, 4)] for point in trainer.curve],
        "black_box_images": query_log.images,
        "replayed_images": query_log.replayed_images,
        "seconds": round(time.monotonic() - start, 1),
    }
    return Adaptation(adapter, comparison, scores, trainer.curve, notes, record)


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
        "training_patients": [patient_hash(p) for p in split.patients],
        "slices": sum(map(len, slices.values())),
        "slices_sha256": content.hexdigest(),
    }
