"""Hostile clients of nnInteractive's protocol: lying arrays, impossible prompts, other users' leases."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from fastapi.testclient import TestClient
from nnInteractive.inference.remote.serialization import pack_array

from baps.site.roles import Role
from baps.site.users import Users
from tests.support.client import site_client

P = "/nninteractive"
SHAPE = (12, 40, 44)
IMAGE = (np.indices(SHAPE).sum(0) % 7 * 20 + 200 * (np.indices(SHAPE)[2] > 20)).astype(np.int16)[None]


class Client:
    """A client that sends what it likes.

    Args:
        http: Sends requests.
        headers: Headers of each.
    """

    def __init__(self, http: TestClient, headers: Mapping[str, str] | None = None) -> None:
        self.http, self.headers = http, dict(headers or {})

    def claim(self, place: str = P) -> httpx.Response:
        reply = self.http.post(f"{place}/claim", headers=self.headers)
        if reply.is_success:
            self.headers["X-Lease-Token"] = reply.json()["lease_token"]
        return reply

    def json(self, name: str, **body: object) -> httpx.Response:
        return self.http.post(f"{P}/{name}", json=body, headers=self.headers)

    def packed(self, name: str, body: bytes, meta: object = None) -> httpx.Response:
        headers = {**self.headers, "X-Meta": meta if isinstance(meta, str) else json.dumps(meta or {})}
        return self.http.post(f"{P}/{name}", content=body, headers=headers)

    def point(self, *voxel: object, **other: object) -> httpx.Response:
        return self.json("add_point_interaction", coordinates=list(voxel), include_interaction=True, **other)

    def works(self) -> bool:
        """Whether the session is alive and answers a click."""
        reply = self.point(6, 20, 30)
        return reply.status_code == 200 and json.loads(reply.headers["X-Meta"])["ran_prediction"]


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("nninteractive")
    with site_client(folder, settings={"nninteractive_mb": "64", "max_volume_mb": "256"}) as client:
        yield client


@pytest.fixture
def client(http: TestClient) -> Iterator[Client]:
    """A client with a session and an image."""
    one = Client(http)
    assert one.claim().status_code == 200
    assert one.packed("set_image", pack_array(IMAGE)).json() == {"original_image_shape": [1, *SHAPE]}
    assert one.json("set_target_buffer", shape=SHAPE, dtype="uint8").status_code == 200
    yield one
    one.json("release")


def refused(reply: httpx.Response, status: int = 400) -> None:
    sentence = reply.json()["detail"]
    assert (reply.status_code, sentence[-1:]) == (status, "."), sentence


def header(shape: tuple[int, ...], name: bytes = b"int16") -> bytes:
    return (
        struct.pack("<4sBBBB", b"NNIA", 1, 1, len(shape), len(name)) + name + struct.pack(f"<{len(shape)}q", *shape)
        + struct.pack("<I", 1)
    )  # fmt: skip


def test_images_that_lie_are_refused_before_room_is_made(client: Client) -> None:
    before = psutil.Process().memory_info().rss
    for body in (
        b"",
        b"NNIA",
        b"\x80\x04\x95",  # A pickle.
        header((1, 1 << 14, 1 << 14, 1 << 14)),
        header((1, 1 << 60, 1 << 60, 1 << 60)),
        header((1, -1, 4, 4)),
        header((1, 40, 40, 40), b"object"),
        header((1, 40, 40, 40)) + struct.pack("<QQ", 128_000, 1 << 62) + bytes(64),
        header((1, 40, 40, 40)) + struct.pack("<QQ", 1 << 62, 64) + bytes(64),
        pack_array(np.full((1, 4, 4, 4), np.nan, np.float32)),
        pack_array(IMAGE[0]),
        pack_array(np.zeros((2, 4, 4, 4), np.int16)),
        pack_array(IMAGE)[:-40],
    ):
        refused(client.packed("set_image", body))
    assert psutil.Process().memory_info().rss - before < 200 << 20
    assert client.packed("set_image", pack_array(IMAGE)).status_code == 200
    assert client.works()


def test_an_image_larger_than_the_memory_of_sessions_is_refused(client: Client) -> None:
    refused(client.packed("set_image", pack_array(np.zeros((1, 256, 256, 256), np.int16))), 413)
    assert client.packed("set_image", pack_array(IMAGE)).status_code == 200
    assert client.works()


def test_prompts_before_an_image_are_refused(http: TestClient) -> None:
    client = Client(http)
    client.claim()
    empty = pack_array(np.zeros(SHAPE, bool))
    for reply in (
        client.point(1, 1, 1),
        client.json("add_bbox_interaction", bbox_coords=[[0, 1]] * 3),
        client.packed("add_scribble_interaction", empty),
        client.packed("add_lasso_interaction", empty),
        client.packed("add_initial_seg_interaction", empty),
        client.json("predict"),
        client.json("undo"),
    ):
        refused(reply)
    assert client.json("reset_interactions").status_code == 200
    assert client.packed("set_image", pack_array(IMAGE)).status_code == 200
    assert client.works()
    client.json("release")


BAD_PROMPTS: dict[str, Callable[[Client], httpx.Response]] = {
    "a click outside": lambda c: c.point(12, 0, 0),
    "a click before": lambda c: c.point(-1, 0, 0),
    "a click far away": lambda c: c.point(1e300, 0, 0),
    "a click that is no number": lambda c: c.point("x", None, []),
    "a click in two axes": lambda c: c.point(1, 2),
    "a box outside": lambda c: c.json("add_bbox_interaction", bbox_coords=[[20, 30], [0, 9], [0, 9]]),
    "an empty box": lambda c: c.json("add_bbox_interaction", bbox_coords=[[3, 3], [0, 9], [0, 9]]),
    "an inverted box": lambda c: c.json("add_bbox_interaction", bbox_coords=[[5, 3], [0, 9], [0, 9]]),
    "a box in two axes": lambda c: c.json("add_bbox_interaction", bbox_coords=[[0, 5], [0, 9]]),
    "a box of one edge": lambda c: c.json("add_bbox_interaction", bbox_coords=[[0], [0, 9], [0, 9]]),
    "a scribble of another shape": lambda c: c.packed("add_scribble_interaction", pack_array(np.ones((3, 3, 3)))),
    "an empty scribble": lambda c: c.packed("add_scribble_interaction", pack_array(np.zeros(SHAPE, bool))),
    "a scribble that does not fit its part": lambda c: c.packed(
        "add_scribble_interaction", pack_array(np.ones((2, 2, 2))), {"interaction_bbox": [[0, 1], [0, 2], [0, 2]]}
    ),
    "a lasso on a part outside": lambda c: c.packed(
        "add_lasso_interaction", pack_array(np.ones((2, 2, 2))), {"interaction_bbox": [[11, 13], [0, 2], [0, 2]]}
    ),
    "a mask of terabytes": lambda c: c.packed("add_initial_seg_interaction", header((1 << 15, 1 << 15, 1 << 15))),
    "a mask with NaN": lambda c: c.packed("add_initial_seg_interaction", pack_array(np.full(SHAPE, np.nan))),
    "a header that is no JSON": lambda c: c.packed("add_lasso_interaction", pack_array(np.ones(SHAPE)), "{"),
    "a header that is a list": lambda c: c.packed("add_lasso_interaction", pack_array(np.ones(SHAPE)), "[1]"),
    "a buffer of terabytes": lambda c: c.json("set_target_buffer", shape=[1 << 40] * 3, dtype="uint8"),
    "a buffer of objects": lambda c: c.json("set_target_buffer", shape=SHAPE, dtype="object"),
    "a buffer of another shape": lambda c: c.json("set_target_buffer", shape=[4, 4, 4], dtype="uint8"),
}


@pytest.mark.parametrize("name", BAD_PROMPTS)
def test_impossible_prompts_are_refused_and_the_session_lives(client: Client, name: str) -> None:
    assert client.works()
    refused(BAD_PROMPTS[name](client))
    assert client.works()
    for _ in range(2):
        meta = json.loads(client.json("undo").headers["X-Meta"])
        assert meta["ran_prediction"]
    assert not json.loads(client.json("undo").headers["X-Meta"])["ran_prediction"]


def test_leases_that_are_unknown_are_gone(client: Client) -> None:
    own = dict(client.headers)
    for token in ("", "x", own["X-Lease-Token"] + "x", "../../etc", "a" * 5000):
        client.headers["X-Lease-Token"] = token
        refused(client.json("heartbeat"), 410)
        refused(client.point(6, 20, 30), 410)
        refused(client.http.get(f"{P}/lease_status", headers=client.headers), 410)
        assert client.json("release").status_code == 200
    client.headers = own
    refused(client.http.post(f"{P}/spleen/heartbeat", headers=own), 410)
    assert client.works()


def test_no_other_address_is_served_below_it(client: Client) -> None:
    for method, path in (("GET", "/claim"), ("POST", "/"), ("POST", "/no_such"), ("PUT", "/set_image"), ("GET", "/")):
        assert client.http.request(method, P + path, headers=client.headers).status_code in (403, 405)
    for path in ("/../info/", "/%2e%2e/info/", "/spleen%2f..%2f/claim", "/a/b/claim"):
        assert client.http.post(P + path, headers=client.headers).status_code in (400, 403, 404)


def test_one_client_cannot_claim_without_bound(http: TestClient) -> None:
    with ExitStack() as leases:
        statuses = []
        for _ in range(12):
            client = Client(http)
            statuses.append(client.claim().status_code)
            leases.callback(client.json, "release")
    assert statuses.count(200) <= 8
    assert set(statuses) == {200, 503}


@pytest.fixture
def users(tmp_path: Path) -> Iterator[tuple[TestClient, dict[str, str], Path]]:
    """A site whose users sign in, their tokens, and its audit file."""
    store = Users(tmp_path / "users.json")
    tokens = {name: store.add(name, Role.ANNOTATOR) for name in ("anna", "otto")}
    with site_client(tmp_path, settings={"users": str(tmp_path / "users.json")}) as http:
        yield http, tokens, tmp_path / "adapters" / "audit.jsonl"


def test_a_lease_is_of_the_user_who_claimed_it(users: tuple[TestClient, dict[str, str], Path]) -> None:
    http, tokens, audit = users
    anna, otto = (Client(http, {"Authorization": f"Bearer {tokens[name]}"}) for name in ("anna", "otto"))
    refused(Client(http).claim(), 401)
    refused(Client(http, {"Authorization": "Bearer no"}).claim(), 401)
    assert http.get(f"{P}/healthz").status_code == 401
    assert anna.claim().status_code == 200
    assert anna.packed("set_image", pack_array(IMAGE)).status_code == 200
    otto.headers["X-Lease-Token"] = anna.headers["X-Lease-Token"]
    refused(otto.point(6, 20, 30), 410)
    refused(otto.json("undo"), 410)
    otto.json("release")
    assert anna.works()
    lines: list[dict[str, Any]] = [json.loads(line) for line in audit.read_text().splitlines()]
    by_anna = [(line["what"], line["image"], line["status"]) for line in lines if line["user"] == "anna"]
    assert by_anna == [("open an unnamed image", None, 200), ("segment an unnamed image", None, 200)]
    assert ("segment an unnamed image", 410) in {
        (line["what"], line["status"]) for line in lines if line["user"] == "otto"
    }
    assert anna.headers["X-Lease-Token"] not in audit.read_text()


def test_one_user_has_at_most_half_of_the_sessions(users: tuple[TestClient, dict[str, str], Path]) -> None:
    http, tokens, _ = users
    statuses = {
        name: [Client(http, {"Authorization": f"Bearer {tokens[name]}"}).claim().status_code for _ in range(5)]
        for name in tokens
    }
    assert statuses == {"anna": [200] * 4 + [503], "otto": [200] * 4 + [503]}
