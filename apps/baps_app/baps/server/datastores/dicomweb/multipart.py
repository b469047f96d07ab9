"""Split and build the body of a request that stores DICOM objects (STOW-RS), within limits."""

from __future__ import annotations

from email.message import Message

from baps.errors import InputError

MEDIA_TYPE = "application/dicom"

MAX_OBJECTS = 64
"""Maximum number of objects in a request. OHIF sends one."""

_MAX_BOUNDARY_LENGTH = 70
_MAX_HEADER_LENGTH = 1024


def split_objects(content_type: str, body: bytes) -> list[bytes]:
    """Return the DICOM objects in a request to store them.

    Args:
        content_type: Content-Type of the request.
        body: Body of the request.

    Raises:
        InputError: if it does not consist of DICOM objects, is malformed, or holds too many objects.
    """
    header = Message()
    header["content-type"] = content_type
    boundary = header.get_boundary() or ""
    if header.get_content_type() != "multipart/related" or header.get_param("type") != MEDIA_TYPE:
        raise InputError(
            f'Objects are stored as multipart/related; type="{MEDIA_TYPE}", not as {header.get_content_type()[:60]}. '
            "JSON and XML are not accepted."
        )
    if not 0 < len(boundary) <= _MAX_BOUNDARY_LENGTH or not boundary.isascii():
        raise InputError("The request to store objects names no boundary between them (RFC 2046). Nothing was stored.")
    parts = (b"\r\n" + body).split(b"\r\n--" + boundary.encode(), MAX_OBJECTS + 2)
    if len(parts) > MAX_OBJECTS + 2:
        raise InputError(f"More than {MAX_OBJECTS} objects cannot be stored at once. Nothing was stored.")
    if len(parts) < 3 or not parts[-1].startswith(b"--"):
        raise InputError("The request to store objects is cut off, or holds none. Nothing was stored; send it again.")
    return [_content(part) for part in parts[1:-1]]


def _content(part: bytes) -> bytes:
    """Return the content of a part, which follows its header.

    Raises:
        InputError: if it is not a DICOM object.
    """
    header_text, end, content = part.partition(b"\r\n\r\n")
    header = Message()
    for line in header_text[:_MAX_HEADER_LENGTH].decode("latin-1").splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-type":
            header["content-type"] = value.strip()
    if not end or len(header_text) > _MAX_HEADER_LENGTH or header.get_content_type() != MEDIA_TYPE:
        raise InputError(f"A part of the request to store objects is not of the type {MEDIA_TYPE}. Nothing was stored.")
    return content


def join_objects(objects: list[bytes], boundary: str) -> bytes:
    """Return the body of a request to store objects.

    Args:
        objects: The objects, as files.
        boundary: Boundary, which does not occur in the objects.
    """
    head = f"--{boundary}\r\nContent-Type: {MEDIA_TYPE}\r\n\r\n".encode()
    return b"".join(part for content in objects for part in (head, content, b"\r\n")) + f"--{boundary}--\r\n".encode()
