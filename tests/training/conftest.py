from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from baps.adapters.output_head import OutputHead
from baps.errors import BudgetSpentError
from baps.training.head_training import HeadData


@pytest.fixture
def short_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a test is not about how well a head learns: one that is made of all answers at once.

    It makes masks a little larger, so it helps where they are too small.
    """

    def made_of(data: HeadData, chosen: NDArray[np.bool_] | None, augmented: bool, steps: int, seed: int) -> OutputHead:
        head, answers = OutputHead(seed), data.answers
        numbers = range(len(answers.rows)) if chosen is None else np.flatnonzero(chosen)
        clicks = [len(answers.prompts[n].positive) - len(answers.prompts[n].negative) for n in numbers]
        mean = float(answers.probability[list(numbers)].mean()) / 255
        with torch.no_grad():
            head.last.weight += 0.2 * mean + 0.01 * sum(clicks) / len(clicks) + 0.001 * augmented
        return head.eval()

    monkeypatch.setattr("baps.training.part_training.train_head", made_of)


@pytest.fixture
def failing_black_box(new_black_box: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """One that cannot be asked."""
    black_box = new_black_box()

    def fail(*_: object) -> None:
        raise BudgetSpentError("no more")

    monkeypatch.setattr(black_box, "_segment", fail)
    return black_box
