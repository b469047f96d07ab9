"""The whole of an adaptation: labelled volumes in, a checked candidate out."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baps.adapters.adapter import Adapter
from baps.adapters.old_records import restore_old_settings
from baps.adapters.visual_prompt import load_encoder
from baps.blackbox import BlackBox
from baps.errors import BapsError, InputError
from baps.evaluation.acceptance import Acceptance, check
from baps.evaluation.scoring import score_slices
from baps.evaluation.slices import AnySlice, SlicesByPatient, evenly_spaced
from baps.evaluation.splits import Split, most_few_of, patient_hash, split_patients
from baps.training.budget import share_judging, share_runs
from baps.training.query_log import QueryLog
from baps.training.settings import AdaptationSettings
from baps.training.training import CurvePoint, Watch, train

_METHOD = 4
"""To be raised whenever the same data, settings and seeds come to another result than before."""

_SAME = 0.02
"""Dice; how much a model's answer to the same question may differ."""


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
class Served:
    """The adapter that is served while another one is trained.

    Attributes:
        adapter: it.
        record: of its training.
    """

    adapter: Adapter
    record: Mapping[str, Any]

    @property
    def trained_on(self) -> frozenset[str]:
        """Hashes of the patients that it or those before it were trained on; on them it is no judge of itself."""
        return frozenset(self.record["seen_patients"])


@dataclass(frozen=True)
class Plan:
    """What an adaptation will do.

    Attributes:
        split: who is trained on and who judges.
        facts: all that the result depends on, but for the adapter that the training starts from; plain JSON.
    """

    split: Split
    facts: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """The same for two adaptations of the same black box to the same data with the same settings."""
        facts = {**self.facts, "settings": restore_old_settings(self.facts["settings"])}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Adaptation:
    """What came out.

    Attributes:
        adapter: the candidate.
        check: whether it is to be served.
        curve: of the run that made the candidate.
        record: everything needed to audit it; patients appear as hashes.
    """

    adapter: Adapter
    check: Acceptance
    curve: list[CurvePoint]
    record: dict[str, Any]


def plan_adaptation(
    black_box: BlackBox,
    slices: SlicesByPatient,
    settings: AdaptationSettings,
    split_memory: Path | None = None,
    served: Served | None = None,
) -> Plan:
    """Split the patients, and write down what the result will depend on.

    Args:
        black_box: the model.
        slices: labelled slices of each patient, as ``load_cases`` gives them.
        settings: see there.
        split_memory: file that keeps who is held back.
        served: what is served now.

    Raises:
        InputError: if there is nothing to train on.
    """
    if not slices:
        raise InputError("There are no labels to train on. Segment a volume, save it, and train again.")
    known = served.trained_on if served else frozenset()
    split = split_patients(slices, split_memory, known, most_few_of(slices))
    return Plan(split, _facts(black_box, slices, settings, split))


def adapt(
    black_box: BlackBox,
    slices: SlicesByPatient,
    settings: AdaptationSettings,
    plan: Plan | None = None,
    progress: Callable[[ProgressReport], None] | None = None,
    log: Path | None = None,
    served: Served | None = None,
    watch: Watch | None = None,
) -> Adaptation:
    """Adapt a black box to labelled volumes and check the candidate on patients that it was not trained on.

    With five patients or more, some are held back for the check: always the same, and the last who came since the
    served adapter was trained. With two to four (of pictures, two to twelve), the check leaves each (or a quarter of
    them) out in turn, only those who came since if there are any, and the candidate is then trained on all of them.
    With one there is no check.

    Args:
        black_box: the model; it is asked ``settings.max_images`` images at the most.
        slices: labelled slices of each patient, as ``load_cases`` gives them.
        settings: see there.
        plan: of these slices and settings, or None to make one.
        progress: told how far it has come.
        log: file of the black box's answers; if the same adaptation was broken off, it goes on from there.
        served: what is served now. The training starts from it wherever those who judge are new to it, and the
            candidate is compared with it on them.
        watch: shown the candidate at every point of its training curve.

    Raises:
        InputError: if there is nothing to train on, or the images do not suffice.
        BapsError: if a model on another machine was exchanged meanwhile.
    """
    begun = time.monotonic()
    plan = plan or plan_adaptation(black_box, slices, settings, served=served)
    split = plan.split
    trained_on = served.trained_on if served else frozenset()
    judged = _holdout_slices(split, slices, settings, arms=3 if served else 2)
    fair = [patient for patient in judged if served and patient_hash(patient) not in trained_on]
    asked_to_judge = sum(len(pieces) * (3 if patient in fair else 2) for patient, pieces in judged.items())
    folds = [(training, judging) for training, judging in split.folds if set(judging) & set(judged)]
    checked_is_kept = bool(split.held_back)
    shares = share_runs(
        settings.max_images, asked_to_judge, len(folds), checked_is_kept, settings, black_box.capabilities.resends
    )
    runs = len(folds) + (not checked_is_kept)
    about = {**plan.facts, "started_from": served.record.get("fingerprint") if served else None}
    query_log = QueryLog(log, about, black_box)
    budget, limit = black_box.budget, black_box.images_queried + settings.max_images - query_log.replayed_images
    black_box.budget = limit if budget is None else min(limit, budget)
    done = 0

    def run(patients: Sequence[str], judges: Sequence[str], most: int) -> tuple[Adapter, list[CurvePoint]]:
        nonlocal done
        number, done = done, done + 1
        last = [0.0]

        def report(step: int, steps: int, _images: int, dice: float | None) -> None:
            last[0] = dice if dice is not None else last[0]
            if progress:
                now = round(1000 * (number + step / steps) / runs)
                progress(ProgressReport(now, 1000, query_log.images, last[0]))

        chosen = [piece for patient in patients for piece in slices[patient]]
        # A run that only judges is not looked at: its images are better spent on steps.
        points = None if number == runs - 1 else 0
        start = served.adapter if served and not trained_on & set(map(patient_hash, judges)) else None
        name, shown = f"run {number + 1} of {runs}", watch if points is None else None
        return train(black_box, chosen, settings, most, query_log, name, points, report, start, shown)

    def judge(patient: str, arm: str, adapter: Adapter | None) -> NDArray[np.float64]:
        def asked() -> list[float]:
            return score_slices(
                black_box, adapter, judged[patient], settings.prompt, settings.seed + 1, settings.click_sets
            ).ravel().tolist()  # fmt: skip

        # These words are in the logs of version 0.1 too, which a training resumes.
        what: dict[str, int | str] = {"judge": patient_hash(patient), "arm": arm, "seed": settings.seed + 1}
        return np.array(query_log.get_or_query(what, asked)).reshape(-1, settings.click_sets)

    try:
        before: dict[str, NDArray[np.float64]] = {}
        now: dict[str, NDArray[np.float64]] = {}
        after: dict[str, NDArray[np.float64]] = {}
        trained: tuple[Adapter, list[CurvePoint]] | None = None
        for training, judging in folds:
            trained = run(training, judging, shares.per_fold)
            for patient in (p for p in judging if p in judged):
                before[patient] = judge(patient, "as it is", None)
                after[patient] = judge(patient, "adapted", trained[0])
                if served and patient in fair:
                    now[patient] = judge(patient, "served", served.adapter)
        if trained is None or not checked_is_kept:
            trained = run(split.training, (), shares.last_run)
        if before and black_box.capabilities.resends:
            patient, kept = next(iter(before.items()))
            with query_log.counting():
                again = score_slices(
                    black_box, None, judged[patient][:1], settings.prompt, settings.seed + 1, settings.click_sets
                )
            if np.abs(again[0] - kept[0]).max() > _SAME:
                query_log.discard()
                raise BapsError(
                    f"The model {black_box.capabilities.name} was exchanged during the training: it answers otherwise "
                    "than it did, under the same name. Nothing is served of it, and its log was removed. Train again."
                )
    finally:
        black_box.budget = budget
        query_log.close()
    checked = check(before, after, now, served.record["verdict"] if served else None)
    adapter, curve = trained
    windows = {piece.window for pieces in slices.values() for piece in pieces}
    record: dict[str, Any] = {
        "adapter": adapter.to_dict(),
        **about,
        "fingerprint": plan.fingerprint,
        "seen_patients": sorted({*map(patient_hash, split.training), *trained_on}),
        "check": "held back" if split.held_back else "leave some out" if split.folds else "none, one patient only",
        "windows": [window.to_dict() for window in sorted(windows, key=lambda w: (w.low, w.high, w.source))],
        **checked.record(),
        "curve": [[point.images, round(point.dice, 4)] for point in curve],
        "black_box_images": query_log.images,
        "replayed_images": query_log.replayed_images,
        "seconds": round(time.monotonic() - begun, 1),
    }
    return Adaptation(adapter, checked, curve, record)


def _facts(black_box: BlackBox, slices: SlicesByPatient, settings: AdaptationSettings, split: Split) -> dict[str, Any]:
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
        "black_box": {"name": able.name, "weights_sha256": able.weights_sha256, "input_side": able.input_size},
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
    """The slices of each patient that judges."""
    judges = [patient for _, judging in split.folds for patient in judging]
    count, each = share_judging(settings.max_images, len(judges), settings, arms)
    return {patient: evenly_spaced(slices[patient], each) for patient in judges[:count]}
