"""The client of nninteractive-server against a server with faults."""

from __future__ import annotations

import json
import shutil
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from baps.blackbox.volumes import nninteractive, nninteractive_session
from baps.blackbox.volumes.loading import load_volume_black_box
from baps.blackbox.volumes.nninteractive import licence_notice
from baps.blackbox.volumes.settings import VolumeRemoteSettings
from baps.errors import BapsError, BudgetSpentError, InputError
from baps.prompts.volume_prompts import VolumeBox, VolumePoint, VolumeRegion
from tests.support.faulty_nninteractive import CAPABILITIES, FaultyNnInteractive, Reply, json_reply, mask_reply

pack_array = pytest.importorskip(
    "nnInteractive.inference.remote.serialization", reason="the extra 'nninteractive' is not installed"
).pack_array

SHAPE = (14, 12, 10)
VOXELS = np.random.default_rng(0).integers(0, 99, SHAPE).astype(np.int16)
SPACING = (1.0, 1.0, 2.5)
CLICK = [VolumePoint((5, 5, 5), True)]
POINT = "/add_point_interaction"
Connect = Callable[..., Any]


@pytest.fixture
def connect(faulty: FaultyNnInteractive, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    """Return a function that connects a black box to the server."""
    monkeypatch.setattr(nninteractive, "_MIN_PAUSE", 0.01)
    with ExitStack() as opened:

        def one(token: str = "", retry_seconds: float = 2, timeout: float = 5, **more: Any) -> Any:
            settings = VolumeRemoteSettings(faulty.address, token, timeout, retry_seconds)
            return opened.enter_context(closing(load_volume_black_box("nninteractive", settings, **more)))

        yield one


def predict(black_box: Any, **changes: Any) -> Any:
    return black_box.predict(**{"voxels": VOXELS, "spacing": SPACING, "prompts": CLICK, **changes})


def test_requests_of_a_prediction(faulty: FaultyNnInteractive, connect: Connect) -> None:
    black_box = connect("secret")
    del faulty.requests[:]
    region = VolumeRegion.of(np.ones((3, 1, 2)), (4, 5, 6), False, False)
    prompts = [VolumeBox((1, 2, 3), (4, 5, 6), True), region, *CLICK]
    answer = predict(black_box, prompts=prompts, mask=VOXELS > 90)
    expected = VOXELS > 90
    expected[3:8, 3:8, 3:8] = True
    assert np.array_equal(answer, expected)
    assert faulty.paths == [
        "/set_image", "/set_target_buffer", "/set_do_autozoom", "/reset_interactions", "/add_initial_seg_interaction",
        "/add_bbox_interaction", "/add_scribble_interaction", POINT,
    ]  # fmt: skip
    facts = [facts for _, _, facts in faulty.requests]
    assert facts[0] == {"image_properties": {"spacing": [1.0, 1.0, 2.5]}}
    assert facts[1] == {"shape": [14, 12, 10], "dtype": "uint8"}
    assert facts[2] == {"do_autozoom": False}  # The volume fits into the patch of 192 voxels.
    assert facts[5] == {"bbox_coords": [[1, 4], [2, 5], [3, 6]], "include_interaction": True, "run_prediction": False}
    assert facts[6]["interaction_bbox"] == [[4, 7], [5, 6], [6, 8]]
    assert facts[6]["include_interaction"] is False
    assert [one.get("run_prediction") for one in facts[4:]] == [False, False, False, True]
    for _, headers, _ in faulty.requests:
        assert headers["Authorization"] == "Bearer secret"
        assert headers["X-Lease-Token"] == "lease0"
    del faulty.requests[:]
    predict(black_box)
    assert faulty.paths == ["/reset_interactions", POINT]  # The server has the image.
    predict(black_box, spacing=(2.0, 2.0, 2.0))
    assert "/set_image" in faulty.paths
    black_box.close()
    assert faulty.leases == set()


def test_capabilities_are_those_of_the_server(faulty: FaultyNnInteractive, connect: Connect) -> None:
    supported = {"points": True, "bbox2d": False, "bbox3d": False, "scribble": True, "lasso": False}
    faulty.capabilities |= {
        "supported_interactions": supported, "supports_initial_label": False, "license": "CC BY-NC-SA 4.0"
    }  # fmt: skip
    capabilities = connect().capabilities
    assert (capabilities.points, capabilities.scribbles) == (True, True)
    assert (capabilities.boxes, capabilities.flat_boxes, capabilities.lassos, capabilities.masks) == (False,) * 4
    assert capabilities.licence == "CC BY-NC-SA 4.0"


def test_a_model_without_clicks_is_probed_by_a_box(faulty: FaultyNnInteractive, connect: Connect) -> None:
    faulty.capabilities["supported_interactions"] = {"bbox2d": True}
    assert connect().capabilities.flat_boxes
    assert "/add_bbox_interaction" in faulty.paths


def test_a_model_of_scribbles_is_identified_by_what_it_declares(faulty: FaultyNnInteractive, connect: Connect) -> None:
    faulty.capabilities["supported_interactions"] = {"scribble": True}
    assert len(connect().capabilities.weights_sha256) == 64
    assert not [path for path in faulty.paths if path.startswith("/add")]


def test_a_mask_alone_is_refined_where_the_model_can(faulty: FaultyNnInteractive, connect: Connect) -> None:
    refined = np.zeros(SHAPE, np.uint8)
    refined[2:4] = 1
    faulty.faults["/add_initial_seg_interaction"] = mask_reply(refined, [[0, size] for size in SHAPE])
    assert np.array_equal(predict(connect(), prompts=[], mask=VOXELS > 50), refined)
    faulty.capabilities["supports_zero_shot_label_refinement"] = False
    with pytest.raises(InputError, match="Add a click"):
        predict(connect(), prompts=[], mask=VOXELS > 50)


def test_volumes_that_exceed_the_patch_are_zoomed(faulty: FaultyNnInteractive, connect: Connect) -> None:
    faulty.capabilities["patch_size"] = [192, 192, 9]
    predict(connect())
    assert [facts for path, _, facts in faulty.requests if path == "/set_do_autozoom"][-1] == {"do_autozoom": True}


def test_autozoom_is_switched_off_on_request(faulty: FaultyNnInteractive) -> None:
    with closing(
        load_volume_black_box("nninteractive", VolumeRemoteSettings(faulty.address, autozoom=False))
    ) as black_box:
        del faulty.requests[:]
        predict(black_box)
    assert {"do_autozoom": False} in [facts for _, _, facts in faulty.requests]


def test_a_volume_of_one_grey_value_is_not_sent(faulty: FaultyNnInteractive, connect: Connect) -> None:
    black_box = connect()
    del faulty.requests[:]
    with pytest.raises(InputError, match="same grey value everywhere"):
        predict(black_box, voxels=np.full(SHAPE, 7))
    assert faulty.paths == []


PART = np.ones((2, 3, 4), np.uint8)
BOX = [[1, 3], [1, 4], [1, 5]]
FACTS = json.dumps({"ran_prediction": True, "bbox": BOX})


def _lying(shape: tuple[int, ...], name: bytes = b"uint8") -> bytes:
    head = struct.pack("<4sBBBB", b"NNIA", 1, 1, len(shape), len(name)) + name
    return head + struct.pack(f"<{len(shape)}q", *shape) + pack_array(PART)[8 + 5 + 24 :]


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((200, {}, b"<html>Sign in</html>"), "it did not predict"),
        ((200, {"X-Meta": "<html>"}, b""), "it did not predict"),
        ((200, {"X-Meta": "[]"}, b""), "it did not predict"),
        ((200, {"X-Meta": "[" * 50_000}, b""), "it did not predict"),
        ((200, {"X-Meta": '{"ran_prediction": false, "bbox": null}'}, b""), "it did not predict"),
        ((200, {"X-Meta": FACTS}, b""), "The mask is missing"),
        ((200, {"X-Meta": FACTS}, b"<html>" * 9), "not an array in the format"),
        ((200, {"X-Meta": FACTS}, _lying((1 << 30, 1 << 30, 1 << 30))), "MB are allowed"),
        ((200, {"X-Meta": FACTS}, _lying((999, 999, 999))), "larger than|has the shape"),
        ((200, {"X-Meta": FACTS}, _lying((2, -3, 4))), "negative size"),
        ((200, {"X-Meta": FACTS}, _lying((2, 3, 4), b"object")), "type that is not accepted"),
        ((200, {"X-Meta": FACTS}, pack_array(PART)[:-2]), "broken"),
        ((200, {"X-Meta": FACTS}, pack_array(PART) + b"x"), "broken"),
        ((200, {"X-Meta": FACTS}, bytes(1 << 20)), "larger than the"),
        ((200, {"X-Meta": FACTS, "Content-Encoding": "gzip"}, pack_array(PART)), "it compresses"),
        (mask_reply(PART.astype(np.float32) * np.nan, BOX), "type float32"),
        (mask_reply(PART.astype(np.int64), BOX), "type int64"),
        (mask_reply(PART * 7, BOX), "other values than 0 and 1"),
        (mask_reply(PART, [[1, 3], [1, 4], [1, 6]]), "has the shape"),
        (mask_reply(PART, [[1, 3], [1, 4]]), "three axes"),
        (mask_reply(PART, "everywhere"), "three axes"),
        (mask_reply(PART, [[1, 3], [1, 4], ["1", 5]]), "whole numbers"),
        (mask_reply(PART, [[1, 3], [1, 4], [True, 5]]), "whole numbers"),
        (mask_reply(PART, [[1, 3], [1, 4], [1.0, 5.0]]), "whole numbers"),
        (mask_reply(PART, [[-1, 1], [1, 4], [1, 5]]), "outside the volume"),
        (mask_reply(PART, [[3, 1], [1, 4], [1, 5]]), "outside the volume"),
        (mask_reply(PART, [[13, 15], [1, 4], [1, 5]]), "outside the volume"),
        (mask_reply(PART, [[1, 10**30], [1, 4], [1, 5]]), "outside the volume"),
        (json_reply(400, detail="lasso  is\n\x1b[31m empty"), r"refused \(HTTP 400\): lasso is \[31m empty\. Check"),
        ((500, {}, b"Internal Server Error"), r"refused \(HTTP 500\): Internal Server Error\."),
        ((302, {"Location": "http://elsewhere/"}, b""), "redirects, which is not followed"),
    ],
)
def test_a_reply_that_lies_gets_a_sentence(
    faulty: FaultyNnInteractive, connect: Connect, reply: Reply, message: str
) -> None:
    black_box = connect()
    faulty.faults[POINT] = reply
    with pytest.raises(BapsError, match=message) as error:
        predict(black_box)
    assert not isinstance(error.value, InputError)
    assert str(error.value).endswith(".")
    assert "http://elsewhere" not in "".join(faulty.paths)
    faulty.faults.clear()
    assert predict(black_box).sum() == 125  # The session is alive.


def test_a_prediction_that_changes_nothing_is_empty(faulty: FaultyNnInteractive, connect: Connect) -> None:
    black_box = connect()
    faulty.faults[POINT] = (200, {"X-Meta": '{"ran_prediction": true, "bbox": null}'}, b"")
    assert predict(black_box).sum() == 0


@pytest.mark.parametrize(
    ("path", "reply", "message"),
    [
        ("/capabilities", (200, {}, b"<html>Sign in</html>"), "something else than JSON"),
        ("/capabilities", (200, {}, b"[]"), "another form"),
        ("/capabilities", json_reply(), "does not say what its model understands"),
        ("/capabilities", json_reply(supported_interactions=[], inference_session_version="2.6"), "does not say"),
        ("/capabilities", json_reply(**{**CAPABILITIES, "inference_session_version": "3.0.0"}), "has version 3.0.0"),
        ("/capabilities", json_reply(**{**CAPABILITIES, "supported_interactions": {}}), "understands no prompt"),
        ("/capabilities", (200, {}, b"[" * 2_000_000), "larger than"),
        ("/capabilities", (200, {}, b"[" * 900_000), "something else than JSON"),
        ("/capabilities", (400, {}, b"[" * 900_000), r"refused \(HTTP 400\): \[\["),
        ("/capabilities", json_reply(404, detail="Not Found"), r"refused \(HTTP 404\): Not Found"),
        ("/capabilities", json_reply(401, detail="Invalid bearer token"), "Put its API key into a private file"),
        ("/claim", json_reply(403, detail="No"), "Put its API key into a private file"),
        ("/claim", json_reply(503, {"Retry-After": "9"}, detail="server is at capacity"), "no free session"),
        ("/claim", json_reply(**{"lease_token": "a b\r\nX: y"}), "has no token"),
        ("/claim", json_reply(lease_token=7), "has no token"),
        ("/claim", json_reply(**{"lease_token": "a", "liveness_timeout_seconds": -1}), "are no numbers"),
        ("/set_image", json_reply(original_image_shape=[1, 2, 3, 4]), "another shape"),
        ("/set_image", json_reply(413, detail="too large"), "refused"),
    ],
)
def test_a_server_that_cannot_be_used_is_refused_at_once(
    faulty: FaultyNnInteractive, connect: Connect, path: str, reply: Reply, message: str
) -> None:
    faulty.faults[path] = reply
    begun = time.monotonic()
    with pytest.raises(BapsError, match=message):
        connect(retry_seconds=60)
    assert time.monotonic() - begun < 30
    assert faulty.leases == set()


def test_no_server_gets_a_sentence() -> None:
    with pytest.raises(BapsError, match=r"cannot be reached .*ConnectError"):
        load_volume_black_box("nninteractive", VolumeRemoteSettings("http://127.0.0.1:9"))


def test_a_lost_lease_is_claimed_again_and_everything_is_sent_again(
    faulty: FaultyNnInteractive, connect: Connect
) -> None:
    black_box = connect()
    expected = predict(black_box)
    faulty.leases.clear()
    del faulty.requests[:]
    assert np.array_equal(predict(black_box), expected)
    assert faulty.paths[:3] == ["/reset_interactions", "/claim", "/capabilities"]  # Then the probe.
    assert faulty.paths[-5:] == [
        "/set_image", "/set_target_buffer", "/set_do_autozoom", "/reset_interactions", POINT
    ]  # fmt: skip
    assert black_box.images_queried == 2  # No prediction was requested from the lost session.


def test_a_lease_that_is_lost_during_the_prediction_counts(faulty: FaultyNnInteractive, connect: Connect) -> None:
    black_box = connect()
    predict(black_box)
    before = faulty.paths.count(POINT)
    faulty.faults[POINT] = lambda earlier: json_reply(410, detail="reaped") if earlier == before else None
    predict(black_box)
    assert black_box.images_queried == 3
    black_box.budget = 4
    before = faulty.paths.count(POINT)
    with pytest.raises(BudgetSpentError):
        predict(black_box)
    faulty.faults.clear()
    assert black_box.images_queried == 4


def test_a_lease_that_is_lost_twice_gets_a_sentence(faulty: FaultyNnInteractive, connect: Connect) -> None:
    black_box = connect()
    faulty.faults["/reset_interactions"] = json_reply(410, detail="reaped")
    with pytest.raises(BapsError, match=r"ended the new session as well\. Start it with longer time-outs"):
        predict(black_box)
    faulty.faults.clear()
    assert predict(black_box).sum() == 125


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_busy_server_is_awaited(faulty: FaultyNnInteractive, connect: Connect, status: int) -> None:
    black_box = connect()
    before = faulty.paths.count(POINT)
    faulty.faults[POINT] = lambda earlier: (status, {}, b"wait") if earlier < before + 3 else None
    assert predict(black_box).sum() == 125
    assert black_box.images_queried == 4  # Every request is counted.


def test_a_full_server_is_awaited_as_long_as_it_wants(
    faulty: FaultyNnInteractive, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(nninteractive.time, "sleep", slept.append)
    black_box = connect(retry_seconds=1000)
    faulty.leases.clear()
    full = json_reply(503, {"Retry-After": "10"}, detail="server is at capacity")
    faulty.faults["/claim"] = lambda earlier: full if earlier < 3 else None
    assert predict(black_box).sum() == 125
    assert slept == [10.0, 10.0]
    assert black_box.images_queried == 1


def test_a_server_that_stays_away_gets_a_sentence(faulty: FaultyNnInteractive, connect: Connect) -> None:
    black_box = connect(retry_seconds=0.1)
    faulty.faults[POINT] = faulty.faults["/healthz"] = (503, {}, b"")
    with pytest.raises(BapsError, match=r"stayed away for 0\.1 s\..*resumes from its log"):
        predict(black_box)
    faulty.faults.clear()
    assert predict(black_box).sum() == 125


def test_a_reply_that_takes_too_long_is_given_up(faulty: FaultyNnInteractive, connect: Connect) -> None:
    black_box = connect(timeout=0.3, retry_seconds=0)
    held = threading.Event()

    def late(_: int) -> None:
        held.wait(5)

    faulty.faults[POINT] = late
    with pytest.raises(BapsError, match=r"ReadTimeout"):
        predict(black_box)
    held.set()


def test_a_reply_that_drips_is_given_up(faulty: FaultyNnInteractive, connect: Connect) -> None:
    black_box = connect(timeout=0.5, retry_seconds=0)

    def drip() -> Iterator[bytes]:
        for _ in range(100):
            time.sleep(0.1)  # Less than the time-out, again and again.
            yield b" "

    faulty.faults[POINT] = (200, {"Content-Length": "9999"}, drip())
    begun = time.monotonic()
    with pytest.raises(BapsError, match="the reply takes too long"):
        predict(black_box)
    assert time.monotonic() - begun < 9


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl to make a certificate")
def test_an_unknown_certificate_is_refused(faulty: FaultyNnInteractive, tmp_path: Path) -> None:
    words = "req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=127.0.0.1 -keyout key.pem -out certificate.pem"
    subprocess.run(["openssl", *words.split()], cwd=tmp_path, check=True, capture_output=True)  # noqa: S607
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")
    assert faulty.server is not None
    faulty.server.socket = context.wrap_socket(faulty.server.socket, server_side=True)
    settings = VolumeRemoteSettings(faulty.address.replace("http:", "https:"), "secret")
    with pytest.raises(BapsError, match="no certificate that this machine trusts .*SSL_CERT_FILE"):
        load_volume_black_box("nninteractive", settings)
    assert faulty.requests == []


def test_a_model_that_was_replaced_is_noticed(faulty: FaultyNnInteractive, connect: Connect) -> None:
    black_box = connect()
    faulty.leases.clear()
    faulty.capabilities["license"] = "another"
    for _ in range(2):
        with pytest.raises(BapsError, match="was replaced while it was in use"):
            predict(black_box)
    assert faulty.leases == set()
    faulty.capabilities["license"] = CAPABILITIES["license"]
    assert predict(black_box).sum() == 125


def test_weights_that_were_replaced_are_noticed_by_the_probe(faulty: FaultyNnInteractive, connect: Connect) -> None:
    black_box = connect()
    faulty.leases.clear()
    faulty.faults[POINT] = mask_reply(PART, BOX)
    with pytest.raises(BapsError, match="was replaced while it was in use"):
        predict(black_box)
    assert connect().capabilities.weights_sha256 != black_box.capabilities.weights_sha256


def test_identity_is_checked_and_the_address_is_not_part_of_it(faulty: FaultyNnInteractive, connect: Connect) -> None:
    digest = connect().capabilities.weights_sha256
    faulty.capabilities["supports_undo"] = False  # A choice of the operator.
    assert connect(identity=digest.upper()).capabilities.weights_sha256 == digest
    with pytest.raises(InputError, match="another model or version"):
        connect(identity="0" * 64)


def test_heartbeats_are_sent_until_it_is_closed(faulty: FaultyNnInteractive, connect: Connect) -> None:
    faulty.liveness = 2 * nninteractive_session._MIN_BEAT
    black_box = connect()
    deadline = time.monotonic() + 20
    while [path for path, _, _ in faulty.requests].count("/heartbeat") < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    black_box.close()
    assert not [one for one in threading.enumerate() if one.name == "heartbeat" and one.is_alive() and one.join(5)]
    black_box.close()


def test_licences() -> None:
    assert "non-commercial use only" in licence_notice("CC BY-NC-SA 4.0")
    assert "non-commercial use only" in licence_notice("")
    assert licence_notice("Apache-2.0") == "The licence of its weights is Apache-2.0."


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("no-such", None, "Known ones: bundled3d, nninteractive"),
        ("nninteractive", None, "needs an address"),
    ],
)
def test_what_cannot_be_loaded(name: str, settings: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_volume_black_box(name, settings)
