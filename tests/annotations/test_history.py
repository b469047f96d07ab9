"""Versions of labels are consistent after a kill at any time, on a full disk, and with concurrent saves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from baps.annotations.history import LabelHistory, OutdatedError
from baps.errors import BapsError, NotFoundError

SAVER = """
import sys
from pathlib import Path
from baps.annotations.history import LabelHistory
history = LabelHistory(Path(sys.argv[1]))
print("ready", flush=True)
for number in range(int(sys.argv[3])):
    file = Path(sys.argv[2]) / f"new-{sys.argv[4]}"
    file.write_bytes(f"{sys.argv[4]} {number} ".encode() * 20_000)
    suffix = (".nii.gz", ".nrrd")[number % 2]
    history.save("ct_01", "final", file, suffix, {"author": sys.argv[4], "number": number})
    print(number, flush=True)
"""
"""Saves one label after the other, and says so of each."""


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    return _studies(tmp_path / "studies")


def _studies(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    datastore = {"objects": {name: {"image": {}, "labels": {}} for name in ("ct_01", "ct_02")}}
    (folder / "datastore_v2.json").write_text(json.dumps(datastore))
    return folder


def _save(studies: Path, words: str, author: str = "anna", suffix: str = ".nii.gz", tag: str = "final") -> str:
    file = studies.parent / "new"
    file.write_text(words)
    return LabelHistory(studies).save("ct_01", tag, file, suffix, {"author": author})


def _listed(studies: Path, tag: str = "final") -> dict[str, object]:
    result = json.loads((studies / "datastore_v2.json").read_text())["objects"]["ct_01"]["labels"]
    return result.get(tag, {})


def _served(studies: Path) -> str:
    (file,) = (studies / "labels" / "final").glob("ct_01*")
    return file.read_text()


def _write_by_hand(studies: Path, words: str) -> None:
    """Write a file into the folder of labels, as a user does by hand."""
    (studies / "labels" / "final").mkdir(parents=True, exist_ok=True)
    (studies / "labels" / "final" / "ct_01.nii.gz").write_text(words)
    datastore = json.loads((studies / "datastore_v2.json").read_text())
    datastore["objects"]["ct_01"]["labels"].setdefault("final", {"ext": ".nii.gz", "info": {}})
    (studies / "datastore_v2.json").write_text(json.dumps(datastore))


def _start(studies: Path, saves: int, author: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SAVER, str(studies), str(studies.parent), str(saves), author]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _check_consistent(studies: Path) -> int:
    """Check that one complete label is served, listed with its info, and the newest version; return its number."""
    LabelHistory(studies).repair()
    words = _served(studies).split()
    number = int(words[1])
    assert words == [words[0], str(number)] * 20_000
    info = _listed(studies)["info"]
    newest = LabelHistory(studies).versions("ct_01", "final")[-1]
    assert (info["author"], info["number"], info["version"]) == (words[0], number, newest.name)
    assert newest.file.read_text().split() == words
    (file,) = (studies / "labels" / "final").glob("ct_01*")
    assert file.name == info["name"] == f"ct_01{_listed(studies)['ext']}"
    assert not list(studies.rglob(".partial-*"))
    assert not list(studies.rglob("*.saving"))
    return number


def test_every_version_is_kept_and_the_newest_served(studies: Path) -> None:
    names = [_save(studies, words, author) for words, author in (("one", "anna"), ("two", "ben"))]
    versions = LabelHistory(studies).versions("ct_01", "final")
    assert [(v.name, v.file.read_text(), v.info["author"]) for v in versions] == [
        (names[0], "one", "anna"),
        (names[1], "two", "ben"),
    ]
    assert _served(studies) == "two"
    assert _listed(studies)["info"]["version"] == names[1]


def test_label_with_another_suffix_replaces_only_its_own_file(studies: Path) -> None:
    _save(studies, "one")
    (studies / "labels" / "final" / "ct_01b.nii.gz").write_text("of another image")
    _save(studies, "two", suffix=".nrrd")
    results = sorted(path.name for path in (studies / "labels" / "final").iterdir())
    assert results == ["ct_01.nrrd", "ct_01b.nii.gz"]


def test_draft_does_not_change_the_final_label(studies: Path) -> None:
    _save(studies, "final one")
    _save(studies, "a draft", tag="draft")
    assert _served(studies) == "final one"
    assert LabelHistory(studies).labels() == [("ct_01", "draft"), ("ct_01", "final")]


def test_label_written_by_hand_becomes_a_version(studies: Path) -> None:
    _write_by_hand(studies, "by hand")
    _save(studies, "one")
    _write_by_hand(studies, "one, corrected by hand")
    _save(studies, "two")
    versions = LabelHistory(studies).versions("ct_01", "final")
    assert [v.file.read_text() for v in versions] == ["by hand", "one", "one, corrected by hand", "two"]
    assert [bool(v.info.get("found")) for v in versions] == [True, False, True, False]


def test_restoring_keeps_the_replaced_label(studies: Path) -> None:
    names = [_save(studies, words) for words in ("one", "two")]
    again = LabelHistory(studies).restore("ct_01", "final", names[0])
    assert _served(studies) == "one"
    assert _listed(studies)["info"]["restored"] == names[0]
    assert [v.name for v in LabelHistory(studies).versions("ct_01", "final")] == [*names, again]


def test_missing_or_damaged_version_is_not_restored(studies: Path) -> None:
    name = _save(studies, "one")
    _save(studies, "two")
    history = LabelHistory(studies)
    for wrong in ("20200101T000000.000000Z", "../ct_02", ""):
        with pytest.raises(NotFoundError, match="no version"):
            history.restore("ct_01", "final", wrong)
    history.version("ct_01", "final", name).file.write_text("0ne")
    with pytest.raises(BapsError, match="damaged"):
        history.restore("ct_01", "final", name)
    assert _served(studies) == "two"


def test_missing_image_is_an_error(studies: Path, tmp_path: Path) -> None:
    (tmp_path / "new").write_text("one")
    with pytest.raises(NotFoundError, match="no image 'ct_09'"):
        LabelHistory(studies).save("ct_09", "final", tmp_path / "new", ".nii.gz", {})
    assert LabelHistory(studies).labels() == []


def test_versions_stay_in_order_if_the_clock_goes_back(studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _save(studies, "one")
    later = studies / "labels-history" / "final" / "ct_01" / first.replace(first[:4], "2999")
    (later.parent / first).rename(later)
    assert _save(studies, "two") > later.name
    assert LabelHistory(studies).versions("ct_01", "final")[-1].file.read_text() == "two"


def test_lost_list_is_rebuilt_from_the_versions(studies: Path) -> None:
    name = _save(studies, "one")
    _studies(studies)  # As MONAI Label rebuilds it from the files.
    _write_by_hand(studies, "one")
    LabelHistory(studies).repair()
    assert (_listed(studies)["info"]["author"], _listed(studies)["info"]["version"]) == ("anna", name)
    _studies(studies)
    _write_by_hand(studies, "another one, by hand")
    LabelHistory(studies).repair()
    assert _listed(studies)["info"] == {}


def test_label_removed_by_hand_stays_removed(studies: Path) -> None:
    _save(studies, "one")
    (studies / "labels" / "final" / "ct_01.nii.gz").unlink()
    _studies(studies)
    LabelHistory(studies).repair()
    assert _listed(studies) == {}
    assert not list((studies / "labels" / "final").iterdir())


@pytest.mark.slow
def test_kill_at_any_time_leaves_the_old_or_the_new_label(studies: Path) -> None:
    """Kill a real process that saves repeatedly thirty times, each at another time."""
    moments, unfinished = np.random.default_rng(3), 0
    for number in range(30):
        saver = _start(studies, 1000, f"user{number}")
        try:
            assert saver.stdout is not None
            assert saver.stdout.readline() == "ready\n"
            reported = -1
            for _ in range(1 + moments.integers(3)):
                reported = int(saver.stdout.readline())
            time.sleep(moments.uniform(0, 0.02))  # Within the next save or the one after it.
        finally:
            os.kill(saver.pid, signal.SIGKILL)
            rest = saver.communicate()[0]
        reported = max([reported, *map(int, rest.split())])
        unfinished += bool(list(studies.rglob("*.saving")) or list(studies.rglob(".partial-*")))
        assert _check_consistent(studies) in (reported, reported + 1)  # Labels that were reported as saved are saved.
    assert unfinished >= 5  # Some kills interrupted a save.
    assert LabelHistory(studies).restore("ct_01", "final", LabelHistory(studies).versions("ct_01", "final")[0].name)


KILLED_AT = """
import os, shutil, signal, sys, tempfile
from pathlib import Path
from baps.annotations.history import LabelHistory
studies, left = Path(sys.argv[1]), int(sys.argv[2])
def dying(call):
    def wrapped(*given, **named):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*given, **named)
    return wrapped
for place, name in ((tempfile, "mkdtemp"), (tempfile, "mkstemp"), (shutil, "copyfile"), (os, "fsync"),
                    (os, "replace"), (Path, "rename"), (Path, "unlink"), (Path, "write_text")):
    setattr(place, name, dying(getattr(place, name)))
LabelHistory(studies).save("ct_01", "final", studies.parent / "new", ".nrrd", {"author": "ben", "number": 2})
"""
"""Saves a label, and is killed before one of the steps that change the disk."""


@pytest.mark.slow
def test_kill_before_each_change_of_the_disk(studies: Path) -> None:
    new = studies.parent / "new"
    new.write_bytes(b"anna 1 " * 20_000)
    LabelHistory(studies).save("ct_01", "final", new, ".nii.gz", {"author": "anna", "number": 1})
    results, step = [], 0
    while True:
        step += 1
        new.write_bytes(b"ben 2 " * 20_000)
        process = subprocess.run([sys.executable, "-c", KILLED_AT, str(studies), str(step)], check=False)
        results.append(_check_consistent(studies))
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        if (
            results[-1] == 2
        ):  # Start again from the same state; the versions distinguish the old label from the new one.
            history = LabelHistory(studies)
            history.restore("ct_01", "final", history.versions("ct_01", "final")[0].name)
    assert step > 15
    assert results == sorted(results)
    assert set(results) == {1, 2}


def test_concurrent_saves_lose_no_version(studies: Path) -> None:
    savers = [_start(studies, 10, name) for name in ("anna", "ben", "carl")]

    def save() -> None:
        for number in range(5):
            file = studies.parent / f"thread-{threading.get_ident()}"
            file.write_text(str(number))
            history.save("ct_02", "final", file, ".nii.gz", {})

    history = LabelHistory(studies)
    threads = [threading.Thread(target=save) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [saver.wait(60) for saver in savers] == [0, 0, 0]
    _check_consistent(studies)
    saved = [(v.info["author"], v.info["number"]) for v in history.versions("ct_01", "final")]
    assert sorted(saved) == sorted((name, n) for name in ("anna", "ben", "carl") for n in range(10))
    assert len(history.versions("ct_02", "final")) == 15


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of one megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if not mount or not umount:
        pytest.skip("there is no program mount")
    command = [mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        pytest.skip(f"no disk can be mounted: {process.stderr.strip()}")
    yield folder
    subprocess.run([umount, str(folder)], check=True)


def test_full_disk_leaves_the_old_label(small_disk: Path, tmp_path: Path) -> None:
    studies, filler, new = _studies(small_disk / "studies"), small_disk / "filler", tmp_path / "new"
    new.write_bytes(b"anna 1 " * 20_000)
    history = LabelHistory(studies)
    history.save("ct_01", "final", new, ".nii.gz", {"author": "anna", "number": 1})
    new.write_bytes(b"ben 2 " * 20_000)
    refused = 0
    for room in range(4_096, 400_000, 16_384):
        used = os.statvfs(small_disk)
        filler.write_bytes(b"0" * (used.f_bavail * used.f_bsize - room))
        try:
            history.save("ct_01", "final", new, ".nii.gz", {"author": "ben", "number": 2})
        except OSError:
            refused += 1
            assert not list(studies.rglob(".partial-*"))
            filler.unlink()
            assert _check_consistent(studies) == 1
        else:
            break
    filler.unlink()
    assert refused > 10
    assert _check_consistent(studies) == 2


def test_a_version_is_restored_only_if_the_newest_is_the_one_that_was_shown(studies: Path) -> None:
    first, second = _save(studies, "one"), _save(studies, "two")
    history = LabelHistory(studies)
    with pytest.raises(OutdatedError):
        history.restore("ct_01", "final", first, by="theo", shown=first)
    assert history.version_names("ct_01", "final") == (first, second)
    history.restore("ct_01", "final", first, by="theo", shown=second)
    assert _served(studies) == "one"
    newest = history.versions("ct_01", "final")[-1]
    assert (newest.info["restored"], newest.info["restored_by"]) == (first, "theo")


def test_an_organ_is_confirmed_only_if_the_newest_version_is_the_one_that_was_shown(studies: Path) -> None:
    first = _save(studies, "one")
    with pytest.raises(OutdatedError):
        LabelHistory(studies).confirm("ct_01", "final", ["spleen"], "theo", shown="")
    with pytest.raises(BapsError, match="not disputed"):
        LabelHistory(studies).confirm("ct_01", "final", ["spleen"], "theo", shown=first)
