"""Segment with the client of nnInteractive, as 3D Slicer and napari do."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import nibabel
import numpy as np
import pytest
import torch
from nnInteractive.inference.remote import (
    ServerAtCapacityError,
    SessionExpiredError,
    nnInteractiveRemoteInferenceSession,
)
from numpy.typing import NDArray
from scipy import ndimage

from baps.adapters.adapter import Adapter
from baps.adapters.visual_prompt import build_visual_prompt
from baps.blackbox import load_black_box
from baps.imaging.metrics import dice
from baps.registry.store import AdapterStore
from tests.support.client import threaded_site
from tests.support.sites import SAMPLES, Site, sample_labels, site, spleen_click

Connect = Callable[..., Any]
Order = tuple[int, ...]
LIVER, SPLEEN = 1, 2
STORED = (0, 1, 2)
SLICER = (2, 1, 0)
"""Order of the axes of 3D Slicer's arrays: slices, rows, columns."""


@dataclass
class Opened:
    """A client with an image.

    Attributes:
        session: The client.
        mask: Its mask, which the server changes.
        target: The spleen, with the same order of axes.
        order: The order.
    """

    session: Any
    mask: NDArray[np.uint8]
    target: NDArray[np.bool_]
    order: Order

    def voxel(self, stored: list[int]) -> list[int]:
        """Convert a voxel of the file to the order of axes."""
        return [stored[axis] for axis in self.order]

    def click(self, stored: list[int], include: bool = True, run: bool = True) -> None:
        self.session.add_point_interaction(self.voxel(stored), include, run_prediction=run)

    def correct(self) -> tuple[tuple[int, ...], bool]:
        """Click in the middle of the largest error, and return the voxel and whether the object is there."""
        errors, _ = ndimage.label(self.target != (self.mask > 0))
        largest = errors == 1 + np.bincount(errors.ravel())[1:].argmax()
        depth = ndimage.distance_transform_edt(np.pad(largest, 1))[1:-1, 1:-1, 1:-1]
        voxel = tuple(int(index) for index in np.unravel_index(depth.argmax(), depth.shape))
        self.session.add_point_interaction(list(voxel), bool(self.target[voxel]))
        return voxel, bool(self.target[voxel])


def opened(session: Any, order: Order = SLICER, case: str = "ct_01", dtype: str = "uint8") -> Opened:
    file = nibabel.load(SAMPLES / "images" / f"{case}.nii.gz")
    voxels = np.ascontiguousarray(np.asarray(file.dataobj).transpose(order))
    spacing = np.array(file.header.get_zooms())[list(order)]
    session.set_image(voxels[None], {"spacing": spacing})
    mask = np.zeros(voxels.shape, dtype)
    session.set_target_buffer(mask)
    return Opened(session, mask, sample_labels(case).transpose(order) == SPLEEN, order)


def test_the_viewer_can_test_its_connection_and_read_what_the_model_can(connect: Connect) -> None:
    session = connect()
    assert session.ping()
    assert session.supported_interactions == dict.fromkeys(("points", "bbox2d", "bbox3d", "scribble", "lasso"), True)
    assert session.channel_mapping["points"] == (3, 4)
    assert session.supports_undo
    assert session.supports_initial_label
    assert session.INFERENCE_SESSION_VERSION.startswith("2.")
    assert "BAPS" in session.license
    assert 0 < session.heartbeat() <= session.idle_timeout_seconds == 600
    assert session.lease_status()["idle_timeout_seconds"] == 600
    session.set_do_autozoom(False)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_mask_of_a_click_lies_under_it_in_every_order_of_axes(connect: Connect, order: Order) -> None:
    client = opened(connect(), order)
    stored = spleen_click("ct_01")
    client.click(stored)
    assert client.mask[tuple(client.voxel(stored))] == 1
    pieces, _ = ndimage.label(client.mask)
    piece = pieces == pieces[tuple(client.voxel(stored))]
    assert piece.sum() > 0.9 * (client.mask > 0).sum()
    assert dice(client.mask > 0, client.target) > 0.4
    k = stored[2]
    clicked_slice = client.mask.transpose(np.argsort(order))[:, :, k] > 0
    assert dice(clicked_slice, sample_labels("ct_01")[:, :, k] == SPLEEN) > 0.6


def test_slicer_and_a_file_get_the_same_mask(connect: Connect) -> None:
    masks = []
    for order in (STORED, SLICER):
        client = opened(connect(), order)
        client.click(spleen_click("ct_01"))
        masks.append(client.mask.transpose(np.argsort(order)))
    assert np.array_equal(*masks)


def test_corrections_on_several_slices_improve_the_mask_and_each_is_heeded(connect: Connect) -> None:
    client = opened(connect())
    client.click(spleen_click("ct_01"))
    first, slices = dice(client.mask > 0, client.target), set()
    for _ in range(5):
        voxel, inside = client.correct()
        assert bool(client.mask[voxel]) == inside
        slices.add(voxel[0])
    assert len(slices) > 1
    assert dice(client.mask > 0, client.target) > first


def test_a_correction_loses_nothing_elsewhere(connect: Connect) -> None:
    client = opened(connect())
    drawn = client.target.copy()
    drawn[: spleen_click("ct_01")[2]] = False  # A colleague drew half of it.
    client.session.add_initial_seg_interaction(drawn.astype(np.uint8))
    assert np.array_equal(client.mask > 0, drawn)
    below = [int(k) for k in np.flatnonzero(client.target.any((1, 2)))][1]
    rows, columns = np.nonzero(client.target[below])
    middle = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    client.session.add_point_interaction([below, int(rows[middle]), int(columns[middle])], True)
    assert client.mask[below].any()
    assert (client.mask > 0)[drawn].all()


def test_undo_is_exact_for_each_kind_of_prompt(connect: Connect) -> None:
    client = opened(connect())
    session, (z, y, x) = client.session, client.voxel(spleen_click("ct_01"))
    stroke = np.zeros(client.mask.shape, np.uint8)
    stroke[z, y, x - 2 : x + 3] = 1
    lasso = np.zeros_like(stroke)
    lasso[z + 1, y - 8 : y + 8, x - 8 : x + 8] = 1
    masks = [client.mask.copy()]
    for prompt in (
        lambda: session.add_point_interaction([z, y, x], True),
        lambda: session.add_point_interaction([z, y + 4, x], False),
        lambda: session.add_bbox_interaction([[z, z + 1], [y - 9, y + 9], [x - 9, x + 9]], True),
        lambda: session.add_scribble_interaction(stroke, False),
        lambda: session.add_lasso_interaction(lasso, True),
        lambda: session.add_initial_seg_interaction(client.target.astype(np.uint8)),
        lambda: session.add_lasso_interaction(lasso, False),
    ):
        prompt()
        masks.append(client.mask.copy())
    assert sum(not np.array_equal(*pair) for pair in itertools.pairwise(masks)) >= 5
    for earlier in reversed(masks[:-1]):
        assert session.undo()
        assert np.array_equal(client.mask, earlier)
    assert not session.undo()


def test_prompts_can_wait_for_a_prediction(connect: Connect) -> None:
    waiting, direct = opened(connect()), opened(connect())
    waiting.click(spleen_click("ct_01"), run=False)
    assert not waiting.mask.any()
    assert waiting.session._predict() is not None
    assert waiting.session._predict() is None
    direct.click(spleen_click("ct_01"))
    assert np.array_equal(waiting.mask, direct.mask)
    assert waiting.session.undo()
    assert not waiting.mask.any()


def test_reset_begins_a_new_object(connect: Connect) -> None:
    client = opened(connect())
    client.click(spleen_click("ct_01"))
    first = client.mask.copy()
    client.session.reset_interactions()
    assert not client.mask.any()
    assert not client.session.undo()
    client.click(spleen_click("ct_01"))
    assert np.array_equal(client.mask, first)


def test_a_box_a_scribble_and_a_lasso_find_the_organ_on_their_slice(connect: Connect) -> None:
    client = opened(connect())
    k = spleen_click("ct_01")[2]
    organ = client.target[k]
    rows, columns = np.nonzero(organ)
    y0, y1, x0, x1 = int(rows.min()), int(rows.max()) + 1, int(columns.min()), int(columns.max()) + 1
    lasso = ndimage.binary_dilation(organ, iterations=3)
    stroke = ndimage.binary_erosion(organ, iterations=4)
    for prompt in (
        lambda: client.session.add_bbox_interaction([[k, k + 1], [y0, y1], [x0, x1]], True),
        lambda: client.session.add_bbox_interaction([[k - 2, k + 3], [y0, y1], [x0, x1]], True),
        lambda: client.session.add_lasso_interaction(
            lasso[None].astype(np.uint8), True, interaction_bbox=[[k, k + 1], [0, lasso.shape[0]], [0, lasso.shape[1]]]
        ),
        lambda: client.session.add_scribble_interaction(
            stroke[None].astype(np.uint8), True, interaction_bbox=[[k, k + 1], [0, lasso.shape[0]], [0, lasso.shape[1]]]
        ),
    ):
        prompt()
        assert dice(client.mask[k] > 0, organ) > 0.6
        client.session.reset_interactions()


def test_a_box_bounds_the_mask(connect: Connect) -> None:
    client = opened(connect())
    z, y, x = client.voxel(spleen_click("ct_01"))
    box = [[z - 1, z + 2], [y - 12, y + 12], [x - 12, x + 12]]
    client.session.add_bbox_interaction(box, True)
    inside = np.zeros(client.mask.shape, bool)
    inside[tuple(slice(*edges) for edges in box)] = True
    assert client.mask.any()
    assert not (client.mask > 0)[~inside].any()


@pytest.mark.parametrize("dtype", ["bool", "int16", "uint8"])
def test_the_mask_has_the_type_of_the_viewer(connect: Connect, dtype: str) -> None:
    client = opened(connect(), dtype=dtype)
    client.click(spleen_click("ct_01"))
    assert client.mask.dtype == dtype
    assert client.mask.max() == 1


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float16", "float32", "float64"])
def test_images_of_each_type_are_segmented(connect: Connect, dtype: str) -> None:
    z, y, x = np.ogrid[:12, :48, :48]
    target = (3 * (z - 6)) ** 2 + (y - 24) ** 2 + (x - 24) ** 2 < 14**2
    session = connect()
    session.set_image((np.where(target, 200, 60) + (x + y) % 8).astype(dtype)[None], {"spacing": [3, 1, 1]})
    mask = np.zeros(target.shape, np.uint8)
    session.set_target_buffer(mask)
    session.add_point_interaction([6, 24, 24], True)
    assert dice(mask > 0, target) > 0.8


def test_eight_viewers_at_once_see_nothing_of_each_other(connect: Connect) -> None:
    clients = [opened(connect(), case=f"ct_0{1 + number % 2}") for number in range(8)]
    alone = []
    for client, case in zip(clients[:2], ("ct_01", "ct_02"), strict=True):
        client.click(spleen_click(case))
        alone.append(client.mask.copy())
        client.session.reset_interactions()

    def work(number: int) -> None:
        client, case = clients[number], f"ct_0{1 + number % 2}"
        client.click(spleen_click(case))
        assert np.array_equal(client.mask, alone[number % 2])
        client.correct()
        assert client.session.undo()
        assert np.array_equal(client.mask, alone[number % 2])

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))


def test_a_label_in_the_address_must_be_one_of_the_site(connect: Connect) -> None:
    client = opened(connect(label="spleen"))
    client.click(spleen_click("ct_01"))
    assert client.mask.any()
    with pytest.raises(httpx.HTTPStatusError) as error:
        connect(label="heart")
    assert error.value.response.status_code == 404
    assert "spleen, liver" in error.value.response.json()["detail"]


@pytest.mark.slow
def test_an_abandoned_session_is_gone_and_frees_its_place(tmp_path: Path) -> None:
    settings = {"nninteractive_sessions": "1", "nninteractive_liveness_seconds": "2"}
    with threaded_site(tmp_path, cases=1, settings=settings) as running:
        abandoned = nnInteractiveRemoteInferenceSession(f"{running.address}/nninteractive")
        client = opened(abandoned)
        client.click(spleen_click("ct_01"))
        with pytest.raises(ServerAtCapacityError, match="Close a viewer"):
            nnInteractiveRemoteInferenceSession(f"{running.address}/nninteractive")
        time.sleep(3)  # Its own heartbeat comes after five seconds.
        with closing(nnInteractiveRemoteInferenceSession(f"{running.address}/nninteractive")) as other:
            with pytest.raises(SessionExpiredError, match="has ended"):
                abandoned.undo()
            assert other.ping()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    yield from site(tmp_path_factory.mktemp("served"), cases=1)


@pytest.mark.slow
@pytest.mark.server
def test_the_server_of_baps_serve_answers_it(served: Site, connect: Connect) -> None:
    client = opened(connect(served.address))
    client.click(spleen_click("ct_01"))
    assert client.mask[tuple(client.voxel(spleen_click("ct_01")))] == 1
    client.session.close()
    audit = (served.adapters / "audit.jsonl").read_text()
    assert '"segment an unnamed image"' in audit
    assert "Traceback" not in served.log.read_text()


def test_the_label_in_the_address_chooses_the_adapter(tmp_path: Path) -> None:
    with threaded_site(tmp_path, cases=1) as running:
        store, capabilities = AdapterStore(running.adapters), load_black_box("bundled").capabilities
        visual_prompt = build_visual_prompt("basis", condition="label")
        with torch.no_grad():
            dict(visual_prompt.named_parameters())["head.bias"].view(3, -1)[:, 0] = -0.4  # It darkens the image.
        adapter = Adapter(visual_prompt, None, 1.0)
        record = {"adapter": adapter.to_dict(), "black_box": {"weights_sha256": capabilities.weights_sha256}}
        store.publish("spleen", store.add("spleen", adapter, record))
        masks = []
        for place in ("", "/liver", "/spleen"):
            with closing(nnInteractiveRemoteInferenceSession(f"{running.address}/nninteractive{place}")) as session:
                client = opened(session)
                client.click(spleen_click("ct_01"))
                masks.append(client.mask)
    assert np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[0], masks[2])
    lines = [json.loads(line) for line in (running.adapters / "audit.jsonl").read_text().splitlines()]
    adapters = [line["adapter"] for line in lines if line["what"] == "segment an unnamed image"]
    assert adapters == [None, None, "spleen/v0001"]
