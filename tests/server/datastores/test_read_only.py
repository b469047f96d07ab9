"""Studies on a read-only mount, and on a full disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
import requests
import SimpleITK
from monailabel.client import MONAILabelClient
from monailabel.client.client import MONAILabelClientException
from monailabel.config import settings

from baps.demo.server import running_server
from baps.errors import StorageError
from baps.server.datastores.folder import StudiesDatastore
from baps.server.datastores.read_only import ReadOnlyStudies
from baps.server.training_cases import labelled_cases
from tests.support.marks import starts
from tests.support.paths import ROOT
from tests.support.sites import SAMPLES, sample_labels, spleen_click

SETTINGS = {"labels": "spleen=2,liver=1"}


@contextmanager
def mounted(point: Path, *options: str) -> Iterator[None]:
    """Mount something for a test, or skip the test if mounting is not permitted."""
    done = subprocess.run(["mount", *options, str(point)], capture_output=True, text=True)  # noqa: S607
    if done.returncode:
        pytest.skip(f"Nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(point)], check=True)  # noqa: S607


@pytest.fixture(scope="module")
@starts("server")
def scanner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path, MONAILabelClient]]:
    """A read-only mount with two volumes, one of them labelled, and a series: its source, a folder, and a client."""
    folder = tmp_path_factory.mktemp("scanner")
    source, point = folder / "source", folder / "mount"
    (source / "labels" / "final").mkdir(parents=True)
    point.mkdir()
    for case in ("ct_01", "ct_02"):
        shutil.copy(SAMPLES / "images" / f"{case}.nii.gz", source)
    shutil.copy(SAMPLES / "labels" / "ct_02.nii.gz", source / "labels" / "final")
    shutil.copytree(ROOT / "sample-data" / "dicom" / "ct_01", source / "series")
    settings = {**SETTINGS, "adapters": str(folder / "adapters")}
    with (
        mounted(point, "--bind", "-o", "ro", str(source)),
        pytest.MonkeyPatch.context() as patched,
    ):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(point)], check=True)  # noqa: S607 (older mount: not at once)
        patched.setenv("MONAI_LABEL_DATASTORE_CACHE_PATH", str(folder / "cache"))
        with running_server(point, folder / "server.log", settings) as (address, _):
            yield source, folder, MONAILabelClient(address, tmpdir=str(folder))


def contents(folder: Path) -> dict[str, str]:
    """Return the hash of every file, by its path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.slow
def test_everything_except_saving_works(scanner: tuple[Path, Path, MONAILabelClient]) -> None:
    source, folder, client = scanner
    before = contents(source)
    assert client.info()["labels"] == ["spleen", "liver"]
    listed = client.datastore()
    assert set(listed["objects"]) == {"ct_01", "ct_02", "series"}
    assert set(listed["objects"]["ct_02"]["labels"]) == {"final"}
    assert {client.next_sample("random", {})["id"] for _ in range(8)} <= {"ct_01", "series"}
    assert client.next_sample("first", {})["id"] == "ct_01"
    point = spleen_click("ct_01")
    file, _ = client.infer("baps", "ct_01", {"label": "spleen", "foreground": [point]})
    assert nrrd.read(file)[0][tuple(point)] == 1
    label = nibabel.load(client.download_label("ct_02", "final"))
    assert np.array_equal(np.asarray(label.dataobj), sample_labels("ct_02"))
    reply = requests.get(f"{client.get_server_url()}/datastore/image?image=series", timeout=60)
    converted = folder / "series.nii.gz"
    converted.write_bytes(reply.content)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(source / "series")))
    expected, served = reader.Execute(), SimpleITK.ReadImage(str(converted))
    assert served.GetSize() == expected.GetSize()
    middle = [size // 2 for size in served.GetSize()]
    assert (
        served[middle] == expected[expected.TransformPhysicalPointToIndex(served.TransformIndexToPhysicalPoint(middle))]
    )
    file, _ = client.infer("zero_shot", "series", {"label": "spleen", "foreground": [middle]})
    assert Path(file).stat().st_size
    assert contents(source) == before


@pytest.mark.slow
def test_saving_is_refused(scanner: tuple[Path, Path, MONAILabelClient]) -> None:
    source, folder, client = scanner
    before, address = contents(source), client.get_server_url()
    sentence = "The folder of the studies cannot be written to, so the label was not saved."
    with pytest.raises(MONAILabelClientException, match=f"507.*{sentence}"):
        client.save_label("ct_01", str(SAMPLES / "labels" / "ct_01.nii.gz"))
    with pytest.raises(MONAILabelClientException, match=f"507.*{sentence}"):
        client.infer("baps", "ct_01", {"label": "spleen", "foreground": [spleen_click("ct_01")], "save_as": "spleen"})
    with (SAMPLES / "images" / "ct_03.nii.gz").open("rb") as file:
        reply = requests.put(f"{address}/datastore/image?image=new", files={"file": ("a.nii.gz", file)}, timeout=60)
    assert (reply.status_code, "so the image was not saved" in reply.json()["detail"]) == (507, True)
    assert str(folder) not in reply.text
    assert contents(source) == before
    assert "new" not in client.datastore()["objects"]
    assert "final" not in client.datastore()["objects"]["ct_01"]["labels"]


@pytest.mark.slow
def test_new_files_are_noticed(scanner: tuple[Path, Path, MONAILabelClient]) -> None:
    source, _, client = scanner
    shutil.copy(SAMPLES / "images" / "ct_04.nii.gz", source.parent)
    os.utime(source.parent / "ct_04.nii.gz", (0, 0))
    (source.parent / "ct_04.nii.gz").rename(source / "ct_04.nii.gz")
    assert "ct_04" in client.datastore()["objects"]
    (source / "ct_04.nii.gz").unlink()


@pytest.mark.slow
def test_nothing_is_stored_partially_on_a_full_disk(tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    studies.mkdir()
    image, label = SAMPLES / "images" / "ct_01.nii.gz", SAMPLES / "labels" / "ct_01.nii.gz"
    room = image.stat().st_size + (200 << 10)
    with mounted(studies, "-t", "tmpfs", "-o", f"size={room}", "tmpfs"):
        shutil.copy(image, studies)
        with running_server(studies, tmp_path / "server.log", {**SETTINGS, "adapters": str(tmp_path / "a")}) as server:
            client = MONAILabelClient(server[0], tmpdir=str(tmp_path))
            listed = client.datastore()
            with image.open("rb") as file:
                files = {"file": ("a.nii.gz", file)}
                reply = requests.put(f"{server[0]}/datastore/image?image=new", files=files, timeout=60)
            assert (reply.status_code, "nothing was stored" in reply.json()["detail"]) == (507, True)
            assert [path.name for path in studies.glob("*.nii.gz")] == ["ct_01.nii.gz"]
            (studies / "filling").write_bytes(bytes(shutil.disk_usage(studies).free))
            with pytest.raises(MONAILabelClientException, match="507.*The label could not be saved"):
                client.save_label("ct_01", str(label))
            assert client.datastore()["objects"].keys() == listed["objects"].keys()
            assert not list(studies.rglob("label*.nii.gz"))
            file, _ = client.infer("baps", "ct_01", {"label": "spleen", "foreground": [spleen_click("ct_01")]})
            assert Path(file).stat().st_size
            (studies / "filling").unlink()
            assert client.save_label("ct_01", str(label))["label"] == "ct_01"


def test_information_about_labels_survives_restarts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index of a folder that was writable before is kept, and later labels are added."""
    monkeypatch.setattr(settings, "MONAI_LABEL_DATASTORE_CACHE_PATH", str(tmp_path / "cache"))
    studies = tmp_path / "studies"
    studies.mkdir()
    for case in ("ct_01", "ct_02"):
        shutil.copy(SAMPLES / "images" / f"{case}.nii.gz", studies)
    label = SAMPLES / "labels" / "ct_01.nii.gz"
    StudiesDatastore(str(studies), False, False).save_label("ct_01", str(label), "final", {"author": "anna"})
    before = contents(studies)
    for _ in range(2):
        served = ReadOnlyStudies(str(studies), False)
        assert set(served.list_images()) == {"ct_01", "ct_02"}
        assert served.get_label_info("ct_01", "final")["author"] == "anna"
        assert Path(served.get_label_uri("ct_01", "final")).read_bytes() == label.read_bytes()
        assert Path(served.get_image_uri("ct_02")) == studies / "ct_02.nii.gz"
        served.update_image_info("ct_02", {"strategy": {"random": {"ts": 1}}})
        with pytest.raises(StorageError, match="so the label was not saved"):
            served.save_label("ct_02", str(label), "final", {})
        cases, skipped = labelled_cases(served, {"spleen": 2}, {})
        assert [case.labels for case in cases["spleen"]] == [studies / "labels" / "final" / "ct_01.nii.gz"]
        assert not skipped
    assert contents(studies) == before
    (studies / "labels" / "draft").mkdir()
    shutil.copy(label, studies / "labels" / "draft")
    assert ReadOnlyStudies(str(studies), False).get_labels_by_image_id("ct_01").keys() == {"final", "draft"}


def test_a_temporary_folder_replaces_an_unusable_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(settings, "MONAI_LABEL_DATASTORE_CACHE_PATH", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "studies").mkdir()
    shutil.copy(SAMPLES / "images" / "ct_01.nii.gz", tmp_path / "studies")
    assert list(ReadOnlyStudies(str(tmp_path / "studies"), False).list_images()) == ["ct_01"]
    assert list(tmp_path.glob("baps-studies-*/datastore_v2.json"))


@pytest.mark.slow
def test_a_full_disk_for_temporary_files_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads and responses use temporary files."""
    studies, temporary = tmp_path / "studies", tmp_path / "tmp"
    studies.mkdir()
    temporary.mkdir()
    shutil.copy(SAMPLES / "images" / "ct_01.nii.gz", studies)
    big = tmp_path / "big.nii.gz"
    big.write_bytes(bytes(4 << 20))  # Larger than the limit for files in memory.
    with mounted(temporary, "-t", "tmpfs", "-o", "size=1m", "tmpfs"):
        monkeypatch.setenv("TMPDIR", str(temporary))
        monkeypatch.setenv("MONAI_LABEL_SESSION_PATH", str(temporary / "sessions"))
        with running_server(studies, tmp_path / "server.log", {**SETTINGS, "adapters": str(tmp_path / "a")}) as server:
            (temporary / "filling").write_bytes(bytes(shutil.disk_usage(temporary).free))
            params = json.dumps({"foreground": [spleen_click("ct_01")], "result_compress": False})
            for method, path, options in (
                ("PUT", "/datastore/image?image=new", {"files": {"file": ("a.nii.gz", big.read_bytes())}}),
                ("PUT", "/datastore/label?image=ct_01", {"files": {"label": ("a.nii.gz", big.read_bytes())}}),
                ("PUT", "/session/", {"files": {"files": ("a.nii.gz", big.read_bytes())}}),
                ("POST", "/infer/baps?image=ct_01&output=image", {"data": {"params": params}}),
            ):
                reply = requests.request(method, server[0] + path, timeout=60, **options)
                assert reply.status_code == 507, (path, reply.status_code, reply.text)
                assert "room" in reply.json()["detail"]
            assert requests.get(f"{server[0]}/info/", timeout=60).ok
            (temporary / "filling").unlink()
            reply = requests.post(f"{server[0]}/infer/baps?image=ct_01", data={"params": params}, timeout=60)
            assert reply.ok
    assert [path.name for path in studies.glob("*.nii.gz")] == ["ct_01.nii.gz"]
