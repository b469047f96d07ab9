"""Files that are added to or removed from a folder while it is served."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from baps.server.datastores import file_watch
from baps.server.datastores.folder import StudiesDatastore
from tests.support.paths import ROOT
from tests.support.sites import SAMPLES

SERIES = ROOT / "sample-data" / "dicom" / "ct_01"
IMAGE = SAMPLES / "images" / "ct_01.nii.gz"


@pytest.fixture(autouse=True)
def _new_files_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_watch, "SETTLE_SECONDS", 0.0)


@pytest.fixture
def served(tmp_path: Path) -> StudiesDatastore:
    (tmp_path / "studies").mkdir()
    shutil.copy(IMAGE, tmp_path / "studies" / "first.nii.gz")
    return StudiesDatastore(str(tmp_path / "studies"), auto_reload=True, read_only=False)


def folder(served: StudiesDatastore) -> Path:
    return Path(served._datastore_path)


def test_moved_files_are_noticed_at_the_next_request(served: StudiesDatastore, tmp_path: Path) -> None:
    assert served.list_images() == ["first"]
    shutil.copy(IMAGE, tmp_path / "beside.nii.gz")
    shutil.copytree(SERIES, tmp_path / "series")
    (tmp_path / "beside.nii.gz").rename(folder(served) / "second.nii.gz")
    assert served.list_images() == ["first", "second"]
    (tmp_path / "series").rename(folder(served) / "series")
    assert set(served.json()["objects"]) == {"first", "second", "series"}
    (folder(served) / "second.nii.gz").rename(folder(served) / "renamed.nii.gz")
    assert set(served.list_images()) == {"first", "renamed", "series"}
    (folder(served) / "series").rename(tmp_path / "series")
    (folder(served) / "first.nii.gz").unlink()
    assert served.list_images() == ["renamed"]
    assert served.status()["total"] == 1


def test_a_moved_label_is_noticed(served: StudiesDatastore, tmp_path: Path) -> None:
    assert served.get_labeled_images() == []
    shutil.copy(SAMPLES / "labels" / "ct_01.nii.gz", tmp_path / "label.nii.gz")
    (tmp_path / "label.nii.gz").rename(folder(served) / "labels" / "final" / "first.nii.gz")
    assert served.get_labeled_images() == ["first"]
    assert served.get_unlabeled_images() == []


def test_incomplete_files_are_not_listed(served: StudiesDatastore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_watch, "SETTLE_SECONDS", 0.4)
    series, slices = folder(served) / "series", sorted(SERIES.iterdir())
    series.mkdir()
    assert served.list_images() == ["first"]
    for piece in slices:
        shutil.copyfile(piece, series / piece.name)
        half = folder(served) / "half.nii.gz"
        half.write_bytes(IMAGE.read_bytes()[: 1000 + len(list(series.iterdir()))])
        assert served.list_images() == ["first"]
        time.sleep(0.05)
    half.write_bytes(IMAGE.read_bytes())
    until = time.monotonic() + 20
    while len(served.list_images()) < 3 and time.monotonic() < until:
        time.sleep(0.1)
    assert set(served.list_images()) == {"first", "series", "half"}
    assert Path(served.get_image_uri("series")).is_file()


def test_a_file_from_the_future_is_listed(served: StudiesDatastore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_watch, "SETTLE_SECONDS", 0.2)
    shutil.copy(IMAGE, folder(served) / "ahead.nii.gz")
    os.utime(folder(served) / "ahead.nii.gz", (time.time() + 3600,) * 2)
    assert served.list_images() == ["first"]
    until = time.monotonic() + 20
    while len(served.list_images()) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    assert served.list_images() == ["first", "ahead"]


def test_unchanged_folders_are_not_read_again(served: StudiesDatastore, monkeypatch: pytest.MonkeyPatch) -> None:
    old = time.time() - 3600
    served.list_images()
    for path in (folder(served), *folder(served).rglob("*")):
        os.utime(path, (old, old))
    served.list_images()
    reads = []
    monkeypatch.setattr(served._watch, "_read", lambda: reads.append(1))
    for _ in range(3):
        assert served.list_images() == ["first"]
    assert reads == []


def test_a_new_images_folder_is_served(tmp_path: Path) -> None:
    datastore = StudiesDatastore(str(tmp_path), auto_reload=True, read_only=False)
    assert datastore.list_images() == []
    (tmp_path / "images").mkdir()
    shutil.copy(IMAGE, tmp_path / "images" / "first.nii.gz")
    assert datastore.list_images() == ["first"]


def test_no_inotify_watch_is_used(served: StudiesDatastore) -> None:
    served.list_images()
    assert not hasattr(served, "_observer")
