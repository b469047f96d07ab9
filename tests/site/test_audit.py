"""The audit file: chained, turned over, and whole after kills; checked by reading its bytes and by ``check_audit``."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from baps.errors import BapsError
from baps.site.audit import AuditFile, command
from baps.site.audit_check import check_audit


def _filled(folder: Path, count: int = 12, **settings: int) -> AuditFile:
    audit = AuditFile(folder / "audit.jsonl", **settings)
    audit.check()
    for number in range(count):
        audit.add({"what": "segment", "number": number})
    return audit


def _said(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_each_line_has_the_chain_of_all_before(tmp_path: Path) -> None:
    audit = _filled(tmp_path)
    check = check_audit(audit.file)
    assert (check.chained, check.last.n, check.breaks) == (12, 12, [])
    lines = _said(audit.file)
    assert [line["n"] for line in lines] == list(range(1, 13))
    assert len({line["chain"] for line in lines}) == 12
    for file in tmp_path.iterdir():
        assert file.stat().st_mode & 0o077 == 0, file


def _change(lines: list[bytes]) -> list[bytes]:
    return [*lines[:5], lines[5].replace(b"segment", b"look   "), *lines[6:]]


def _forge(lines: list[bytes]) -> list[bytes]:
    return [*lines[:5], re.sub(rb'"chain": "\w+"', b'"chain": "%s"' % (b"0" * 64), lines[5]), *lines[6:]]


@pytest.mark.parametrize(
    ("attack", "sentence"),
    [
        (_change, r"Line 6 \(row 6 of audit.jsonl\) was changed"),
        (_forge, r"Line 6 .*was changed"),
        (lambda lines: lines[:5] + lines[7:], r"Before line 8 .* 2 lines are missing"),
        (lambda lines: lines[2:], r"Before line 3 .* 2 lines are missing"),
        (lambda lines: lines[:-3], r"At the end 3 lines are missing"),
        (lambda lines: [], r"At the end 12 lines are missing"),
        (lambda lines: [*lines[:5], lines[6], lines[5], *lines[7:]], "moved or doubled"),
        (lambda lines: [*lines[:5], lines[4], *lines[5:]], "moved or doubled"),
        (lambda lines: [*lines[:5], b'{"user": "anna", "what": "look"}\n', *lines[5:]], "has no chain"),
    ],
)  # fmt: skip
def test_breaks_of_the_chain_are_reported(
    tmp_path: Path, attack: Callable[[list[bytes]], list[bytes]], sentence: str
) -> None:
    audit = _filled(tmp_path)
    audit.file.write_bytes(b"".join(attack(audit.file.read_bytes().splitlines(keepends=True))))
    breaks = check_audit(audit.file).breaks
    assert re.search(sentence, " ".join(breaks)), breaks
    audit.add({"what": "go on"})  # What was found stays found when lines are added.
    assert check_audit(audit.file).breaks


def test_lines_cut_off_are_reported_after_further_lines(tmp_path: Path) -> None:
    audit = _filled(tmp_path)
    audit.file.write_bytes(b"".join(audit.file.read_bytes().splitlines(keepends=True)[:-2]))
    audit.add({"what": "go on"})
    check = check_audit(audit.file)
    assert check.last.n == 13
    assert "2 lines are missing: they were cut off" in check.breaks[0]


@pytest.mark.parametrize("how", ["gone", "older", "invented"])
def test_the_head_cannot_be_forged_without_the_key(tmp_path: Path, how: str) -> None:
    audit = _filled(tmp_path)
    head = tmp_path / "audit.jsonl.head"
    lines = audit.file.read_bytes().splitlines(keepends=True)
    audit.file.write_bytes(b"".join(lines[:-4]))
    if how == "gone":
        head.unlink()
    else:
        last = json.loads(lines[-5])
        text = json.loads(head.read_text())
        text["last"] = {"n": last["n"], "chain": last["chain"]}
        head.write_text(json.dumps(text))
    assert "head file is missing or was changed" in check_audit(audit.file).breaks[0]
    audit.add({"what": "go on"})
    assert "the head file was missing" in check_audit(audit.file).breaks[0]


def test_a_given_chain_must_exist(tmp_path: Path) -> None:
    audit = _filled(tmp_path)
    kept = check_audit(audit.file).last.chain
    audit.add({"what": "go on"})
    assert not check_audit(audit.file, kept).breaks
    for file in tmp_path.glob("audit.jsonl*"):  # Another chain, with another key.
        file.unlink()
    _filled(tmp_path)
    assert "No line has the chain" in check_audit(audit.file, kept).breaks[0]


def test_the_chain_continues_after_a_full_file(tmp_path: Path) -> None:
    audit = AuditFile(tmp_path / "audit.jsonl", max_mb=1)
    audit.check()
    for _ in range(5):
        audit.add({"what": "x" * (1 << 19)})
    names = sorted(file.name for file in tmp_path.glob("audit.jsonl*") if "key" not in file.name)
    assert names == ["audit.jsonl", "audit.jsonl.0001", "audit.jsonl.0002", "audit.jsonl.head"]
    check = check_audit(audit.file)
    assert (check.chained, check.breaks) == (5, [])
    with audit.opened() as (files, _):
        assert [json.loads(line)["n"] for file, size in files for line in file.read(size).splitlines()] == [
            1,
            2,
            3,
            4,
            5,
        ]
    (tmp_path / "audit.jsonl.0001").unlink()
    assert "Before line 3" in check_audit(audit.file).breaks[0]


def test_removal_of_full_files_is_recorded(tmp_path: Path) -> None:
    audit = AuditFile(tmp_path / "audit.jsonl", max_mb=1, keep=1)
    audit.check()
    for _ in range(9):
        audit.add({"what": "x" * (1 << 19)})
    assert [file.name for file in sorted(tmp_path.glob("audit.jsonl.0*"))] == ["audit.jsonl.0004"]
    assert "remove old audit lines" in {line["what"] for line in _said(audit.file)}
    check = check_audit(audit.file)
    assert check.breaks == []
    (tmp_path / "audit.jsonl.0004").unlink()  # One that should still be there.
    assert "missing" in check_audit(audit.file).breaks[0]


@pytest.mark.parametrize("end", [b"", b'{"user": "bert", "wh'])
def test_a_file_of_an_older_release_is_continued(tmp_path: Path, end: bytes) -> None:
    file = tmp_path / "audit.jsonl"
    file.write_bytes(b'{"user": "anna", "what": "segment"}\n' * 3 + end)
    audit = _filled(tmp_path, 2)
    check = check_audit(file)
    assert (check.unchained, check.chained, check.halves, check.breaks) == (3, 2, bool(end), [])
    file.write_bytes(file.read_bytes().replace(b"anna", b"otto", 1))
    assert "was changed" in check_audit(file).breaks[0]
    audit.add({"what": "go on"})


def test_the_chain_continues_after_an_incomplete_line(tmp_path: Path) -> None:
    audit = _filled(tmp_path, 3)
    with audit.file.open("ab") as file:
        file.write(b'{"time": "2026-11-29T17:00:00.000+00:00", "user": "an')
    audit.add({"what": "go on"})
    check = check_audit(audit.file)
    assert (check.chained, check.halves, check.breaks) == (4, 1, [])


def test_lines_of_many_threads_and_files_are_one_chain(tmp_path: Path) -> None:
    audits = [AuditFile(tmp_path / "audit.jsonl") for _ in range(8)]
    threads = [threading.Thread(target=lambda a=a: [a.add({"what": a.hashed("x")}) for _ in range(50)]) for a in audits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check = check_audit(audits[0].file)
    assert (check.chained, check.breaks) == (400, [])
    assert len({line["what"] for line in _said(audits[0].file)}) == 1  # All made one key.


_WRITER = """
import sys
from pathlib import Path
from baps.site.audit import AuditFile
audit = AuditFile(Path(sys.argv[1]), max_mb=1)
number = 0
while True:
    audit.add({"what": "segment", "number": number, "filled": "x" * 3000})
    number += 1
    print(number, flush=True)
"""


@pytest.mark.slow
def test_the_chain_is_intact_after_kills_of_several_writers(tmp_path: Path) -> None:
    file, text = tmp_path / "audit.jsonl", 0
    AuditFile(file).check()
    when = random.Random(20)  # noqa: S311 (no secret)
    for _ in range(12):
        writers = [
            subprocess.Popen([sys.executable, "-c", _WRITER, str(file)], stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        for writer in writers:
            assert writer.stdout is not None
            writer.stdout.readline()
        time.sleep(when.uniform(0, 0.2))
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
            text += 1 + len(writer.communicate()[0].splitlines())
    check = check_audit(file)
    assert check.breaks == []
    assert check.chained >= text > 24
    assert list(tmp_path.glob("audit.jsonl.0*"))


def test_commands_are_recorded_with_the_user_of_the_system(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOGNAME", "somebody")
    monkeypatch.setenv("USER", "somebody")
    reply = command("restore a label")
    assert reply["by"] == "command"
    assert reply["user"] != "somebody"


def test_errors_of_the_file_and_the_key(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BapsError, match="audit file"):
        AuditFile(tmp_path / "file" / "audit.jsonl").check()
    (tmp_path / "audit.jsonl.key").write_text("no key")
    with pytest.raises(BapsError, match="is damaged"):
        AuditFile(tmp_path / "audit.jsonl").check()


def test_no_new_key_is_made_for_existing_lines(tmp_path: Path) -> None:
    audit = _filled(tmp_path)
    (tmp_path / "audit.jsonl.key").unlink()
    for act in (AuditFile(audit.file).check, lambda: check_audit(audit.file)):
        with pytest.raises(BapsError, match="is gone. Restore it from your backup"):
            act()
    assert not (tmp_path / "audit.jsonl.key").exists()


def test_removal_of_all_lines_and_the_head_is_reported(tmp_path: Path) -> None:
    audit = _filled(tmp_path)
    audit.file.unlink()
    audit.file.with_name("audit.jsonl.head").unlink()
    assert "all lines were removed" in check_audit(audit.file).breaks[0]
