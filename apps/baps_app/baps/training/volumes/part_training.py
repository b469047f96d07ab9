"""Train the parts of a 3D adapter, the cheap ones first, and judge each on patients that it was not trained on.

It follows ``baps.training.part_training``, with volumes instead of slices: patients judge by cross-fitting, heads are
trained and judged on the kept answers to the evaluation prompts, and a tone curve is tried in one fold first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from baps.adapters.volumes.adapter import VolumeAdapter
from baps.adapters.volumes.head import VolumeHead
from baps.adapters.volumes.tone import VolumeTone
from baps.blackbox.volumes import VolumeBlackBox
from baps.errors import InputError
from baps.evaluation.labelled_volumes import VolumesByPatient
from baps.evaluation.slices import evenly_spaced
from baps.evaluation.splits import MAX_GROUPS
from baps.prompts.simulated_volumes import draw_volume_prompts
from baps.training.cross_fitting import PART_NAMES, CrossFit, Eligible, Parts, any_parts
from baps.training.query_log import QueryLog
from baps.training.training import CurvePoint
from baps.training.volumes.answers import CubeAnswer, Trial, ask, ask_corrections, ask_first_prompts
from baps.training.volumes.head_training import VolumeHeadData, train_volume_head
from baps.training.volumes.settings import VolumeSettings
from baps.training.volumes.tone_training import train_tone

ZOOMS = (0.65, 0.45, 0.3)
"""Shares of the cube's width that the longest side of a typical organ takes, which are tried."""

_TYPICAL_ZOOM = 0.45
"""Zoom where nothing can judge."""

_EVALUATION_SHARE = 0.12
"""Largest share of the predictions that one round of all evaluation prompts may take."""

_HEAD_SHARE = 0.3
"""Share of the predictions that is kept for the last head while a tone curve is trained."""

_FOLDS = 2
"""Number of folds that a tone curve is judged in."""

_MIN_TRIAL_GAIN = 0.02
"""Gain in Dice (0 to 1) in the first fold that makes a tone curve worth the rest of the predictions."""

_HEAD_MARGIN = 0.05
"""A head is trained for a zoom whose answers are at most this much worse (Dice, 0 to 1) than those of the best zoom."""

_FIRST_PROMPTS = 16
"""Maximum number of further first prompts on a volume that the last head learns from."""

_CHOICE_STEPS, _FOLD_STEPS, _HEAD_STEPS = 60, 200, 400
_STEPS_PER_ANSWER = 8
"""Maximum number of steps for every answer: a head that sees few answers for long learns them by heart."""


@dataclass(frozen=True)
class EvaluationTrials:
    """The prompts that patients are judged with.

    Attributes:
        trials: the prompts; the first one of every patient comes first.
        patients: the patients, in the order of the units.
        unit: unit of each prompt, (N,). A unit is a patient.
    """

    trials: tuple[Trial, ...]
    patients: tuple[str, ...]
    unit: NDArray[np.int64]

    @classmethod
    def draw(cls, volumes: VolumesByPatient, settings: VolumeSettings) -> EvaluationTrials:
        """Draw as many prompts for each patient, from one to ``click_sets``, as the predictions allow.

        Args:
            volumes: the labelled volumes, patients in order.
            settings: the settings of the adaptation.

        Returns:
            The prompts.

        Raises:
            InputError: if there are too few predictions to judge anything.
        """
        limit = int(_EVALUATION_SHARE * settings.max_predictions)
        if limit < min(2, len(volumes)):  # Of several patients, two at least judge.
            raise InputError(
                f"max_predictions is {settings.max_predictions}, which is too few to judge anything. Raise it to 50 or "
                "more."
            )
        patients = tuple(evenly_spaced(list(volumes), limit))
        each = min(settings.click_sets, limit // len(patients))
        trials: list[Trial] = []
        unit: list[int] = []
        for number in range(each):
            for row, patient in enumerate(patients):
                volume = volumes[patient][number % len(volumes[patient])]
                random = np.random.default_rng([settings.seed + 1, 7919, number, row])
                prompts = draw_volume_prompts(volume.target, volume.image.spacing, settings.prompt, 1, random)
                trials.append(Trial(volume, tuple(prompts), len(trials)))
                unit.append(row)
        return cls(tuple(trials), patients, np.array(unit))


class VolumePartTrainer:
    """Train and judge zoom, head and tone curve.

    Args:
        black_box: the model.
        volumes: the labelled volumes, patients in order.
        settings: the settings of the adaptation.
        query_log: logs the answers.
        report: called with the last Dice after every part and every step.
    """

    def __init__(
        self,
        black_box: VolumeBlackBox,
        volumes: VolumesByPatient,
        settings: VolumeSettings,
        query_log: QueryLog,
        report: Callable[[float], None],
    ) -> None:
        self._black_box, self._volumes, self._settings = black_box, volumes, settings
        self._query_log, self._report = query_log, report
        self._every = [one for patient in volumes.values() for one in patient]
        self._organ = float(np.median([one.longest_side for one in self._every]))
        self.evaluation = EvaluationTrials.draw(volumes, settings)
        """The prompts that patients are judged with."""
        groups = np.arange(len(self.evaluation.patients)) % MAX_GROUPS
        self.cross_fit = CrossFit(self.evaluation.unit, groups)
        """The scores."""
        self.curve: list[CurvePoint] = []
        """Mean Dice of what was tried, by predictions."""
        self.dropped: dict[str, str] = {}
        """Why a part was given up before it was tried on all evaluation prompts, by the part's name."""
        self._group = groups[self.evaluation.unit]
        self._data: dict[float, VolumeHeadData] = {}
        self._fold_tones: list[VolumeTone] = []

    @property
    def can_judge(self) -> bool:
        """Whether something can be trained on some patients and judged on others."""
        return len(self.evaluation.patients) > 1

    def train(self) -> tuple[VolumeAdapter, Parts]:
        """Train the parts that bring something.

        Returns:
            The candidate, and its parts. ``cross_fit`` has the scores of all combinations then.
        """
        settings = self._settings
        self._keep(1.0, self._ask(VolumeAdapter(), self.evaluation.trials, "unadapted"))
        zooms = self._choose_zooms() if settings.zoom != "none" else [1.0]
        if settings.head != "none" and self.can_judge:
            means = {zoom: float(self.cross_fit.by_unit(self.cross_fit.scores[Parts(zoom)]).mean()) for zoom in zooms}
            for zoom in (one for one in zooms if means[one] > max(means.values()) - _HEAD_MARGIN):
                self._cross_fit_head(Parts(zoom, head="augmented"), self._folds(self._data[zoom], MAX_GROUPS))
        last_run = self._cross_fit_tone() if settings.visual_prompt != "none" else 0
        parts = self._choose()
        tone = self._train_tone(parts.zoom, None, last_run) if parts.visual_prompt else None
        adapter = VolumeAdapter(self.width(parts.zoom), tone)
        if settings.head == "none" or (tone is not None and not parts.head):
            return adapter, parts
        return self._train_last_head(parts, adapter)

    def width(self, zoom: float) -> float | None:
        """Return the width of the cube of a zoom.

        Args:
            zoom: share of it that a typical organ takes; 1 if the black box sees the whole volume.

        Returns:
            The width, mm, or None.
        """
        return None if zoom == 1 else self._organ / zoom

    def notes(self, parts: Parts) -> list[str]:
        """Describe which parts were kept or dropped, on which evidence, and how many predictions were not made.

        Args:
            parts: the parts of the candidate.

        Returns:
            Sentences.
        """
        outcomes = []
        for part in PART_NAMES:
            gain = self.cross_fit.gain(part) if self.can_judge else None
            if part in self.dropped:
                outcomes.append(f"{part} {self.dropped[part]}")
            elif gain is not None:
                outcomes.append(f"{part} {'kept' if part in parts.names else 'dropped'} ({gain:+.3f})")
        notes = []
        if outcomes:
            patients = len(self.evaluation.patients)
            notes.append(f"Gain in Dice of each part, cross-fitted on {patients} patients: {', '.join(outcomes)}.")
        limit = self._settings.max_predictions
        if unspent := limit - self._query_log.images:
            notes.append(f"{unspent:,} of {limit:,} predictions were not made.")
        return notes

    def _ask(self, adapter: VolumeAdapter, trials: Sequence[Trial], run: str) -> list[CubeAnswer]:
        return ask(self._black_box, adapter, trials, self._query_log, run)

    def _keep(self, zoom: float, answers: Sequence[CubeAnswer]) -> None:
        """Keep the answers to all evaluation prompts, and score them."""
        self._data[zoom] = VolumeHeadData(answers, self._settings.seed)
        self._add_scores(Parts(zoom), self._data[zoom].score())

    def _add_scores(self, parts: Parts, dice: NDArray[np.float64]) -> None:
        self.cross_fit.scores[parts] = dice
        self.curve.append(CurvePoint(self._query_log.images, float(self.cross_fit.by_unit(dice).mean())))
        self._report(self.curve[-1].dice)

    def _choose(self, eligible: Eligible = any_parts) -> Parts:
        """Choose the final parts by the scores of all patients."""
        if self.can_judge:
            return self.cross_fit.choose(np.ones(len(self.cross_fit.groups), bool), eligible)
        zoom = 1.0 if self._settings.zoom == "none" else _TYPICAL_ZOOM
        return Parts(zoom, head="augmented" if self._settings.head != "none" else "")

    def _choose_zooms(self) -> list[float]:
        """Try the zooms on the first prompt of every patient, and ask the rest of those that some group would choose.

        Returns:
            1 and these zooms.
        """
        trials = self.evaluation.trials
        if not self.can_judge or self._settings.zoom == "typical":
            self._keep(_TYPICAL_ZOOM, self._ask(VolumeAdapter(self.width(_TYPICAL_ZOOM)), trials, "zoom"))
            return [1.0, _TYPICAL_ZOOM]
        count = len(self.evaluation.patients)
        first = {zoom: self._ask(VolumeAdapter(self.width(zoom)), trials[:count], "screening") for zoom in ZOOMS}
        dice = {zoom: VolumeHeadData(answers, 0).score() for zoom, answers in first.items()}
        groups, chosen = self.cross_fit.groups, set[float]()
        for judges in (np.ones(count, bool), *(groups != one for one in np.unique(groups))):
            # The whole volume remains a candidate anyway; a head may make more of a cube that is a little worse.
            chosen.add(max(dice, key=lambda zoom: float(dice[zoom][judges].mean())))
        for zoom in sorted(chosen):
            rest = self._ask(VolumeAdapter(self.width(zoom)), trials[count:], "zoom")
            self._keep(zoom, [*first[zoom], *rest])
        return sorted(chosen | {1.0})

    def _folds(self, data: VolumeHeadData, folds: int) -> list[tuple[NDArray[np.bool_], VolumeHeadData]]:
        """Return the held-out prompts of each fold, with the same answers for all."""
        return [(self._group % folds == one, data) for one in np.unique(self._group % folds)]

    def _cross_fit_head(self, parts: Parts, folds: Sequence[tuple[NDArray[np.bool_], VolumeHeadData]]) -> None:
        """Train the head of a combination in every fold, and score it on the fold's held-out prompts."""
        dice = np.zeros(len(self.evaluation.unit))
        for held_out, data in folds:
            head = train_volume_head(data, ~held_out, _CHOICE_STEPS, self._settings.seed)
            dice[held_out] = data.score(head, held_out)
        self._add_scores(parts, dice)

    def _cross_fit_tone(self) -> int:
        """Train a tone curve in every fold, unless the first one shows that it brings nothing.

        Returns:
            The predictions of the last run, 0 if no tone curve is worth training.
        """
        zooms = [zoom for zoom in self._data if zoom < 1]
        if not self.can_judge or not zooms:
            return 0
        every = len(self.evaluation.trials)
        left = self._settings.max_predictions - self._query_log.images - (_FOLDS + 1) * every
        if self._settings.head != "none":
            left -= int(_HEAD_SHARE * self._settings.max_predictions)
        of_run = left // (_FOLDS + 1)
        if of_run < 2 * self._settings.batch_size:
            self.dropped["visual prompt"] = "not tried, because max_predictions is too small"
            return 0
        kept: list[tuple[NDArray[np.bool_], VolumeHeadData]] = []
        chosen = self._best_zoom(np.ones(len(self.cross_fit.groups), bool))
        for fold in range(_FOLDS):
            held_out = self._group % _FOLDS == fold
            zoom = self._best_zoom(self.cross_fit.groups % _FOLDS != fold)
            tone = self._train_tone(zoom, fold, of_run)
            answers = self._ask(VolumeAdapter(self.width(zoom), tone), self.evaluation.trials, f"fold {fold + 1}")
            kept.append((held_out, VolumeHeadData(answers, self._settings.seed)))
            self._fold_tones.append(tone)
            if fold == 0 and (gain := self._gain(zoom, *kept[0])) < _MIN_TRIAL_GAIN:
                self.dropped["visual prompt"] = (
                    f"dropped ({gain:+.3f} in the first of {_FOLDS} folds, where {_MIN_TRIAL_GAIN:+.3f} is required)"
                )
                return 0
        dice = np.zeros(len(self.evaluation.unit))
        for held_out, data in kept:
            dice[held_out] = data.score(None, held_out)
        self._add_scores(Parts(chosen, visual_prompt=True), dice)
        if self._settings.head != "none":
            self._cross_fit_head(Parts(chosen, True, "augmented"), kept)
        return of_run

    def _best_zoom(self, judges: NDArray[np.bool_]) -> float:
        """Return the zoom of the best combination that has one."""
        return self.cross_fit.choose(judges, lambda parts: parts.zoom < 1).zoom

    def _gain(self, zoom: float, held_out: NDArray[np.bool_], data: VolumeHeadData) -> float:
        """Return the gain in Dice of a fold's tone curve over the same parts without it."""
        before = (
            Parts(zoom, head="augmented") if Parts(zoom, head="augmented") in self.cross_fit.scores else Parts(zoom)
        )
        head = train_volume_head(data, ~held_out, _CHOICE_STEPS, self._settings.seed) if before.head else None
        difference = np.zeros(len(self.evaluation.unit))
        difference[held_out] = data.score(head, held_out) - self.cross_fit.scores[before][held_out]
        return float(self.cross_fit.by_unit(difference)[np.unique(self.evaluation.unit[held_out])].mean())

    def _train_tone(self, zoom: float, fold: int | None, predictions: int) -> VolumeTone:
        """Train a tone curve on the patients outside a fold, or on all from the mean of the curves of the folds."""
        held_out = set[str]()
        if fold is not None:
            judges = np.flatnonzero(self.cross_fit.groups % _FOLDS == fold)
            held_out = {self.evaluation.patients[row] for row in judges}
        tone = VolumeTone()
        if fold is None and self._fold_tones:
            states = [one.state_dict() for one in self._fold_tones]
            tone.load_state_dict({name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]})
        width = self.width(zoom)
        assert width is not None
        train_tone(
            self._black_box,
            tone,
            [one for one in self._every if one.patient not in held_out],
            width,
            self._settings,
            predictions,
            self._query_log,
            "last run" if fold is None else f"fold {fold + 1}",
            lambda: self._report(self.curve[-1].dice),
        )
        return tone

    def _train_last_head(self, parts: Parts, adapter: VolumeAdapter) -> tuple[VolumeAdapter, Parts]:
        """Train the head that serves, on the answers there are and on what the rest of the predictions brings.

        Further first prompts take half of the rest, and score the head again, because few answers tell little of it.
        The other half are corrections of masks: without them, a head corrects once more what was corrected already.
        The masks of a patient are made by a head that was not trained on the patient, as on new patients.

        Returns:
            The candidate, and its parts; without the head if the new scores say so.
        """
        seed, log = self._settings.seed, self._query_log
        known = list(self._data[parts.zoom].answers)
        if adapter.tone is not None:
            known = self._ask(adapter, self.evaluation.trials, "last run")
        left = self._settings.max_predictions - log.images
        count = min(left // 2, _FIRST_PROMPTS * len(self._every))
        first = known + ask_first_prompts(
            self._black_box, adapter, self._every, self._settings.prompt, count, seed, log
        )
        data, heads = VolumeHeadData(first, seed), list[VolumeHead]()
        folds = self._fold_answers(first)
        for held_out in folds:
            heads.append(self._fit(data, ~held_out if self.can_judge else held_out, _FOLD_STEPS))
            self._report(self.curve[-1].dice)
        if adapter.tone is None and self.can_judge:  # The tone curve that serves was trained on all patients.
            dice = np.zeros(len(known))
            for held_out, head in zip(folds, heads, strict=True):
                judged = held_out[: len(known)]
                dice[judged] = self._data[parts.zoom].score(head, judged)
            self._add_scores(Parts(parts.zoom, head="augmented"), dice)
            parts = self._choose(lambda one: one.zoom == parts.zoom and not one.visual_prompt)
            if not parts.head:
                return adapter, parts
        corrections: list[CubeAnswer] = []
        for held_out, head in zip(folds, heads, strict=True):
            corrections += ask_corrections(
                self._black_box,
                VolumeAdapter(adapter.width, adapter.tone, head),
                [first[number] for number in np.flatnonzero(held_out)],
                int((left - count) * held_out.mean()),
                seed,
                log,
            )
            self._report(self.curve[-1].dice)
        every = VolumeHeadData(first + corrections, seed)
        head = self._fit(every, np.ones(len(every.answers), bool), _HEAD_STEPS)
        return VolumeAdapter(adapter.width, adapter.tone, head), parts

    def _fit(self, data: VolumeHeadData, chosen: NDArray[np.bool_], max_steps: int) -> VolumeHead:
        """Train a head on chosen answers, (N,) bool."""
        steps = min(max_steps, _STEPS_PER_ANSWER * int(chosen.sum()))
        return train_volume_head(data, chosen, steps, self._settings.seed)

    def _fold_answers(self, answers: Sequence[CubeAnswer]) -> list[NDArray[np.bool_]]:
        """Return which answers belong to the patients of each fold; patients who do not judge belong to the first."""
        folds = dict(zip(self.evaluation.patients, self.cross_fit.groups, strict=True))
        fold = np.array([folds.get(one.trial.volume.patient, 0) for one in answers])
        return [fold == one for one in np.unique(fold)]
