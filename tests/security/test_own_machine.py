"""A server without users answers only its own machine: other hosts, web pages and large requests are refused."""

from __future__ import annotations

import http.client
import json
import socket
import time
from urllib.parse import urlsplit

import pytest
import requests

from tests.support.patient_names import ORIGIN, SiteWithPatientNames

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {
            "Host": "evil.example:8000",
            "Origin": "http://evil.example:8000",
        },  # A host name that resolves to this machine.
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "localhost.evil.example"},
        {"Host": ""},
        {"X-Forwarded-For": "10.0.0.7"},
        {"X-Forwarded-For": "127.0.0.1"},
        {"Forwarded": "for=10.0.0.7"},
    ],
)
def test_requests_of_other_hosts_are_refused(site_with_names: SiteWithPatientNames, headers: dict[str, str]) -> None:
    reply = requests.get(f"{site_with_names.site.address}/info/", headers=headers, timeout=30)
    assert (reply.status_code, "baps users add" in reply.text) == (403, True)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "localhost:8000"])
def test_its_own_machine_needs_no_login(site_with_names: SiteWithPatientNames, host: str) -> None:
    assert requests.get(f"{site_with_names.site.address}/info/", headers={"Host": host}, timeout=30).ok
    assert not site_with_names.site.client.auth_enabled()
    assert site_with_names.site.client.auth_valid_token()


def test_only_configured_origins_may_send_requests(site_with_names: SiteWithPatientNames) -> None:
    address = f"{site_with_names.site.address}/info/"
    queried = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    allowed = requests.get(address, headers={"Origin": ORIGIN}, timeout=30)
    assert (allowed.status_code, allowed.headers["Access-Control-Allow-Origin"]) == (200, ORIGIN)
    assert "Access-Control-Allow-Credentials" not in allowed.headers
    assert requests.options(address, headers={"Origin": ORIGIN, **queried}, timeout=30).ok
    for origin in ("https://evil.example", "null", f"{ORIGIN}.evil.example", ORIGIN.replace("https", "http"), "*"):
        bad = requests.get(address, headers={"Origin": origin}, timeout=30)
        assert (bad.status_code, bad.headers.get("Access-Control-Allow-Origin")) == (403, None)
        before = requests.options(address, headers={"Origin": origin, **queried}, timeout=30)
        assert not before.ok
        assert "Access-Control-Allow-Origin" not in before.headers


def _raw(site_with_names: SiteWithPatientNames, head: str, body: bytes = b"", pieces: int = 0) -> tuple[int, int]:
    """Send a request over a socket; return the status, and the number of body bytes sent before it came."""
    address = urlsplit(site_with_names.site.address)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall(f"{head}\r\nHost: 127.0.0.1\r\n\r\n".encode() + body)
        sent, connection_timeout = len(body), 0.0
        try:
            for _ in range(pieces):
                connection.sendall(b"100000\r\n" + bytes(1 << 20) + b"\r\n")
                sent += 1 << 20
        except OSError:
            pass
        connection.settimeout(30 + connection_timeout)
        try:
            answer = http.client.HTTPResponse(connection)
            answer.begin()
        except (OSError, http.client.HTTPException):
            return 0, sent
        return answer.status, sent


def test_too_large_content_length_is_refused_without_reading(site_with_names: SiteWithPatientNames) -> None:
    for path, size in (("/infer/baps?image=x", 9 << 20), ("/train/baps", 2 << 20), ("/auth/token", 2 << 20)):
        status, _ = _raw(site_with_names, f"POST {path} HTTP/1.1\r\nContent-Length: {size}\r\nContent-Type: text/plain")
        assert status == 413
    status, _ = _raw(site_with_names, "POST /train/baps HTTP/1.1\r\nContent-Length: 1" + "0" * 30)
    assert status in (400, 413)


def test_too_large_chunked_request_is_cut_off(site_with_names: SiteWithPatientNames) -> None:
    kind = "Content-Type: multipart/form-data; boundary=b"
    head = f"PUT /datastore/label?image=ct_01 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n{kind}"
    part = b'--b\r\nContent-Disposition: form-data; name="label"; filename="a.nii.gz"\r\n\r\n'
    status, sent = _raw(site_with_names, head, f"{len(part):x}\r\n".encode() + part + b"\r\n", pieces=200)
    assert status in (413, 0)  # 0: the server closed the connection while the body was still being sent.
    assert sent < 200 << 20
    assert requests.get(f"{site_with_names.site.address}/info/", timeout=30).ok


def test_refusal_has_a_sentence(site_with_names: SiteWithPatientNames) -> None:
    reply = requests.post(f"{site_with_names.site.address}/train/baps", data=b" " * (1 << 20) + b"{}", timeout=30)
    assert (reply.status_code, "1 MB" in reply.json()["detail"]) == (413, True)


@pytest.mark.parametrize(
    "params", [{"foreground": [[1, 1, 1]] * 1001}, {"background": [[1, 1, 1]] * 10_000}, {"spleen": [[1, 1, 1]] * 2000}]
)
def test_too_many_clicks_are_refused(site_with_names: SiteWithPatientNames, params: dict[str, object]) -> None:
    start = time.perf_counter()
    data = {"params": json.dumps({"label": "spleen", **params})}
    for model in ("baps", "whole_organ"):
        reply = requests.post(f"{site_with_names.site.address}/infer/{model}?image=ct_01", data=data, timeout=60)
        assert (reply.status_code, "at most 1000" in reply.text) == (400, True), reply.text
    assert time.perf_counter() - start < 30
