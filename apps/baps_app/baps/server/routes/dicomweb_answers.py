"""Answers of the PACS as a viewer gets them.

No browser takes one for a page, whatever kind the PACS says that it is. The addresses in it, which are of the network
of the PACS, become those of this server, which passes on what is asked there.
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
"""Kinds of DICOMweb, beside those of several parts. No browser runs what one of them brings."""

_PARTS = re.compile(r"multipart/related(?=;|$)")
_DICOM = re.compile(r"application/dicom\+")

_PART = 1 << 16
_LONGEST = 4096
"""Bytes of an address."""

_ENDS = (b'"', b"'", b">", b"\r")
"""What stands before an address: in JSON, in XML, and in the headers of a part."""

_WITHIN = rb"[^\s\"'<>]"
_ADDRESS = rb"(?:https?:(?:\\?/){2}[^\s\"'<>/\\]+)?(?:\\?/[^\s\"'<>/\\]+)*?\\?/(studies\\?/" + _WITHIN + rb"*)"
"""Of a study or of what is in it, whole or without a host; JSON may write a slash with a backslash."""

_IN_TEXT = re.compile(rb"(?<=[\"'>])" + _ADDRESS)
_IN_HEADERS = re.compile(rb"(?<=\r\n[Cc]ontent-[Ll]ocation: )" + _ADDRESS)


def answer_for_viewer(found: requests.Response, own: str, headers: Mapping[str, str]) -> Response:
    """Make the answer to a viewer of one of the PACS.

    Args:
        found: of the PACS, not yet read.
        own: address of this server that stands for that of the PACS's DICOMweb.
        headers: to add.

    Raises:
        BapsError: if the PACS does not let this server in.
        NotFoundError: if the PACS refers to another address.
    """
    kind, status = found.headers.get("content-type", "").strip().lower(), found.status_code
    if status in (401, 403, 407):
        found.close()
        raise BapsError(f"The PACS refused the request (HTTP {status}). Check its user and password.")
    if 300 <= status < 400:
        found.close()
        raise NotFoundError(f"The PACS refers to another address (HTTP {status}), where this server does not ask.")
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
    """A kind in place of one that a browser might show as a page, or of none."""
    return "application/dicom+xml" if re.match(r"(text|application)/xml(?=;|$)", kind) else "application/octet-stream"


def _readdressed(content: bytes, inner: bytes, own: bytes, text: bool) -> bytes:
    """A piece of an answer with our addresses; what else names the PACS is a host that no viewer reaches."""
    content = _IN_HEADERS.sub(lambda found: own + b"/" + found[1], content)
    if not text:
        return content
    content = _IN_TEXT.sub(lambda found: own + b"/" + found[1], content)
    other = rb"https?:(?:\\?/){2}" + re.escape(inner) + rb"(?![\w.:-])"
    return re.sub(other, lambda _: own, content)


def _in_whole_addresses(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Cut parts anew, so that no address is cut."""
    kept = b""
    for part in parts:
        kept += part
        cut = max(kept.rfind(end) for end in _ENDS)
        if cut < len(kept) - _LONGEST:
            cut = len(kept)
        yield kept[:cut]
        kept = kept[cut:]
    yield kept
