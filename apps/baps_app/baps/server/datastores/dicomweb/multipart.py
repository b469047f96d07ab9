"""The body of a request to store DICOM objects (STOW-RS), taken apart within bounds."""

from __future__ import annotations

from email.message import Message

from baps.errors import InputError

KIND = "application/dicom"

MAX_OBJECTS = 64
"""In one request; OHIF sends one."""

_LONGEST_BOUNDARY = 70
_LONGEST_HEADER = 1024


def split_objects(content_type: str, body: bytes) -> list[bytes]:
    """Return the DICOM objects in a request to store them.

    Args:
        content_type: of the request.
        body: of the request.

    Raises:
        InputError: if it is of another kind than DICOM objects, is malformed, or holds too many.
    """
    said = Message()
    said["content-type"] = content_type
    boundary = said.get_boundary() or ""
    if said.get_content_type() != "multipart/related" or said.get_param("type") != KIND:
        raise InputError(
            f'Objects are stored as multipart/related; type="{KIND}", not as {said.get_content_type()[:60]}. JSON and '
            "XML are not taken."
        )
    if not 0 < len(boundary) <= _LONGEST_BOUNDARY or not boundary.isascii():
        raise InputError("The request to store objects names no boundary between them (RFC 2046). Nothing was stored.")
    parts = (b"\r\n" + body).split(b"\r\n--" + boundary.encode(), MAX_OBJECTS + 2)
    if len(parts) > MAX_OBJECTS + 2:
        raise InputError(f"More than {MOST_OBJECTS} objects cannot be stored at once. Nothing was stored.")
    if len(parts) < 3 or not parts[-1].startswith(b"--"):
        raise InputError("The request to store objects is cut off, or holds none. Nothing was stored; send it again.")
    return [_content(part) for part in parts[1:-1]]


def _content(part: bytes) -> bytes:
    """What is below the header of a part."""
    header, end, content = part.partition(b"\r\n\r\n")
    said = Message()
    for line in header[:_LONGEST_HEADER].decode("latin-1").splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-type":
            said["content-type"] = value.strip()
    if not end or len(header) > _LONGEST_HEADER or said.get_content_type() != KIND:
        raise InputError(f"A part of the request to store objects is not of the kind {KIND}. Nothing was stored.")
    return content


def join_objects(objects: list[bytes], boundary: str) -> bytes:
    """Return the body of a request to store objects, which do not hold the boundary."""
    head = f"--{boundary}\r\nContent-Type: {KIND}\r\n\r\n".encode()
    return b"".join(part for content in objects for part in (head, content, b"\r\n")) + f"--{boundary}--\r\n".encode()
