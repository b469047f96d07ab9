"""Labels of a real server: concurrent saves, drafts, restored versions, and a killed server."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import requests
from monailabel.client import MONAILabelClient
from numpy.typing import NDArray

from baps.annotations.history import LabelHistory
from baps.demo.server import running_server
from baps.imaging.label_map import LabelMap
from baps.imaging.volume import Volume
from baps.io import read_label_map, read_labels, read_volume, write_label_map, write_nifti
from tests.support.client import threaded_site
from tests.support.paths import ROOT
from tests.support.sites import Site, sample_labels, spleen_click

ORGANS = {"spleen": 2, "liver": 1}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server for all tests of this file. Each test uses other images."""
    with threaded_site(tmp_path_factory.mktemp("kept")) as running:
        yield running


def _disc(case: str, value: int, k: int) -> NDArray[np.uint8]:
    voxels = np.zeros_like(sample_labels(case))
    voxels[10 + 10 * value : 15 + 10 * value, 20:24, k] = value
    return voxels


def _write(folder: Path, case: str, voxels: NDArray[np.uint8], name: str) -> Path:
    write_nifti(folder / f"{name}.nii.gz", Volume(voxels, read_volume(folder / "studies" / f"{case}.nii.gz").affine))
    return folder / f"{name}.nii.gz"


def _save(server: Site, case: str, voxels: NDArray[np.uint8], author: str, tag: str = "final") -> dict[str, object]:
    """Save a label as 3D Slicer does: all segments are listed, including empty ones."""
    file = _write(server.studies.parent, case, voxels, f"{case}-{author}-{voxels.max()}")
    info = {"label_info": [{"name": name, "idx": idx} for name, idx in ORGANS.items()], "author": author}
    client = MONAILabelClient(server.address)
    return client.save_label(case, str(file), tag, info)


def _served(server: Site, case: str) -> NDArray[np.integer]:
    file = server.studies / "labels" / "final" / f"{case}.nii.gz"
    return read_labels(file, read_volume(server.studies / f"{case}.nii.gz"))


def _baps(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", "from baps.cli import main; main()", "labels", *words],
        capture_output=True, text=True, check=True, cwd=ROOT / "apps" / "baps_app",
    )  # fmt: skip
    return done.stdout


def test_labels_of_two_annotators_are_merged(server: Site) -> None:
    first, second = _disc("ct_01", 1, 3), _disc("ct_01", 2, 3)
    assert _save(server, "ct_01", first, "anna")["notes"] == []
    assert _save(server, "ct_01", second, "ben")["notes"] == ["liver by anna was kept."]
    np.testing.assert_array_equal(_served(server, "ct_01"), first + second)
    info = requests.get(f"{server.address}/datastore/label/info?label=ct_01&tag=final", timeout=30).json()
    assert (info["authors"], info["annotated_slices"]) == (
        {"liver": "anna", "spleen": "ben"},
        {"liver": [3], "spleen": [3]},
    )


def test_concurrent_clients_lose_nothing(server: Site) -> None:
    """Eight users save labels of two organs, and masks of a model are saved, all on one image."""
    saves = [(organ, k) for k in range(4) for organ in ORGANS]

    def save(one: tuple[str, int]) -> object:
        organ, k = one
        return _save(server, "ct_02", _disc("ct_02", ORGANS[organ], k), f"{organ}-{k}")

    def click(step: int) -> bool:
        i, j, k = spleen_click("ct_02")
        sent = {"foreground": [[i, j, k + step]], "label": "spleen", "save_as": "spleen"}
        address = f"{server.address}/infer/baps?image=ct_02&output=json"
        reply = requests.post(address, data={"params": json.dumps(sent)}, timeout=120).json()
        return any("Saved as spleen" in note for note in reply.get("notes", ()))

    with ThreadPoolExecutor(12) as pool:
        clicks = pool.map(click, (-1, 0, 1))
        assert len(list(pool.map(save, saves))) == len(saves)
        saved = sum(clicks)
    versions = LabelHistory(server.studies).versions("ct_02", "final")
    authors = [version.info["author"] for version in versions]
    assert {f"{organ}-{k}" for organ, k in saves} <= set(authors)
    assert saved > 0
    assert len(versions) == len(saves) + saved
    newest = versions[-1]
    assert set(newest.info["authors"]) == set(ORGANS)  # No save of one organ has removed the other.
    served = _served(server, "ct_02")
    assert {name for name, idx in ORGANS.items() if (served == idx).any()} == set(ORGANS)
    assert newest.file.read_bytes() == (server.studies / "labels" / "final" / "ct_02.nii.gz").read_bytes()


def test_an_image_with_a_draft_is_still_offered(server: Site) -> None:
    before = server.client.info()["datastore"]["completed"]
    image = server.client.next_sample("first", {})["id"]
    _save(server, image, _disc(image, 1, 3), "anna", "draft")
    assert server.client.info()["datastore"]["completed"] == before
    assert {server.client.next_sample("first", {})["id"] for _ in range(3)} == {image}
    reply = requests.get(f"{server.address}/datastore/label?label={image}&tag=draft", timeout=30)
    assert reply.status_code == 200
    assert LabelHistory(server.studies).labels().count((image, "draft")) == 1


def test_a_version_is_restored_while_the_server_runs(server: Site) -> None:
    first, second = _disc("ct_04", 1, 3), _disc("ct_04", 1, 5)
    _save(server, "ct_04", first, "anna")
    _save(server, "ct_04", second, "anna")
    oldest, newest = LabelHistory(server.studies).versions("ct_04", "final")
    listed = _baps("list", str(server.studies), "--image", "ct_04")
    assert oldest.name in listed
    assert "anna" in listed
    assert json.loads(_baps("show", str(server.studies), "ct_04", oldest.name))["author"] == "anna"
    assert newest.name not in _baps("restore", str(server.studies), "ct_04", oldest.name)
    np.testing.assert_array_equal(_served(server, "ct_04"), first)
    info = requests.get(f"{server.address}/datastore/label/info?label=ct_04&tag=final", timeout=30).json()
    assert info["restored"] == oldest.name
    _save(server, "ct_04", second, "anna")  # The server continues from the restored version.
    assert len(LabelHistory(server.studies).versions("ct_04", "final")) == 4


def test_overlapping_segments_of_3d_slicer_are_kept(server: Site) -> None:
    """A file with two layers; the response is sent after it was read back."""
    image = read_volume(server.studies / "ct_05.nii.gz")
    masks = {2: _disc("ct_05", 1, 3) > 0, 1: np.zeros(image.shape, bool)}
    masks[1][8:18, 20:40, 2:5] = True
    file = write_label_map(server.studies.parent / "ct_05", LabelMap.from_masks(masks.items()), image)
    info = {"label_info": [{"name": name, "idx": idx} for name, idx in ORGANS.items()], "author": "anna"}
    before = server.client.info()["datastore"]["completed"]
    MONAILabelClient(server.address).save_label("ct_05", str(file), "final", info)
    served = read_label_map(next((server.studies / "labels" / "final").glob("ct_05*")), image)
    for value, mask in masks.items():
        np.testing.assert_array_equal(served.mask(value), mask)
    assert server.client.info()["datastore"]["completed"] == before + 1


def test_a_value_without_a_name_is_refused(server: Site) -> None:
    file = _write(server.studies.parent, "ct_06", _disc("ct_06", 2, 3), "nameless")
    with file.open("rb") as sent:
        reply = requests.put(
            f"{server.address}/datastore/label?image=ct_06",
            data={"params": json.dumps({"label_info": [{"name": "spleen", "idx": 1}]})},
            files={"label": ("label.nii.gz", sent)},
            timeout=30,
        )
    assert reply.status_code == 400
    assert "The values [2] of the label have no name (1 is spleen)" in reply.json()["detail"]
    assert LabelHistory(server.studies).versions("ct_06", "final") == []


@pytest.mark.slow
def test_a_server_killed_during_a_save_loses_no_label(tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    studies.mkdir()
    source = ROOT / "sample-data" / "ct" / "images" / "ct_01.nii.gz"
    (studies / "ct_01.nii.gz").write_bytes(source.read_bytes())
    settings = {"labels": "spleen=2,liver=1", "adapters": str(tmp_path / "adapters")}
    discs = [_disc("ct_01", 1, k) for k in range(8)]
    files = [_write(tmp_path, "ct_01", disc, f"disc-{k}") for k, disc in enumerate(discs)]
    saved: list[int] = []
    started = threading.Event()

    def save(address: str) -> None:
        client = MONAILabelClient(address)
        for number in range(1000):
            client.save_label("ct_01", str(files[number % 8]), "final", {"author": "anna"})
            saved.append(number % 8)
            if number == 20:
                started.set()

    first = running_server(studies, tmp_path / "first.log", settings)
    with ThreadPoolExecutor(1) as pool, first as (address, process):
        saving = pool.submit(save, address)
        assert started.wait(120)
        process.kill()  # During one of the saves, which follow each other without a pause.
        assert isinstance(saving.exception(60), OSError)
    with running_server(studies, tmp_path / "second.log", settings) as (address, _):
        info = requests.get(f"{address}/datastore/label/info?label=ct_01&tag=final", timeout=30).json()
        newest = LabelHistory(studies).versions("ct_01", "final")[-1]
        assert info["version"] == newest.name
        served = read_labels(studies / "labels" / "final" / "ct_01.nii.gz", read_volume(studies / "ct_01.nii.gz"))
        expected = [discs[saved[-1]], discs[(saved[-1] + 1) % 8]]
        assert any(np.array_equal(served, one) for one in expected)
        assert MONAILabelClient(address).info()["datastore"]["completed"] == 1
