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
from baps.server.routes.dicomweb_responses import _rechunk_at_urls, _replace_addresses, convert_response

INNER = "http://pacs.inner:8042/dicom-web"
OWN = "https://hospital/baps/proxy/dicom/wado"


def _pacs_response(content: bytes, kind: str | None, status: int = 200) -> requests.Response:
    """Return a response of a PACS."""
    headers = {"content-length": str(len(content)), "location": f"{INNER}/studies/1", "set-cookie": "a=b"}
    if kind is not None:
        headers["content-type"] = kind
    response = requests.Response()
    response.status_code, response.url, response.headers = (
        status,
        f"{INNER}/studies",
        requests.structures.CaseInsensitiveDict(headers),
    )
    response.raw = HTTPResponse(io.BytesIO(content), headers, status, preload_content=False)
    return response


def _converted(content: bytes, kind: str | None, status: int = 200) -> requests.Response:
    """Return that response as a viewer gets it."""
    reply = convert_response(_pacs_response(content, kind, status), OWN, {})

    async def app(scope, receive, send):  # type: ignore[no-untyped-def]
        await reply(scope, receive, send)

    return TestClient(app).get("/")  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("pacs_address", "own_address"),
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
def test_addresses_are_replaced_in_json(pacs_address: str, own_address: str, escaped: bool) -> None:
    content = json.dumps(
        [{"00081190": {"vr": "UR", "Value": [pacs_address]}, "7FE00010": {"vr": "OW", "BulkDataURI": pacs_address}}]
    )
    content = content.replace("/", r"\/") if escaped else content
    (data_set,) = _converted(content.encode(), "application/dicom+json").json()
    assert data_set == {
        "00081190": {"vr": "UR", "Value": [own_address]},
        "7FE00010": {"vr": "OW", "BulkDataURI": own_address},
    }


def test_addresses_are_replaced_in_xml() -> None:
    content = f'<A><Value number="1">{INNER}/studies/1.2</Value><BulkData URI="{INNER}/studies/1.2/bulk/1"/></A>'
    for kind in ("application/dicom+xml", "text/xml; charset=utf-8"):
        reply = _converted(content.encode(), kind)
        root = ET.fromstring(reply.content)  # noqa: S314 (from the project)
        assert (root[0].text, root[1].attrib["URI"]) == (f"{OWN}/studies/1.2", f"{OWN}/studies/1.2/bulk/1")
        assert reply.headers["content-type"] == "application/dicom+xml"


def test_addresses_are_replaced_in_the_headers_of_parts_only() -> None:
    pixels = bytes(range(256)) * 999 + f'"{INNER}/studies/1"'.encode()
    head = b"--b\r\nContent-Location: %s/studies/1.2/frames/1\r\nContent-Type: application/octet-stream\r\n\r\n"
    end = b"\r\n--b--\r\n"
    reply = _converted(
        head % INNER.encode() + pixels + end, 'multipart/related; type="application/octet-stream"; boundary=b'
    )
    assert reply.content == head % OWN.encode() + pixels + end
    assert reply.headers["content-type"] == 'multipart/related; type="application/octet-stream"; boundary=b'
    assert "content-length" not in reply.headers


def test_images_are_not_changed() -> None:
    content = f'"{INNER}/studies/1"'.encode()
    reply = _converted(content, "image/jpeg")
    assert (reply.content, reply.headers["content-length"]) == (content, str(len(content)))
    assert not {"location", "set-cookie"} & set(reply.headers)


@pytest.mark.parametrize(
    "kind", ["text/html", "TEXT/HTML; charset=utf-8", "application/xhtml+xml", "image/svg+xml", "x", "", None]
)
def test_no_response_is_shown_as_a_page(kind: str | None) -> None:
    for status in (200, 400, 404, 409, 500):
        reply = _converted(b"<script>alert(1)</script>" + INNER.encode(), kind, status)
        assert reply.status_code == status
        assert reply.headers["content-type"] == ("application/octet-stream" if status == 200 else "application/json")
        if status >= 400:
            assert reply.json() == {"detail": f"The PACS refused the request (HTTP {status})."}


def test_failed_stores_are_reported() -> None:
    content = json.dumps(
        {"00081198": {"vr": "SQ", "Value": [{"00081190": {"vr": "UR", "Value": [f"{INNER}/studies/1"]}}]}}
    )
    reply = _converted(content.encode(), "application/dicom+json", 409)
    assert reply.status_code == 409
    assert OWN in reply.text
    assert "inner" not in reply.text


@pytest.mark.parametrize("status", [301, 302, 307])
def test_redirections_are_refused(status: int) -> None:
    with pytest.raises(NotFoundError, match=f"HTTP {status}"):
        convert_response(_pacs_response(b"", "text/html", status), OWN, {})


@pytest.mark.parametrize("status", [401, 403, 407])
def test_refused_credentials_are_an_error_of_the_operator(status: int) -> None:
    with pytest.raises(BapsError, match=f"HTTP {status}"):
        convert_response(_pacs_response(b"", "text/html", status), OWN, {})


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
def test_the_result_does_not_depend_on_the_chunks(words: list[str], sizes: list[int]) -> None:
    content, chunks = "".join(words).encode(), []
    rest = content
    while rest:
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(rest[:size])
        rest = rest[size:]
    assert b"".join(_rechunk_at_urls(chunks)) == content
    replaced = b"".join(
        _replace_addresses(chunk, b"pacs.inner:8042", OWN.encode(), True) for chunk in _rechunk_at_urls(chunks)
    )
    assert replaced == _replace_addresses(content, b"pacs.inner:8042", OWN.encode(), True)
    assert b"pacs.inner" not in replaced
