"""Guarantees of the base class for every model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from baps.blackbox import BlackBox, Capabilities, Encoding, model_seconds
from baps.errors import BapsError, BudgetSpentError, InputError
from baps.prompts import Point, Prompt
from baps.utils.priority_lock import low_priority

IMAGE = np.zeros((8, 8, 3), np.uint8)
CLICK, BOX = Prompt(((1.0, 1.0),)), Prompt(box=(0.0, 0.0, 3.0, 3.0))
BOTH = Prompt(((1.0, 1.0),), (), (0.0, 0.0, 3.0, 3.0))


class _CountingBlackBox(BlackBox):
    """Record the maximum number of calls that were in the model at once."""

    def __init__(self, **supported: object) -> None:
        super().__init__()
        self._capabilities = replace(Capabilities("alone", "", True, True, True, True, 4, 8), **supported)  # type: ignore[arg-type]
        self._now, self._guard = 0, threading.Lock()
        self.most = 0

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def _work(self) -> None:
        with self._guard:
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(0.002)
        with self._guard:
            self._now -= 1

    def _segment(self, images: NDArray[np.uint8], prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        assert len(images) == len(prompts) <= self._capabilities.batch_size
        self._work()
        return np.full(images.shape[:3], len(images), np.float32)

    def _encode(self, image: NDArray[np.uint8]) -> Encoding:
        self._work()
        return Encoding(image, image.nbytes)

    def _decode(self, encoding: Encoding, prompt: Prompt) -> NDArray[np.float32]:
        self._work()
        return np.zeros((8, 8), np.float32)

    def _remember(self, memory: object, index: int, image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> object:
        self._work()
        return [*(memory if isinstance(memory, list) else []), index]

    def _propagate(
        self, memory: object, index: int, image: NDArray[np.uint8], downwards: bool, background: Sequence[Point]
    ) -> NDArray[np.float32]:
        self._work()
        assert isinstance(memory, list)
        memory.append((index, downwards, tuple(background)))
        return np.full(image.shape[:2], image[0, 0, 0] / 255, np.float32)


@pytest.mark.parametrize("call", ["segment", "encode", "decode", "all"])
def test_one_call_at_a_time_reaches_the_model(call: str) -> None:
    black_box = _CountingBlackBox()
    encoding = black_box.encode(IMAGE)
    calls: dict[str, Callable[[], object]] = {
        "segment": lambda: black_box.segment(IMAGE[None], [CLICK]),
        "encode": lambda: black_box.encode(IMAGE),
        "decode": lambda: black_box.decode(encoding, CLICK),
    }
    chosen = list(calls.values()) if call == "all" else [calls[call]]
    with ThreadPoolExecutor(6) as pool:
        for future in [pool.submit(chosen[number % len(chosen)]) for number in range(30)]:
            future.result()
    assert black_box.most == 1


def test_threads_do_not_exceed_the_budget() -> None:
    black_box = _CountingBlackBox()
    black_box.budget = 7

    def segment(_: int) -> bool:
        try:
            black_box.segment(np.stack([IMAGE] * 2), [CLICK] * 2)
        except BudgetSpentError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        answered = list(pool.map(segment, range(20)))
    assert sum(answered) == 3
    assert black_box.images_queried == 6


def test_a_large_batch_reaches_the_model_in_parts() -> None:
    answer = _CountingBlackBox().segment(np.stack([IMAGE] * 10), [CLICK] * 10)
    assert answer[:, 0, 0].tolist() == [4] * 8 + [2] * 2


class _ManyAtOnce(BlackBox):
    """Answer with the brightness of each image, the later pieces first; ``pieces`` has the sizes of the pieces."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self.pieces: list[int] = []
        self.fails = False

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities("many", "", True, True, True, False, 2, 8)

    def _segment(self, images: NDArray[np.uint8], prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        time.sleep(0.02 / (1 + images[0, 0, 0, 0]))
        self.pieces.append(len(images))
        if self.fails:
            raise BapsError("It is broken.")
        of_prompts = np.array([prompt.positive[0][0] / 100 for prompt in prompts], np.float32)
        return images[..., 0].astype(np.float32) / 255 + of_prompts[:, None, None]


def _numbered_images(count: int) -> NDArray[np.uint8]:
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 8, 8, 3)).copy()


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_answers_have_the_order_of_the_images_whatever_the_number_of_workers(workers: int) -> None:
    black_box, images = _ManyAtOnce(workers), _numbered_images(17)
    sizes = [(8, 8) if n % 3 else (5, 8) for n in range(17)]
    prompts = [Prompt(((float(n % 3 == 0), 1.0),)) for n in range(17)]
    answer = black_box.segment(images, prompts, sizes)
    expected = np.arange(17, dtype=np.float32) / np.float32(255) + np.float32(0.01) * (np.arange(17) % 3 == 0)
    np.testing.assert_allclose(answer[:, 0, 0], expected, rtol=1e-6)
    np.testing.assert_array_equal(answer, _ManyAtOnce(1).segment(images, prompts, sizes))
    assert sorted(black_box.pieces) == [1] + [2] * 8
    assert black_box.images_queried == 17


def test_work_at_once_is_counted_once_and_waits_before_each_batch() -> None:
    black_box, waited = _ManyAtOnce(4), list[int]()
    black_box.budget, black_box.wait = 12, lambda: waited.append(1)

    def segment(_: int) -> bool:
        try:
            black_box.segment(_numbered_images(5), [CLICK] * 5)
        except BudgetSpentError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(segment, range(6))) == 2
    assert black_box.images_queried == 10
    assert len(waited) == 2 * 3


def test_an_error_of_one_piece_ends_the_call_and_frees_all_places() -> None:
    black_box = _ManyAtOnce(2)
    black_box.fails = True
    with pytest.raises(BapsError, match="It is broken"):
        black_box.segment(_numbered_images(100), [CLICK] * 100)
    assert len(black_box.pieces) < 50
    assert black_box.images_queried == 100
    black_box.fails = False
    assert black_box.segment(_numbered_images(9), [CLICK] * 9).shape == (9, 8, 8)


def test_a_click_goes_before_the_rest_of_a_long_call() -> None:
    black_box, order, first_in, go_on = _ManyAtOnce(2), list[str](), threading.Event(), threading.Event()
    answer = black_box._segment

    def record(images: NDArray[np.uint8], prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        order.append("click" if len(images) == 1 else "long")
        first_in.set()
        assert go_on.wait(30)
        return answer(images, prompts)

    black_box._segment = record  # type: ignore[method-assign]

    def long_call() -> None:
        with low_priority():
            black_box.segment(_numbered_images(40), [CLICK] * 40)

    with ThreadPoolExecutor(2) as pool:
        long = pool.submit(long_call)
        assert first_in.wait(30)
        click = pool.submit(black_box.segment, IMAGE[None], [CLICK])
        while not black_box._places._normal:
            time.sleep(0.001)
        go_on.set()
        click.result(30)
        long.result(30)
    assert order.index("click") <= 3


def test_a_failed_call_releases_the_lock(new_black_box: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    black_box = new_black_box()
    with monkeypatch.context() as patched:
        patched.setattr(black_box, "_segment", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            black_box.segment(IMAGE[None], [CLICK])
    assert black_box.segment(IMAGE[None], [CLICK]).shape == (1, 8, 8)


def test_encode_is_refused_without_encodings(new_black_box: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="brightness has no encodings; use segment"):
        new_black_box().encode(IMAGE)


@pytest.mark.parametrize(
    ("supported", "refused", "accepted", "reason"),
    [
        ({"clicks": False}, CLICK, (BOX, BOTH), "understands boxes only"),
        ({"boxes": False}, BOX, (CLICK, BOTH), "understands clicks only"),
    ],
)
def test_unsupported_prompts_are_refused(
    supported: dict[str, bool], refused: Prompt, accepted: tuple[Prompt, ...], reason: str
) -> None:
    black_box = _CountingBlackBox(**supported)
    encoding = black_box.encode(IMAGE)
    for prompt in accepted:
        black_box.segment(IMAGE[None], [prompt])
        black_box.decode(encoding, prompt)
    queried = black_box.images_queried
    with pytest.raises(InputError, match=f"alone {reason}"):
        black_box.segment(np.stack([IMAGE] * 2), [accepted[0], refused])
    with pytest.raises(InputError, match=reason):
        black_box.decode(encoding, refused)
    assert black_box.images_queried == queried


def test_background_work_waits_before_each_batch() -> None:
    black_box = _CountingBlackBox()
    waited: list[int] = []
    black_box.wait = lambda: waited.append(1)
    black_box.segment(np.zeros((9, 8, 8, 3), np.uint8), [CLICK] * 9)
    assert len(waited) == 3  # In batches of four.
    black_box.decode(black_box.encode(IMAGE), CLICK)
    assert len(waited) == 3


def test_prefetching_does_not_delay_other_calls() -> None:
    black_box, inside, finish = _CountingBlackBox(), threading.Event(), threading.Event()
    encoding = black_box.encode(IMAGE)
    work = black_box._work

    def slow() -> None:
        inside.set()
        assert finish.wait(10)
        work()

    with ThreadPoolExecutor(2) as pool:
        black_box._work = slow  # type: ignore[method-assign]
        ahead = pool.submit(black_box.encode, IMAGE, True)
        assert inside.wait(10)
        black_box._work = work  # type: ignore[method-assign]
        black_box.decode(encoding, CLICK)
        black_box.encode(IMAGE)
        assert not ahead.done()
        second = pool.submit(black_box.encode, IMAGE, True)  # A second prefetch waits for the first.
        time.sleep(0.05)
        assert not second.done()
        finish.set()
        assert ahead.result(10).nbytes == second.result(10).nbytes


def test_model_seconds_are_collected() -> None:
    black_box = _CountingBlackBox()
    with model_seconds() as spent:
        encoding = black_box.encode(IMAGE)
        black_box.decode(encoding, CLICK)
        with ThreadPoolExecutor(1) as pool:  # The seconds of another caller.
            pool.submit(black_box.encode, IMAGE).result()
        black_box.segment(np.zeros((9, 8, 8, 3), np.uint8), [CLICK] * 9)
    black_box.encode(IMAGE)
    assert len(spent) == 3
    assert all(seconds >= 0.002 for seconds in spent)
    assert spent[2] >= 0.006  # Three batches.


def test_waiting_for_the_lock_is_not_counted_as_model_time() -> None:
    black_box, asked_event = _CountingBlackBox(), threading.Event()

    def segment() -> list[float]:
        with model_seconds() as spent:
            asked_event.set()
            black_box.encode(IMAGE)
        return spent

    with ThreadPoolExecutor(1) as pool:
        with black_box._lock:
            waiting = pool.submit(segment)
            assert asked_event.wait(10)
            start = time.perf_counter()
            time.sleep(0.5)
            waited = time.perf_counter() - start
        (seconds,) = waiting.result(10)
    assert seconds < waited


MASK = np.ones((8, 8), bool)


def test_propagation_visits_slices_in_order_in_both_directions() -> None:
    black_box, slices_read = _CountingBlackBox(video=True), list[int]()

    def slices(index: int) -> NDArray[np.uint8]:
        slices_read.append(index)
        return np.full((8, 8, 3), index, np.uint8)

    up = list(black_box.propagate(slices, {5: MASK, 9: MASK}, 5, 9))
    assert [index for index, _ in up] == [6, 7, 8]
    assert slices_read == [5, 9, 6, 7, 8]
    np.testing.assert_allclose([answer[0, 0] for _, answer in up], np.array([6, 7, 8]) / 255, rtol=1e-6)
    assert black_box.images_queried == 3
    assert [index for index, _ in black_box.propagate(slices, {5: MASK}, 5, 2)] == [4, 3]
    assert list(black_box.propagate(slices, {5: MASK}, 5, 6)) == []


def test_slices_are_read_and_queried_lazily() -> None:
    black_box, slices_read = _CountingBlackBox(video=True), list[int]()
    carried = black_box.propagate(lambda index: slices_read.append(index) or IMAGE, {0: MASK}, 0, 100)
    next(carried)
    next(carried)
    assert slices_read == [0, 1, 2]
    assert black_box.images_queried == 2


def test_other_calls_are_answered_between_two_slices() -> None:
    """In the same thread, a lock that is still held would block forever."""
    black_box = _CountingBlackBox(video=True)
    encoding = black_box.encode(IMAGE)
    carried = black_box.propagate(lambda index: IMAGE, {0: MASK}, 0, 4)
    for _ in carried:
        black_box.decode(encoding, CLICK)
    assert black_box.most == 1
    assert black_box.images_queried == 6


def test_propagation_respects_the_budget_and_waits_for_clicks() -> None:
    black_box = _CountingBlackBox(video=True)
    waited: list[int] = []
    black_box.budget, black_box.wait = 2, lambda: waited.append(1)
    carried = black_box.propagate(lambda index: IMAGE, {0: MASK}, 0, 9)
    next(carried)
    next(carried)
    with pytest.raises(BudgetSpentError):
        next(carried)
    assert black_box.images_queried == 2
    assert len(waited) == 3


def test_propagation_without_memory_or_mask_is_refused() -> None:
    with pytest.raises(InputError, match="alone has no memory of slices"):
        next(_CountingBlackBox().propagate(lambda index: IMAGE, {0: MASK}, 0, 4))
    with pytest.raises(InputError, match="no mask of slice 1"):
        next(_CountingBlackBox(video=True).propagate(lambda index: IMAGE, {0: MASK}, 1, 4))
    with pytest.raises(InputError, match="uint8"):
        next(_CountingBlackBox(video=True).propagate(lambda index: IMAGE.astype(np.float32), {0: MASK}, 0, 4))


@pytest.mark.parametrize("fault", [np.full((8, 8), np.nan, np.float32), np.zeros((4, 4), np.float32)])
def test_invalid_probabilities_are_an_error(fault: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch) -> None:
    black_box = _CountingBlackBox()
    monkeypatch.setattr(black_box, "_segment", lambda images, _: np.stack([fault] * len(images)))
    monkeypatch.setattr(black_box, "_decode", lambda *_: np.full((8, 8), np.inf, np.float32))
    monkeypatch.setattr(black_box, "_propagate", lambda *_: fault)
    monkeypatch.setattr(
        _CountingBlackBox, "capabilities", property(lambda self: replace(self._capabilities, video=True))
    )
    encoding = black_box.encode(IMAGE)
    masks = {0: np.ones((8, 8), np.bool_)}
    for segment in (
        lambda: black_box.segment(IMAGE[None], [CLICK]),
        lambda: black_box.decode(encoding, CLICK),
        lambda: list(black_box.propagate(lambda _: IMAGE, masks, 0, 2)),
    ):
        with pytest.raises(BapsError, match="not probabilities"):
            segment()


class _Shapes(_CountingBlackBox):
    """Record the size of each image that reaches the model."""

    def __init__(self, preprocessing: str) -> None:
        super().__init__(preprocessing=preprocessing, video=True)
        self.shapes: list[tuple[int, ...]] = []

    def _segment(self, images: NDArray[np.uint8], prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        self.shapes.append(images.shape[:3])
        return images[..., 0].astype(np.float32) / 255 + np.float32(0.001)

    def _encode(self, image: NDArray[np.uint8]) -> Encoding:
        self.shapes.append(image.shape[:2])
        return Encoding(image, image.nbytes)

    def _decode(self, encoding: Encoding, prompt: Prompt) -> NDArray[np.float32]:
        return np.full(encoding._content.shape[:2], 0.5, np.float32)  # type: ignore[attr-defined]

    def _remember(self, memory: object, index: int, image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> object:
        self.shapes += [image.shape[:2], mask.shape]
        return super()._remember(memory, index, image, mask)


def test_model_sees_the_slice_without_its_padding() -> None:
    """The masks come back in their rows, and the padding belongs to no object."""
    black_box = _Shapes("sam")
    images = np.arange(5 * 8 * 8 * 3, dtype=np.uint32).reshape(5, 8, 8, 3).astype(np.uint8)
    sizes = [(8, 5), (8, 8), (8, 5), (3, 8), (8, 5)]
    answers = black_box.segment(images, [CLICK] * 5, sizes)
    assert sorted(black_box.shapes) == [(1, 3, 8), (1, 8, 8), (3, 8, 5)]
    for image, answer, (height, width) in zip(images, answers, sizes, strict=True):
        expected = np.zeros((8, 8), np.float32)
        expected[:height, :width] = image[:height, :width, 0] / np.float32(255) + np.float32(0.001)
        np.testing.assert_allclose(answer, expected)
    decoded = black_box.decode(black_box.encode(images[0], size=(8, 5)), CLICK)
    assert black_box.shapes[-1] == (8, 5)
    np.testing.assert_array_equal(decoded, np.repeat([[0.5] * 5 + [0] * 3], 8, axis=0))
    mask = np.ones((8, 8), bool)
    ((_, propagated),) = black_box.propagate(lambda index: images[index], {0: mask}, 0, 2, size=(8, 5))
    assert black_box.shapes[-2:] == [(8, 5), (8, 5)]
    assert propagated.shape == (8, 8)
    assert propagated[:, 5:].max() == 0 < propagated[:, :5].min()


def test_model_of_the_canvas_sees_the_padding() -> None:
    black_box = _Shapes("canvas")
    black_box.segment(np.stack([IMAGE] * 2), [CLICK] * 2, [(8, 5), (3, 8)])
    black_box.encode(IMAGE, size=(8, 5))
    assert black_box.shapes == [(2, 8, 8), (8, 8)]
