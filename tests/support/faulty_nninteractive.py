"""Speak nninteractive-server's protocol in a thread, with replies that a test chooses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

Reply = tuple[int, dict[str, str], bytes | Iterator[bytes]]
CAPABILITIES: dict[str, Any] = {
    "supported_interactions": {"points": True, "bbox2d": True, "bbox3d": True, "scribble": True, "lasso": True},
    "channel_mapping": {"prev_seg": 0, "points": [3, 4]},
    "num_interaction_channels": 7,
    "supports_initial_label": True,
    "supports_zero_shot_label_refinement": True,
    "preferred_scribble_thickness": [2, 2, 2],
    "interaction_decay": 0.98,
    "patch_size": [192, 192, 192],
    "do_autozoom": True,
    "inference_session_version": "2.6.0",
    "license": "Apache-2.0",
    "supports_undo": True,
}


def json_reply(status: int = 200, headers: dict[str, str] | None = None, **content: Any) -> Reply:
    """Return a reply of JSON."""
    return status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(content).encode()


def mask_reply(part: NDArray[Any], box: Any, **meta: Any) -> Reply:
    """Return a reply with a part of a mask."""
    facts = {"ran_prediction": True, "bbox": box, "dtype": str(part.dtype), "shape": list(part.shape), **meta}
    from nnInteractive.inference.remote.serialization import pack_array  # Of an extra, which the core does without.

    return 200, {"X-Meta": json.dumps(facts)}, pack_array(part)


class FaultyNnInteractive:
    """The server. Its model marks the voxels up to two beside the last prompt.

    Attributes:
        capabilities: the reply to /capabilities.
        faults: replies by path, or functions that make one of the number of earlier requests for it; None: the usual.
        requests: path, headers and facts of each request.
        leases: sessions that are known.
        liveness: the time-out that it declares, seconds.
        server: what listens.
    """

    def __init__(self) -> None:
        self.capabilities: Any = dict(CAPABILITIES)
        self.faults: dict[str, Reply | Callable[[int], Reply | None]] = {}
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.leases: set[str] = set()
        self.liveness = 60.0
        self.server: ThreadingHTTPServer | None = None
        self.shape: tuple[int, ...] = ()
        self.address = ""

    @property
    def paths(self) -> list[str]:
        """Paths of the requests, without heartbeats."""
        return [path for path, _, _ in self.requests if path != "/heartbeat"]

    def reply(self, path: str, headers: dict[str, str], body: bytes) -> Reply:
        """Reply to a request."""
        facts = json.loads(headers.get("X-Meta") or (body if body[:1] == b"{" else "") or "{}")
        earlier = self.paths.count(path)
        self.requests.append((path, headers, facts))
        fault = self.faults.get(path)
        chosen = fault(earlier) if callable(fault) else fault
        if chosen is not None:
            return chosen
        if path == "/healthz":
            return json_reply(ok=True)
        if path == "/capabilities":
            return json_reply(**self.capabilities)
        if path == "/claim":
            lease = f"lease{earlier}"
            self.leases.add(lease)
            return json_reply(
                lease_token=lease, idle_timeout_seconds=600, liveness_timeout_seconds=self.liveness, max_sessions=3
            )
        if headers.get("X-Lease-Token") not in self.leases:
            return json_reply(410, detail="lease expired or unknown")
        if path == "/set_image":
            from nnInteractive.inference.remote.serialization import unpack_array

            self.shape = unpack_array(body).shape[1:]
            return json_reply(original_image_shape=[1, *self.shape])
        if path.startswith("/add_"):
            return self._predict(facts)
        if path == "/release":
            self.leases.discard(headers["X-Lease-Token"])
        return json_reply()

    def _predict(self, facts: dict[str, Any]) -> Reply:
        if not facts["run_prediction"]:
            return 200, {"X-Meta": json.dumps({"ran_prediction": False, "bbox": None})}, b""
        at = facts.get("coordinates") or [low for low, _ in facts.get("bbox_coords") or facts["interaction_bbox"]]
        box = [[max(0, one - 2), min(size, one + 3)] for one, size in zip(at, self.shape, strict=True)]
        part = np.full([end - low for low, end in box], facts["include_interaction"], np.uint8)
        return mask_reply(part, box)


@contextmanager
def faulty_nninteractive() -> Iterator[FaultyNnInteractive]:
    """Run the server while the block runs."""
    faulty = FaultyNnInteractive()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, headers, content = faulty.reply(self.path, dict(self.headers), body)
            self.send_response(status)
            parts = [content] if isinstance(content, bytes) else content
            length = {"Content-Length": str(len(content))} if isinstance(content, bytes) else {}
            for name, value in {**length, **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            for part in parts:
                self.wfile.write(part)
                self.wfile.flush()

        do_POST = do_GET  # noqa: N815 (http.server's names)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """Ignore clients that have gone."""

    faulty.server = server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    faulty.address = f"http://127.0.0.1:{server.server_address[1]}"
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield faulty
    finally:
        server.shutdown()
        server.server_close()
