"""Serve a model of a set latency over the Open Inference Protocol (HTTP), with several instances, as a program.

It segments what is bright, so that an adaptation has something to learn, and takes so many seconds per image. An
instance answers one request at a time; further ones wait. The program prints its port.
"""

from __future__ import annotations

import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import BoundedSemaphore
from typing import Annotated, Any

import numpy as np
import typer


def main(
    instances: Annotated[int, typer.Option(help="Requests that are answered at once.")] = 1,
    side: Annotated[int, typer.Option(help="Width and height of an image, pixels.")] = 64,
    seconds: Annotated[float, typer.Option(help="Latency per image.")] = 0.1,
) -> None:
    """Serve until the process is stopped."""
    free = BoundedSemaphore(instances)
    inputs = [("image", "UINT8", [-1, side, side, 3]), ("points", "FP32", [-1, -1, 2]), ("labels", "INT32", [-1, -1])]
    metadata = {
        "name": "latency",
        "platform": "python",
        "inputs": [dict(zip(("name", "datatype", "shape"), one, strict=True)) for one in inputs],
        "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, side, side]}],
    }

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _reply(self, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(200)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            """Answer metadata and readiness."""
            self._reply(json.dumps({} if self.path.endswith("/ready") else metadata).encode(), {})

        def do_POST(self) -> None:
            """Answer an inference request after the latency of its images."""
            body = self.rfile.read(int(self.headers["Content-Length"]))
            length = int(self.headers["Inference-Header-Content-Length"])
            count = json.loads(body[:length])["inputs"][0]["shape"][0]
            with free:
                started = time.perf_counter()
                images = np.frombuffer(body, np.uint8, count * side * side * 3, length).reshape(count, side, side, 3)
                grey = images.astype(np.float32).mean(-1) / 255
                answer = (1 / (1 + np.exp(-12 * (grey - 0.6)))).astype(np.float32)
                time.sleep(max(0, count * seconds - (time.perf_counter() - started)))
            output = {**metadata["outputs"][0], "shape": answer.shape}  # type: ignore[dict-item]
            header = json.dumps({"outputs": [{**output, "parameters": {"binary_data_size": answer.nbytes}}]}).encode()
            self._reply(header + answer.tobytes(), {"Inference-Header-Content-Length": str(len(header))})

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    typer.run(main)
