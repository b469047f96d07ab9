from __future__ import annotations

import logging
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from baps.blackbox.remote.inference_protocol import (
    TOKEN_VARIABLE,
    Address,
    Description,
    InferenceServer,
    UnreachableError,
    connect,
)
from baps.errors import BapsError, InputError
from tests.support.faulty_server import IMAGE_SIZE, FaultyServer, json_reply, reply

INPUTS = {"image": np.zeros((2, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8), "points": np.zeros((2, 1, 2), np.float32)}


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("http://h:8000/m", Address("http", "h", 8000, "", "m")),
        ("https://h/m/", Address("https", "h", None, "", "m")),
        ("http://h:8000/a/b/m", Address("http", "h", 8000, "/a/b", "m")),
        ("grpc://[::1]:8001/m", Address("grpc", "::1", 8001, "", "m")),
        ("grpcs://h:8001/m", Address("grpcs", "h", 8001, "", "m")),
    ],
)
def test_addresses_are_parsed(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    ["", "h:8000/m", "ftp://h/m", "http://h:8000", "http://h:8000/", "http:///m", "http://h:x/m", "http://h:99999/m",
     "grpc://h/m", "grpc://h:8001/a/m", "http://h/m?side=3", "http://h/m#x", "http://[::1/m"],
)  # fmt: skip
def test_invalid_addresses(text: str) -> None:
    with pytest.raises(InputError, match="is not the address of a model.*http://host:8000/model"):
        Address.parse(text)


@pytest.mark.parametrize("login", ["me:hush@", "me@", ":hush@"])
def test_a_password_in_an_address_is_refused_and_not_repeated(login: str) -> None:
    with pytest.raises(InputError, match=TOKEN_VARIABLE) as caught:
        Address.parse(f"https://{login}h/m")
    assert "hush" not in str(caught.value)


def _connect(faulty: FaultyServer, timeout: float = 30) -> InferenceServer:
    return connect(Address.parse(faulty.address), timeout)


def test_the_token_is_sent_and_never_logged(
    faulty: FaultyServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "hush")
    caplog.set_level(logging.DEBUG)
    server = _connect(faulty)
    server.describe()
    server.infer(INPUTS, "probabilities")
    assert [headers["Authorization"] for headers in faulty.headers] == ["Bearer hush"] * 2
    faulty.infer = lambda _: json_reply(401, error="no")
    with pytest.raises(BapsError, match=f"refused .HTTP 401.: no\\. Set its token in {TOKEN_VARIABLE}") as caught:
        server.infer(INPUTS, "probabilities")
    assert "hush" not in str(caught.value)
    assert "hush" not in caplog.text


def test_without_a_token_no_other_credentials_are_sent(
    faulty: FaultyServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password hush\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    _connect(faulty).describe()
    assert "Authorization" not in faulty.headers[0]


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_token_does_not_travel_unencrypted(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "hush")
    with pytest.raises(InputError, match="is not encrypted"):
        connect(Address.parse(f"{scheme}://model.hospital:8000/m"), 1)
    connect(Address.parse(f"{scheme}s://model.hospital:8000/m"), 1)
    connect(Address.parse(f"{scheme}://127.0.0.1:8000/m"), 1)


def test_optional_metadata_may_be_missing(faulty: FaultyServer) -> None:
    del faulty.metadata["platform"]
    result = _connect(faulty).describe()
    assert isinstance(result, Description)
    assert (result.name, result.versions, result.platform) == ("faulty", (), "")


def test_json_numbers_are_read(faulty: FaultyServer) -> None:
    """A server without the binary extension replies in JSON only."""
    tensor = {"name": "probabilities", "datatype": "FP32", "shape": [1, 2, 2], "data": [0.0, 0.25, 0.5, 1.0]}
    faulty.infer = lambda _: json_reply(200, model_name="faulty", outputs=[tensor])
    result = _connect(faulty).infer(INPUTS, "probabilities").tensor
    np.testing.assert_array_equal(result, np.array([[[0, 0.25], [0.5, 1]]], np.float32))


@pytest.mark.parametrize(
    "content",
    [b"", b"rubbish", b"[]", b"{}", b'{"name": "faulty", "inputs": [{}], "outputs": []}', b"\xff\xfe", b"null"],
)
def test_metadata_of_another_protocol_is_refused(faulty: FaultyServer, content: bytes) -> None:
    faulty.metadata = (200, {}, content)
    with pytest.raises(BapsError, match="does not follow the Open Inference Protocol"):
        _connect(faulty).describe()


_WELL = reply(np.zeros((2, IMAGE_SIZE, IMAGE_SIZE), np.float32))


@pytest.mark.parametrize(
    "answer",
    [
        (200, {}, b"rubbish"),
        (200, {}, b"[]"),
        (200, {"Inference-Header-Content-Length": "many"}, b"{}"),
        (200, _WELL[1], _WELL[2][:-4]),
        (200, _WELL[1], _WELL[2][:20]),
        json_reply(200, outputs=[{"name": "probabilities"}]),
        json_reply(200, outputs=[{"name": "probabilities", "datatype": "FP32", "shape": [2, 2], "data": [1]}]),
    ],
)
def test_malformed_responses_are_refused(faulty: FaultyServer, answer: tuple[int, dict[str, str], bytes]) -> None:
    faulty.infer = lambda _: answer
    with pytest.raises(BapsError, match="does not follow the Open Inference Protocol") as caught:
        _connect(faulty).infer(INPUTS, "probabilities")
    assert not isinstance(caught.value, UnreachableError)


def test_response_without_the_output_is_refused(faulty: FaultyServer) -> None:
    faulty.infer = lambda _: reply(np.zeros((2, 3)), "FP64", "logits")
    with pytest.raises(BapsError, match="has no output probabilities"):
        _connect(faulty).infer(INPUTS, "probabilities")


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_temporary_errors_are_recognised(faulty: FaultyServer, status: int) -> None:
    faulty.infer = lambda _: json_reply(status)
    with pytest.raises(UnreachableError, match=f"HTTP {status}"):
        _connect(faulty).infer(INPUTS, "probabilities")


@pytest.mark.parametrize("status", [301, 307, 400, 404, 500])
def test_permanent_errors_quote_the_server(faulty: FaultyServer, status: int) -> None:
    headers = {"Location": f"{faulty.address}/infer"}
    faulty.infer = lambda _: (status, headers, b'{"error": "The image is too small."}')
    with pytest.raises(BapsError, match=rf"refused \(HTTP {status}\): The image is too small\.") as caught:
        _connect(faulty).infer(INPUTS, "probabilities")
    assert not isinstance(caught.value, UnreachableError)
    assert len(faulty.image_counts) == 1  # A redirection is not followed.


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_closed_port_is_a_temporary_error(scheme: str) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        server = connect(Address.parse(f"{scheme}://127.0.0.1:{closed.getsockname()[1]}/m"), 5)
        for call in (server.ready, server.describe, lambda: server.infer(INPUTS, "probabilities")):
            with pytest.raises(UnreachableError, match="cannot be reached or does not respond in time"):
                call()


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_timeout_is_a_temporary_error(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = connect(Address.parse(f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/m"), 0.3)
        with pytest.raises(UnreachableError):
            server.infer(INPUTS, "probabilities")


def test_idle_connection_that_was_closed_is_reopened(faulty: FaultyServer) -> None:
    """The client notices before it sends the images."""
    faulty.close_silently = True
    server = _connect(faulty)
    for number in range(5):
        while faulty.closed < number:
            time.sleep(0.01)
        server.infer(INPUTS, "probabilities")
    assert faulty.image_counts == [2] * 5


def test_clients_are_imported_lazily() -> None:
    program = "import sys, baps.blackbox; print({'tritonclient', 'gevent', 'grpc', 'requests'} & set(sys.modules))"
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "set()"
