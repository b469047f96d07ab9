"""Replicas in threads, with faults that a test chooses. ``test_replica_process`` has real processes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from baps.blackbox.replicas import Replica, ReplicaError, ReplicatedBlackBox
from baps.errors import BapsError, BudgetSpentError
from baps.evaluation.cases import LabelledSlice
from baps.prompts import Prompt
from baps.training.adapt import Adaptation, ProgressReport, adapt
from baps.training.settings import AdaptationSettings
from tests.support.brightness import BrightnessBlackBox

CLICK = Prompt(((3.0, 3.0),))
Slices = Callable[..., dict[str, list[LabelledSlice]]]


class _Thread(Replica):
    """Answer as the brightness model does.

    Attributes:
        asked: number of pieces so far.
        dies_at: number of the piece that it fails at.
        wrong_from: number of the piece from which it answers a little differently.
    """

    def __init__(self, name: str, delay: float = 0, dies_at: int = 0, wrong_from: int = 0, starts: bool = True) -> None:
        super().__init__(name)
        self._model, self._delay, self._starts = BrightnessBlackBox(4), delay, starts
        self.dies_at, self.wrong_from, self.asked, self.stopped = dies_at, wrong_from, 0, False
        self._inside = threading.Lock()

    def start(self, timeout: float) -> None:
        if not self._starts:
            raise ReplicaError("failed: there is no such GPU.")

    def segment(self, images: NDArray[np.uint8], prompts: Sequence[Prompt], timeout: float) -> NDArray[np.float32]:
        assert self._inside.acquire(blocking=False), "A replica answers one piece at a time."
        try:
            self.asked += 1
            time.sleep(self._delay)
            if self.dies_at and self.asked >= self.dies_at:
                raise ReplicaError("was killed by signal 9.")
            answer = self._model._segment(images, prompts)
            return answer + np.float32(1e-6) if self.wrong_from and self.asked >= self.wrong_from else answer
        finally:
            self._inside.release()

    def stop(self) -> None:
        self.stopped = True


def _images(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)


def _segment(black_box: ReplicatedBlackBox, count: int = 40) -> None:
    """Segment images, and compare with the model alone."""
    images, prompts = _images(count), [CLICK] * count
    expected = BrightnessBlackBox(4).segment(images, prompts)
    np.testing.assert_array_equal(black_box.segment(images, prompts), expected)


def _replicated(*replicas: Replica) -> ReplicatedBlackBox:
    return ReplicatedBlackBox(BrightnessBlackBox(4), replicas)


def test_all_replicas_answer_and_images_are_counted_once() -> None:
    replicas = [_Thread(str(n), 0.01) for n in range(3)]
    black_box = _replicated(*replicas)
    _segment(black_box)
    assert all(replica.asked > 1 for replica in replicas)
    assert black_box.images_queried == 40
    assert black_box.removed_replicas == ()
    assert black_box.capabilities == BrightnessBlackBox(4).capabilities


def test_pieces_do_not_depend_on_the_number_of_replicas() -> None:
    """The last bits of an answer may depend on the images that are answered together."""
    for count in (1, 2, 5):
        replicas = [_Thread(str(n)) for n in range(count)]
        _replicated(*replicas).segment(_images(10), [CLICK] * 10)
        pieces = {len(images) for replica in replicas for images, _ in replica._model.queries}
        assert pieces == {4, 2}


def test_a_replica_that_dies_is_taken_out_and_its_piece_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    dying, other = _Thread("2 on cuda:1", dies_at=2), _Thread("1 on cuda:0", 0.005)
    black_box = _replicated(other, dying)
    with caplog.at_level(logging.WARNING):
        _segment(black_box)
        _segment(black_box)
    (sentence,) = black_box.removed_replicas
    assert sentence == "Replica 2 on cuda:1 of the model brightness was killed by signal 9."
    assert f"{sentence} It was taken out; 1 are left." in caplog.text
    assert (dying.asked, dying.stopped, other.stopped) == (2, True, False)
    assert black_box.images_queried == 80


def test_a_replica_that_does_not_start_is_taken_out() -> None:
    black_box = _replicated(_Thread("1"), _Thread("2", starts=False))
    _segment(black_box)
    assert "Replica 2 of the model brightness failed: there is no such GPU." in black_box.removed_replicas


def test_when_no_replica_is_left_the_call_ends_with_a_remedy() -> None:
    black_box = _replicated(_Thread("1", dies_at=3), _Thread("2", dies_at=3))
    with pytest.raises(BapsError, match=r"No replica .* is left\. Replica . .* killed by signal 9.*fewer replicas"):
        black_box.segment(_images(60), [CLICK] * 60)
    with pytest.raises(BapsError, match="No replica"):
        black_box.segment(_images(1), [CLICK])
    assert len(black_box.removed_replicas) == 2


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_a_replica_that_differs_from_the_start_answers_nothing(wrong: int) -> None:
    replicas = [_Thread(str(n), wrong_from=int(n == wrong)) for n in range(3)]
    black_box = _replicated(*replicas)
    _segment(black_box)
    (sentence,) = black_box.removed_replicas
    assert sentence.startswith(f"Replica {wrong} of the model brightness answers differently from the others")
    assert replicas[wrong].asked == 1


@pytest.mark.parametrize("wrong", [0, 1])
def test_a_replica_that_becomes_wrong_is_found_by_asking_another(wrong: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two, the one that is nearer to the model in this process is right."""
    monkeypatch.setattr("baps.blackbox.replicas._CHECK_EVERY", 4)
    replicas = [_Thread(str(n), 0.002) for n in range(2)]
    black_box = _replicated(*replicas)
    _segment(black_box)
    replicas[wrong].wrong_from = 1
    black_box.segment(_images(40), [CLICK] * 40)
    assert [sentence.split(" of ")[0] for sentence in black_box.removed_replicas] == [f"Replica {wrong}"]
    _segment(black_box)


def test_the_last_replica_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baps.blackbox.replicas._CHECK_EVERY", 1)
    only = _Thread("1")
    _segment(_replicated(only), 8)
    assert only.asked == 1 + 2


def test_a_budget_holds_with_replicas() -> None:
    black_box = _replicated(_Thread("1"), _Thread("2"))
    black_box.budget = 5
    with pytest.raises(BudgetSpentError):
        black_box.segment(_images(6), [CLICK] * 6)
    assert black_box.images_queried == 0
    _segment(black_box, 5)


def test_a_click_does_not_wait_for_the_replicas(bundled: object) -> None:
    """The model in this process answers it, while all replicas are busy."""
    inside, go_on = threading.Event(), threading.Event()

    class Busy(_Thread):
        def segment(self, images: NDArray[np.uint8], prompts: Sequence[Prompt], timeout: float) -> NDArray[np.float32]:
            inside.set()
            assert go_on.wait(60)
            side = images.shape[1:3]
            return np.zeros((len(images), *side), np.float32)

    black_box = ReplicatedBlackBox(bundled, [Busy("1"), Busy("2")])  # type: ignore[arg-type]
    side = black_box.capabilities.input_size
    image = np.zeros((side, side, 3), np.uint8)
    thread = threading.Thread(target=black_box.segment, args=(image[None], [CLICK]))
    thread.start()
    try:
        assert inside.wait(30)
        assert black_box.decode(black_box.encode(image), CLICK).shape == (side, side)
        assert thread.is_alive()
    finally:
        go_on.set()
        thread.join(30)


SETTINGS = AdaptationSettings(
    max_images=500,
    batch_size=8,
    curve_points=2,
    curve_slices=4,
    click_sets=2,
    check_slices=3,
    learning_rate=0.05,
    head="none",
)


def _states(adaptation: Adaptation) -> dict[str, torch.Tensor]:
    return dict(adaptation.adapter.state_dict())


def _assert_same(first: Adaptation, second: Adaptation) -> None:
    states = _states(first), _states(second)
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert first.scores == second.scores


@pytest.mark.slow
def test_a_training_is_equal_bit_for_bit_with_any_number_of_replicas(dim_slices: Slices, tmp_path: Path) -> None:
    """Also when one dies on the way, and when it is stopped and resumed with another number."""
    slices, logs = dim_slices(5), [tmp_path / f"{n}.jsonl" for n in range(4)]
    alone = adapt(BrightnessBlackBox(4), slices, SETTINGS, log=logs[0])
    three = _replicated(_Thread("1", 0.001), _Thread("2", dies_at=5), _Thread("3", 0.0005))
    _assert_same(adapt(three, slices, SETTINGS, log=logs[1]), alone)
    assert logs[1].read_bytes() == logs[0].read_bytes()
    assert len(three.removed_replicas) == 1

    class StoppedError(Exception):
        pass

    def stop(now: ProgressReport) -> None:
        if now.images > alone.record["black_box_images"] // 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        adapt(_replicated(_Thread("1"), _Thread("2")), slices, SETTINGS, progress=stop, log=logs[2])
    resumed = adapt(_replicated(*(_Thread(str(n)) for n in range(4))), slices, SETTINGS, log=logs[2])
    _assert_same(resumed, alone)
    assert 0 < resumed.record["replayed_images"] < alone.record["black_box_images"]
    assert logs[2].read_bytes() == logs[0].read_bytes()
