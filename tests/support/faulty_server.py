"""A server of the protocol's HTTP form in a thread, which answers as a test wants it to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIDE = 16
Reply = tuple[int, dict[str, str], bytes]


def metadata(**changed: Any) -> dict[str, Any]:
    """What a model says that can be used; ``image``, ``points`` and so on give a tensor another (datatype, shape) or,
    None, leave it out."""
    tensors = {
        "image": ("UINT8", [-1, SIDE, SIDE, 3]),
        "points": ("FP32", [-1, -1, 2]),
        "labels": ("INT32", [-1, -1]),
        "probabilities": ("FP32", [-1, SIDE, SIDE]),
    }
    rest = {key: changed.pop(key) for key in ("name", "versions", "platform") if key in changed}
    tensors.update(changed)
    listed = [{"name": key, "datatype": value[0], "shape": value[1]} for key, value in tensors.items() if value]
    outputs = ("probabilities", "masks")
    return {
        "name": "faulty",
        "platform": "python",
        "inputs": [one for one in listed if one["name"] not in outputs],
        "outputs": [one for one in listed if one["name"] in outputs],
        **rest,
    }


def reply(values: NDArray[Any], datatype: str = "FP32", output: str = "probabilities", **more: Any) -> Reply:
    """A well-formed answer with one tensor, binary."""
    tensor = {"name": output, "datatype": datatype, "shape": values.shape}
    header = json.dumps(
        {"model_name": "faulty", "outputs": [{**tensor, "parameters": {"binary_data_size": values.nbytes}}], **more}
    ).encode()
    return 200, {"Inference-Header-Content-Length": str(len(header))}, header + values.tobytes()


def said(status: int, **content: Any) -> Reply:
    """An answer of JSON alone."""
    return status, {"Content-Type": "application/json"}, json.dumps(content).encode()


class FaultyServer:
    """The model ``faulty``.

    Attributes:
        metadata: what it says of itself.
        ready: the status of its readiness.
        infer: makes the answer to a number of images.
        headers: of each request that came.
        asked: how many images each request for an answer had.
        hang_up: close the connection after each answer, without having said so.
        closed: how many connections are closed.
    """

    def __init__(self) -> None:
        self.metadata: Any = metadata()
        self.ready = 200
        self.infer: Callable[[int], Reply] = lambda count: reply(np.full((count, SIDE, SIDE), 0.25, np.float32))
        self.headers: list[dict[str, str]] = []
        self.asked: list[int] = []
        self.hang_up = False
        self.closed = 0
        self.address = ""

    def _answer(self, path: str, body: bytes, headers: dict[str, str]) -> Reply:
        self.headers.append(headers)
        if path == "/v2/models/faulty/ready":
            return said(self.ready)
        if path == "/v2/models/faulty":
            return said(200, **self.metadata) if isinstance(self.metadata, dict) else self.metadata
        if path == "/v2/models/faulty/infer":
            request = json.loads(body[: int(headers["Inference-Header-Content-Length"])])
            self.asked.append(request["inputs"][0]["shape"][0])
            return self.infer(self.asked[-1])
        return said(404, error=f"There is nothing at {path}.")


@contextmanager
def faulty_server() -> Iterator[FaultyServer]:
    """The server, as long as the block lasts."""
    faulty = FaultyServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, headers, content = faulty._answer(self.path, body, dict(self.headers))
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
            self.close_connection = faulty.hang_up

        do_POST = do_GET  # noqa: N815 (http.server's names)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    class Server(ThreadingHTTPServer):
        def shutdown_request(self, request: Any) -> None:
            super().shutdown_request(request)
            faulty.closed += 1

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    faulty.address = f"http://127.0.0.1:{server.server_address[1]}/faulty"
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield faulty
    finally:
        server.shutdown()
        server.server_close()
