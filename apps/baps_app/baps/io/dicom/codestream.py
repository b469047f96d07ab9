"""Sizes of compressed frames, read from their own headers before anything is decoded.

JPEG, JPEG-LS, JPEG 2000 and High-Throughput JPEG 2000 say how large an image is in the codestream, whatever the DICOM
header around them says, and decoders make room for what the codestream says.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydicom.uid import RLELossless

from baps.errors import InputError
from baps.utils.limits import check_size

_JPEG = b"\xff\xd8"
_JPEG_2000 = b"\xff\x4f\xff\x51"
_BOXES = b"\0\0\0\x0cjP  "
"""How a JP2 file begins, which holds a JPEG 2000 codestream in one of its boxes."""

_BEGINNINGS = (_JPEG, _JPEG_2000, _BOXES)

_FRAME_HEADERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
"""Second bytes of the markers SOF0 to SOF15, and SOF55 of JPEG-LS; the gaps are tables."""

_BARE = {0x01, *range(0xD0, 0xD8)}
"""Second bytes of markers without a segment."""

_START_OF_SCAN, _END_OF_IMAGE, _HIERARCHY = 0xDA, 0xD9, 0xDE

_WORKING_BYTES = 4
"""What decoders take for a sample while they decode a frame."""

_ITEM, _DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"


def check_frames(name: str, pixels: bytes, syntax: str, count: int, size: tuple[int, int, int]) -> None:
    """Refuse compressed pixels that hold other frames than the DICOM header says.

    Args:
        name: of the file, for the sentence.
        pixels: the value of PixelData: the items of an encapsulated image.
        syntax: the UID of the transfer syntax.
        count: how many frames the header says (NumberOfFrames).
        size: rows, columns and samples that the header says of each.

    Raises:
        InputError: if a frame has another size, if there are more or fewer frames, or if one needs more memory than is
            allowed.
        ValueError: if the items or the codestreams are of no kind that is known.
    """
    check_size(name, size, _WORKING_BYTES)
    found = 0
    for frame in split_frames(pixels, syntax):
        found += 1
        if syntax == RLELossless or found > count:
            continue
        if (real := image_size(frame)) != size:
            rows, columns, samples = real
            raise InputError(
                f"{name} says that it has {size[0]} rows, {size[1]} columns and {size[2]} samples a pixel (Rows, "
                f"Columns, SamplesPerPixel), but frame {found} of its compressed pixels has {rows} rows, {columns} "
                f"columns and {samples} samples. Export it again."
            )
    if found != count:
        raise InputError(
            f"{name} says that it has {count} frames (NumberOfFrames), but its compressed pixels are {found}. Export "
            "it again."
        )


def image_size(stream: bytes) -> tuple[int, int, int]:
    """Read rows, columns and components of a JPEG, JPEG-LS, JPEG 2000 or HTJ2K image, from its header alone.

    Raises:
        ValueError: if it is of another kind, has no size, or has several that differ.
    """
    if stream.startswith(_JPEG):
        return _jpeg_size(stream)
    if stream.startswith(_BOXES):
        stream = _codestream(stream)
    if stream.startswith(_JPEG_2000):
        return _jpeg_2000_size(stream)
    raise ValueError("the codestream is of an unknown kind")


def _jpeg_size(stream: bytes) -> tuple[int, int, int]:
    """Of the frame header; decoders look no further than the first scan for it."""
    sizes, place = set(), 2
    while place + 4 <= len(stream):
        if stream[place] != 0xFF:  # Decoders skip what stands between segments.
            place += 1
            continue
        marker = stream[place + 1]
        if marker == 0xFF or marker in _BARE or marker == 0:
            place += 1 if marker == 0xFF else 2
            continue
        if marker in (_START_OF_SCAN, _END_OF_IMAGE, _HIERARCHY):
            break
        if marker in _FRAME_HEADERS:
            header = stream[place + 5 : place + 10]
            if len(header) < 5:
                break
            sizes.add((int.from_bytes(header[:2], "big"), int.from_bytes(header[2:4], "big"), header[4]))
        place += 2 + max(2, int.from_bytes(stream[place + 2 : place + 4], "big"))
    if len(sizes) != 1:
        raise ValueError(f"the JPEG codestream says {len(sizes)} sizes")
    return sizes.pop()


def _jpeg_2000_size(stream: bytes) -> tuple[int, int, int]:
    """Of the SIZ segment, which comes first."""
    if len(stream) < 42:
        raise ValueError("the JPEG 2000 codestream has no size")
    columns, rows, left, top = (int.from_bytes(stream[at : at + 4], "big") for at in range(8, 24, 4))
    return rows - top, columns - left, int.from_bytes(stream[40:42], "big")


def _codestream(stream: bytes) -> bytes:
    """The codestream of a JP2 file; one whose colours come from a palette is none of DICOM, and unpacks to more."""
    for kind, content in _boxes(stream):
        if kind == b"jp2h" and any(inner == b"pclr" for inner, _ in _boxes(content)):
            raise ValueError("the JP2 file has a palette")
        if kind == b"jp2c":
            return content
    raise ValueError("the JP2 file holds no codestream")


def _boxes(stream: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and content of each box."""
    place = 0
    while place + 8 <= len(stream):
        length, kind, header = int.from_bytes(stream[place : place + 4], "big"), stream[place + 4 : place + 8], 8
        if length == 1:
            length, header = int.from_bytes(stream[place + 8 : place + 16], "big"), 16
        end = place + length if length else len(stream)
        if end < place + header:
            raise ValueError("the JP2 file has a box without an end")
        yield kind, stream[place + header : end]
        place = end


def split_frames(pixels: bytes, syntax: str) -> Iterator[bytes]:
    """Split encapsulated pixels into frames.

    A frame is one fragment, or several of which only the first begins as an image does.

    Args:
        pixels, syntax: as in ``check_frames``.

    Raises:
        ValueError: if the pixels are no items.
    """
    frame, one_each = b"", syntax == RLELossless
    for number, fragment in enumerate(_fragments(pixels)):
        if number and (one_each or fragment.startswith(_BEGINNINGS)):
            yield frame
            frame = b""
        frame = frame + fragment if frame else fragment
    if frame:
        yield frame


def _fragments(pixels: bytes) -> Iterator[bytes]:
    """The items behind the first, which is the table of offsets."""
    place, first = 0, True
    while place + 8 <= len(pixels) and pixels[place : place + 4] != _DELIMITER:
        if pixels[place : place + 4] != _ITEM:
            raise ValueError("the compressed pixels are no items")
        end = place + 8 + int.from_bytes(pixels[place + 4 : place + 8], "little")
        if not first:
            yield pixels[place + 8 : end]
        place, first = end, False
