from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests

from benchmarks.page import write_between_marks
from stress.fuzz.bombs import read_bombs
from stress.fuzz.mutations import mutant, seeds
from stress.fuzz.odd_files import KINDS, fuzz_files
from stress.kill.kills import Kills, kill_publishers, kill_savers
from stress.run import MUST_BE_0, faults, page_lines, summarise
from stress.served_site import Memory, files_of, strays
from stress.tally import Tally, judge

MEMORY = {"server_middle_peak_mb": 900.0, "server_last_peak_mb": 901.5, "bounded": True}


@pytest.mark.parametrize(
    ("status", "body", "method", "verdict"),
    [
        (200, b"", "GET", "answered"),
        (303, b"", "GET", "answered"),
        (400, b'{"detail": "The slice is invalid."}', "GET", "refused"),
        (404, b"Not Found", "GET", "refused"),
        (404, b"", "HEAD", "refused"),
        (404, b"", "GET", "error"),
        (400, b'{"detail": ""}', "GET", "error"),
        (400, b'{"other": 1}', "GET", "error"),
        (500, b"Internal Server Error", "GET", "error"),
        (501, b'{"detail": "It is not implemented."}', "GET", "error"),
        (503, b'{"detail": "The model is missing."}', "GET", "deliberate"),
        (507, b"\xff", "GET", "error"),
    ],
)
def test_judge_classifies_replies(status: int, body: bytes, method: str, verdict: str) -> None:
    assert judge(status, body, method) == verdict


def _reply(status: int, body: bytes) -> requests.Response:
    reply = requests.Response()
    reply.status_code, reply._content = status, body
    reply.request = requests.Request("GET", "http://a/").prepare()
    return reply


def test_tally_counts_errors() -> None:
    def dropped() -> requests.Response:
        raise requests.ConnectionError("reset")

    def never_sent() -> requests.Response:
        raise requests.exceptions.InvalidURL("no host")

    tally = Tally()
    body_with_detail = b'{"detail": "There is no model."}'
    for status, body in (
        (200, b""),
        (200, b""),
        (404, body_with_detail),
        (503, body_with_detail),
        (504, b""),
        (500, body_with_detail),
    ):
        tally.send("look", lambda status=status, body=body: _reply(status, body))  # type: ignore[misc]
    assert tally.send("look", dropped) is None
    assert tally.send("look", never_sent) is None
    record = tally.to_dict()
    assert (record["requests"], record["errors_5xx"], record["dropped"], record["failures"]) == (7, 2, 1, 3)
    assert record["deliberate"] == {"502": 0, "503": 1, "504": 1, "507": 0}
    assert record["ms"]["look"]["count"] == 2
    assert len(record["examples"]) == 3


def test_mutations_are_reproducible() -> None:
    valid = seeds()
    assert sorted(valid) == sorted(KINDS)
    mutations = set()
    for number in range(200):
        kind = KINDS[number % len(KINDS)]
        first, second = (mutant(kind, valid[kind], np.random.default_rng([5, number])) for _ in range(2))
        assert first == second
        mutations.add(first.how)
    assert len(mutations) > 40


@pytest.mark.slow
def test_broken_files_are_read_or_refused() -> None:
    figures = fuzz_files(140, 1, 300)
    assert (figures["inputs"], figures["failures"], figures["examples"]) == (140, 0, [])
    assert set(figures["by_kind"]) == set(KINDS)
    assert min(figures["verdicts"]["answered"], figures["verdicts"]["refused"]) > 10


@pytest.mark.slow
def test_kills_during_saves_lose_nothing(tmp_path: Path) -> None:
    kills, random = Kills(), np.random.default_rng(0)
    kill_savers(tmp_path / "labels", random, 2, kills)
    kill_publishers(tmp_path / "adapters", random, 1, kills)
    record = kills.to_dict()
    assert (record["kills"], record["labels_lost"], record["adapters_lost"], record["notes"]) == (3, 0, 0, [])


def test_lost_label_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stress.kill.kills.LabelHistory.repair", lambda _: (_ for _ in ()).throw(OSError("gone")))
    kills = Kills()
    kill_savers(tmp_path / "labels", np.random.default_rng(0), 1, kills)
    assert (kills.labels_lost, "gone" in kills.notes[0]) == (1, True)


def test_strays_lists_unexpected_files(tmp_path: Path) -> None:
    for name in ("studies/a.nii.gz", "studies/labels/final/a.nii.gz", "studies/.lock", "adapters/x/y", "users.json",
                 "studies/evil.sh", "evil", "studies/new/a.nii"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert strays(tmp_path) == ["evil", "studies/evil.sh", "studies/new", "studies/new/a.nii"]
    assert "studies/evil.sh" in files_of(tmp_path)


def test_growing_memory_is_not_bounded() -> None:
    memory = Memory(psutil.Process())
    memory.samples = [(second, 500.0 + (second / 3 if second > 60 else 0), 100.0) for second in range(90)]
    assert memory.to_dict()["bounded"] is True
    memory.samples = [(second, 500.0 + 20 * second, 100.0) for second in range(90)]
    record = memory.to_dict()
    assert (record["bounded"], record["server_start_mb"], record["with_training_peak_mb"]) == (False, 500, 2380)


def _parts(**changed: int) -> dict[str, dict[str, Any]]:
    times = {"click": {"p95": 12.0, "count": 2}}
    figures_without_errors = {"requests": 5, "errors_5xx": 0, "dropped": 0, "failures": 0, "deliberate": {"503": 2}}
    return {
        "load": {**figures_without_errors, "ms": times, "memory": MEMORY},
        "fuzz": {**figures_without_errors, "inputs": 10, "strays": 0},
        "kills": {"kills": 30, "labels_lost": 0, "adapters_lost": 0, "resume_mismatches": 0, "orphans": 0, **changed},
    }


def test_figures_are_sums_of_the_parts() -> None:
    figures = summarise(_parts())
    assert (figures["requests"], figures["inputs"], figures["kills"], figures["deliberate"]) == (10, 10, 30, {"503": 4})
    assert (figures["attacks_tried"], figures["attacks_succeeded"]) == (None, None)  # That part did not run.
    assert set(MUST_BE_0) <= set(figures)
    assert faults(figures) == []
    assert faults(summarise(_parts(orphans=2))) == ["orphans is 2, not 0"]


def test_figures_are_written_to_the_page(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    page.write_text("a\n<!-- bench-trust begins -->\nold\n<!-- bench-trust ends -->\nb\n")
    write_between_marks(page_lines(summarise(_parts())), page, "bench-trust")
    text = page.read_text()
    assert "| kills | 30 |" in text
    assert "| click | 12 ms |  |" in text
    assert "old" not in text


def test_bomb_that_takes_too_much_memory_is_over_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stress.fuzz.bombs._MAX_VOLUMES_HELD", 0)
    monkeypatch.setattr("stress.fuzz.bombs._SLACK_MB", 20)
    result = read_bombs(["npz header", "npz largest"])
    assert (result["bombs"], result["bombs_over_bound"], result["over_bound"]) == (2, 1, ["npz largest"])
    assert 30 < result["most_mb"] < 60
    assert result["by_name"]["npz header"]["verdict"] == "refused"
    figures = summarise({"bombs": result})
    assert (figures["bombs"], faults(figures)) == (2, ["bombs_over_bound is 1, not 0"])
