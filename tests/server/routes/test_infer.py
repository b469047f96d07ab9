"""The forms in which OHIF asks, and what is refused to both viewers. Slicer's forms: tests/viewers/test_slicer.py."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import requests
import torch
from requests_toolbelt.multipart import decoder

from baps.adapters.adapter import Adapter
from baps.adapters.output_head import OutputHead
from baps.adapters.visual_prompt import build_visual_prompt
from baps.blackbox import BlackBox
from baps.registry.store import AdapterStore
from tests.support.sites import Site, sample_labels, spleen_click

SLICER = {"result_extension": ".nrrd", "result_dtype": "uint8"}
"""What Slicer's client adds to every request."""

OHIF = {**SLICER, "result_compress": False, "restore_label_idx": False}


def ask(server: Site, model: str, params: dict[str, Any], output: str = "all") -> tuple[int, dict[str, Any], bytes]:
    """Status, the reply's words, and its file."""
    url = f"{server.address}/infer/{model}?image=ct_01&output={output}"
    answer = requests.post(url, data={"params": json.dumps(params)}, timeout=60)
    if answer.status_code != 200:
        return answer.status_code, answer.json(), b""
    if output == "image":
        return 200, {}, answer.content
    parts = {
        part.headers[b"Content-Disposition"].decode().split('name="')[1].split('"')[0]: part.content
        for part in decoder.MultipartDecoder.from_response(answer).parts
    }
    return 200, json.loads(parts["params"]), parts["image"]


def raw(content: bytes) -> np.ndarray:
    """What OHIF makes of a reply: it skips the header and takes the bytes in the image's voxel order."""
    header, _, data = content.partition(b"\n\n")
    assert b"encoding: raw" in header
    return np.frombuffer(data, np.uint8).reshape(sample_labels("ct_01").shape, order="F")


def test_requests_of_ohif_have_neither_label_nor_slice(server: Site) -> None:
    point = spleen_click("ct_01")
    status, _, file = ask(server, "baps", {**OHIF, "foreground": [point], "background": []}, "image")
    assert status == 200
    mask = raw(file)
    assert mask[tuple(point)] == 1
    assert mask.any((0, 1)).nonzero()[0].tolist() == [point[2]]


@pytest.mark.parametrize(("plane", "axis"), [("coronal", 1), ("sagittal", 0), ("axial", 2)])
def test_clicks_on_other_planes(server: Site, plane: str, axis: int) -> None:
    point = spleen_click("ct_01")
    params = {**OHIF, "foreground": [point], "background": [], "plane": plane}
    status, _, file = ask(server, "baps", params, "image")
    assert status == 200
    mask = raw(file)
    assert mask[tuple(point)] == 1
    others = tuple(other for other in range(3) if other != axis)
    assert mask.any(others).nonzero()[0].tolist() == [point[axis]]


def test_ohif_keeps_the_points_of_earlier_slices(server: Site) -> None:
    i, j, k = spleen_click("ct_01")
    params = {**OHIF, "foreground": [[i, j, k - 2], [i, j, k - 1], [i, j, k]], "background": [[2, 2, k - 2]]}
    status, reply, _ = ask(server, "baps", params)
    assert (status, reply["slice"]) == (200, k)
    assert reply["notes"] == [
        "2 foreground points of other slices skipped.",
        "1 background point of other slices skipped.",
    ]


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({}, "no click and no box"),
        ({"foreground": [], "background": []}, "no click and no box"),
        ({"foreground": [], "background": [[5, 5, 5]]}, "no click and no box"),
        ({"foreground": [[-3, 60, 5]]}, "outside the volume"),
        ({"foreground": [[60, 60, 24]]}, "slices 0 to 23"),
        ({"foreground": [[60, 60, 5]], "slice": 7}, "other slices"),
        ({"foreground": [[60, 60, 5]], "plane": "diagonal"}, "Known ones: as stored, axial"),
        ({"roi": [200, 220, 1, 5, 0, 9]}, "outside the volume"),
    ],
)
def test_invalid_requests(server: Site, params: dict[str, Any], sentence: str) -> None:
    for viewer in (SLICER, OHIF):
        status, reply, _ = ask(server, "baps", {**viewer, **params})
        assert (status, sentence in reply["detail"]) == (400, True), reply


def test_two_users_do_not_see_each_others_clicks(server: Site) -> None:
    """The same click gives the same mask whoever clicked elsewhere, with whichever options, in between."""
    i, j, k = spleen_click("ct_01")
    mine = {**OHIF, "foreground": [[i, j, k]], "background": []}
    _, _, before = ask(server, "baps", mine, "image")
    theirs = [
        {"foreground": [[i + 8, j, k]], "background": [[i, j, k]]},
        {"foreground": [[i, j, k]], "plane": "coronal"},
        {"foreground": [[60, 60, k - 3]], "label": "liver"},
    ]
    for other in theirs:
        assert ask(server, "baps", {**OHIF, **other}, "image")[0] == 200
    _, _, after = ask(server, "baps", mine, "image")
    np.testing.assert_array_equal(raw(before), raw(after))


def test_notes_on_masks_without_the_adapter(own_server: Site, bundled: BlackBox) -> None:
    """Its head finds nothing anywhere. That holds for a first click, and not against a correction."""
    head = OutputHead()
    with torch.no_grad():
        head.last.bias.fill_(-9)
    adapter, store = Adapter(build_visual_prompt("basis"), head.eval()), AdapterStore(own_server.adapters)
    made_for = {"weights_sha256": bundled.capabilities.weights_sha256}
    store.publish("spleen", store.add("spleen", adapter, {"adapter": adapter.to_dict(), "black_box": made_for}))
    i, j, k = spleen_click("ct_01")
    first = {**OHIF, "label": "spleen", "foreground": [[i, j, k]], "background": [], "plane": "axial"}
    status, reply, file = ask(own_server, "baps", first)
    assert (status, reply["adapter"], reply["notes"]) == (200, "spleen/v0001", [])
    assert not raw(file).any()
    status, reply, file = ask(own_server, "baps", {**first, "foreground": [[i, j, k], [i + 4, j, k]]})
    assert (status, reply["adapter"]) == (200, None)
    assert reply["notes"] == ["The adapted mask violated a click; this mask is less adapted."]
    assert raw(file)[i, j, k]
    status, reply, file = ask(own_server, "baps", {**first, "plane": "coronal"})
    assert (status, reply["adapter"]) == (200, None)
    assert reply["notes"] == [
        "Adapters are trained on the slices as they are stored. This mask is from the unadapted model."
    ]
    assert raw(file)[i, j, k]
