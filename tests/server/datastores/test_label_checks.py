"""Labels count if they can be read on their images; each is read once."""

from __future__ import annotations

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import baps.server.datastores.folder
from baps.imaging.label_map import LabelMap
from baps.imaging.volume import Volume
from baps.io import read_volume, write_nifti
from baps.server.datastores import label_checks
from baps.server.datastores.folder import StudiesDatastore
from baps.server.datastores.label_checks import LabelChecks
from baps.server.labels.save_labels import save_label
from baps.server.training_cases import labelled_cases
from tests.support.sites import SAMPLES

SITE = {"liver": 1, "spleen": 2}
CASES = ("ct_01", "ct_02", "ct_03")


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    for case in CASES:
        shutil.copy(SAMPLES / "images" / f"{case}.nii.gz", tmp_path)
    (tmp_path / "labels" / "final").mkdir(parents=True)
    return tmp_path


def _open(studies: Path, read_only: bool = False) -> StudiesDatastore:
    return StudiesDatastore(str(studies), auto_reload=False, read_only=read_only)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the images whose labels are read."""
    names: list[str] = []
    reader = baps.server.datastores.folder.read_label_map

    def noting(path: Path, *arguments: object) -> object:
        names.append(path.name)
        return reader(path, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(baps.server.datastores.folder, "read_label_map", noting)
    return names


def _copy_label(studies: Path, case: str, voxels: Volume | None = None) -> Path:
    path = studies / "labels" / "final" / f"{case}.nii.gz"
    if voxels is None:
        shutil.copy(SAMPLES / "labels" / path.name, path)
    else:
        write_nifti(path, voxels)
    return path


def test_an_unreadable_label_does_not_count_and_has_a_reason(studies: Path) -> None:
    image = read_volume(studies / "ct_02.nii.gz")
    _copy_label(studies, "ct_01")
    _copy_label(studies, "ct_02", Volume(np.ones((5, 5, 5), np.uint8), image.affine @ np.diag([2, 2, 2, 1])))
    _copy_label(studies, "ct_03", Volume(np.zeros(image.shape, np.uint8), image.affine))
    datastore = _open(studies)
    assert datastore.get_labeled_images() == ["ct_01"]
    assert sorted(datastore.get_unlabeled_images()) == ["ct_02", "ct_03"]
    assert datastore.status()["completed"] == 1
    cases, skipped = labelled_cases(datastore, SITE, {})
    assert [case.image.name for case in cases["liver"]] == ["ct_01.nii.gz"]
    assert skipped.keys() == {"ct_02", "ct_03"}
    assert "does not have the geometry of its image" in skipped["ct_02"]
    assert skipped["ct_03"] == "The label of ct_03 is empty: no voxel is marked."


def test_a_label_is_read_once_per_change_of_it_or_its_image(studies: Path, read: list[str]) -> None:
    file = _copy_label(studies, "ct_01")
    datastore = _open(studies)
    for _ in range(5):
        assert datastore.get_labeled_images() == ["ct_01"]
        assert datastore.status()["completed"] == 1
    assert read == ["ct_01.nii.gz"]
    assert _open(studies).get_labeled_images() == ["ct_01"]  # After a restart.
    assert read == ["ct_01.nii.gz"]
    file.write_bytes(b"no label")
    assert datastore.get_labeled_images() == []
    assert len(read) == 2
    _copy_label(studies, "ct_01")
    assert datastore.get_labeled_images() == ["ct_01"]
    image = read_volume(studies / "ct_01.nii.gz")
    write_nifti(studies / "ct_01.nii.gz", Volume(image.voxels[:, :, :9], image.affine))
    assert datastore.get_labeled_images() == []
    assert len(read) == 4


def test_a_saved_label_is_not_read_again(studies: Path, read: list[str]) -> None:
    datastore = _open(studies)
    save_label(datastore, SITE, "ct_01", SAMPLES / "labels" / "ct_01.nii.gz", "final", {})
    assert datastore.get_labeled_images() == ["ct_01"]
    assert read == []


def test_a_call_reads_some_of_many_labels(studies: Path, read: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are neither labelled nor unlabelled yet; a training waits for all of them."""
    clock = iter(range(1000))
    monkeypatch.setattr(label_checks.time, "monotonic", lambda: float(next(clock)))
    for case in CASES:
        _copy_label(studies, case)
    datastore = _open(studies)
    assert datastore.get_labeled_images() == ["ct_01"]
    assert datastore.get_unlabeled_images() == []
    assert datastore.get_labeled_images() == list(CASES)
    assert len(read) == 3
    again = _open(studies)
    (studies / label_checks.FILE).unlink()
    assert len(labelled_cases(again, SITE, {})[0]["liver"]) == 3


def test_labels_of_a_read_only_folder_are_checked(studies: Path) -> None:
    _copy_label(studies, "ct_01")
    _open(studies)
    datastore = _open(studies, read_only=True)
    assert datastore.get_labeled_images() == ["ct_01"]
    assert not (studies / label_checks.FILE).exists()


@pytest.mark.parametrize("content", ["", "[]", '{"program": "0.0.1", "labels": {}}', '{"labels": 3}'])
def test_results_of_another_version_or_in_a_broken_file_are_ignored(
    studies: Path, read: list[str], content: str
) -> None:
    _copy_label(studies, "ct_01")
    (studies / label_checks.FILE).write_text(content)
    assert _open(studies).get_labeled_images() == ["ct_01"]
    assert read == ["ct_01.nii.gz"]
    assert json.loads((studies / label_checks.FILE).read_text())["labels"].keys() == {"ct_01"}


def test_a_label_that_is_slow_to_read_does_not_delay_others(tmp_path: Path) -> None:
    started, go_on = threading.Event(), threading.Event()

    def read(name: str) -> LabelMap:
        started.set()
        assert go_on.wait(60)
        return LabelMap((np.ones((2, 2, 2), np.uint8),))

    for name in ("known", "slow"):
        (tmp_path / name).write_bytes(b"x")
    checks, files = LabelChecks(tmp_path), {name: (str(tmp_path / name), "") for name in ("known", "slow")}
    checks.add("known", files["known"], {})
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(checks.check, files, read)
        try:
            assert started.wait(60)
            assert list(checks.check(files, read)) == ["known"]
            checks.add("known", files["known"], {})
        finally:
            go_on.set()
        assert list(slow.result(60)) == ["known", "slow"]
    assert list(checks.check(files, read)) == ["known", "slow"]
