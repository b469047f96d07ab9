"""What the files of OHIF may do in a browser, and how long it keeps them."""

from __future__ import annotations

import base64
import hashlib
from html.parser import HTMLParser

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from baps.server.error_handlers import handle_domain_error
from baps.server.middleware.root_path import RootPath
from baps.server.middleware.security_headers import SecurityHeaders
from baps.server.routes.ohif import ohif_file


class _Inline(HTMLParser):
    """The scripts that stand in a page, and the addresses of those that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.addresses: list[str] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        result = dict(attrs)
        self._inside = tag == "script" and "src" not in result
        self.addresses += [result[name] or "" for name in ("src", "href") if name in result]

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts.append(data)
            self._inside = False


@pytest.fixture(autouse=True)
def _with_a_pacs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baps.server.routes.ohif.has_pacs", lambda: True)


def _client(root: str) -> TestClient:
    app = FastAPI()
    app.get("/ohif/{path:path}")(ohif_file)
    app.add_exception_handler(Exception, handle_domain_error)
    return TestClient(SecurityHeaders(RootPath(app, root)), raise_server_exceptions=False)


@pytest.mark.parametrize("root", ["", "/baps"])
@pytest.mark.parametrize("path", ["", "viewer", "index.html"])
def test_content_security_policy(root: str, path: str) -> None:
    reply = _client(root).get(f"{root}/ohif/{path}")
    page = _Inline()
    page.feed(reply.text)
    policy = dict(part.strip().split(" ", 1) for part in reply.headers["Content-Security-Policy"].split(";"))
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in page.scripts}
    assert len(hashes) == 2
    assert set(policy["script-src"].split()) == {"'self'", "'unsafe-eval'", *hashes}
    assert not any(word.startswith(("http", "*")) for words in policy.values() for word in words.split())
    assert (policy["default-src"], policy["frame-ancestors"]) == ("'self'", "'none'")
    assert all(address.startswith(f"{root}/ohif/") for address in page.addresses)
    assert reply.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("root", ["", "/baps"])
def test_scripts_and_styles_are_cached(root: str) -> None:
    client = _client(root)
    page = _Inline()
    page.feed(client.get(f"{root}/ohif/").text)
    result = [address for address in page.addresses if "bundle" in address]
    assert len(result) == 2
    for address in result:
        reply = client.get(address)
        assert reply.headers["Cache-Control"] == "private, max-age=3600"
        assert "fonts.googleapis.com" not in reply.text or address.endswith(".js")
        assert "frame-ancestors 'none'" in reply.headers["Content-Security-Policy"]
