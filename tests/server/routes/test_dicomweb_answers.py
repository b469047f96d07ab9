"""What a PACS answers, as a viewer gets it."""

from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ET

import pytest
import requests
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from urllib3 import HTTPResponse

from baps.errors import BapsError, NotFoundError
from baps.server.routes.dicomweb_answers import _in_whole_addresses, _readdressed, answer_for_viewer

INNER = "http://pacs.inner:8042/dicom-web"
OWN = "https://hospital/baps/proxy/dicom/wado"


def _found(content: bytes, kind: str | None, status: int = 200) -> requests.Response:
    """An answer of a PACS."""
    headers = {"content-length": str(len(content)), "location": f"{INNER}/studies/1", "set-cookie": "a=b"}
    if kind is not None:
        headers["content-type"] = kind
    found = requests.Response()
    found.status_code, found.url, found.headers = (
        status,
        f"{INNER}/studies",
        requests.structures.CaseInsensitiveDict(headers),
    )
    found.raw = HTTPResponse(io.BytesIO(content), headers, status, preload_content=False)
    return found


def _passed(content: bytes, kind: str | None, status: int = 200) -> requests.Response:
    """That answer as a viewer gets it."""
    reply = answer_for_viewer(_found(content, kind, status), OWN, {})

    async def app(scope, receive, send):  # type: ignore[no-untyped-def]
        await reply(scope, receive, send)

    return TestClient(app).get("/")  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("said", "given_"),
    [
        (f"{INNER}/studies/1.2/series/3", f"{OWN}/studies/1.2/series/3"),
        (
            "https://other.inner/pacs/aets/A/rs/studies/1.2/bulkdata/7fe00010?a=1",
            f"{OWN}/studies/1.2/bulkdata/7fe00010?a=1",
        ),
        ("/dicom-web/studies/1.2/bulk/1", f"{OWN}/studies/1.2/bulk/1"),
        ("http://pacs.inner:8042/other/thing", f"{OWN}/other/thing"),
        ("http://pacs.inner:8042", OWN),
        ("../../bulk/1", "../../bulk/1"),
        ("https://pacs.inner.example/", "https://pacs.inner.example/"),
        ("see studies/1", "see studies/1"),
    ],
)
@pytest.mark.parametrize("escaped", [False, True])
def test_addresses_are_those_of_this_server(said: str, given_: str, escaped: bool) -> None:
    content = json.dumps([{"00081190": {"vr": "UR", "Value": [said]}, "7FE00010": {"vr": "OW", "BulkDataURI": said}}])
    content = content.replace("/", r"\/") if escaped else content
    (found,) = _passed(content.encode(), "application/dicom+json").json()
    assert found == {"00081190": {"vr": "UR", "Value": [given_]}, "7FE00010": {"vr": "OW", "BulkDataURI": given_}}


def test_addresses_in_xml_too() -> None:
    content = f'<A><Value number="1">{INNER}/studies/1.2</Value><BulkData URI="{INNER}/studies/1.2/bulk/1"/></A>'
    for kind in ("application/dicom+xml", "text/xml; charset=utf-8"):
        reply = _passed(content.encode(), kind)
        root = ET.fromstring(reply.content)  # noqa: S314 (our own)
        assert (root[0].text, root[1].attrib["URI"]) == (f"{OWN}/studies/1.2", f"{OWN}/studies/1.2/bulk/1")
        assert reply.headers["content-type"] == "application/dicom+xml"


def test_the_headers_of_parts_too_and_no_byte_of_an_image() -> None:
    pixels = bytes(range(256)) * 999 + f'"{INNER}/studies/1"'.encode()
    head = b"--b\r\nContent-Location: %s/studies/1.2/frames/1\r\nContent-Type: application/octet-stream\r\n\r\n"
    end = b"\r\n--b--\r\n"
    reply = _passed(
        head % INNER.encode() + pixels + end, 'multipart/related; type="application/octet-stream"; boundary=b'
    )
    assert reply.content == head % OWN.encode() + pixels + end
    assert reply.headers["content-type"] == 'multipart/related; type="application/octet-stream"; boundary=b'
    assert "content-length" not in reply.headers


def test_an_image_is_passed_on_as_it_is() -> None:
    content = f'"{INNER}/studies/1"'.encode()
    reply = _passed(content, "image/jpeg")
    assert (reply.content, reply.headers["content-length"]) == (content, str(len(content)))
    assert not {"location", "set-cookie"} & set(reply.headers)


@pytest.mark.parametrize(
    "kind", ["text/html", "TEXT/HTML; charset=utf-8", "application/xhtml+xml", "image/svg+xml", "x", "", None]
)
def test_nothing_is_a_page(kind: str | None) -> None:
    for status in (200, 400, 404, 409, 500):
        reply = _passed(b"<script>alert(1)</script>" + INNER.encode(), kind, status)
        assert reply.status_code == status
        assert reply.headers["content-type"] == ("application/octet-stream" if status == 200 else "application/json")
        if status >= 400:
            assert reply.json() == {"detail": f"The PACS refused the request (HTTP {status})."}


def test_what_could_not_be_stored_is_told() -> None:
    content = json.dumps(
        {"00081198": {"vr": "SQ", "Value": [{"00081190": {"vr": "UR", "Value": [f"{INNER}/studies/1"]}}]}}
    )
    reply = _passed(content.encode(), "application/dicom+json", 409)
    assert reply.status_code == 409
    assert OWN in reply.text
    assert "inner" not in reply.text


@pytest.mark.parametrize("status", [301, 302, 307])
def test_where_the_pacs_refers_to_is_not_asked(status: int) -> None:
    with pytest.raises(NotFoundError, match=f"HTTP {status}"):
        answer_for_viewer(_found(b"", "text/html", status), OWN, {})


@pytest.mark.parametrize("status", [401, 403, 407])
def test_a_pacs_that_lets_this_server_not_in_is_the_operators_to_mend(status: int) -> None:
    with pytest.raises(BapsError, match=f"HTTP {status}"):
        answer_for_viewer(_found(b"", "text/html", status), OWN, {})


@given(
    st.lists(
        st.sampled_from(
            [
                f'"{INNER}/studies/1.2/x"',
                '"Doe"',
                "a" * 5000,
                "\r\n",
                "<Value>",
                "'",
                f"\r\nContent-Location: {INNER}/studies/1\r\n",
            ]
        )
    ),
    st.lists(st.integers(1, 9000), min_size=1),
)
def test_it_is_the_same_however_an_answer_is_cut(words: list[str], sizes: list[int]) -> None:
    content, parts = "".join(words).encode(), []
    rest = content
    while rest:
        size = sizes[len(parts) % len(sizes)]
        parts.append(rest[:size])
        rest = rest[size:]
    assert b"".join(_in_whole_addresses(parts)) == content
    cut = b"".join(_readdressed(part, b"pacs.inner:8042", OWN.encode(), True) for part in _in_whole_addresses(parts))
    assert cut == _readdressed(content, b"pacs.inner:8042", OWN.encode(), True)
    assert b"pacs.inner" not in cut
