from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from baps.adapters.output_head import OutputHead
from baps.errors import BudgetSpentError
from baps.training.batches import Batches
from baps.training.head_training import Answers


@pytest.fixture
def short_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the training of the head by one quick step on all masks, for tests of other parts."""

    def made_of(_: Batches, answers: Answers, seed: int) -> OutputHead:
        head, logits_target = OutputHead(seed), torch.from_numpy(answers.probability.copy()).float()
        clicks = [len(prompt.positive) - len(prompt.negative) for prompt in answers.prompts]
        with torch.no_grad():
            head.last.weight += 0.2 * (logits_target / 255).mean() + 0.01 * sum(clicks) / len(clicks)
        return head.eval()

    monkeypatch.setattr("baps.training.training.train_head", made_of)


@pytest.fixture
def failing_black_box(new_black_box: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a black box that fails."""
    black_box = new_black_box()

    def fail(*_: object) -> None:
        raise BudgetSpentError("no more")

    monkeypatch.setattr(black_box, "_segment", fail)
    return black_box
