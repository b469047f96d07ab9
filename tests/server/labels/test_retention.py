"""Old files are removed, and no others."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from baps.annotations.history import LabelHistory
from baps.server.datastores.folder import StudiesDatastore
from baps.server.labels.retention import Retention
from baps.site.audit import AuditFile
from baps.site.settings import Settings
from tests.support.client import threaded_site
from tests.support.sites import SAMPLES

DAY = 86_400


@pytest.fixture
def studies(tmp_path: Path) -> StudiesDatastore:
    """An image with three versions of its label, and converted series."""
    folder = tmp_path / "studies"
    folder.mkdir()
    (folder / "ct_01.nii.gz").write_bytes((SAMPLES / "images" / "ct_01.nii.gz").read_bytes())
    store = StudiesDatastore(str(folder), False, False)
    for words in ("one", "two", "three"):
        (tmp_path / "new.nii.gz").write_text(words)
        store.save_label("ct_01", str(tmp_path / "new.nii.gz"), "final", {})
    (folder / ".converted").mkdir(exist_ok=True)
    for name, age in (("old", 40), ("new", 1)):
        _aged(folder / ".converted" / f"{name}.nii.gz", age)
    return store


def _aged(file: Path, days: float) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("x")
    os.utime(file, (time.time() - days * DAY,) * 2)
    return file


def _retention(store: StudiesDatastore, folder: Path, **settings: int) -> Retention:
    audit = AuditFile(folder / "audit.jsonl")
    audit.check()
    return Retention(store, Settings(adapters=folder / "adapters", **settings), audit)


def test_nothing_is_removed_without_a_setting(studies: StudiesDatastore, tmp_path: Path) -> None:
    retention = _retention(studies, tmp_path)
    retention.prune_labels()
    retention.remove_unused()
    assert len(studies.history.versions("ct_01", "final")) == 3
    assert len(list((tmp_path / "studies" / ".converted").glob("*.nii.gz"))) == 2


def test_removed_versions_are_audited(studies: StudiesDatastore, tmp_path: Path) -> None:
    _retention(studies, tmp_path, label_versions_keep=1).prune_labels()
    assert len(studies.history.versions("ct_01", "final")) == 1
    (line,) = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert (line["by"], line["what"], len(line["versions"])) == ("server", "prune a label", 2)
    assert Path(studies.get_label_uri("ct_01", "final")).read_text() == "three"


def test_unused_series_are_removed(studies: StudiesDatastore, tmp_path: Path) -> None:
    _retention(studies, tmp_path, cache_days=30).remove_unused()
    assert [file.name for file in (tmp_path / "studies" / ".converted").glob("*.nii.gz")] == ["new.nii.gz"]
    assert (tmp_path / "studies" / "ct_01.nii.gz").exists()


def test_incomplete_files_are_removed_after_a_day(studies: StudiesDatastore, tmp_path: Path) -> None:
    old = _aged(tmp_path / "adapters" / "label-spleen" / ".partial-1", 2)
    folder = tmp_path / "adapters" / ".partial-2"
    _aged(folder / "weights", 2)
    os.utime(folder, (time.time() - 2 * DAY,) * 2)
    new = _aged(tmp_path / "adapters" / ".partial-3", 0.5)
    published = _aged(tmp_path / "adapters" / "published", 100)
    link = tmp_path / "adapters" / ".partial-4"
    link.symlink_to(published)
    _retention(studies, tmp_path).remove_incomplete(time.time())
    assert [file.exists() for file in (old, folder, new, published)] == [False, False, True, True]


def test_the_server_removes_old_files_when_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    studies, sessions = tmp_path / "studies", tmp_path / "sessions"
    monkeypatch.setenv("MONAI_LABEL_SESSION_PATH", str(sessions))
    (sessions / "expired").mkdir(parents=True)
    (sessions / "expired" / "meta.info").write_text(json.dumps({"last_access_ts": 1, "expiry": 60, "image": "x"}))

    def add() -> None:
        store = StudiesDatastore(str(studies), False, False)
        for _ in range(3):
            store.save_label("ct_01", str(SAMPLES / "labels" / "ct_01.nii.gz"), "final", {})

    with threaded_site(tmp_path, cases=1, extra=add, settings={"label_versions_keep": "1"}) as running:
        end = time.monotonic() + 30
        while len(LabelHistory(studies).versions("ct_01", "final")) > 1 and time.monotonic() < end:
            time.sleep(0.2)
        history = LabelHistory(studies)
        assert (len(history.versions("ct_01", "final")), len(history.removed("ct_01", "final"))) == (1, 2)
        assert not list(sessions.iterdir())
        assert running.client.info()["datastore"]["completed"] == 1
