"""Convert responses of the PACS for viewers.

Content types are replaced where a browser would show the response as a page. Addresses of the PACS, which browsers need
not reach, are replaced by addresses of this server, which forwards requests to them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from urllib.parse import urlsplit

import requests
from fastapi.responses import JSONResponse, Response, StreamingResponse

from baps.errors import BapsError, NotFoundError

_TEXTS = re.compile(r"(application/(dicom\+json|dicom\+xml|json)|text/plain)(?=;|$)")
_BINARY = re.compile(
    r"(application/(dicom|octet-stream|pdf)|image/(jpeg|png|gif|webp|jp2|jpx|jphc|jph|jls|dicom-rle)|video/(mpeg|mp4"
    r"|mpeg2))(?=;|$)"
)
"""Content types of DICOMweb except multipart. Browsers execute nothing in content of these types."""

_MULTIPART = re.compile(r"multipart/related(?=;|$)")
_DICOM_TEXT = re.compile(r"application/dicom\+")

_CHUNK_BYTES = 1 << 16
_MAX_ADDRESS = 4096
"""Maximum length of an address in bytes."""

_BEFORE_ADDRESS = (b'"', b"'", b">", b"\r")
"""Bytes that come before an address: in JSON, in XML, and in the headers of a part."""

_WITHIN = rb"[^\s\"'<>]"
_ADDRESS = rb"(?:https?:(?:\\?/){2}[^\s\"'<>/\\]+)?(?:\\?/[^\s\"'<>/\\]+)*?\\?/(studies\\?/" + _WITHIN + rb"*)"
"""Address of a study or of something in it, with or without a host. JSON may escape slashes."""

_IN_TEXT = re.compile(rb"(?<=[\"'>])" + _ADDRESS)
_IN_HEADERS = re.compile(rb"(?<=\r\n[Cc]ontent-[Ll]ocation: )" + _ADDRESS)


def convert_response(response: requests.Response, own: str, headers: Mapping[str, str]) -> Response:
    """Convert a response of the PACS for a viewer.

    Args:
        response: Response of the PACS, not yet read.
        own: Address of this server's DICOMweb proxy, which replaces that of the PACS.
        headers: Headers to add.

    Returns:
        The response for the viewer.

    Raises:
        BapsError: If the PACS refuses the credentials of this server.
        NotFoundError: If the PACS redirects to another address.
    """
    kind, status = response.headers.get("content-type", "").strip().lower(), response.status_code
    if status in (401, 403, 407):
        response.close()
        raise BapsError(f"The PACS refused the request (HTTP {status}). Check its user and password.")
    if 300 <= status < 400:
        response.close()
        raise NotFoundError(f"The PACS refers to another address (HTTP {status}), which this server does not request.")
    if status >= 400 and not _DICOM_TEXT.match(kind):
        response.close()
        return JSONResponse({"detail": f"The PACS refused the request (HTTP {status})."}, status)
    if _BINARY.match(kind):
        names = ("content-type", "content-length", "content-encoding")
        passed = {name: value for name in names if (value := response.headers.get(name))}
        return StreamingResponse(response.raw.stream(_CHUNK_BYTES, decode_content=False), status, {**headers, **passed})
    is_multipart = bool(_MULTIPART.match(kind))
    is_text = not is_multipart or bool(re.search(r"[+/](json|xml)", kind))
    kind = response.headers["content-type"] if is_multipart or _TEXTS.match(kind) else _safe_type(kind)
    replace = partial(
        _replace_addresses, pacs_host=urlsplit(response.url).netloc.encode(), own=own.encode(), is_text=is_text
    )
    content = map(replace, _rechunk_at_urls(response.raw.stream(_CHUNK_BYTES, decode_content=True)))
    return StreamingResponse(content, status, {**headers, "content-type": kind})


def _safe_type(kind: str) -> str:
    """Return a content type that no browser shows as a page."""
    return "application/dicom+xml" if re.match(r"(text|application)/xml(?=;|$)", kind) else "application/octet-stream"


def _replace_addresses(content: bytes, pacs_host: bytes, own: bytes, is_text: bool) -> bytes:
    """Replace the addresses in a part of a response, and other occurrences of the host of the PACS."""
    content = _IN_HEADERS.sub(lambda match: own + b"/" + match[1], content)
    if not is_text:
        return content
    content = _IN_TEXT.sub(lambda match: own + b"/" + match[1], content)
    other = rb"https?:(?:\\?/){2}" + re.escape(pacs_host) + rb"(?![\w.:-])"
    return re.sub(other, lambda _: own, content)


def _rechunk_at_urls(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Split the content into other chunks, so that no address is split."""
    rest = b""
    for chunk in chunks:
        rest += chunk
        end = max(rest.rfind(before) for before in _BEFORE_ADDRESS)
        if end < len(rest) - _MAX_ADDRESS:
            end = len(rest)
        yield rest[:end]
        rest = rest[end:]
    yield rest
