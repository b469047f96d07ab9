"""Clients of models in another process, and of servers that fail."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Event, Lock, Thread
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from baps.blackbox import BlackBox, RemoteSettings, load_black_box
from baps.blackbox.remote.inference_protocol import Address, connect
from baps.blackbox.remote.prompt_tensors import to_tensors
from baps.blackbox.sam import SamBlackBox
from baps.errors import BapsError, BudgetSpentError, InputError
from baps.evaluation.cases import LabelledSlice
from baps.prompts import Prompt
from baps.training.adapt import Adaptation, ProgressReport, adapt
from baps.training.settings import AdaptationSettings
from tests.support.faulty_server import IMAGE_SIZE, FaultyServer, json_reply, metadata, reply
from tests.support.hosts import Host
from tests.support.sam_networks import small_sam

WIRES = ("http", "grpc")
PROMPTS = [
    Prompt(((60.5, 70.0),)),
    Prompt(((90.0, 80.0), (75.5, 110.0)), ((20.0, 30.0),)),
    Prompt(box=(40.0, 44.0, 140.0, 128.0)),
    Prompt(((90.0, 80.0),), ((20.0, 30.0), (100.0, 20.0)), (40.0, 44.0, 140.0, 128.0)),
]
CLICK = Prompt(((3.0, 3.0),))


def _remote(address: str, **settings: Any) -> BlackBox:
    return load_black_box("remote", remote=RemoteSettings(address, **settings))


def _images(count: int, side: int) -> NDArray[np.uint8]:
    """Draw blobs on noise."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:side, :side]
    grey = random.normal(70, 10, (count, side, side))
    for image in grey:
        x, y, radius = random.uniform(0.3, 0.7, 3) * side
        image[(rows - y) ** 2 + (columns - x) ** 2 < (radius / 2) ** 2] += 90
    return np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=-1)


def _black_images(count: int) -> NDArray[np.uint8]:
    return np.zeros((count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)


# A served model.


@pytest.mark.parametrize("wire", WIRES)
def test_remote_and_local_masks_are_equal(bundled_host: Host, bundled: BlackBox, wire: str) -> None:
    remote = _remote(bundled_host.addresses[wire], batch_size=4)
    side = bundled.capabilities.input_size
    images, prompts = _images(11, side), [PROMPTS[n % 4] for n in range(11)]  # Three requests.
    np.testing.assert_allclose(remote.segment(images, prompts), bundled.segment(images, prompts), atol=1e-5)
    assert remote.images_queried == 11
    capabilities = remote.capabilities
    assert (capabilities.name, capabilities.input_size, capabilities.batch_size) == ("bundled", side, 4)
    assert (capabilities.encodings, capabilities.preprocessing) == (False, "canvas")


@pytest.mark.parametrize("wire", WIRES)
def test_hosted_model_sees_the_slice_without_its_padding(sam_host: Host, wire: str) -> None:
    """Its masks are those of the same model on this machine. A model that sees the padding gets no sizes."""
    remote, local = _remote(sam_host.addresses[wire], batch_size=4), SamBlackBox(small_sam(), "small")
    images, sizes = _images(5, 192), [(192, 192), (192, 150), (120, 192), (192, 150), (100, 90)]
    for image, (height, width) in zip(images, sizes, strict=True):
        image[height:], image[:, width:] = 0, 0
    prompts = [PROMPTS[n % 4] for n in range(5)]
    masks = remote.segment(images, prompts, sizes)
    np.testing.assert_allclose(masks, local.segment(images, prompts, sizes), atol=1e-5)
    assert np.abs(masks - remote.segment(images, prompts))[:, :100, :90].max() > 1e-2
    assert (remote.images_queried, remote.capabilities.preprocessing) == (10, "remote")


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("size", [(0, 5), (193, 192), (5,)], ids=str)
def test_hosted_model_refuses_invalid_sizes(sam_host: Host, wire: str, size: tuple[int, ...]) -> None:
    points, labels = to_tensors([CLICK])
    inputs = {"image": _images(1, 192), "points": points, "labels": labels, "sizes": np.array([size], np.int32)}
    with pytest.raises(BapsError, match="sizes must give the height and the width of the slice in each image"):
        connect(Address.parse(sam_host.addresses[wire]), 60).infer(inputs, "probabilities")


def test_hosted_model_requires_the_sizes(sam_host: Host) -> None:
    points, labels = to_tensors([CLICK])
    inputs = {"image": _images(1, 192), "points": points, "labels": labels}
    with pytest.raises(BapsError, match="The request needs an input sizes of type INT32"):
        connect(Address.parse(sam_host.addresses["http"]), 60).infer(inputs, "probabilities")


def test_http_and_grpc_describe_the_same_model(bundled_host: Host) -> None:
    http, grpc = (_remote(bundled_host.addresses[wire]).capabilities for wire in WIRES)
    assert http == grpc
    assert len(http.weights_sha256) == 64


@pytest.mark.parametrize("wire", WIRES)
def test_hard_masks_are_used(hard_host: Host, bundled_host: Host, bundled: BlackBox, wire: str) -> None:
    remote = _remote(hard_host.addresses[wire])
    images = _images(4, bundled.capabilities.input_size)
    result = remote.segment(images, PROMPTS)
    assert set(np.unique(result)) == {0, 1}
    assert (
        np.mean(result != (bundled.segment(images, PROMPTS) > 0.5)) < 1e-4
    )  # Differences are rounding errors on the edge.
    # An adapter for one model does not work with the other.
    soft = _remote(bundled_host.addresses[wire])
    assert remote.capabilities.weights_sha256 != soft.capabilities.weights_sha256


@pytest.mark.parametrize("wire", WIRES)
def test_threads_share_one_connection(bundled_host: Host, bundled: BlackBox, wire: str) -> None:
    """As in a server, all threads use one connection, even after the thread that opened it has ended."""
    side = bundled.capabilities.input_size
    images = _images(4, side)
    expected = bundled.segment(images, PROMPTS)
    with ThreadPoolExecutor(1) as pool:
        remote = pool.submit(_remote, bundled_host.addresses[wire]).result()
    for _ in range(2):
        with ThreadPoolExecutor(4) as pool:
            for result in pool.map(lambda _: remote.segment(images, PROMPTS), range(6)):
                np.testing.assert_allclose(result, expected, atol=1e-5)
    np.testing.assert_allclose(remote.segment(images, PROMPTS), expected, atol=1e-5)
    assert remote.images_queried == 13 * 4


@pytest.mark.parametrize("wire", WIRES)
def test_a_child_process_loads_its_own_connection(bundled_host: Host, wire: str) -> None:
    """A training does this while the server that started it has its own connection."""
    address = bundled_host.addresses[wire]
    remote = _remote(address)
    remote.segment(_images(1, remote.capabilities.input_size), PROMPTS[:1])
    program = (
        "import sys, numpy as np; from baps.blackbox import *; "
        "box = load_black_box('remote', remote=RemoteSettings(sys.argv[1])); side = box.capabilities.input_size; "
        "print(box.segment(np.zeros((1, side, side, 3), np.uint8), [Prompt(((5, 5),))]).shape[1] == side)"
    )
    process = subprocess.run([sys.executable, "-c", program, address], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "True"
    remote.segment(_images(1, remote.capabilities.input_size), PROMPTS[:1])


@pytest.mark.parametrize("wire", WIRES)
def test_missing_model_is_refused(bundled_host: Host, wire: str) -> None:
    with pytest.raises(BapsError, match=r"bundled2 refused .*Model with name bundled2 does not exist"):
        _remote(f"{bundled_host.addresses[wire]}2")


@pytest.mark.parametrize("wire", WIRES)
def test_images_of_another_size_are_not_sent(bundled_host: Host, wire: str) -> None:
    remote = _remote(bundled_host.addresses[wire])
    side = remote.capabilities.input_size
    with pytest.raises(InputError, match=rf"takes images of {side} x {side} pixels, not 36 x 50"):
        remote.segment(np.zeros((1, 36, 50, 3), np.uint8), [CLICK])


# A server that disappears.

SETTINGS = AdaptationSettings(
    max_images=500, batch_size=8, curve_points=2, curve_slices=4, click_sets=2, check_slices=3, learning_rate=0.05
)
Slices = Callable[..., dict[str, list[LabelledSlice]]]


def _assert_same(first: Adaptation, second: Adaptation) -> None:
    states = first.adapter.state_dict(), second.adapter.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert first.comparison == second.comparison
    assert [point.dice for point in first.curve] == [point.dice for point in second.curve]


@pytest.mark.parametrize("wire", WIRES)
def test_restarting_server_is_retried(own_host: Host, wire: str) -> None:
    remote = _remote(own_host.addresses[wire])
    images, prompts = _images(3, 32), [CLICK] * 3
    before = remote.segment(images, prompts)
    own_host.kill()
    Thread(target=own_host.start).start()
    np.testing.assert_array_equal(remote.segment(images, prompts), before)
    assert remote.images_queried == 3 + 3 + 3  # Images that are sent again count again.


@pytest.mark.parametrize("wire", WIRES)
def test_server_that_does_not_come_back_is_an_error(own_host: Host, wire: str) -> None:
    remote = _remote(own_host.addresses[wire], retry_seconds=1)
    own_host.kill()
    with pytest.raises(BapsError, match=r"cannot be reached .* The server stayed away for 1 s\. Start it") as caught:
        remote.segment(_images(1, 32), [CLICK])
    assert not isinstance(caught.value, InputError)


def test_server_that_returns_with_other_weights_is_refused(own_host: Host) -> None:
    remote = _remote(own_host.addresses["grpc"])
    before = remote.capabilities.weights_sha256
    own_host.kill()
    own_host.start("--weights", "c")
    with pytest.raises(BapsError, match="was replaced while it was in use"):
        remote.segment(_images(1, 32), [CLICK])
    assert remote.images_queried == 1
    assert _remote(own_host.addresses["http"]).capabilities.weights_sha256 != before


@pytest.mark.slow
@pytest.mark.parametrize("wire", WIRES)
def test_training_that_lost_its_server_resumes_from_its_log(
    own_host: Host, dim_slices: Slices, tmp_path: Path, wire: str
) -> None:
    slices, log, address = dim_slices(5), tmp_path / "log.jsonl", own_host.addresses[wire]
    unbroken = adapt(_remote(address), slices, SETTINGS)
    half = unbroken.record["black_box_images"] // 2

    def switch_off(now: ProgressReport) -> None:
        if now.images > half:
            own_host.kill()

    with pytest.raises(BapsError, match="resumes from its log"):
        adapt(_remote(address, retry_seconds=0), slices, SETTINGS, progress=switch_off, log=log)
    own_host.start()
    own_host.wait()
    rest = _remote(address)
    result = adapt(rest, slices, SETTINGS, log=log)
    _assert_same(result, unbroken)
    assert result.record["replayed_images"] > half
    queried = result.record["black_box_images"]
    assert queried == unbroken.record["black_box_images"] == rest.images_queried + result.record["replayed_images"]  # type: ignore[operator]


@pytest.mark.slow
def test_training_survives_a_restart_of_its_server(own_host: Host, dim_slices: Slices) -> None:
    slices, address = dim_slices(5), own_host.addresses["grpc"]
    unbroken = adapt(_remote(address), slices, SETTINGS)
    restarted: list[int] = []

    def restart(now: ProgressReport) -> None:
        if now.images > unbroken.record["black_box_images"] // 2 and not restarted:
            restarted.append(now.images)
            own_host.kill()
            Thread(target=own_host.start).start()

    result = adapt(_remote(address), slices, SETTINGS, progress=restart)
    _assert_same(result, unbroken)
    assert restarted
    assert result.record["black_box_images"] == unbroken.record["black_box_images"] + 8  # type: ignore[operator]


# A server that fails.


@pytest.fixture
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Record the pauses between attempts instead of waiting."""
    pauses: list[float] = []
    clock = time.monotonic()

    def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("baps.blackbox.remote.client.time.sleep", sleep)
    monkeypatch.setattr("baps.blackbox.remote.client.time.monotonic", lambda: clock + sum(pauses))
    return pauses


def _replies_in_turn(answers: list[Any]) -> Callable[[int], Any]:
    """Make a function that returns these replies in turn; a number is an error status, None a valid reply."""

    def answer(count: int) -> Any:
        now = answers.pop(0) if answers else None
        return (
            reply(np.full((count, IMAGE_SIZE, IMAGE_SIZE), 0.25, np.float32))
            if now is None
            else json_reply(now, error="busy")
        )

    return answer


def test_a_resent_image_is_counted_again(faulty: FaultyServer, _no_pauses: list[float]) -> None:
    remote = _remote(faulty.address, batch_size=4)
    faulty.infer = _replies_in_turn([None, 503, 502, None])
    np.testing.assert_array_equal(
        remote.segment(_black_images(6), [CLICK] * 6), np.full((6, IMAGE_SIZE, IMAGE_SIZE), 0.25)
    )
    assert faulty.image_counts == [4, 2, 2, 2]
    assert remote.images_queried == sum(faulty.image_counts)
    assert _no_pauses == [0.5, 1]


@pytest.mark.parametrize(
    ("images", "connections", "counts"),
    [(16, 8, [2] * 8), (5, 8, [1] * 5), (17, 4, [2, 5, 5, 5]), (40, 3, [5, 7, 7, 7, 7, 7]), (9, 1, [1, 8])],
)
def test_a_call_is_cut_into_pieces_for_all_connections(
    faulty: FaultyServer, images: int, connections: int, counts: list[int]
) -> None:
    remote = _remote(faulty.address, connections=connections)
    remote.segment(_black_images(images), [CLICK] * images)
    assert sorted(faulty.image_counts) == counts
    assert remote.images_queried == images


def test_requests_are_in_flight_at_once_and_their_order_does_not_matter(faulty: FaultyServer) -> None:
    """The server answers only when it has received three requests, the last one first."""
    remote = _remote(faulty.address, connections=3, batch_size=2)
    together, guard, arrived, last = Barrier(3, timeout=30), Lock(), list[int](), list[Event]()

    def in_reverse(count: int) -> Any:
        with guard:
            number = len(arrived)
            arrived.append(number)
            last.append(Event())
        together.wait()
        if number < 2:
            assert last[number + 1].wait(30)
        last[number].set()
        return reply(np.full((count, IMAGE_SIZE, IMAGE_SIZE), count / 4, np.float32))

    faulty.infer = in_reverse
    # Five images are three pieces, of which the last has one image.
    answer = remote.segment(_black_images(5), [CLICK] * 5)
    assert answer[:, 0, 0].tolist() == [0.5, 0.5, 0.5, 0.5, 0.25]
    assert arrived == [0, 1, 2]


def test_threads_count_resent_images_and_keep_to_the_budget(faulty: FaultyServer, _no_pauses: list[float]) -> None:
    remote = _remote(faulty.address, connections=4, batch_size=2)
    guard, answers = Lock(), [None, 503, 503, None, 503]
    reply_in_turn = _replies_in_turn(answers)

    def one_by_one(count: int) -> Any:
        with guard:
            return reply_in_turn(count)

    faulty.infer = one_by_one
    remote.segment(_black_images(8), [CLICK] * 8)
    assert remote.images_queried == sum(faulty.image_counts) == 8 + 3 * 2
    remote.budget = remote.images_queried + 8
    answers += [503] * 4
    with pytest.raises(BudgetSpentError):
        remote.segment(_black_images(8), [CLICK] * 8)
    assert remote.images_queried == sum(faulty.image_counts) <= remote.budget


def test_an_error_ends_all_requests_that_have_not_begun(faulty: FaultyServer) -> None:
    remote = _remote(faulty.address, connections=2, batch_size=1)
    faulty.infer = lambda count: json_reply(500, error="broken")
    with pytest.raises(BapsError, match="HTTP 500.: broken"):
        remote.segment(_black_images(50), [CLICK] * 50)
    assert sum(faulty.image_counts) < 25
    faulty.infer = _replies_in_turn([])
    remote.segment(_black_images(3), [CLICK] * 3)  # The connections are free again.


@pytest.mark.parametrize("wire", WIRES)
def test_several_connections_give_the_masks_of_one(own_host: Host, wire: str) -> None:
    images, prompts = _images(21, 32), [CLICK] * 21
    one, six = (_remote(own_host.addresses[wire], connections=n) for n in (1, 6))
    np.testing.assert_array_equal(six.segment(images, prompts), one.segment(images, prompts))
    assert one.capabilities == six.capabilities
    assert one.images_queried == six.images_queried == 21


def test_pauses_double_up_to_a_limit(faulty: FaultyServer, _no_pauses: list[float]) -> None:
    remote = _remote(faulty.address, retry_seconds=30)
    faulty.infer = lambda _: json_reply(503)
    faulty.ready = 503
    with pytest.raises(BapsError, match=r"HTTP 503.*stayed away for 30 s"):
        remote.segment(_black_images(2), [CLICK] * 2)
    assert _no_pauses == [0.5, 1, 2, 4, 8, 8, 6.5]
    assert faulty.image_counts == [2]  # Nothing is sent to a server that is not ready.
    assert remote.images_queried == 2


def test_retries_of_a_failing_server_end_too(faulty: FaultyServer, _no_pauses: list[float]) -> None:
    remote = _remote(faulty.address, retry_seconds=5)
    faulty.infer = lambda _: json_reply(503)
    with pytest.raises(BapsError, match="stayed away for 5 s"):
        remote.segment(_black_images(2), [CLICK] * 2)
    assert remote.images_queried == sum(faulty.image_counts)
    assert sum(_no_pauses) == 5


def test_the_budget_also_limits_resent_images(faulty: FaultyServer, _no_pauses: list[float]) -> None:
    remote = _remote(faulty.address)
    remote.budget = 5
    faulty.infer = _replies_in_turn([503])
    with pytest.raises(
        BudgetSpentError, match="3 of 5 images have been sent to the black box: 3 more exceed the budget"
    ):
        remote.segment(_black_images(3), [CLICK] * 3)
    assert remote.images_queried == sum(faulty.image_counts) == 3
    remote.segment(_black_images(2), [CLICK] * 2)
    with pytest.raises(BudgetSpentError):
        remote.segment(_black_images(1), [CLICK])
    assert sum(faulty.image_counts) == 5


def test_slow_server_is_an_error(faulty: FaultyServer) -> None:
    remote = _remote(faulty.address, timeout=0.2, retry_seconds=0)

    def slowly(count: int) -> Any:
        time.sleep(1)
        return _replies_in_turn([])(count)

    faulty.infer = slowly
    with pytest.raises(BapsError, match=r"does not respond in time \(ReadTimeout\)"):
        remote.segment(_black_images(1), [CLICK])
    assert remote.images_queried == 1


def test_refused_request_is_not_retried(faulty: FaultyServer) -> None:
    remote = _remote(faulty.address)
    faulty.infer = _replies_in_turn([500])
    with pytest.raises(BapsError, match="HTTP 500.: busy"):
        remote.segment(_black_images(1), [CLICK])
    assert faulty.image_counts == [1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((2, IMAGE_SIZE, IMAGE_SIZE - 1), np.float32), "shape"),
        (np.zeros((1, IMAGE_SIZE, IMAGE_SIZE), np.float32), "shape"),
        (np.full((2, IMAGE_SIZE, IMAGE_SIZE), np.nan, np.float32), "not finite"),
        (np.full((2, IMAGE_SIZE, IMAGE_SIZE), 2, np.float32), "reach from 2 to 2"),
    ],
)
def test_invalid_response_is_refused(faulty: FaultyServer, values: NDArray[np.float32], message: str) -> None:
    remote = _remote(faulty.address)
    faulty.infer = lambda _: reply(values)
    with pytest.raises(BapsError, match=f"{message}.*Fix the model on its server"):
        remote.segment(_black_images(2), [CLICK] * 2)


def test_boolean_masks_are_used(faulty: FaultyServer) -> None:
    faulty.metadata = metadata(probabilities=None, masks=("BOOL", [-1, IMAGE_SIZE, IMAGE_SIZE]))
    faulty.infer = lambda count: reply(np.ones((count, IMAGE_SIZE, IMAGE_SIZE), np.bool_), "BOOL", "masks")
    result = _remote(faulty.address).segment(_black_images(2), [CLICK] * 2)
    np.testing.assert_array_equal(result, np.ones((2, IMAGE_SIZE, IMAGE_SIZE), np.float32))


def test_model_of_any_size_gets_the_configured_size(faulty: FaultyServer) -> None:
    faulty.metadata = metadata(image=("UINT8", [-1, -1, -1, 3]), probabilities=("FP32", [-1, -1, -1]))
    assert _remote(faulty.address).capabilities.input_size == 1024
    remote = _remote(faulty.address, image_size=IMAGE_SIZE)
    assert remote.capabilities.input_size == IMAGE_SIZE
    assert remote.segment(_black_images(1), [CLICK]).shape == (1, IMAGE_SIZE, IMAGE_SIZE)


def test_model_of_one_image_gets_single_images(faulty: FaultyServer) -> None:
    faulty.metadata = metadata(image=("UINT8", [1, IMAGE_SIZE, IMAGE_SIZE, 3]))
    remote = _remote(faulty.address)
    assert remote.capabilities.batch_size == 1
    remote.segment(_black_images(3), [CLICK] * 3)
    assert faulty.image_counts == [1, 1, 1]


def test_incompatible_model_is_refused_at_the_start(faulty: FaultyServer) -> None:
    faulty.metadata = metadata(points=("FP64", [-1, -1, 2]))
    with pytest.raises(InputError, match=r"points is FP64 \[-1, -1, 2\], but FP32 \[-1, -1, 2\] is expected"):
        _remote(faulty.address)


def test_model_that_is_not_ready_is_an_error(faulty: FaultyServer) -> None:
    faulty.ready = 400
    with pytest.raises(BapsError, match="is not ready. Wait until"):
        _remote(faulty.address)


@pytest.mark.parametrize(
    "changed", [{"name": "other"}, {"versions": ["1", "2"]}, {"platform": "onnx"}, {"labels": ("INT32", [1, -1])}]
)
def test_identity_depends_on_the_metadata(faulty: FaultyServer, changed: dict[str, Any]) -> None:
    first = _remote(faulty.address).capabilities.weights_sha256
    faulty.metadata["inputs"].reverse()
    faulty.metadata["versions"] = None
    assert _remote(faulty.address).capabilities.weights_sha256 == first
    faulty.metadata = metadata(**changed)
    assert _remote(faulty.address).capabilities.weights_sha256 != first


def test_required_identity_is_checked(faulty: FaultyServer) -> None:
    result = _remote(faulty.address).capabilities.weights_sha256
    load_black_box("remote", None, result.upper(), remote=RemoteSettings(faulty.address))
    with pytest.raises(InputError, match=f"has the identity {result}, but {'0' * 64} was expected"):
        load_black_box("remote", None, "0" * 64, remote=RemoteSettings(faulty.address))


def test_a_new_version_is_detected_by_its_response(faulty: FaultyServer) -> None:
    """Triton switches to the newest version without a restart."""
    remote = _remote(faulty.address)
    values = np.zeros((1, IMAGE_SIZE, IMAGE_SIZE), np.float32)
    for version in ("1", "1"):
        faulty.infer = lambda _, version=version: reply(values, model_version=version)  # type: ignore[misc]
        remote.segment(_black_images(1), [CLICK])
    faulty.infer = lambda _: reply(values, model_version="2")
    with pytest.raises(BapsError, match="was replaced"):
        remote.segment(_black_images(1), [CLICK])


@pytest.mark.parametrize(
    ("prompts", "capabilities"),
    [("clicks,boxes", (True, True, True)), ("clicks", (True, True, False)), ("boxes", (False, False, True))],
)
def test_the_operator_declares_the_supported_prompts(
    faulty: FaultyServer, prompts: str, capabilities: tuple[bool, bool, bool]
) -> None:
    result = _remote(faulty.address, prompts=prompts).capabilities
    assert (result.clicks, result.negative_clicks, result.boxes) == capabilities


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"address": "model"}, "is not the address"),
        ({"image_size": 0}, "remote_image_size"),
        ({"batch_size": 0}, "remote_batch_size"),
        ({"timeout": 0.0}, "remote_timeout"),
        ({"timeout": float("nan")}, "remote_timeout"),
        ({"retry_seconds": -1.0}, "remote_retry_seconds"),
        ({"retry_seconds": float("inf")}, "remote_retry_seconds"),
        ({"connections": 0}, "remote_connections must be from 1 to 64"),
        ({"connections": 65}, "remote_connections"),
        ({"prompts": "masks"}, "remote_prompts.*clicks,boxes"),
    ],
)
def test_invalid_settings_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(RemoteSettings("http://h:8000/m"), **changed)
