from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.client import HTTPResponse

import pytest
import requests
import uvicorn
from starlette.types import Receive, Scope, Send

import baps.server.middleware.connections
from baps.server.middleware.connections import Connection, PendingConnections
from baps.server.middleware.security_headers import ALWAYS, STRICTEST_POLICY

_ANSWER = 64 << 20


async def _app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    large = scope["path"] == "/large"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(_ANSWER >> 16 if large else 1):
        await send({"type": "http.response.body", "body": bytes(1 << 16) if large else b"ok", "more_body": large})
    if large:
        await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A server with low limits."""
    monkeypatch.setattr(baps.server.middleware.connections, "HEADER_SECONDS", 0.5)
    monkeypatch.setattr(baps.server.middleware.connections, "READ_SECONDS", 0.5)
    monkeypatch.setattr(baps.server.middleware.connections, "_pending", PendingConnections(5))
    config = uvicorn.Config(_app, http=Connection, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield int(listener.getsockname()[1])
        server.should_exit = True
        thread.join(30)


def _connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


@pytest.mark.parametrize("beginning", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\nX-Half: "])
def test_incomplete_headers_time_out(port: int, beginning: bytes) -> None:
    with _connect(port) as connection:
        connection.sendall(beginning)
        assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")
        assert connection.recv(1000) == b""


@pytest.mark.parametrize("beginning", [b"GET / HT", b"\r\n"])
def test_incomplete_headers_of_a_second_request_time_out(port: int, beginning: bytes) -> None:
    with _connect(port) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        response = b""
        while not response.endswith(b"0\r\n\r\n"):
            response += connection.recv(1000)
        assert response.startswith(b"HTTP/1.1 200 ")
        connection.sendall(beginning)
        assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_slow_headers_time_out(port: int) -> None:
    with _connect(port) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nX-Half: ")
        with pytest.raises(OSError, match=r".*"):
            for _ in range(100):
                connection.sendall(b"x")
                time.sleep(0.05)


def test_endless_headers_are_refused(port: int) -> None:
    with _connect(port) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n")
        with pytest.raises(OSError, match=r".*"):
            for number in range(1000):
                connection.sendall(b"X-%d: " % number + bytes(1000).replace(b"\0", b"x") + b"\r\n")
                time.sleep(0.001)


def test_many_incomplete_headers_do_not_block_other_clients(port: int) -> None:
    halves = [_connect(port) for _ in range(20)]
    for connection in halves:
        connection.sendall(b"GET / HTTP/1.1\r\nX-Half: ")
    assert requests.get(f"http://127.0.0.1:{port}/", timeout=10).text == "ok"
    responses = [connection.recv(20) for connection in halves[:14]]
    assert all(response.startswith(b"HTTP/1.1 408 ") for response in responses)
    for connection in halves:
        connection.close()


def test_a_keep_alive_connection_serves_further_requests(port: int) -> None:
    with requests.Session() as session:
        for _ in range(3):
            assert session.get(f"http://127.0.0.1:{port}/", timeout=10).text == "ok"
            time.sleep(0.7)  # Longer than the limit for headers.
        assert session.post(f"http://127.0.0.1:{port}/", data=b"x" * 100, timeout=10).text == "ok"


def test_a_client_that_does_not_read_is_disconnected(port: int) -> None:
    with _connect(port) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(2)
        got = 0
        try:
            while part := connection.recv(1 << 20):
                got += len(part)
        except ConnectionResetError:
            pass
        assert got < _ANSWER
    assert len(requests.get(f"http://127.0.0.1:{port}/large", timeout=30).content) == _ANSWER


@pytest.mark.parametrize("beginning", [b"GET / HT", b"junk\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n"])
def test_refused_connections_get_the_security_headers(port: int, beginning: bytes) -> None:
    with _connect(port) as connection:
        connection.sendall(beginning)
        response = HTTPResponse(connection)
        response.begin()
        assert response.status in (400, 408)
        assert {name: response.getheader(name) for name in ALWAYS} == dict(ALWAYS)
        assert response.getheader("Content-Security-Policy") == STRICTEST_POLICY
        assert json.loads(response.read())["detail"].endswith(".")
