"""Responses of a PACS are limited in size and time, in the size of inflated objects, and in redirects."""

from __future__ import annotations

import http.server
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO

import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from baps.errors import BapsError
from baps.server.datastores.dicomweb import client as pacs_client
from baps.server.datastores.dicomweb.client import connect, convert_pacs_errors
from baps.site.pacs_credentials import PacsCredentials
from tests.support.paths import ROOT

_OBJECT = ROOT / "sample-data" / "dicom" / "ct_01" / "001.dcm"


@contextmanager
def _pacs(answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(ConnectionError):
                answer(self)

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/dicom-web"
    finally:
        server.shutdown()
        server.server_close()


def _begin(handler: http.server.BaseHTTPRequestHandler, kind: str) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", kind)
    handler.end_headers()


def _multipart(content: bytes) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        _begin(handler, 'multipart/related; type="application/dicom"; boundary=part')
        handler.wfile.write(b"--part\r\nContent-Type: application/dicom\r\n\r\n" + content + b"\r\n--part--\r\n")

    return answer


def _deflated(megabytes: int) -> bytes:
    """Return an object with a deflated data set that ends with a private element of zeros."""
    image = pydicom.dcmread(_OBJECT)
    image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    image.add_new(0x7FE10010, "OB", bytes(megabytes << 20))
    content = BytesIO()
    image.save_as(content)
    return content.getvalue()


def test_an_endless_list_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacs_client, "_MAX_JSON_BYTES", 1 << 20)
    sent_bytes = 0

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        nonlocal sent_bytes
        _begin(handler, "application/dicom+json")
        while sent_bytes < 1 << 30:
            sent_bytes += handler.wfile.write(bytes(1 << 16))

    with _pacs(answer) as address, convert_pacs_errors(), pytest.raises(BapsError, match="more than 1 MB"):
        connect(address, PacsCredentials()).search_for_series()
    assert sent_bytes < 1 << 27


def test_an_endless_series_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAPS_MAX_VOLUME_MB", "1")

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        _begin(handler, 'multipart/related; type="application/dicom"; boundary=part')
        while True:
            handler.wfile.write(b"--part\r\nContent-Type: application/dicom\r\n\r\n" + _OBJECT.read_bytes() + b"\r\n")

    with _pacs(answer) as address, convert_pacs_errors(), pytest.raises(BapsError, match="more than 2 MB"):
        for _ in connect(address, PacsCredentials()).iter_series("1.2.3", "1.2.4"):
            pass


def test_a_slow_response_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacs_client, "_GRACE_SECONDS", 0.2)

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        _begin(handler, "application/dicom+json")
        while True:  # A complete chunk every 50 ms.
            handler.wfile.write(bytes(10))
            time.sleep(0.05)

    monkeypatch.setattr("requests.models.CONTENT_CHUNK_SIZE", 10)
    with _pacs(answer) as address, convert_pacs_errors(), pytest.raises(BapsError, match="too slowly"):
        connect(address, PacsCredentials()).search_for_series()


def test_an_object_that_inflates_beyond_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAPS_MAX_VOLUME_MB", "16")
    bomb = _deflated(64)
    assert len(bomb) < 1 << 20
    with _pacs(_multipart(bomb)) as address, convert_pacs_errors():
        with pytest.raises(BapsError, match="16 MB are allowed"):
            list(connect(address, PacsCredentials()).iter_series("1.2.3", "1.2.4"))
        with pytest.raises(BapsError, match="16 MB are allowed"):
            connect(address, PacsCredentials()).retrieve_instance("1.2.3", "1.2.4", "1.2.5")


def test_a_deflated_object_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with _pacs(_multipart(_deflated(1))) as address, convert_pacs_errors():
        (dataset,) = connect(address, PacsCredentials()).iter_series("1.2.3", "1.2.4")
    assert dataset.PixelData == pydicom.dcmread(_OBJECT).PixelData


def test_content_that_is_not_dicom_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        _pacs(_multipart(zlib.compress(b"no DICOM"))) as address,
        pytest.raises(BapsError, match="incomplete response"),
        convert_pacs_errors(),
    ):
        list(connect(address, PacsCredentials()).iter_series("1.2.3", "1.2.4"))


def test_a_redirect_to_another_host_is_not_followed() -> None:
    requested = []

    def elsewhere(handler: http.server.BaseHTTPRequestHandler) -> None:
        requested.append(handler.path)
        _begin(handler, "application/dicom+json")
        handler.wfile.write(b"[]")

    with _pacs(elsewhere) as other_host:

        def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
            handler.send_response(302)
            handler.send_header("Location", other_host.replace("127.0.0.1", "localhost"))
            handler.end_headers()

        with _pacs(answer) as address, convert_pacs_errors(), pytest.raises(BapsError, match="another host"):
            connect(address, PacsCredentials()).search_for_series()
    assert not requested
