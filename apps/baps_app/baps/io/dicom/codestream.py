"""Read the sizes of compressed frames from their own headers, before anything is decoded.

The codestreams of JPEG, JPEG-LS, JPEG 2000 and High-Throughput JPEG 2000 declare the size of an image, whatever the
DICOM header around them says, and decoders allocate memory for what the codestream says.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydicom.uid import RLELossless

from baps.errors import InputError
from baps.utils.limits import check_size

_JPEG = b"\xff\xd8"
_JPEG_2000 = b"\xff\x4f\xff\x51"
_JP2 = b"\0\0\0\x0cjP  "
"""First bytes of a JP2 file, which holds a JPEG 2000 codestream in one of its boxes."""

_MAGIC = (_JPEG, _JPEG_2000, _JP2)

_FRAME_HEADERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
"""Second bytes of the markers SOF0 to SOF15, and SOF55 of JPEG-LS; the excluded ones are tables."""

_MARKERS_WITHOUT_SEGMENT = {0x01, *range(0xD0, 0xD8)}
"""Second bytes of markers without a segment."""

_START_OF_SCAN, _END_OF_IMAGE, _HIERARCHY = 0xDA, 0xD9, 0xDE

_WORKING_BYTES = 4
"""Bytes per sample that decoders use while they decode a frame."""

_ITEM, _DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"


def check_frames(name: str, pixels: bytes, syntax: str, count: int, size: tuple[int, int, int]) -> None:
    """Refuse compressed pixels whose frames differ from the DICOM header.

    Args:
        name: name of the file, for the error message.
        pixels: value of PixelData: the items of an encapsulated image.
        syntax: UID of the transfer syntax.
        count: number of frames according to the header (NumberOfFrames).
        size: rows, columns and samples of each frame according to the header.

    Raises:
        InputError: if a frame has another size, if there are more or fewer frames, or if a frame needs more memory than
            the limit.
        ValueError: if the items or the codestreams are of an unknown kind.
    """
    check_size(name, size, _WORKING_BYTES)
    frames_found = 0
    for frame in split_frames(pixels, syntax):
        frames_found += 1
        if syntax == RLELossless or frames_found > count:
            continue
        if (actual := codestream_size(frame)) != size:
            rows, columns, samples = actual
            raise InputError(
                f"{name} says that it has {size[0]} rows, {size[1]} columns and {size[2]} samples per pixel (Rows, "
                f"Columns, SamplesPerPixel), but frame {frames_found} of its compressed pixels has {rows} rows, "
                f"{columns} columns and {samples} samples. Export it again."
            )
    if frames_found != count:
        raise InputError(
            f"{name} says that it has {count} frames (NumberOfFrames), but its compressed pixels hold "
            f"{frames_found}. Export it again."
        )


def codestream_size(stream: bytes) -> tuple[int, int, int]:
    """Read the size of a JPEG, JPEG-LS, JPEG 2000 or HTJ2K image from its header alone.

    Args:
        stream: the codestream, or a JP2 file.

    Returns:
        Rows, columns and components.

    Raises:
        ValueError: if the codestream is of another kind, has no size, or has several that differ.
    """
    if stream.startswith(_JPEG):
        return _jpeg_size(stream)
    if stream.startswith(_JP2):
        stream = _codestream(stream)
    if stream.startswith(_JPEG_2000):
        return _jpeg_2000_size(stream)
    raise ValueError("the codestream is of an unknown kind")


def _jpeg_size(stream: bytes) -> tuple[int, int, int]:
    """Read the frame header; decoders look for it no further than the first scan."""
    sizes, offset = set(), 2
    while offset + 4 <= len(stream):
        if stream[offset] != 0xFF:  # Decoders skip bytes between segments.
            offset += 1
            continue
        marker = stream[offset + 1]
        if marker == 0xFF or marker in _MARKERS_WITHOUT_SEGMENT or marker == 0:
            offset += 1 if marker == 0xFF else 2
            continue
        if marker in (_START_OF_SCAN, _END_OF_IMAGE, _HIERARCHY):
            break
        if marker in _FRAME_HEADERS:
            header = stream[offset + 5 : offset + 10]
            if len(header) < 5:
                break
            sizes.add((int.from_bytes(header[:2], "big"), int.from_bytes(header[2:4], "big"), header[4]))
        offset += 2 + max(2, int.from_bytes(stream[offset + 2 : offset + 4], "big"))
    if len(sizes) != 1:
        raise ValueError(f"the JPEG codestream has {len(sizes)} sizes")
    return sizes.pop()


def _jpeg_2000_size(stream: bytes) -> tuple[int, int, int]:
    """Read the SIZ segment, which comes first."""
    if len(stream) < 42:
        raise ValueError("the JPEG 2000 codestream has no size")
    columns, rows, left, top = (int.from_bytes(stream[at : at + 4], "big") for at in range(8, 24, 4))
    return rows - top, columns - left, int.from_bytes(stream[40:42], "big")


def _codestream(stream: bytes) -> bytes:
    """Return the codestream of a JP2 file; one with a palette is not allowed in DICOM and decodes to more."""
    for kind, content in _boxes(stream):
        if kind == b"jp2h" and any(inner == b"pclr" for inner, _ in _boxes(content)):
            raise ValueError("the JP2 file has a palette")
        if kind == b"jp2c":
            return content
    raise ValueError("the JP2 file holds no codestream")


def _boxes(stream: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield type and content of each box."""
    offset = 0
    while offset + 8 <= len(stream):
        length, kind, header = int.from_bytes(stream[offset : offset + 4], "big"), stream[offset + 4 : offset + 8], 8
        if length == 1:
            length, header = int.from_bytes(stream[offset + 8 : offset + 16], "big"), 16
        end = offset + length if length else len(stream)
        if end < offset + header:
            raise ValueError("the JP2 file has a box without an end")
        yield kind, stream[offset + header : end]
        offset = end


def split_frames(pixels: bytes, syntax: str) -> Iterator[bytes]:
    """Split encapsulated pixels into frames.

    A frame is one fragment, or several of which only the first begins like an image.

    Args:
        pixels: value of PixelData: the items of an encapsulated image.
        syntax: UID of the transfer syntax.

    Yields:
        The codestream of each frame.

    Raises:
        ValueError: if the pixels are not items.
    """
    frame, single_fragment = b"", syntax == RLELossless
    for number, fragment in enumerate(_fragments(pixels)):
        if number and (single_fragment or fragment.startswith(_MAGIC)):
            yield frame
            frame = b""
        frame = frame + fragment if frame else fragment
    if frame:
        yield frame


def _fragments(pixels: bytes) -> Iterator[bytes]:
    """Yield the items after the first, which is the offset table."""
    offset, first = 0, True
    while offset + 8 <= len(pixels) and pixels[offset : offset + 4] != _DELIMITER:
        if pixels[offset : offset + 4] != _ITEM:
            raise ValueError("the compressed pixels are no items")
        end = offset + 8 + int.from_bytes(pixels[offset + 4 : offset + 8], "little")
        if not first:
            yield pixels[offset + 8 : end]
        offset, first = end, False
