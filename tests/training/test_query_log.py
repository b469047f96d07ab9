from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from baps.blackbox import BlackBox
from baps.errors import BapsError, BudgetSpentError
from baps.prompts import Prompt
from baps.training.query_log import QueryLog

NewBox = Callable[..., BlackBox]
ABOUT = {"slices": 3, "settings": {"seed": 0, "learning_rate": 0.03}}
ANSWERS = [[0.25, 0.5], [0.125], [], [1 / 3, 2 / 3, 1e-30]]


_open: list[QueryLog] = []


def _open_log(path: Path | None, about: Mapping[str, Any], black_box: BlackBox) -> QueryLog:
    """Open a query log; earlier ones are closed, as when their process has ended."""
    while _open:
        _open.pop().close()
    _open.append(QueryLog(path, about, black_box))
    return _open[-1]


def _new_query(black_box: BlackBox, values: Sequence[float]) -> Callable[[], Sequence[float]]:
    """Make a query that sends one image per value to the black box and returns the values."""

    def ask() -> Sequence[float]:
        for _ in values:
            black_box.segment(np.zeros((1, 8, 8, 3), np.uint8), [Prompt(((1.0, 1.0),))])
        return values

    return ask


def _never() -> Sequence[float]:
    raise AssertionError("The black box was queried again.")


def _write(path: Path, black_box: BlackBox, answers: Sequence[Sequence[float]] = ANSWERS) -> QueryLog:
    query_log = _open_log(path, ABOUT, black_box)
    for step, values in enumerate(answers):
        query_log.get_or_query({"run": "one", "step": step}, _new_query(black_box, values))
    return query_log


def test_answers_are_logged_and_replayed(tmp_path: Path, new_black_box: NewBox) -> None:
    log = tmp_path / "deep" / "log.jsonl"
    black_box = new_black_box()
    first = _write(log, black_box)
    assert (first.images, first.replayed_images) == (6, 0)
    again = _open_log(log, ABOUT, new_black_box())
    assert (again.images, again.replayed_images) == (0, 6)
    counted = []
    for step, values in enumerate(ANSWERS):
        assert again.get_or_query({"run": "one", "step": step}, _never) == values
        counted.append(again.images)
    assert counted == [2, 3, 3, 6]


def test_queries_and_count_continue_after_the_log(tmp_path: Path, new_black_box: NewBox) -> None:
    log = tmp_path / "log.jsonl"
    _write(log, new_black_box(), ANSWERS[:2])
    black_box = new_black_box()
    _new_query(black_box, [0.0] * 5)()  # Earlier queries of the black box do not count.
    again = _write(log, black_box)
    assert black_box.images_queried == 5 + 3
    assert (again.images, again.replayed_images) == (6, 3)
    third = _open_log(log, ABOUT, new_black_box())
    assert [third.get_or_query({"run": "one", "step": step}, _never) for step in range(4)] == ANSWERS


def test_an_answer_is_on_disk_before_it_is_used(tmp_path: Path, new_black_box: NewBox) -> None:
    log = tmp_path / "log.jsonl"
    query_log = _open_log(log, ABOUT, new_black_box())
    query_log.get_or_query({"step": 0}, lambda: [0.75])
    assert json.loads(log.read_text().splitlines()[-1]) == {"step": 0, "values": [0.75], "images": 0}


def test_failed_query_is_not_logged(tmp_path: Path, new_black_box: NewBox) -> None:
    log = tmp_path / "log.jsonl"
    query_log = _write(log, new_black_box())
    before = log.read_bytes()

    def fail() -> Sequence[float]:
        raise BudgetSpentError("no more")

    with pytest.raises(BudgetSpentError):
        query_log.get_or_query({"step": 4}, fail)
    assert log.read_bytes() == before
    assert query_log.images == 6


def test_truncated_log_is_completed_by_queries(tmp_path: Path, new_black_box: NewBox) -> None:
    log = tmp_path / "log.jsonl"
    _write(log, new_black_box())
    content = log.read_bytes()
    ends = [place + 1 for place, byte in enumerate(content) if byte == ord("\n")]
    paid = [0, 2, 3, 3, 6]  # Black-box images up to the end of each line.
    for cut in range(len(content) + 1):
        log.write_bytes(content[:cut])
        lines = sum(end <= cut for end in ends)
        black_box = new_black_box()
        again = _write(log, black_box)
        recalled = paid[lines - 1] if lines else 0
        assert again.replayed_images == recalled, cut
        assert black_box.images_queried == 6 - recalled, cut
        assert log.read_bytes() == content, cut


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20))
def test_single_precision_losses_are_replayed_exactly(
    tmp_path: Path, new_black_box: NewBox, losses: list[float]
) -> None:
    log = tmp_path / "log.jsonl"
    log.unlink(missing_ok=True)
    given_values = torch.tensor(losses, dtype=torch.float32)
    _open_log(log, ABOUT, new_black_box()).get_or_query({"step": 1}, given_values.tolist)
    back = torch.tensor(_open_log(log, ABOUT, new_black_box()).get_or_query({"step": 1}, _never), dtype=torch.float32)
    assert back.numpy().tobytes() == given_values.numpy().tobytes()


def test_masks_are_logged_and_replayed_exactly(tmp_path: Path, new_black_box: NewBox) -> None:
    log, random = tmp_path / "log.jsonl", np.random.default_rng(0)
    masks_ = [random.integers(0, 256, shape).astype(np.uint8) for shape in ((3, 64, 64), (1, 2, 5), (0, 64, 64))]
    black_box = new_black_box()
    query_log = _open_log(log, ABOUT, black_box)

    def ask(masks: NDArray[np.uint8]) -> NDArray[np.uint8]:
        _new_query(black_box, [0.0] * len(masks))()
        return masks

    for step, masks in enumerate(masks_):
        query_log.get_or_query({"losses": step}, _new_query(black_box, [0.5]))
        np.testing.assert_array_equal(query_log.get_or_query_masks({"masks": step}, partial(ask, masks)), masks)
    again = _open_log(log, ABOUT, new_black_box())
    assert again.replayed_images == query_log.images == 3 + 4
    for step, masks in enumerate(masks_):
        assert again.get_or_query({"losses": step}, _never) == [0.5]
        back = again.get_or_query_masks({"masks": step}, _never)  # type: ignore[arg-type]
        assert (back.dtype, back.shape) == (masks.dtype, masks.shape)
        np.testing.assert_array_equal(back, masks)


@given(arrays(np.uint8, array_shapes(min_dims=3, max_dims=3, min_side=0, max_side=9)))
def test_any_masks_are_replayed(tmp_path: Path, new_black_box: NewBox, masks: NDArray[np.uint8]) -> None:
    log = tmp_path / "log.jsonl"
    log.unlink(missing_ok=True)
    queried = _open_log(log, ABOUT, new_black_box()).get_or_query_masks({"step": 1}, lambda: masks)
    back = _open_log(log, ABOUT, new_black_box()).get_or_query_masks({"step": 1}, _never)  # type: ignore[arg-type]
    for result in (queried, back):
        assert result.shape == masks.shape
        np.testing.assert_array_equal(result, masks)


def test_truncated_masks_are_queried_again(tmp_path: Path, new_black_box: NewBox) -> None:
    log, masks = tmp_path / "log.jsonl", np.arange(12, dtype=np.uint8).reshape(1, 3, 4)
    _open_log(log, ABOUT, new_black_box()).get_or_query_masks({"step": 1}, lambda: masks)
    content = log.read_bytes()
    for cut in range(content.index(b"\n") + 1, len(content)):
        log.write_bytes(content[:cut])
        result = _open_log(log, ABOUT, new_black_box()).get_or_query_masks({"step": 1}, lambda: ~masks)
        np.testing.assert_array_equal(result, ~masks)
    assert log.read_bytes() != content


def test_masks_of_another_query_are_not_used(tmp_path: Path, new_black_box: NewBox) -> None:
    log = tmp_path / "log.jsonl"
    _open_log(log, ABOUT, new_black_box()).get_or_query_masks(
        {"head": 1, "from": 0}, lambda: np.zeros((1, 2, 2), np.uint8)
    )
    for facts in ({"head": 1, "from": 32}, {"head": 2, "from": 0}):
        with pytest.raises(BapsError, match="does not belong to this training"):
            _open_log(log, ABOUT, new_black_box()).get_or_query_masks(facts, _never)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "about",
    [{**ABOUT, "slices": 4}, {**ABOUT, "settings": {"seed": 1, "learning_rate": 0.03}}, {**ABOUT, "more": "è"}, {}],
)
def test_log_of_another_training_is_replaced(tmp_path: Path, new_black_box: NewBox, about: dict[str, object]) -> None:
    log = tmp_path / "log.jsonl"
    _write(log, new_black_box())
    other_log = _open_log(log, about, new_black_box())
    assert other_log.replayed_images == 0
    assert other_log.get_or_query({"run": "one", "step": 0}, lambda: [0.9]) == [0.9]
    assert _open_log(log, about, new_black_box()).get_or_query({"run": "one", "step": 0}, _never) == [0.9]
    assert _open_log(log, ABOUT, new_black_box()).replayed_images == 0


def test_the_order_of_the_facts_does_not_matter(tmp_path: Path, new_black_box: NewBox) -> None:
    log = tmp_path / "log.jsonl"
    _write(log, new_black_box())
    assert _open_log(log, dict(reversed(ABOUT.items())), new_black_box()).replayed_images == 6


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"\n\n{}\n", b"rubbish\n", b"\xff\xfe\0\n", '{"a": "è"}\n'.encode(), b'[1]\n{"a": 1}\n']
)
def test_file_that_is_not_a_log_is_replaced(tmp_path: Path, new_black_box: NewBox, content: bytes) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(content)
    assert _write(log, new_black_box()).replayed_images == 0
    assert _open_log(log, ABOUT, new_black_box()).replayed_images == 6


@pytest.mark.parametrize("line", [b"12", b'{"step": 1}', b'{"images": "x", "values": []}', '{"a": "è"}'.encode()])
def test_damaged_line_and_later_ones_are_queried_again(tmp_path: Path, new_black_box: NewBox, line: bytes) -> None:
    log = tmp_path / "log.jsonl"
    _write(log, new_black_box())
    lines = log.read_bytes().splitlines()
    log.write_bytes(b"\n".join([*lines[:2], line, *lines[3:]]) + b"\n")
    black_box = new_black_box()
    again = _write(log, black_box)
    assert (again.replayed_images, black_box.images_queried) == (2, 4)
    assert log.read_bytes().splitlines() == lines


def test_answer_to_another_query_is_not_used(tmp_path: Path, new_black_box: NewBox) -> None:
    log = tmp_path / "log.jsonl"
    _write(log, new_black_box())
    for facts in ({"run": "one", "step": 1}, {"run": "two", "step": 0}, {"judge": "abc"}):
        with pytest.raises(BapsError, match=r"The log .*log\.jsonl does not belong to this training\. Delete it"):
            _open_log(log, ABOUT, new_black_box()).get_or_query(facts, _never)


def test_nothing_is_logged_without_a_path(
    tmp_path: Path, new_black_box: NewBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    black_box = new_black_box()
    for _ in range(2):
        query_log = _open_log(None, ABOUT, black_box)
        assert query_log.get_or_query({"step": 0}, _new_query(black_box, [0.5, 0.5])) == [0.5, 0.5]
        assert (query_log.images, query_log.replayed_images) == (2, 0)
    assert black_box.images_queried == 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_reported(tmp_path: Path, new_black_box: NewBox) -> None:
    log = tmp_path / "log.jsonl"
    query_log = _write(log, new_black_box(), ANSWERS[:1])
    with Path("/dev/full").open("ab", buffering=0) as full:
        masks_, query_log._file = query_log._file, full
        with pytest.raises(
            BapsError, match=r"cannot be written \(No space left on device\)\. Free some space"
        ) as error:
            query_log.get_or_query({"run": "one", "step": 1}, lambda: [0.5])
        query_log._file = masks_
    assert isinstance(error.value.__cause__, OSError)
    assert _open_log(log, ABOUT, new_black_box()).replayed_images == 2


def test_two_trainings_cannot_write_to_one_log(tmp_path: Path, new_black_box: NewBox) -> None:
    log = tmp_path / "log.jsonl"
    first = _write(log, new_black_box(), ANSWERS[:1])
    before = log.read_bytes()
    for about in (ABOUT, {"other": 1}):
        with pytest.raises(BapsError, match="Another training writes to the log"):
            QueryLog(log, about, new_black_box())
    assert log.read_bytes() == before
    first.close()
    first.close()
    assert list(tmp_path.iterdir()) == [log]
    assert _open_log(log, ABOUT, new_black_box()).replayed_images == 2


def test_invalid_path_of_the_log_is_an_error(tmp_path: Path, new_black_box: NewBox) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path, tmp_path / "file" / "log.jsonl", tmp_path / "file" / "deep" / "log.jsonl"):
        with pytest.raises(BapsError, match="its log cannot be written"):
            _open_log(path, ABOUT, new_black_box())
    assert (tmp_path / "file").read_text() == "mine"
