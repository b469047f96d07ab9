"""Judge patients with fixed prompts: the same ones for every adapter."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from baps.adapters.adapter import Adapter, identity_adapter
from baps.adapters.visual_prompt import VisualPrompt
from baps.blackbox import BlackBox
from baps.errors import BapsError
from baps.evaluation.slices import evenly_spaced
from baps.evaluation.splits import MAX_GROUPS
from baps.prompts import Prompt
from baps.prompts.simulated import draw_prompt
from baps.training.answers import Answers, query_answers
from baps.training.batches import Batches
from baps.training.budget import Budget
from baps.training.cross_fitting import CrossFit
from baps.training.head_training import HeadData, score_answers
from baps.training.query_log import QueryLog
from baps.training.settings import AdaptationSettings

_MAX_DIFFERENCE = 0.02
"""Largest share of pixels in which a model's answers to the same query may differ."""


def draw_evaluation_prompts(
    batches: Batches, patients: Sequence[str], kind: str, each: int, max_slices: int, seed: int
) -> tuple[list[int], list[Prompt]]:
    """Draw the fixed first prompts that patients are judged with: as many for each patient, on evenly spaced slices.

    Args:
        batches: the slices of all patients.
        patients: the patients that judge.
        kind: ``click`` or ``box``.
        each: number of prompts of each patient.
        max_slices: maximum number of slices of each patient; with fewer than ``each``, slices get several prompts.
        seed: seed of the prompts.

    Returns:
        The index of each prompt's slice, and the prompts. The first one of every patient comes first, then the second
        ones, so that the first part of the list has prompts of as many patients as possible.
    """
    rows_by_patient: dict[str, list[int]] = {}
    for row, piece in enumerate(batches.slices):
        rows_by_patient.setdefault(piece.patient, []).append(row)
    spaced = [evenly_spaced(rows_by_patient[patient], min(each, max_slices)) for patient in patients]
    rows = [rows[number % len(rows)] for number in range(each) for rows in spaced]
    return rows, [
        draw_prompt(batches.slices[row].target, kind, np.random.default_rng([seed, 7919, number // len(spaced), row]))
        for number, row in enumerate(rows)
    ]


class EvaluationPrompts:
    """Query the black box with the fixed prompts of every patient that judges, and score the answers.

    Args:
        black_box: the model.
        batches: the labelled slices, those of one patient next to each other.
        settings: the settings of the adaptation.
        budget: how many patients judge, with how many prompts.
        query_log: logs the answers.
    """

    def __init__(
        self,
        black_box: BlackBox,
        batches: Batches,
        settings: AdaptationSettings,
        budget: Budget,
        query_log: QueryLog,
    ) -> None:
        self._black_box, self._batches, self._query_log, self._seed = black_box, batches, query_log, settings.seed
        self.patients = list(dict.fromkeys(piece.patient for piece in batches.slices))[: budget.judges]
        """The patients that judge, in the order of the units if there are several."""
        self._rows, self._prompts = draw_evaluation_prompts(
            batches, self.patients, settings.prompt, budget.each, settings.check_slices, settings.seed + 1
        )
        self.unit_of_slice = _units(batches, self.patients)
        """Unit of every slice, or -1. A unit is a patient, or a block of neighbouring slices of one patient."""
        self.unit = self.unit_of_slice[self._rows]
        """Unit of each prompt, (N,)."""
        self.group_of_unit = np.arange(self.unit_of_slice.max() + 1) % MAX_GROUPS
        """Group of each unit, (U,)."""
        self.group = self.group_of_unit[self.unit]
        """Group of each prompt, (N,)."""
        self.groups = [int(group) for group in np.unique(self.group)]
        """The groups."""

    @property
    def can_judge(self) -> bool:
        """Whether something can be trained on some groups and judged on another."""
        return len(self.groups) > 1

    def new_cross_fit(self) -> CrossFit:
        """Return scores of these prompts, without any combination yet.

        Returns:
            The scores.
        """
        return CrossFit(self.unit, self.group_of_unit)

    def query(self, zoom: float, visual_prompt: VisualPrompt, name: str, part: slice = slice(None)) -> Answers:
        """Query the black box.

        Args:
            zoom: share of an image's side that the black box is shown.
            visual_prompt: changes the images.
            name: names the answers in the log.
            part: which of the prompts are used.

        Returns:
            The answers.
        """
        return query_answers(
            self._black_box,
            visual_prompt,
            self._batches.with_zoom(zoom),
            self._rows[part],
            self._prompts[part],
            self._query_log,
            {"answers": name, "zoom": str(zoom)},
        )

    def build(self, zoom: float, answers: Answers) -> HeadData:
        """Return what heads are trained and scored on.

        Args:
            zoom: share of an image's side that the black box was shown.
            answers: its answers.

        Returns:
            The data.
        """
        return HeadData(self._batches.with_zoom(zoom), answers, self._seed)

    def score(self, adapter: Adapter, patients: Collection[str]) -> dict[str, NDArray[np.float64]]:
        """Score an adapter with the evaluation prompts of some patients.

        Args:
            adapter: the adapter.
            patients: the patients.

        Returns:
            Dice (0 to 1) by patient, see ``by_patient``.
        """
        numbers = [n for n, row in enumerate(self._rows) if self._batches.slices[row].patient in patients]
        answers = query_answers(
            self._black_box,
            adapter.visual_prompt,
            self._batches.with_zoom(adapter.zoom),
            [self._rows[n] for n in numbers],
            [self._prompts[n] for n in numbers],
            self._query_log,
            {"answers": "served"},
        )
        dice = np.zeros(len(self._rows))
        dice[numbers] = score_answers(self.build(adapter.zoom, answers), adapter.head)
        return {patient: scores for patient, scores in self.by_patient(dice).items() if patient in patients}

    def check_model(self, answers: Answers) -> None:
        """Query the black box again for the first prompt.

        Args:
            answers: the answers of the unadapted model.

        Raises:
            BapsError: if it answers differently than before; the log is removed then.
        """
        kept = answers.select([0])
        with self._query_log.count_queries():
            again = query_answers(
                self._black_box,
                identity_adapter().visual_prompt,
                self._batches,
                kept.rows,
                kept.prompts,
                QueryLog(None, {}, self._black_box),
                {},
            )
        differs = (again.probability > 127) != (kept.probability > 127)
        if differs.mean() > _MAX_DIFFERENCE:
            self._query_log.discard()
            raise BapsError(
                f"The model {self._black_box.capabilities.name} was replaced during the training: it answers "
                "differently under the same name. Nothing of this training is served, and its log was removed. Train "
                "again."
            )

    def by_patient(self, dice: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Average the Dice of evaluation answers over each slice.

        Args:
            dice: one score per answer, (N,).

        Returns:
            Dice (0 to 1) of each slice that was judged, (slices, 1), by patient.
        """
        by_row: dict[int, list[float]] = {}
        for row, one in zip(self._rows, dice, strict=True):
            by_row.setdefault(row, []).append(float(one))
        result: dict[str, list[float]] = {patient: [] for patient in self.patients}
        for row, scores in by_row.items():
            result[self._batches.slices[row].patient].append(float(np.mean(scores)))
        return {patient: np.array(scores)[:, None] for patient, scores in result.items()}


def _units(batches: Batches, judges: Sequence[str]) -> NDArray[np.int64]:
    """Number the unit of every slice.

    A unit is a patient that judges, or a block of neighbouring slices if there is only one patient. Slices of other
    patients get -1.
    """
    if len(judges) > 1:
        units = {patient: number for number, patient in enumerate(judges)}
        return np.array([units.get(piece.patient, -1) for piece in batches.slices])
    count = len(batches.slices)
    return np.arange(count) * min(MAX_GROUPS, count) // count
