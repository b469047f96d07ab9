"""All responses have the security headers."""

from __future__ import annotations

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse, RedirectResponse, Response, StreamingResponse
from fastapi.testclient import TestClient

from baps.server.middleware.security_headers import ALWAYS, STRICTEST_POLICY, SecurityHeaders


def _client() -> TestClient:
    app = FastAPI()
    app.get("/json")(lambda: {"a": 1})
    app.get("/file")(lambda: FileResponse(__file__))
    app.get("/streamed")(lambda: StreamingResponse(iter([b"a"])))
    app.get("/away")(lambda: RedirectResponse("/json"))
    own = {"Content-Security-Policy": "default-src 'self'", "Cache-Control": "private", "X-Frame-Options": "SAMEORIGIN"}
    app.get("/own")(lambda: Response("", headers=own))

    @app.get("/broken")
    def broken() -> None:
        raise ZeroDivisionError

    @app.get("/refused")
    def refused() -> None:
        raise HTTPException(401)

    return TestClient(SecurityHeaders(app.build_middleware_stack()), raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/json", 200),
        ("/file", 200),
        ("/streamed", 200),
        ("/away", 307),
        ("/nothing", 404),
        ("/refused", 401),
        ("/broken", 500),
        ("/openapi.json", 200),
    ],
)
def test_every_response_has_the_security_headers(path: str, status: int) -> None:
    client = _client()
    for method in ("GET", "HEAD", "OPTIONS"):
        reply = client.request(method, path, follow_redirects=False)
        assert reply.status_code == status or method != "GET"
        assert {name: reply.headers.get(name) for name in ALWAYS} == dict(ALWAYS)
        assert reply.headers["Content-Security-Policy"] == STRICTEST_POLICY
        assert reply.headers["Cache-Control"] == "no-store"


def test_a_response_keeps_its_own_policy_and_cache_control() -> None:
    headers = _client().get("/own").headers
    assert (headers["Content-Security-Policy"], headers["Cache-Control"]) == ("default-src 'self'", "private")
    assert headers.get_list("X-Frame-Options") == ["DENY"]
