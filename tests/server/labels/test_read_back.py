"""A save fails if the stored label differs from the one that was sent, and the earlier label is unchanged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import baps.server.labels.save_labels
from baps.annotations import history
from baps.annotations.history import LabelHistory
from baps.errors import BapsError
from baps.imaging.label_map import LabelMap
from baps.imaging.volume import Volume
from baps.io import read_volume, write_nifti
from baps.server.datastores.folder import StudiesDatastore
from baps.server.labels.read_back import check_same_segments
from baps.server.labels.save_labels import save_label, save_mask
from baps.server.training_cases import labelled_cases
from tests.support.sites import SAMPLES

SITE = {"liver": 1, "spleen": 2}


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """Studies with a label by anna."""
    shutil.copy(SAMPLES / "images" / "ct_01.nii.gz", tmp_path)
    datastore = StudiesDatastore(str(tmp_path), auto_reload=False, read_only=False)
    save_label(datastore, SITE, "ct_01", _label(tmp_path, 3), "final", {"author": "anna"})
    return tmp_path


def _label(folder: Path, k: int) -> Path:
    image = read_volume(folder / "ct_01.nii.gz")
    voxels = np.zeros(image.shape, np.uint8)
    voxels[10:15, 20:24, k], voxels[30:35, 20:24, k] = 1, 2
    path = folder.parent / f"{folder.name}-{k}.nii.gz"
    write_nifti(path, Volume(voxels, image.affine))
    return path


def _cut_off(source: Path, copy: Path) -> None:
    copy.write_bytes(source.read_bytes()[:-50])


def _one_voxel_less(path: Path, labels: LabelMap, image: Volume) -> Path:
    first = tuple(np.argwhere(labels.layers[0] == 1)[0])
    labels.layers[0][first] = 0
    written = _write_label_map(path, labels, image)
    labels.layers[0][first] = 1
    return written


_write_label_map = baps.server.labels.save_labels.write_label_map


def _save(studies: Path) -> None:
    datastore = StudiesDatastore(str(studies), auto_reload=False, read_only=False)
    save_label(datastore, SITE, "ct_01", _label(studies, 5), "final", {"author": "anna"})


def _merge(studies: Path) -> None:
    """Add an organ of another annotator, so that a merged file is written."""
    datastore = StudiesDatastore(str(studies), auto_reload=False, read_only=False)
    image = read_volume(studies / "ct_01.nii.gz")
    voxels = np.zeros(image.shape, np.uint8)
    voxels[50:55, 20:24, 8] = 1
    write_nifti(studies.parent / "ben.nii.gz", Volume(voxels, image.affine))
    info = {"author": "ben", "label_info": [{"name": "liver", "idx": 1}]}
    save_label(datastore, SITE, "ct_01", studies.parent / "ben.nii.gz", "final", info)


def _save_mask(studies: Path) -> None:
    datastore = StudiesDatastore(str(studies), auto_reload=False, read_only=False)
    image = read_volume(studies / "ct_01.nii.gz")
    mask = np.zeros(image.shape, bool)
    mask[10:13, 20:24, 9] = True
    save_mask(datastore, SITE, "ct_01", image, "liver", mask, [9], "baps", "anna")


def _restore(studies: Path) -> None:
    history = LabelHistory(studies)
    name = history.versions("ct_01", "final")[0].name
    history.restore("ct_01", "final", name)


ROUTES = [_save, _merge, _save_mask, _restore]


def _copies_badly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history.shutil, "copyfile", _cut_off)


def _writes_badly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baps.server.labels.save_labels, "write_label_map", _one_voxel_less)


@pytest.mark.parametrize(
    ("route", "fault"),
    [*((route, _copies_badly) for route in ROUTES), (_merge, _writes_badly), (_save_mask, _writes_badly)],
)
def test_a_save_that_stores_another_label_fails_and_changes_nothing(
    studies: Path,
    monkeypatch: pytest.MonkeyPatch,
    route: Callable[[Path], None],
    fault: Callable[[pytest.MonkeyPatch], None],
) -> None:
    served = studies / "labels" / "final" / "ct_01.nii.gz"
    before, listed = served.read_bytes(), (studies / "datastore_v2.json").read_text()
    versions = [version.name for version in LabelHistory(studies).versions("ct_01", "final")]
    with monkeypatch.context() as patched:
        fault(patched)
        with pytest.raises(BapsError, match=r"not saved.*earlier label, if there is one, is unchanged"):
            route(studies)
    assert served.read_bytes() == before
    assert (studies / "datastore_v2.json").read_text() == listed
    assert [version.name for version in LabelHistory(studies).versions("ct_01", "final")] == versions
    assert not list((studies / "labels-history" / "final" / "ct_01").glob(".partial*"))
    route(studies)  # It succeeds without the fault.


def test_the_information_about_a_label_is_read_back(studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of two values are swapped."""
    written = LabelHistory._write

    def mixed_up(self: LabelHistory, folder: Path, file: Path, suffix: str, info: dict[str, Any]) -> Path:
        names = [{**segment, "idx": 3 - segment["idx"]} for segment in info["label_info"]]
        return written(self, folder, file, suffix, {**info, "label_info": names})

    monkeypatch.setattr(LabelHistory, "_write", mixed_up)
    with pytest.raises(BapsError, match=r"read back, liver is not what was sent \(0 of its 20 voxels are there"):
        _save(studies)


def test_differing_segments_are_reported() -> None:
    mask = np.zeros((3, 3, 3), bool)
    mask[0] = True
    check_same_segments(["a"], lambda _: mask, lambda _: mask.copy(), "")
    for stored in (None, mask[:2], ~mask, mask & False):
        with pytest.raises(BapsError, match=r"read back, a is not what was sent .* The PACS has nothing of it\."):
            check_same_segments(["a"], lambda _: mask, lambda _, stored=stored: stored, "The PACS has nothing of it.")


def test_a_version_that_no_longer_fits_its_image_is_not_restored(studies: Path) -> None:
    history = LabelHistory(studies)
    (version,) = history.versions("ct_01", "final")
    image = read_volume(studies / "ct_01.nii.gz")
    _save(studies)
    served = (studies / "labels" / "final" / "ct_01.nii.gz").read_bytes()
    write_nifti(studies / "ct_01.nii.gz", Volume(image.voxels[:, :, :9], image.affine))
    with pytest.raises(BapsError, match="does not have the geometry of its image.*the served label is unchanged"):
        history.restore("ct_01", "final", version.name, lambda one: history.check_fits("ct_01", one))
    assert (studies / "labels" / "final" / "ct_01.nii.gz").read_bytes() == served
    assert labelled_cases(StudiesDatastore(str(studies), False, False), SITE, {})[1].keys() == {"ct_01"}
