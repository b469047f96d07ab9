from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI, Form, UploadFile
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

import baps.server.middleware.bodies
from baps.server.access_policy import find_policy
from baps.server.middleware.bodies import Bodies, BoundedRoute, CloseUnread
from baps.server.request_context import Principal, RequestContext
from baps.site.roles import Role

ANNA = Principal("anna", Role.ANNOTATOR, "token")


class _Echo:
    """An application that stores the bodies that it receives."""

    def __init__(self) -> None:
        self.got: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        parts, more = [], True
        while more:
            message = await receive()
            parts.append(message["body"])
            more = message["more_body"]
        self.got.append(b"".join(parts))
        assert await receive() == {"type": "http.disconnect"}
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def _scope(
    length: int | None, path: str = "/datastore/image", method: str = "PUT", principal: Principal | None = ANNA
) -> Scope:
    headers = [(b"transfer-encoding", b"chunked")] if length is None else [(b"content-length", b"%d" % length)]
    context = RequestContext(find_policy(method, path), principal)
    return {
        "type": "http", "method": method, "path": path, "query_string": b"", "headers": headers,
        "client": ("10.0.0.1", 1), "baps.context": context,
    }  # fmt: skip


async def _ask(app: Any, scope: Scope, parts: Sequence[bytes], hangs: bool = False) -> tuple[int, str]:
    """Send a body in parts, which never ends if it hangs, and return the status and the message."""
    remaining, messages = list(parts), list[Message]()

    async def receive() -> Message:
        if remaining:
            part = remaining.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(remaining) or hangs}
        if hangs:
            await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        messages.append(message)

    await app(scope, receive, send)
    body = b"".join(message.get("body", b"") for message in messages)
    return (messages[0]["status"], json.loads(body)["detail"] if body else "") if messages else (0, "")


@pytest.mark.parametrize("seed", range(20))
def test_a_body_arrives_as_it_was_sent(seed: int) -> None:
    """The body has any size around the memory limit, parts of any size, and a length or none."""
    random = np.random.default_rng(seed)
    size = int(random.choice([1, 1000, (64 << 10) - 1, 64 << 10, (64 << 10) + 1, 128 << 10, 1 << 20, (1 << 20) + 1]))
    body = random.bytes(size)
    cuts = sorted(random.integers(0, size + 1, random.integers(1, 30)).tolist())
    parts = [body[a:b] for a, b in zip([0, *cuts], [*cuts, size], strict=True)]
    echo = _Echo()
    length = size if seed % 2 else None
    assert asyncio.run(_ask(Bodies(echo, 2 << 20), _scope(length), parts)) == (200, "")
    assert echo.got == [body]


def test_too_large_bodies_are_refused_while_they_arrive() -> None:
    echo = _Echo()
    status, detail = asyncio.run(_ask(Bodies(echo, 2 << 20), _scope(None), [bytes(1 << 20)] * 4, hangs=True))
    assert (status, echo.got) == (413, [])
    assert "larger than the 2 MB" in detail
    small = _scope(None, "/activelearning/first", "POST")
    assert asyncio.run(_ask(Bodies(echo, 2 << 20), small, [bytes(1 << 20)] * 2, hangs=True))[0] == 413


@pytest.mark.parametrize("length", [1000, None])
def test_an_idle_body_times_out(monkeypatch: pytest.MonkeyPatch, length: int | None) -> None:
    monkeypatch.setattr(baps.server.middleware.bodies, "_IDLE_SECONDS", 0.05)
    assert asyncio.run(_ask(Bodies(_Echo(), 2 << 20), _scope(length), [b"x"], hangs=True))[0] == 408


def test_a_slow_body_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baps.server.middleware.bodies, "_GRACE_SECONDS", 0.2)

    async def ask() -> int:
        async def receive() -> Message:
            await asyncio.sleep(0.01)
            return {"type": "http.request", "body": b"x", "more_body": True}

        messages = list[Message]()

        async def send(message: Message) -> None:
            messages.append(message)

        await Bodies(_Echo(), 2 << 20)(_scope(10_000), receive, send)
        return int(messages[0]["status"])

    assert asyncio.run(asyncio.wait_for(ask(), 30)) == 408


def test_the_oldest_of_too_many_small_bodies_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baps.server.middleware.bodies, "_SMALL_EACH", 2)

    async def run() -> None:
        bodies = Bodies(_Echo(), 2 << 20)
        small = _scope(
            1000, "/activelearning/first", "POST"
        )  # Bodies with images are first checked in threads, in any order.
        unfinished = [asyncio.create_task(_ask(bodies, small, [b"x"], hangs=True)) for _ in range(3)]
        await asyncio.sleep(0.1)
        assert [task.done() for task in unfinished] == [True, False, False]
        assert unfinished[0].result()[0] == 408
        assert await _ask(bodies, _scope(3), [b"abc"]) == (200, "")
        nobody = _scope(3, "/login", "POST", None)
        assert await _ask(bodies, nobody, [b"abc"]) == (200, "")
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)
        assert not bodies._small
        assert not bodies._bytes

    asyncio.run(run())


def test_large_bodies_wait_and_are_refused_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baps.server.middleware.bodies, "_LARGE_EACH", 1)
    monkeypatch.setattr(baps.server.middleware.bodies, "_LARGE_WAITING", 1)

    async def run() -> None:
        bodies, other = Bodies(_Echo(), 4 << 20), Principal("bert", Role.ANNOTATOR, "token")
        unfinished = [asyncio.create_task(_ask(bodies, _scope(2 << 20), [b"x"], hangs=True)) for _ in range(2)]
        await asyncio.sleep(0.1)
        status, detail = await _ask(bodies, _scope(2 << 20), [bytes(2 << 20)])
        assert (status, detail[:21]) == (429, "You are sending 2 fil")
        assert await _ask(bodies, _scope(2 << 20, principal=other), [bytes(2 << 20)]) == (200, "")
        assert await _ask(bodies, _scope(3), [b"abc"]) == (200, "")  # A click during uploads of the same user.
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)

    asyncio.run(run())


def test_the_disk_space_of_a_user_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baps.server.middleware.bodies, "_IMAGES_EACH", 1)

    async def run() -> None:
        bodies = Bodies(_Echo(), 4 << 20)
        first = asyncio.create_task(_ask(bodies, _scope(4 << 20), [bytes(3 << 20)], hangs=True))
        await asyncio.sleep(0.1)
        assert (await _ask(bodies, _scope(2 << 20), [bytes(2 << 20)]))[0] == 429
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert await _ask(bodies, _scope(2 << 20), [bytes(2 << 20)]) == (200, "")

    asyncio.run(run())


def test_a_request_for_a_missing_image_is_refused_unread() -> None:
    async def run() -> None:
        read = False

        async def receive() -> Message:
            nonlocal read
            read = True
            return {"type": "http.disconnect"}

        messages = list[Message]()

        async def send(message: Message) -> None:
            messages.append(message)

        app = CloseUnread(Bodies(_Echo(), 2 << 20, find_missing=lambda _: "There is no image."))
        await app(_scope(1 << 20), receive, send)
        assert (messages[0]["status"], read) == (404, False)
        assert (b"connection", b"close") in messages[0]["headers"]

    asyncio.run(run())


def test_the_declared_body_of_a_get_is_not_awaited() -> None:
    """3D Slicer's client repeats the length of an upload with the GET that follows."""
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    scope = _scope(1000, "/datastore/label", "GET")
    assert asyncio.run(asyncio.wait_for(_ask(Bodies(app, 2 << 20), scope, [], hangs=True), 10)) == (200, "")
    assert len(scopes) == 1


def test_a_full_disk_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baps.server.middleware.bodies, "_MIN_FREE_BYTES", 1 << 60)
    monkeypatch.setattr(baps.server.middleware.bodies, "_MIN_FREE_SHARE", 1)
    status, detail = asyncio.run(_ask(Bodies(_Echo(), 4 << 20), _scope(2 << 20), [bytes(2 << 20)]))
    assert (status, "no room" in detail) == (507, True)


def test_the_number_of_form_fields_is_limited() -> None:
    app = FastAPI()

    def count(params: str = Form(""), file: UploadFile | None = None) -> int:
        return len(params)

    app.router.add_api_route("/", count, methods=["POST"], route_class_override=BoundedRoute)
    with TestClient(app) as client:
        files = {"file": ("a", b"x" * 100_000)}
        assert client.post("/", data={"params": "abc"}, files=files).json() == 3
        many = {f"a{number}": "x" for number in range(65)}
        assert client.post("/", data=many, files=files).status_code == 400
        assert client.post("/", data=many).status_code == 400
        assert client.post("/", data={"params": "x" * (2 << 20)}, files=files).status_code == 400
