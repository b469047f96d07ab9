"""Convert responses of the PACS for viewers.

No browser shows one as a page, whatever content type the PACS gives it. Addresses in it, which belong to the network of
the PACS, are replaced by addresses of this server, which passes on requests to them.
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
_OTHERS = re.compile(
    r"(application/(dicom|octet-stream|pdf)|image/(jpeg|png|gif|webp|jp2|jpx|jphc|jph|jls|dicom-rle)|video/(mpeg|mp4"
    r"|mpeg2))(?=;|$)"
)
"""Content types of DICOMweb, beside multipart. No browser runs content of these types."""

_PARTS = re.compile(r"multipart/related(?=;|$)")
_DICOM = re.compile(r"application/dicom\+")

_PART = 1 << 16
_MAX_ADDRESS = 4096
"""Maximum length of an address in bytes."""

_ENDS = (b'"', b"'", b">", b"\r")
"""Bytes before an address: in JSON, in XML, and in the headers of a part."""

_WITHIN = rb"[^\s\"'<>]"
_ADDRESS = rb"(?:https?:(?:\\?/){2}[^\s\"'<>/\\]+)?(?:\\?/[^\s\"'<>/\\]+)*?\\?/(studies\\?/" + _WITHIN + rb"*)"
"""Address of a study or of something in it, with or without a host; JSON may escape slashes."""

_IN_TEXT = re.compile(rb"(?<=[\"'>])" + _ADDRESS)
_IN_HEADERS = re.compile(rb"(?<=\r\n[Cc]ontent-[Ll]ocation: )" + _ADDRESS)


def answer_for_viewer(found: requests.Response, own: str, headers: Mapping[str, str]) -> Response:
    """Convert a response of the PACS for a viewer.

    Args:
        found: Response of the PACS, not yet read.
        own: Address of this server that replaces that of the PACS's DICOMweb.
        headers: Headers to add.

    Raises:
        BapsError: If the PACS refuses the credentials of this server.
        NotFoundError: If the PACS redirects to another address.
    """
    kind, status = found.headers.get("content-type", "").strip().lower(), found.status_code
    if status in (401, 403, 407):
        found.close()
        raise BapsError(f"The PACS refused the request (HTTP {status}). Check its user and password.")
    if 300 <= status < 400:
        found.close()
        raise NotFoundError(f"The PACS refers to another address (HTTP {status}), which this server does not request.")
    if status >= 400 and not _DICOM.match(kind):
        found.close()
        return JSONResponse({"detail": f"The PACS refused the request (HTTP {status})."}, status)
    if _OTHERS.match(kind):
        names = ("content-type", "content-length", "content-encoding")
        passed = {name: value for name in names if (value := found.headers.get(name))}
        return StreamingResponse(found.raw.stream(_PART, decode_content=False), status, {**headers, **passed})
    parts = bool(_PARTS.match(kind))
    text = not parts or bool(re.search(r"[+/](json|xml)", kind))
    kind = found.headers["content-type"] if parts or _TEXTS.match(kind) else _safe(kind)
    replaced = partial(_readdressed, inner=urlsplit(found.url).netloc.encode(), own=own.encode(), text=text)
    content = map(replaced, _in_whole_addresses(found.raw.stream(_PART, decode_content=True)))
    return StreamingResponse(content, status, {**headers, "content-type": kind})


def _safe(kind: str) -> str:
    """Return a content type that no browser shows as a page."""
    return "application/dicom+xml" if re.match(r"(text|application)/xml(?=;|$)", kind) else "application/octet-stream"


def _readdressed(content: bytes, inner: bytes, own: bytes, text: bool) -> bytes:
    """Replace the addresses in a part of a response, and other mentions of the host of the PACS."""
    content = _IN_HEADERS.sub(lambda found: own + b"/" + found[1], content)
    if not text:
        return content
    content = _IN_TEXT.sub(lambda found: own + b"/" + found[1], content)
    other = rb"https?:(?:\\?/){2}" + re.escape(inner) + rb"(?![\w.:-])"
    return re.sub(other, lambda _: own, content)


def _in_whole_addresses(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Cut the content into other parts, so that no address is cut."""
    kept = b""
    for part in parts:
        kept += part
        cut = max(kept.rfind(end) for end in _ENDS)
        if cut < len(kept) - _MAX_ADDRESS:
            cut = len(kept)
        yield kept[:cut]
        kept = kept[cut:]
    yield kept
