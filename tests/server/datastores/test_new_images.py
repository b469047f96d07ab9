"""New images of a folder of studies: their names, and concurrent uploads."""

from __future__ import annotations

import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from baps.errors import InputError
from baps.imaging.volume import Volume
from baps.io import read_volume, write_nifti
from baps.server.datastores.folder import StudiesDatastore
from baps.server.datastores.new_images import check_new_name, stage_new_file


def _write(file: Path, value: int) -> Path:
    write_nifti(file, Volume(np.full((4, 4, 4), value, np.int16), np.eye(4)))
    return file


def _add(studies: str, file: str, name: str) -> bool:
    try:
        StudiesDatastore(studies, False, False).add_image(name, file, {})
    except InputError:
        return False
    return True


@pytest.mark.parametrize("pool", [ThreadPoolExecutor, pytest.param(ProcessPoolExecutor, marks=pytest.mark.slow)])
def test_one_of_concurrent_uploads_with_the_same_name_is_kept(tmp_path: Path, pool: type) -> None:
    """It is complete, and not mixed with that of another process."""
    studies = tmp_path / "studies"
    studies.mkdir()
    files = [str(_write(tmp_path / f"{n}.nii.gz", n)) for n in range(4)]
    options = {"mp_context": multiprocessing.get_context("spawn")} if pool is ProcessPoolExecutor else {}
    with pool(4, **options) as workers:
        added = list(workers.map(_add, [str(studies)] * 4, files, ["a"] * 4))
    assert sum(added) == 1
    stored = read_volume(studies / "a.nii.gz")
    assert (stored.voxels == added.index(True)).all()
    assert [file.name for file in studies.iterdir() if file.is_file() and not file.name.startswith(".")] == [
        "a.nii.gz",
        "datastore_v2.json",
    ]


@pytest.mark.parametrize("name", ["CT", "ct", "ct.seg", ".ct", "ct-volume1", "series", "SERIES", "mr", "caf\u00e9"])
def test_ambiguous_names_are_refused(tmp_path: Path, name: str) -> None:
    _write(tmp_path / "ct.nii.gz", 1)
    _write(tmp_path / "mr-volume2.nii.gz", 1)
    _write(tmp_path / "cafe\u0301.nii.gz", 1)
    (tmp_path / "series").mkdir()
    source = _write(tmp_path.parent / f"{tmp_path.name}.nii.gz", 2)
    datastore = StudiesDatastore(str(tmp_path), False, False)
    with pytest.raises(InputError, match=r"called|already|may be that of a volume"):
        datastore.add_image(name, str(source), {})
    assert (read_volume(tmp_path / "ct.nii.gz").voxels == 1).all()


@pytest.mark.parametrize("name", ["ct2", "c", "mr-volume", "mr-volume3", "ct-volume", "Kopf \u00fc"])
def test_unambiguous_names_are_accepted(name: str) -> None:
    check_new_name(name, ["ct", "mr-volume2"])


def test_a_file_that_is_not_in_the_index_yet_is_not_replaced(tmp_path: Path) -> None:
    datastore = StudiesDatastore(str(tmp_path / "studies"), False, False)
    _write(tmp_path / "studies" / "late.nii.gz", 1)
    source = _write(tmp_path / "x.nii.gz", 2)
    with pytest.raises(InputError, match="already"):
        datastore.add_image("late", str(source), {})
    assert (read_volume(tmp_path / "studies" / "late.nii.gz").voxels == 1).all()


def test_a_file_is_published_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    with stage_new_file(tmp_path, ".txt") as (partial, publish):
        partial.write_text("whole")
        publish(tmp_path / "a.txt")
    with stage_new_file(tmp_path, ".txt") as (partial, publish), pytest.raises(FileExistsError):
        publish(tmp_path / "a.txt")
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "whole"
    shutil.rmtree(tmp_path)
