"""Whole organs by the real server: what the viewers send and get, progress, cancelling and leaving."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
import requests
from requests_toolbelt.multipart import decoder

from baps.imaging.metrics import dice
from tests.support.client import threaded_site
from tests.support.sites import Site, sample_labels, spleen_click

SLICER = {"result_extension": ".nrrd", "result_dtype": "uint8"}
OHIF = {**SLICER, "result_compress": False, "restore_label_idx": False}
TALL = 4000
"""Slices of a spleen that nobody waits for to the end."""


def ask(server: Site, params: dict[str, Any], image: str = "ct_01", **other: Any) -> requests.Response:
    url = f"{server.address}/infer/whole_organ?image={image}&output=all"
    return requests.post(url, data={"params": json.dumps(params)}, timeout=other.pop("timeout", 120), **other)


def said_and_mask(answer: requests.Response, folder: Path) -> tuple[dict[str, Any], np.ndarray, dict[str, Any]]:
    """The reply's words, its voxels, and their header."""
    assert answer.status_code == 200, answer.text
    parts = {
        part.headers[b"Content-Disposition"].decode().split('name="')[1].split('"')[0]: part.content
        for part in decoder.MultipartDecoder.from_response(answer).parts
    }
    (folder / "reply.nrrd").write_bytes(parts["image"])
    voxels, header = nrrd.read(str(folder / "reply.nrrd"))
    return json.loads(parts["params"]), voxels, header


def test_viewers_offer_it_for_clicks_and_replace_the_segment(server: Site) -> None:
    model = requests.get(f"{server.address}/info/", timeout=60).json()["models"]["whole_organ"]
    assert (model["type"], model["dimension"], model["labels"]) == ("deepgrow", 3, [])
    assert model["config"] == {
        "seconds": 60,
        "adapter": ["as clicked", "spleen", "liver"],
        "save_as": ["do not save", "spleen", "liver"],
    }


def test_points_of_slicer_give_the_organ_in_the_frame_of_the_image(server: Site, tmp_path: Path) -> None:
    i, j, k = spleen_click("ct_01")
    params = {**SLICER, "label": "spleen", "foreground": [[i, j, k]], "background": []}
    reply, voxels, header = said_and_mask(ask(server, params), tmp_path)
    image = nibabel.load(server.studies / "ct_01.nii.gz")
    assert voxels.shape == image.shape
    assert voxels.dtype == np.uint8
    assert set(np.unique(voxels)) == {0, 1}
    assert header["encoding"] == "gzip"
    lps = np.diag([-1, -1, 1.0]) @ image.affine[:3]
    assert np.allclose(header["space directions"].T, lps[:, :3], atol=1e-5)
    assert np.allclose(header["space origin"], lps[:, 3], atol=1e-4)
    assert reply["label"] == "spleen"
    assert reply["slices"] == np.flatnonzero(voxels.any((0, 1))).tolist()
    assert len(reply["slices"]) > 3
    assert k in reply["slices"]
    assert (reply["stopped"], reply["notes"], reply["adapter"]) == ([], [], None)
    assert reply["latencies"]["total_ms"] >= reply["latencies"]["segment_ms"] > 0
    alone = np.zeros_like(voxels)
    alone[..., k] = voxels[..., k]
    organ = sample_labels("ct_01") == 2
    assert dice(voxels > 0, organ) > dice(alone > 0, organ)


def test_clicks_on_several_slices(server: Site, tmp_path: Path) -> None:
    i, j, k = spleen_click("ct_01")
    params = {**SLICER, "foreground": [[i, j, k - 2], [i, j, k + 1], [i + 1, j, k]], "background": [[2, 2, k]]}
    reply, voxels, _ = said_and_mask(ask(server, params), tmp_path)
    assert {k - 2, k + 1, k} <= set(reply["slices"])
    assert reply["notes"] == []
    for index, extra in ((k - 2, {}), (k, {"background": [[2, 2, k]]})):
        point = [i + (index == k), j, index]
        url = f"{server.address}/infer/baps?image=ct_01&output=image"
        one = {**OHIF, "foreground": [point], "background": [], "slice": index, **extra}
        alone = requests.post(url, data={"params": json.dumps(one)}, timeout=60).content.partition(b"\n\n")[2]
        mask = np.frombuffer(alone, np.uint8).reshape(voxels.shape, order="F")
        np.testing.assert_array_equal(voxels[..., index], mask[..., index])


def test_a_box_limits_the_slices(server: Site, tmp_path: Path) -> None:
    organ, k = sample_labels("ct_01") == 2, spleen_click("ct_01")[2]
    i, j = np.nonzero(organ[:, :, k])
    box = [int(i.max()), int(i.min()), int(j.max()), int(j.min()), k + 1, k - 1]
    reply, _, _ = said_and_mask(ask(server, {**SLICER, "label": "spleen", "roi": box}), tmp_path)
    assert k in reply["slices"]
    assert set(reply["slices"]) <= {k - 1, k, k + 1}


@pytest.mark.parametrize("accepted", ["gzip, deflate", "identity"])
def test_raw_voxels_for_ohif(server: Site, accepted: str) -> None:
    params = {**OHIF, "foreground": [spleen_click("ct_01")], "background": []}
    url, sent = f"{server.address}/infer/whole_organ?image=ct_01&output=image", {"params": json.dumps(params)}
    answer = requests.post(url, data=sent, timeout=120, headers={"Accept-Encoding": accepted})
    assert answer.headers.get("Content-Encoding") == ("gzip" if "gzip" in accepted else None)
    header, _, data = answer.content.partition(b"\n\n")
    assert b"encoding: raw" in header
    mask = np.frombuffer(data, np.uint8).reshape(sample_labels("ct_01").shape, order="F")
    assert mask[tuple(spleen_click("ct_01"))] == 1
    assert mask.any((0, 1)).sum() > 3


@pytest.mark.parametrize("seconds", [0.000001, "1e-6"])
def test_time_limit(server: Site, tmp_path: Path, seconds: object) -> None:
    i, j, k = spleen_click("ct_01")
    reply, voxels, _ = said_and_mask(ask(server, {**SLICER, "foreground": [[i, j, k]], "seconds": seconds}), tmp_path)
    assert reply["slices"] == [k]
    assert voxels[i, j, k] == 1
    assert reply["stopped"] == [k - 1, k + 1]
    assert reply["notes"] == [
        f"The 1e-06 seconds (option seconds) have passed: the mask so far ends at slices {k - 1}, {k + 1}."
    ]


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({}, "There is no positive click and no box. Click on the organ on one slice or more"),
        ({"background": [[60, 60, 5]]}, "There is no positive click and no box."),
        ({"foreground": [[60, 60, 24]]}, "outside the volume"),
        ({"foreground": [[60, 60, 5]], "seconds": "soon"}, "seconds must be a positive number"),
        ({"foreground": [[60, 60, 5]], "seconds": -1}, "seconds must be a positive number"),
        ({"foreground": [[60, 60, 5]], "adapter": "heart"}, "There is no adapter 'heart'"),
        ({"roi": [0, 9, 0, 9]}, "The box must be"),
    ],
)
def test_invalid_requests(server: Site, params: dict[str, Any], sentence: str) -> None:
    answer = ask(server, {**SLICER, **params})
    assert answer.status_code == 400
    assert sentence in answer.json()["detail"]


def test_slicer_merges_the_options_into_the_request(server: Site, tmp_path: Path) -> None:
    config = requests.get(f"{server.address}/info/", timeout=60).json()["models"]["whole_organ"]["config"]
    params = {**SLICER, "label": "spleen", "foreground": [spleen_click("ct_01")], **config}
    reply, _, _ = said_and_mask(ask(server, params), tmp_path)
    assert reply["stopped"] == []


@pytest.fixture(scope="module")
def tall(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server with a volume of one slice, again and again."""
    folder = tmp_path_factory.mktemp("tall")

    def add() -> None:
        image = nibabel.load(folder / "studies" / "ct_01.nii.gz")
        slab = np.asarray(image.dataobj)[..., spleen_click("ct_01")[2], None].astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(np.repeat(slab, TALL, axis=2), image.affine), folder / "studies" / "tall.nii")

    with threaded_site(folder, cases=1, extra=add) as running:
        yield running


def _middle() -> list[int]:
    """A click on the spleen in the middle of them."""
    return [*spleen_click("ct_01")[:2], TALL // 2]


def _jobs(server: Site) -> list[dict[str, Any]]:
    return requests.get(f"{server.address}/progress/", timeout=30).json()


def _wait(server: Site, running: bool) -> list[dict[str, Any]]:
    """Until a job has begun to carry on, or none is left; for that not so long that it would have come to its end."""
    deadline = time.monotonic() + (300 if running else 20)
    while time.monotonic() < deadline:
        jobs = _jobs(server)
        if bool(jobs) == running and all(job["done"] > 0 for job in jobs):
            return jobs
        time.sleep(0.05)
    raise AssertionError(f"There are still {jobs}.")


def test_a_job_can_be_listed_and_cancelled(tall: Site, tmp_path: Path) -> None:
    assert _jobs(tall) == []
    params = {**SLICER, "foreground": [_middle()], "seconds": 3600}
    with ThreadPoolExecutor(1) as pool:
        reply: Future[requests.Response] = pool.submit(ask, tall, params, "tall")
        (job,) = _wait(tall, running=True)
        assert set(job) == {"id", "model", "done", "total", "seconds"}
        assert job["model"] == "whole_organ"
        assert 0 < job["done"] < job["total"] == TALL - 1
        assert job["seconds"] > 0
        url = f"{tall.address}/infer/baps?image=ct_01&output=image"
        click = {**OHIF, "foreground": [spleen_click("ct_01")]}
        assert requests.post(url, data={"params": json.dumps(click)}, timeout=60).status_code == 200
        assert not reply.done()
        assert requests.delete(f"{tall.address}/progress/none", timeout=30).status_code == 404
        answer = requests.delete(f"{tall.address}/progress/{job['id']}", timeout=30)
        assert (answer.status_code, answer.json()) == (200, {"cancelled": job["id"]})
        content, voxels, _ = said_and_mask(reply.result(60), tmp_path)
    low, high = content["stopped"]
    assert content["slices"] == list(range(low + 1, high))
    assert voxels.any((0, 1)).nonzero()[0].tolist() == content["slices"]
    assert content["notes"] == [f"It was cancelled: the mask so far ends at slices {low}, {high}."]
    assert _jobs(tall) == []


def test_a_job_is_cancelled_when_the_client_disconnects(tall: Site) -> None:
    params = {**SLICER, "foreground": [_middle()], "seconds": 3600}
    with pytest.raises(requests.exceptions.ReadTimeout):
        ask(tall, params, "tall", timeout=1.5)
    _wait(tall, running=False)


def test_pages_of_other_origins_cannot_cancel(tall: Site) -> None:
    answer = requests.delete(f"{tall.address}/progress/any", headers={"Origin": "http://elsewhere"}, timeout=30)
    assert answer.status_code == 403


def test_the_whole_organ_is_saved(own_server: Site) -> None:
    """What was cut short by the time replaces no slice that it did not come to."""
    click = {"foreground": [spleen_click("ct_01")], "label": "spleen", "save_as": "spleen"}
    address = f"{own_server.address}/infer/whole_organ?image=ct_01&output=json"

    def saved(**others: object) -> tuple[list[str], set[int]]:
        reply = requests.post(address, data={"params": json.dumps({**click, **others})}, timeout=120).json()
        label = nibabel.load(own_server.studies / "labels" / "final" / "ct_01.nii.gz")
        return reply["notes"], set(np.flatnonzero(np.asarray(label.dataobj).any((0, 1))).tolist())

    notes, slices = saved()
    assert "Saved as spleen." in notes
    assert len(slices) > 1
    notes, again = saved(seconds=1e-6)
    assert any("have passed" in note for note in notes)
    assert "It was saved as spleen before." in notes
    assert again == slices


def test_labels_outside_a_box_are_kept(own_server: Site) -> None:
    i, j, k = spleen_click("ct_01")
    address = f"{own_server.address}/infer/{{}}?image=ct_01&output=json"

    def save(model: str, **params: object) -> set[int]:
        reply = {"params": json.dumps({"label": "spleen", "save_as": "spleen", **params})}
        assert requests.post(address.format(model), data=reply, timeout=120).status_code == 200
        label = nibabel.load(own_server.studies / "labels" / "final" / "ct_01.nii.gz")
        return set(np.flatnonzero(np.asarray(label.dataobj).any((0, 1))).tolist())

    assert save("zero_shot", foreground=[[i, j, k + 4]]) == {k + 4}
    saved = save("whole_organ", foreground=[[i, j, k]], roi=[0, 127, 0, 127, k - 1, k + 1])
    assert k + 4 in saved
    assert saved - {k + 4} <= {k - 1, k, k + 1}
