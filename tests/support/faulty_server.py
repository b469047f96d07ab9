"""Serve a model over the protocol's HTTP form in a thread, with replies that a test chooses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

IMAGE_SIZE = 16
Reply = tuple[int, dict[str, str], bytes]


def metadata(**changes: Any) -> dict[str, Any]:
    """Return valid metadata of a model, except for some changes.

    Args:
        **changes: other values; a tensor such as ``image`` is (datatype, shape), or None to omit it.

    Returns:
        The metadata.
    """
    tensors = {
        "image": ("UINT8", [-1, IMAGE_SIZE, IMAGE_SIZE, 3]),
        "points": ("FP32", [-1, -1, 2]),
        "labels": ("INT32", [-1, -1]),
        "probabilities": ("FP32", [-1, IMAGE_SIZE, IMAGE_SIZE]),
    }
    rest = {key: changes.pop(key) for key in ("name", "versions", "platform") if key in changes}
    tensors.update(changes)
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
    """Return a well-formed binary reply with one tensor."""
    tensor = {"name": output, "datatype": datatype, "shape": values.shape}
    header = json.dumps(
        {"model_name": "faulty", "outputs": [{**tensor, "parameters": {"binary_data_size": values.nbytes}}], **more}
    ).encode()
    return 200, {"Inference-Header-Content-Length": str(len(header))}, header + values.tobytes()


def json_reply(status: int, **content: Any) -> Reply:
    """Return a reply of JSON alone."""
    return status, {"Content-Type": "application/json"}, json.dumps(content).encode()


class FaultyServer:
    """The model ``faulty``.

    Attributes:
        metadata: metadata of the model.
        ready: status code of its readiness.
        infer: makes the reply to a number of images.
        headers: headers of each request.
        image_counts: number of images of each inference request.
        close_silently: whether to close the connection after each reply without announcing it.
        closed: number of connections that are closed.
    """

    def __init__(self) -> None:
        self.metadata: Any = metadata()
        self.ready = 200
        self.infer: Callable[[int], Reply] = lambda count: reply(
            np.full((count, IMAGE_SIZE, IMAGE_SIZE), 0.25, np.float32)
        )
        self.headers: list[dict[str, str]] = []
        self.image_counts: list[int] = []
        self.close_silently = False
        self.closed = 0
        self.address = ""

    def _reply(self, path: str, body: bytes, headers: dict[str, str]) -> Reply:
        self.headers.append(headers)
        if path == "/v2/models/faulty/ready":
            return json_reply(self.ready)
        if path == "/v2/models/faulty":
            return json_reply(200, **self.metadata) if isinstance(self.metadata, dict) else self.metadata
        if path == "/v2/models/faulty/infer":
            request = json.loads(body[: int(headers["Inference-Header-Content-Length"])])
            self.image_counts.append(request["inputs"][0]["shape"][0])
            return self.infer(self.image_counts[-1])
        return json_reply(404, error=f"There is nothing at {path}.")


@contextmanager
def faulty_server() -> Iterator[FaultyServer]:
    """Run the server while the block runs."""
    faulty = FaultyServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, headers, content = faulty._reply(self.path, body, dict(self.headers))
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
            self.close_connection = faulty.close_silently

        do_POST = do_GET  # noqa: N815 (http.server's names)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

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
