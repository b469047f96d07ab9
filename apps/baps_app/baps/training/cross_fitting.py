"""Judge combinations of parts on every patient by cross-fitting, and choose those that bring something.

The patients are divided into groups. What is trained for a group is trained on the other groups, and what is chosen
for a group is chosen by the scores of the other groups, so every patient judges a procedure that did not know it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

PART_NAMES = ("zoom", "visual prompt", "head")

MIN_GAIN = 0.01
"""Gain in Dice (0 to 1) that every part has to bring: each makes clicks slower, or may harm images of another kind."""


@dataclass(frozen=True)
class Parts:
    """A combination of an adapter's parts.

    Attributes:
        zoom: share of an image's side that the black box is shown, 0 to 1; 1 without a zoom.
        visual_prompt: whether a visual prompt changes the image.
        head: how a head is trained: ``augmented`` if orientations are augmented, ``oriented`` if not, or empty for no
            head.
    """

    zoom: float = 1.0
    visual_prompt: bool = False
    head: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parts that are there."""
        present = (self.zoom < 1, self.visual_prompt, bool(self.head))
        return tuple(name for name, is_present in zip(PART_NAMES, present, strict=True) if is_present)

    @property
    def complexity(self) -> int:
        """How often the combination must bring ``MIN_GAIN``."""
        return len(self.names) + (self.head == "oriented")

    @property
    def name(self) -> str:
        """The names of the parts in one, or ``unadapted``."""
        return " + ".join(self.names) or "unadapted"


Eligible = Callable[[Parts], bool]
"""Whether a combination may be chosen."""


def any_parts(_: Parts) -> bool:
    """Allow every combination.

    Returns:
        True.
    """
    return True


@dataclass
class CrossFit:
    """Scores of combinations of parts on the same answers, each from models that were not trained on the answer's unit.

    Attributes:
        unit: unit of each answer, (N,). A unit is a patient, or a block of slices if there is only one patient.
        groups: group of each unit, (U,).
        scores: Dice (0 to 1) of every answer, (N,), by combination.
    """

    unit: NDArray[np.int64]
    groups: NDArray[np.int64]
    scores: dict[Parts, NDArray[np.float64]] = field(default_factory=dict)

    def by_unit(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Average the scores of answers over each unit.

        Args:
            scores: one score per answer, (N,).

        Returns:
            Means, (U,); 0 for a unit without answers.
        """
        counts = np.bincount(self.unit, minlength=len(self.groups))
        return np.bincount(self.unit, scores, len(self.groups)) / np.maximum(counts, 1)

    def choose(self, judges: NDArray[np.bool_], eligible: Eligible = any_parts) -> Parts:
        """Choose the combination with the best mean, from which ``MIN_GAIN`` is deducted for every part.

        It is deducted once more for a head that learns the orientation of organs.

        Args:
            judges: units whose scores count, (U,); at least one.
            eligible: which combinations may be chosen; at least one.

        Returns:
            The combination.
        """
        return max(
            filter(eligible, self.scores),
            key=lambda parts: float(self.by_unit(self.scores[parts])[judges].mean()) - MIN_GAIN * parts.complexity,
        )

    def gain(self, part: str) -> float | None:
        """Compute what a part brings to the other parts.

        Args:
            part: a name of ``Parts.names``.

        Returns:
            The best mean Dice with the part minus the best without it, or None if it was not tried.
        """
        means = {parts: float(self.by_unit(dice).mean()) for parts, dice in self.scores.items()}
        with_part = [mean for parts, mean in means.items() if part in parts.names]
        without = [mean for parts, mean in means.items() if part not in parts.names]
        return max(with_part) - max(without) if with_part and without else None

    def score_choice(self, eligible: Eligible = any_parts) -> NDArray[np.float64]:
        """Score the procedure that includes the choice: for every group by the scores of the other groups.

        Args:
            eligible: which combinations may be chosen.

        Returns:
            Dice (0 to 1) of every answer, (N,).
        """
        result, group = np.zeros(len(self.unit)), self.groups[self.unit]
        for one in np.unique(self.groups):
            result[group == one] = self.scores[self.choose(self.groups != one, eligible)][group == one]
        return result

    def score_parts(self) -> dict[str, NDArray[np.float64]]:
        """Score the procedure limited to each set of parts that was tried.

        Returns:
            Dice (0 to 1) of every answer, (N,), by the names of the parts that could be chosen.
        """

        def within(limit: set[str]) -> Eligible:
            return lambda parts: set(parts.names) <= limit

        return {parts.name: self.score_choice(within(set(parts.names))) for parts in self.scores}
