from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from tools.pretraining.run import Run


def _run(checkpoint: Path, total: int, rates: list[float], published: list[int]) -> Run:
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    run = Run(model, optimiser, checkpoint, total, 4, 2, lambda average, done: published.append(done))
    while run.should_continue(minutes=1):
        run.step(model(torch.ones(1, 2)).square().sum(), 1, max_weight=0.9, smoothing=0.5)
        rates.append(optimiser.param_groups[0]["lr"])
    run.save()
    return run


def test_the_step_size_rises_and_falls(tmp_path: Path) -> None:
    rates: list[float] = []
    _run(tmp_path / "run.pt", 6, rates, [])
    assert rates == [0.125, 0.25, 0.375, 0.5, 0.5, 0.25]


def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path) -> None:
    published: list[int] = []
    unbroken = _run(tmp_path / "unbroken.pt", 2, [], published)
    _run(tmp_path / "new" / "resumed.pt", 1, [], published)
    resumed = _run(tmp_path / "new" / "resumed.pt", 2, [], published)
    assert published == [2, 1, 2]
    assert unbroken.done == resumed.done == 2
    torch.testing.assert_close(unbroken.average.state_dict(), resumed.average.state_dict())


def test_time_limit(tmp_path: Path) -> None:
    run = _run(tmp_path / "run.pt", 1, [], [])
    run.done = 0
    assert run.should_continue(minutes=1)
    assert not run.should_continue(minutes=0)
