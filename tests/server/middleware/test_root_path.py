"""The guard and the routes see the same path below the root path."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from starlette._utils import get_route_path
from starlette.types import Message, Receive, Scope, Send

from baps.errors import InputError
from baps.server.access_policy import find_policy
from baps.server.middleware.root_path import RootPath, path_below
from baps.site.settings import parse_root_path

ROOT = "/baps"
PARTS = ["/baps", "baps", "/", "//", "", "/info/", "/audit", "/%2e%2e", "..", "/login", "/bapsx", "\\", "%2f", "é"]


def seen(path: str, given_root: str = "", root: str = ROOT) -> Scope | None:
    """Return the scope that the application gets, or None if the request is refused."""
    scopes: list[Scope] = []

    async def app(scope: Scope, _: Receive, __: Send) -> None:
        scopes.append(scope)

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(_: Message) -> None: ...

    scope = {"type": "http", "method": "GET", "path": given_root + path, "root_path": given_root, "headers": []}
    asyncio.run(RootPath(app, root)(scope, receive, send))
    return scopes[0] if scopes else None


@pytest.mark.parametrize("given_root", ["", "/baps", "/baps/"], ids=["setting", "uvicorn", "uvicorn with a slash"])
@pytest.mark.parametrize(
    ("path", "below"),
    [
        ("/info/", "/info/"),
        ("/baps/info/", "/info/"),
        ("/baps", "/"),
        ("/baps/", "/"),
        ("/", "/"),
        ("/bapsinfo/", "/bapsinfo/"),
        ("/baps/baps/info/", "/baps/info/"),
        ("/baps//info/", "//info/"),
        ("//baps/info/", "//baps/info/"),
        ("/baps/../audit", "/../audit"),
    ],
)
def test_the_root_path_is_removed_once(path: str, below: str, given_root: str) -> None:
    scope = seen(path, given_root, "" if given_root else ROOT)
    assert scope is not None
    assert (scope["root_path"], scope["path"]) == (ROOT, ROOT + below)
    assert path_below(scope) == below


@given(st.lists(st.sampled_from(PARTS), max_size=5).map("".join), st.sampled_from(["", "/baps", "/a/b"]))
def test_guard_and_routes_see_the_same_path(path: str, root: str) -> None:
    scope = seen(path, root=root)
    if scope is None:
        assert path
        assert not path.startswith("/")
    else:
        assert path_below(scope) == get_route_path(scope)
        assert path_below(scope).startswith("/")


@given(st.lists(st.sampled_from(PARTS), max_size=5).map("".join))
def test_no_path_reaches_a_route_with_another_policy(path: str) -> None:
    """In an application with one route for admins, every request that reaches it was checked as such."""
    app = FastAPI()
    kinds = []

    @app.get("/audit")
    def audit() -> str:
        return "secret"

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            kinds.append(find_policy(scope["method"], path_below(scope)))
        await app(scope, receive, send)

    client = TestClient(RootPath(guarded, ROOT), follow_redirects=False)
    reply = client.get(f"http://testserver/{path}")
    if reply.status_code == 200:
        assert kinds
        assert kinds[-1] is not None
        assert kinds[-1].action == "read who did what"


def test_redirects_stay_below_the_root_path() -> None:
    app = FastAPI()

    @app.get("/info/")
    def info() -> None: ...

    client: Any = TestClient(RootPath(app, ROOT), base_url="http://hospital", follow_redirects=False)
    for path in ("/info", "/baps/info"):
        assert client.get(path).headers["Location"] == "http://hospital/baps/info/"


@pytest.mark.parametrize(
    ("text", "root"),
    [
        ("/baps", "/baps"),
        ("baps", "/baps"),
        ("/baps/", "/baps"),
        ("/", ""),
        ("", ""),
        ("/a/b.c_d~e-f/", "/a/b.c_d~e-f"),
    ],
)
def test_root_paths_are_normalized(text: str, root: str) -> None:
    assert parse_root_path(text) == root


@pytest.mark.parametrize(
    "text", ["/a//b", "/..", "/a/../b", "https://x/baps", '/"', "/a b", "/a?b", "/%62", "/é", "/."]
)
def test_invalid_root_paths_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="root path is a path such as /baps"):
        parse_root_path(text)
