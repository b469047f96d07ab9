"""Train the parts of an adapter, the cheap ones first, and judge each on patients that it was not trained on.

The answers to the evaluation prompts are kept, so heads are trained and judged on them at no query cost. A visual
prompt takes most of the images: it is tried in one fold, and given up there if it brings nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from baps.adapters.adapter import Adapter, identity_adapter
from baps.adapters.visual_prompt import VisualPrompt
from baps.blackbox import BlackBox
from baps.errors import InputError
from baps.training.answers import Answers, query_more_answers
from baps.training.batches import Batches
from baps.training.budget import PROMPT_FOLDS, Budget, divide_prompt_images
from baps.training.cross_fitting import PART_NAMES, Parts
from baps.training.evaluation_prompts import EvaluationPrompts
from baps.training.head_training import HeadData, score_answers, train_head
from baps.training.query_log import QueryLog
from baps.training.settings import AdaptationSettings
from baps.training.training import Callback, CurvePoint, train_visual_prompt

ZOOMS = (0.75, 0.5)
"""Shares of an image's side that are tried."""

_MIN_ORIENTED = 8
"""Number of patients from which a head may learn the orientation of organs; from fewer it must not."""

_MIN_TRIAL_GAIN = 0.02
"""Gain in Dice (0 to 1) in the first fold that makes a visual prompt worth the rest of the images."""

_CHOICE_STEPS = 100
_HEAD_STEPS = 300


class PartTrainer:
    """Train and judge zoom, head and visual prompt.

    Args:
        black_box: the model.
        batches: the labelled slices, those of one patient next to each other.
        settings: the settings of the adaptation.
        budget: how many images each part may take.
        query_log: logs the answers.
        new_visual_prompt: returns a visual prompt to start from, given the patients that it must not know, and whether
            it was trained before.
        report: called after every part and every step.
        callback: called with the candidate at every point of the training curve.
    """

    def __init__(
        self,
        black_box: BlackBox,
        batches: Batches,
        settings: AdaptationSettings,
        budget: Budget,
        query_log: QueryLog,
        new_visual_prompt: Callable[[Collection[str]], tuple[VisualPrompt, bool]],
        report: Callable[[float], None],
        callback: Callback | None = None,
    ) -> None:
        self._black_box, self._batches, self._settings, self._budget = black_box, batches, settings, budget
        self._query_log, self._new_visual_prompt = query_log, new_visual_prompt
        self._report, self._callback = report, callback
        self.curve: list[CurvePoint] = []
        """Mean Dice of what was tried, by images."""
        self.dropped: dict[str, str] = {}
        """Why a part was given up before it was tried on all evaluation prompts, by the part's name."""
        self.evaluation = EvaluationPrompts(black_box, batches, settings, budget, query_log)
        """The prompts that patients are judged with."""
        self.cross_fit = self.evaluation.new_cross_fit()
        """The scores."""
        self._data: dict[float, HeadData] = {}
        self._fold_prompts: list[VisualPrompt] = []

    def train(self) -> tuple[Adapter, Parts]:
        """Train the parts that bring something.

        Returns:
            The candidate, and its parts. ``cross_fit`` has the scores of all combinations then.
        """
        settings, identity = self._settings, identity_adapter().visual_prompt
        self._keep(1.0, self.evaluation.query(1.0, identity, "unadapted"))
        zooms = self._choose_zooms() if settings.zoom == "chosen" else [1.0]
        if settings.head == "convolutional" and self.evaluation.can_judge:
            for zoom in zooms:
                self._cross_fit_head(Parts(zoom, head="augmented"), self._zoom_folds(zoom))
            if len(self.evaluation.patients) >= _MIN_ORIENTED:
                for zoom in sorted({parts.zoom for parts in self._choices()}):
                    self._cross_fit_head(Parts(zoom, head="oriented"), self._zoom_folds(zoom))
        last_run = self._cross_fit_visual_prompt() if settings.visual_prompt != "none" else 0
        parts = self._choose()
        if not parts.visual_prompt:
            last_run = 0
        return self._finish(parts, last_run), parts

    @property
    def unadapted(self) -> Answers:
        """The unadapted model's answers to the evaluation prompts, after ``train``."""
        return self._data[1.0].answers

    def notes(self, parts: Parts) -> list[str]:
        """Describe which parts were kept or dropped, on which evidence, and how many images were not spent.

        Args:
            parts: the parts of the candidate.

        Returns:
            Sentences; none if the settings leave nothing to choose.
        """
        if self._settings.prompt_only:
            return []
        outcomes = []
        for part in PART_NAMES:
            gain = self.cross_fit.gain(part)
            if part in self.dropped:
                outcomes.append(f"{part} {self.dropped[part]}")
            elif gain is not None:
                outcomes.append(f"{part} {'kept' if part in parts.names else 'dropped'} ({gain:+.3f})")
        notes = []
        if outcomes:
            count = len(self.cross_fit.groups)
            unit = "patients" if len(self.evaluation.patients) > 1 else "groups of slices of one patient"
            notes.append(f"Gain in Dice of each part, cross-fitted on {count} {unit}: {', '.join(outcomes)}.")
        max_images = self._settings.max_images
        unspent = max_images - self._query_log.images
        if unspent:
            of_all = f"{unspent:,} of {max_images:,} images"
            kept = parts.visual_prompt
            notes.append(f"{of_all} were not needed." if kept else f"Stopped early: {of_all} were not queried.")
        return notes

    def score_candidate(self) -> NDArray[np.float64]:
        """Score the procedure that made the candidate, see ``CrossFit.score_choice``.

        Returns:
            Dice (0 to 1) of every evaluation answer, (N,).
        """
        if self._settings.prompt_only:
            return self.cross_fit.scores[Parts(visual_prompt=True)]
        return self.cross_fit.score_choice()

    def _keep(self, zoom: float, answers: Answers) -> None:
        """Keep the answers to all evaluation prompts, and score them."""
        self._data[zoom] = self.evaluation.build(zoom, answers)
        self._add_scores(Parts(zoom), score_answers(self._data[zoom]))

    def _add_scores(self, parts: Parts, dice: NDArray[np.float64]) -> None:
        """Add the scores of a combination, given the Dice of every evaluation answer."""
        self.cross_fit.scores[parts] = dice
        self.curve.append(CurvePoint(self._query_log.images, float(self.cross_fit.by_unit(dice).mean())))
        self._report(self.curve[-1].dice)

    def _choose(self) -> Parts:
        """Choose the final parts by the scores of all units."""
        if self._settings.prompt_only:
            return Parts(visual_prompt=True)
        if self.evaluation.can_judge:
            return self.cross_fit.choose(np.ones(len(self.cross_fit.groups), bool))
        return Parts(head="augmented" if self._settings.head == "convolutional" else "")

    def _choose_zooms(self) -> list[float]:
        """Try the zooms on a part of the prompts, and query the rest for those that some group would choose.

        Returns:
            1 and these zooms.
        """
        count, identity = self._budget.screening, identity_adapter().visual_prompt
        answers = {zoom: self.evaluation.query(zoom, identity, "screening", slice(count)) for zoom in ZOOMS}
        dice = {1.0: self.cross_fit.scores[Parts()][:count]}
        dice.update({zoom: score_answers(self.evaluation.build(zoom, kept)) for zoom, kept in answers.items()})
        chosen = set[float]()
        juries = [np.ones(count, bool), *(self.evaluation.group[:count] != group for group in self.evaluation.groups)]
        for judges in juries:
            if judges.any():
                chosen.add(max(dice, key=lambda zoom: float(dice[zoom][judges].mean())))
        if chosen == {1.0}:
            gain = max(float(dice[zoom].mean()) for zoom in ZOOMS) - float(dice[1.0].mean())
            self.dropped["zoom"] = f"dropped ({gain:+.3f} on {count} prompts)"
        for zoom in sorted(chosen - {1.0}):
            self._keep(zoom, answers[zoom] + self.evaluation.query(zoom, identity, "zoom", slice(count, None)))
        return sorted(chosen | {1.0})

    def _zoom_folds(self, zoom: float) -> list[tuple[NDArray[np.bool_], HeadData]]:
        """Return the held-out answers of each group, and the answers to unchanged images."""
        return [(self.evaluation.group == one, self._data[zoom]) for one in self.evaluation.groups]

    def _choices(self) -> set[Parts]:
        """Return the combinations that are chosen by the scores of all units, or of all but one group."""
        groups = self.cross_fit.groups
        return {self._choose(), *(self.cross_fit.choose(groups != one) for one in self.evaluation.groups)}

    def _cross_fit_head(self, parts: Parts, folds: Sequence[tuple[NDArray[np.bool_], HeadData]]) -> None:
        """Train the head of a combination in every fold, and score it on the fold's held-out answers.

        Args:
            parts: the combination.
            folds: the held-out answers of each fold, and its data.
        """
        dice = np.zeros(len(self.evaluation.unit))
        for held_out, data in folds:
            head = train_head(data, ~held_out, parts.head == "augmented", _CHOICE_STEPS, self._settings.seed)
            dice[held_out] = score_answers(data, head, held_out)
        self._add_scores(parts, dice)

    def _cross_fit_visual_prompt(self) -> int:
        """Train a visual prompt in every fold, unless the first one shows that it brings nothing.

        Returns:
            The images of the last run, 0 if no visual prompt is worth training.

        Raises:
            InputError: if there are too few images.
        """
        settings = self._settings
        with_head = settings.head == "convolutional"
        images = self._budget.prompt_images(self._query_log.images, with_head)
        one_patient = len(self.evaluation.patients) == 1
        folds = PROMPT_FOLDS if self.evaluation.can_judge and not (one_patient and settings.prompt_only) else 0
        if not folds and not settings.prompt_only:
            return 0
        try:
            of_fold, last_run = divide_prompt_images(images, len(self._batches.slices), settings, folds)
        except InputError:
            if settings.prompt_only:
                raise
            self.dropped["visual prompt"] = "not tried, because max_images is too small"
            return 0
        chosen = self._choose()
        kept: list[tuple[NDArray[np.bool_], HeadData]] = []
        trained: list[VisualPrompt] = []
        for fold in range(folds):
            held_out = self.evaluation.group % folds == fold
            before = self.cross_fit.choose(self.cross_fit.groups % folds != fold)
            trained.append(self._train_visual_prompt(before.zoom, fold, of_fold, f"fold {fold + 1}"))
            answers = self.evaluation.query(before.zoom, trained[-1], f"fold {fold + 1}")
            kept.append((held_out, self.evaluation.build(before.zoom, answers)))
            if not settings.prompt_only and fold == 0:
                gain = self._gain(before, *kept[0])
                if gain < _MIN_TRIAL_GAIN:
                    self.dropped["visual prompt"] = (
                        f"dropped ({gain:+.3f} in the first of {folds} folds, where {_MIN_TRIAL_GAIN:+.3f} is required)"
                    )
                    return 0
        if folds:
            dice = np.zeros(len(self.evaluation.unit))
            for held_out, data in kept:
                dice[held_out] = score_answers(data, None, held_out)
            heads = {parts.head for parts in self._choices() if parts.head} or {"augmented"}
            self._add_scores(Parts(chosen.zoom, visual_prompt=True), dice)
            for head in sorted(heads) if with_head else ():
                self._cross_fit_head(Parts(chosen.zoom, True, head), kept)
        self._fold_prompts = trained
        return last_run

    def _gain(self, before: Parts, held_out: NDArray[np.bool_], data: HeadData) -> float:
        """Return the gain in Dice of a fold's visual prompt, with the same head or none, over the parts before it."""
        style, seed = before.head, self._settings.seed
        head = train_head(data, ~held_out, style == "augmented", _CHOICE_STEPS, seed) if style else None
        difference = np.zeros(len(self.evaluation.unit))
        difference[held_out] = score_answers(data, head, held_out) - self.cross_fit.scores[before][held_out]
        return float(self.cross_fit.by_unit(difference)[np.unique(self.evaluation.unit[held_out])].mean())

    def _train_visual_prompt(self, zoom: float, fold: int | None, images: int, run: str) -> VisualPrompt:
        """Train a visual prompt on the slices outside a fold, or on all, starting from the mean of those of the folds.

        Only the last run has a curve.
        """
        units = self.evaluation.unit_of_slice
        held_out = np.isin(units, self._units_of(fold)) if fold is not None else np.zeros(len(units), bool)
        pieces = self._batches.slices
        visual_prompt, continues = self._new_visual_prompt({pieces[row].patient for row in np.flatnonzero(held_out)})
        if fold is None and not continues and self._fold_prompts:
            states = [one.state_dict() for one in self._fold_prompts]
            visual_prompt.load_state_dict(
                {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
            )
        curve = train_visual_prompt(
            self._black_box,
            visual_prompt,
            self._batches.with_zoom(zoom).select(np.flatnonzero(~held_out).tolist()),
            self._settings,
            images,
            self._query_log,
            run,
            None if fold is None else 0,
            lambda *_: self._report(self.curve[-1].dice),
            self._callback if fold is None else None,
        )
        self.curve += curve
        return visual_prompt

    def _units_of(self, fold: int) -> NDArray[np.int64]:
        return np.flatnonzero(self.cross_fit.groups % PROMPT_FOLDS == fold)

    def _finish(self, parts: Parts, last_run: int) -> Adapter:
        """Train the chosen parts on all patients."""
        settings, visual_prompt = self._settings, identity_adapter().visual_prompt
        if parts.visual_prompt:
            visual_prompt = self._train_visual_prompt(parts.zoom, None, last_run, "last run")
        adapter = Adapter(visual_prompt, zoom=parts.zoom)
        if parts.head:
            batches = self._batches.with_zoom(parts.zoom)
            first = (
                self.evaluation.query(parts.zoom, visual_prompt, "last run")
                if parts.visual_prompt
                else self._data[parts.zoom].answers
            )
            more = query_more_answers(
                self._black_box,
                visual_prompt,
                batches,
                first,
                settings.prompt,
                self._budget.head,
                settings.seed,
                self._query_log,
                {"answers": "head"},
            )
            data = HeadData(batches, first + more, settings.seed)
            head = train_head(data, None, parts.head == "augmented", _HEAD_STEPS, settings.seed)
            adapter = replace(adapter, head=head)
        if self._callback:
            self._callback(self._query_log.images, adapter)
        return adapter
