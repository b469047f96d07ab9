"""Speak the protocol of nninteractive-server as a client: one session (lease), requests, and checks of the replies.

The protocol's own client trusts its server. Here a reply is bounded before it is read, and its array before room is
made for it; redirects are not followed. Nothing is sent twice: the caller decides that, and counts it.

Threads: the owner makes one request at a time. A thread of the session sends heartbeats meanwhile, so that the server
does not end the session of a client that waits for a long prediction, or between two of them.
"""

from __future__ import annotations

import io
import json
import logging
import re
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baps.blackbox.remote.inference_protocol import UnreachableError
from baps.blackbox.volumes.settings import TOKEN_VARIABLE, VolumeRemoteSettings
from baps.errors import BapsError, InputError, MissingExtraError
from baps.prompts.volume_prompts import Mask
from baps.utils.packed_arrays import read_array, read_header, write_array

logger = logging.getLogger(__name__)

_META, _LEASE = "X-Meta", "X-Lease-Token"
_CONNECT_SECONDS = 10.0
_IMAGE_SECONDS = 600.0
"""Seconds that the server may take to receive and unpack an image, as in its own client."""

_JSON_BYTES = 1 << 20
"""Maximum size of a reply without an array."""

_HEADER_BYTES = 4096
"""Size by which a packed mask may exceed its voxels and an eighth of them."""

_TEMPORARY_CODES = (429, 502, 503, 504)
"""HTTP codes of a server, or of a proxy before it, that is busy, starting or gone."""

_RELEASE_SECONDS = 5.0
"""Seconds that the server may take to end a session; a program that ends does not wait longer."""

_MIN_BEAT, _MAX_BEAT = 0.2, 60.0
"""Seconds between heartbeats, whatever the server declares."""


class LeaseLostError(BapsError):
    """The server has ended the session."""


class BusyError(UnreachableError):
    """The server has no free session, or is busy.

    Args:
        message: the sentence.
        seconds: seconds after which it wants to be asked again, or 0.
    """

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


@dataclass(frozen=True)
class _Reply:
    headers: Mapping[str, str]
    content: bytes


class NnInteractiveSession:
    """A session at an nninteractive-server. It begins with ``claim``.

    Args:
        settings: settings of the server.

    Raises:
        MissingExtraError: if the packages of the extra ``nninteractive`` are not installed.
    """

    def __init__(self, settings: VolumeRemoteSettings) -> None:
        try:
            import httpx
            import nnInteractive.inference.remote.serialization  # noqa: F401 (reported now, not at the first prompt)
        except ImportError as error:
            raise MissingExtraError("The black box nninteractive", "nninteractive") from error
        self.address = settings.address.rstrip("/")
        self._timeout = settings.timeout
        headers = {"Accept-Encoding": "identity"}
        if settings.token:
            headers["Authorization"] = f"Bearer {settings.token}"
        self._http = httpx.Client(headers=headers, follow_redirects=False)
        self._lease = ""
        self._stop = threading.Event()

    @property
    def claimed(self) -> bool:
        """Whether there is a session, as far as this client knows."""
        return bool(self._lease)

    def is_ready(self) -> bool:
        """Ask whether the server is ready.

        Returns:
            Whether it is.

        Raises:
            UnreachableError: if it cannot be reached.
        """
        try:
            return bool(self._json("GET", "/healthz", leased=False).get("ok"))
        except UnreachableError:
            raise
        except BapsError:
            return False

    def describe(self) -> dict[str, Any]:
        """Fetch what the server tells about its model.

        Returns:
            The reply to ``/capabilities``, whose fields are not checked.

        Raises:
            UnreachableError: if the server cannot be reached.
            BapsError: if it refuses, or does not speak the protocol.
        """
        return self._json("GET", "/capabilities", leased=False)

    def claim(self) -> None:
        """Begin a session, and heartbeats.

        Raises:
            UnreachableError: if the server cannot be reached, or has no free session.
            BapsError: if it refuses, or does not speak the protocol.
        """
        self.forget()
        reply = self._json("POST", "/claim", {}, leased=False)
        lease, liveness = reply.get("lease_token"), reply.get("liveness_timeout_seconds", 60)
        if not isinstance(lease, str) or not re.fullmatch(r"[!-~]{1,512}", lease):
            raise BapsError(self._wrong_protocol("its session has no token"))
        if not isinstance(liveness, (int, float)) or not 0 < liveness < float("inf"):
            raise BapsError(self._wrong_protocol("its time-outs are no numbers"))
        self._lease, self._stop = lease, threading.Event()
        beat = threading.Thread(
            target=self._beat,
            args=(self._stop, min(max(liveness / 2, _MIN_BEAT), _MAX_BEAT)),
            name="heartbeat",
            daemon=True,
        )
        beat.start()

    def forget(self) -> None:
        """Stop the heartbeats, and forget the session without ending it on the server."""
        self._stop.set()
        self._lease = ""

    def release(self) -> None:
        """End the session, so that others can have it."""
        if self._lease:
            with suppress(BapsError):
                self._request("POST", "/release", b"{}", seconds=_RELEASE_SECONDS)
        self.forget()

    def close(self) -> None:
        """End the session and close the connections."""
        self.release()
        self._http.close()

    def _beat(self, stop: threading.Event, seconds: float) -> None:
        while not stop.wait(seconds):
            try:
                self._json("POST", "/heartbeat", {})
            except LeaseLostError:
                return  # The next request of the owner reports it.
            except BapsError:
                continue
            except RuntimeError:  # The client was closed meanwhile.
                return

    def set_image(self, voxels: NDArray[np.generic], spacing: tuple[float, float, float]) -> None:
        """Send a volume, and a mask of zeros for it.

        Args:
            voxels: grey values, (I, J, K), of a type that the protocol knows.
            spacing: distance of voxels along each axis, mm.

        Raises:
            LeaseLostError: if the session has ended.
            UnreachableError: if the server cannot be reached.
            BapsError: if it refuses, or does not speak the protocol.
        """
        meta = {"image_properties": {"spacing": list(spacing)}}
        body = _pack(voxels[None], is_mask=False)
        reply = self._parse(self._request("POST", "/set_image", body, meta, seconds=max(_IMAGE_SECONDS, self._timeout)))
        if reply.get("original_image_shape") != [1, *voxels.shape]:
            raise BapsError(self._wrong_protocol("it reports another shape of the image"))
        self.post("/set_target_buffer", {"shape": list(voxels.shape), "dtype": "uint8"})

    def post(self, path: str, body: Mapping[str, Any]) -> None:
        """Send a request whose reply holds nothing.

        Args:
            path: path of the request.
            body: its JSON.

        Raises:
            LeaseLostError: if the session has ended.
            UnreachableError: if the server cannot be reached.
            BapsError: if it refuses, or does not speak the protocol.
        """
        self._json("POST", path, body)

    def add(self, path: str, meta: Mapping[str, Any], array: NDArray[np.uint8] | None, answer: Mask, run: bool) -> None:
        """Add a prompt, and paste what the server predicts into the answer.

        Args:
            path: path of the request.
            meta: the facts of the prompt.
            array: its painted voxels, or None.
            answer: the mask, (I, J, K), which is changed.
            run: whether the server predicts now.

        Raises:
            LeaseLostError: if the session has ended.
            UnreachableError: if the server cannot be reached.
            BapsError: if it refuses, or its reply is not a mask of the object.
        """
        meta = {**meta, "run_prediction": run}
        limit = answer.size + answer.size // 8 + _HEADER_BYTES
        if array is None:
            reply = self._request("POST", path, _dump(meta), limit=limit)
        else:
            reply = self._request("POST", path, _pack(array), meta, limit=limit)
        if run:
            self._paste(reply, answer)

    def _paste(self, reply: _Reply, answer: Mask) -> None:
        try:
            meta = json.loads(reply.headers.get(_META, ""))
        except (ValueError, RecursionError):
            meta = None
        if not isinstance(meta, dict) or meta.get("ran_prediction") is not True:
            raise BapsError(self._wrong_protocol("it did not predict"))
        if meta.get("bbox") is None:  # Nothing changed.
            return
        where = self._read_ranges(meta["bbox"], answer.shape)
        shape = tuple(one.stop - one.start for one in where)
        file = io.BytesIO(reply.content)
        try:
            header = read_header(file, "The mask")
            if header.shape != shape or header.dtype not in (np.uint8, np.bool_):
                reason = f"its mask has the shape {header.shape} and type {header.dtype}, not {shape} and uint8"
                raise BapsError(self._wrong_protocol(reason))
            part = read_array(file, header, "The mask")
        except InputError as error:
            raise BapsError(self._wrong_protocol(str(error).rstrip("."))) from error
        if part.max() > 1:
            raise BapsError(self._wrong_protocol("its mask holds other values than 0 and 1"))
        answer[where] = part != 0

    def _read_ranges(self, box: object, shape: tuple[int, ...]) -> tuple[slice, slice, slice]:
        if not isinstance(box, list) or len(box) != 3:
            raise BapsError(self._wrong_protocol("its box has not three axes"))
        ranges = []
        for pair, size in zip(box, shape, strict=True):
            if not isinstance(pair, list) or [type(one) for one in pair] != [int, int]:
                raise BapsError(self._wrong_protocol("its box holds something else than whole numbers"))
            if not 0 <= pair[0] < pair[1] <= size:
                raise BapsError(self._wrong_protocol("its box lies outside the volume"))
            ranges.append(slice(*pair))
        return ranges[0], ranges[1], ranges[2]

    def _json(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, leased: bool = True
    ) -> dict[str, Any]:
        return self._parse(self._request(method, path, None if body is None else _dump(body), leased=leased))

    def _parse(self, reply: _Reply) -> dict[str, Any]:
        try:
            content = json.loads(reply.content)
        except (ValueError, RecursionError) as error:
            raise BapsError(self._wrong_protocol("it answers with something else than JSON")) from error
        if not isinstance(content, dict):
            raise BapsError(self._wrong_protocol("it answers with JSON of another form"))
        return content

    def _request(
        self,
        method: str,
        path: str,
        content: bytes | None = None,
        meta: Mapping[str, Any] | None = None,
        limit: int = _JSON_BYTES,
        leased: bool = True,
        seconds: float | None = None,
    ) -> _Reply:
        import httpx

        headers = {"Content-Type": "application/json"}
        if meta is not None:
            headers = {"Content-Type": "application/octet-stream", _META: json.dumps(meta, separators=(",", ":"))}
        if leased:
            headers[_LEASE] = self._lease
        seconds = seconds or self._timeout
        timeout = httpx.Timeout(seconds, connect=min(seconds, _CONNECT_SECONDS))
        with (
            self._converted_errors(),
            self._http.stream(
                method, self.address + path, content=content, headers=headers, timeout=timeout
            ) as response,
        ):
            ok = response.status_code == 200
            body = self._read(response, limit if ok else _JSON_BYTES, seconds)
            if not ok:
                self._raise(response, body)
            return _Reply(response.headers, body)

    def _read(self, response: Any, limit: int, seconds: float) -> bytes:
        """Read a reply up to a size and a time: a server can send without an end, or a byte now and then."""
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise BapsError(self._wrong_protocol("it compresses what was not to be compressed"))
        content, deadline = bytearray(), time.monotonic() + seconds
        for part in response.iter_raw():
            content += part
            if len(content) > limit:
                raise BapsError(self._wrong_protocol(f"its reply is larger than the {limit:,} bytes that it can have"))
            if time.monotonic() > deadline:
                raise UnreachableError(self._unreachable("the reply takes too long"))
        return bytes(content)

    def _raise(self, response: Any, body: bytes) -> None:
        code, detail = response.status_code, _detail(body)
        if code == 410:
            raise LeaseLostError(f"The nninteractive-server at {self.address} has ended the session ({detail}).")
        if code in _TEMPORARY_CODES:
            reason = f"HTTP {code}: {detail}" if detail else f"HTTP {code}"
            if code in (429, 503):
                raise BusyError(
                    f"The nninteractive-server at {self.address} is busy or has no free session ({reason}).",
                    _retry_after(response.headers.get("Retry-After", "")),
                )
            raise UnreachableError(self._unreachable(reason))
        advice = "Check the address, and the log of the server."
        if code in (401, 403):
            advice = f"Put its API key into a private file (volume_remote_token_file) or into {TOKEN_VARIABLE}."
        elif 300 <= code < 400:
            detail, advice = "it redirects, which is not followed", "Give the address that it redirects to."
        raise BapsError(
            f"The nninteractive-server at {self.address} refused (HTTP {code}): "
            f"{detail.rstrip('.') or 'it gives no reason'}. {advice}"
        )

    @contextmanager
    def _converted_errors(self) -> Iterator[None]:
        import httpx

        try:
            yield
        except httpx.TransportError as error:
            if _has_tls_cause(error):
                raise BapsError(
                    f"{self.address} has no certificate that this machine trusts ({_short(str(error))}). Name a file "
                    "with its authority's certificate: SSL_CERT_FILE=<file>."
                ) from error
            raise UnreachableError(self._unreachable(type(error).__name__)) from error

    def _unreachable(self, reason: str) -> str:
        return f"The nninteractive-server at {self.address} cannot be reached or does not respond in time ({reason})."

    def _wrong_protocol(self, reason: str) -> str:
        return (
            f"The reply of {self.address} does not follow the protocol of nninteractive-server 2: {reason}. Check the "
            "address, and the log of the server."
        )


def _pack(array: NDArray[Any], is_mask: bool = True) -> bytes:
    return write_array(np.ascontiguousarray(array), is_mask)


def _dump(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


def _detail(body: bytes) -> str:
    """Return the message of an error in the protocol's form, or the beginning of its text."""
    try:
        return _short(str(json.loads(body)["detail"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return _short(body[:2000].decode(errors="replace"))


def _short(text: str) -> str:
    return " ".join("".join(one if one.isprintable() else " " for one in text).split())[:300]


def _retry_after(value: str) -> float:
    return float(value) if re.fullmatch(r"\d{1,6}", value) else 0.0


def _has_tls_cause(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False
