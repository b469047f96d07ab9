"""An interrupted fit resumes with the same result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from baps.errors import BapsError
from baps.fseft.adapters import FewShotAdapter, build_adapter
from baps.fseft.fitting import Checkpoint, Example, FitResult, FitSettings, fit
from baps.fseft.models import FoundationModel

SETTINGS = FitSettings(learning_rate=0.02, epochs=8, crop=6, steps=2)


def _example(seed: int) -> Example:
    """Make 64 features of noise, the first of which is high in the organ."""
    inputs = torch.randn((64, 8, 8, 8), generator=torch.Generator().manual_seed(seed))
    target = torch.zeros(1, 8, 8, 8, dtype=torch.bool)
    target[0, 2:5, 2:5, 2:5] = True
    inputs[0] += 3 * target[0]
    return Example(inputs, target)


EXAMPLES = [_example(0), _example(1)]
UNLABELLED = [_example(2).inputs + 1, _example(3).inputs + 1]


def _run(
    adapter: FewShotAdapter, settings: FitSettings, unlabelled: Sequence[torch.Tensor], file: Path | None, stop: int = 0
) -> FitResult:
    """Fit with a checkpoint after every epoch, and interrupt after ``stop`` epochs."""

    def progress(epoch: int, dice: float) -> None:
        if epoch == stop:
            raise KeyboardInterrupt

    checkpoint = Checkpoint(file, "this fit", seconds=0) if file else None
    return fit(adapter, EXAMPLES, settings, unlabelled, progress, checkpoint=checkpoint)


@pytest.mark.parametrize("stop", [1, 3, 4, 6])
@pytest.mark.parametrize("unlabelled", [(), UNLABELLED], ids=["alone", "with unlabelled volumes"])
def test_resumed_fit_is_identical(
    unet: FoundationModel, tmp_path: Path, unlabelled: Sequence[torch.Tensor], stop: int
) -> None:
    unbroken, first, second = (build_adapter("spatial_pointwise", unet, "heart") for _ in range(3))
    expected = _run(unbroken, SETTINGS, unlabelled, None)
    with pytest.raises(KeyboardInterrupt):
        _run(first, SETTINGS, unlabelled, tmp_path / "run.pt", stop)
    heard: list[int] = []
    result = fit(
        second,
        EXAMPLES,
        SETTINGS,
        unlabelled,
        lambda epoch, dice: heard.append(epoch),
        checkpoint=Checkpoint(tmp_path / "run.pt", "this fit"),
    )
    assert heard == list(range(stop + 1, 9))
    assert result == expected
    assert len(expected.penalties) == (4 if unlabelled else 0)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in unbroken.state_dict().items())
    assert not torch.equal(first.state_dict()["head.weight"], second.state_dict()["head.weight"])


@pytest.mark.parametrize(
    ("unlabelled", "ends"), [((), 30), (UNLABELLED[:1], 70)], ids=["alone", "with unlabelled volumes"]
)
def test_plateau_is_found_at_the_same_epoch(
    unet: FoundationModel, tmp_path: Path, unlabelled: Sequence[torch.Tensor], ends: int
) -> None:
    """With a constant loss the fit ends early: with unlabelled volumes, thirty epochs after the middle."""
    settings = replace(SETTINGS, learning_rate=1e-9, epochs=80, crop=0, steps=1)
    unbroken, first, second = (build_adapter("linear_probe", unet, "heart") for _ in range(3))
    expected = _run(unbroken, settings, unlabelled, None)
    with pytest.raises(KeyboardInterrupt):
        _run(first, settings, unlabelled, tmp_path / "run.pt", stop=ends - 3)
    assert _run(second, settings, unlabelled, tmp_path / "run.pt") == expected
    assert len(expected.losses) == ends


def test_finished_fit_is_not_repeated(unet: FoundationModel, tmp_path: Path) -> None:
    first, second = (build_adapter("linear_probe", unet, "heart") for _ in range(2))
    expected = _run(first, SETTINGS, (), tmp_path / "run.pt")
    assert _run(second, SETTINGS, (), tmp_path / "run.pt", stop=9) == expected
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_checkpoint_of_another_fit_or_a_damaged_one_is_ignored(tmp_path: Path) -> None:
    file = tmp_path / "new folder" / "run.pt"
    checkpoint = Checkpoint(file, "this fit")
    assert checkpoint.load() is None
    checkpoint.save({"losses": [0.5]})
    assert checkpoint.load() == {"losses": [0.5]}
    assert Checkpoint(file, "another fit").load() is None
    file.write_bytes(file.read_bytes()[:100])
    assert checkpoint.load() is None
    assert [path.name for path in file.parent.iterdir()] == ["run.pt"]


def test_checkpoint_is_due_after_an_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("baps.fseft.fitting.checkpoint.time.monotonic", lambda: now)
    checkpoint = Checkpoint(tmp_path / "run.pt", "this fit", seconds=20)
    assert not checkpoint.due
    now = 120.0
    assert checkpoint.due
    checkpoint.save({})
    assert not checkpoint.due


def test_unwritable_checkpoint_gives_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BapsError, match="Free some space and train again"):
        Checkpoint(tmp_path / "file" / "run.pt", "this fit").save({})
