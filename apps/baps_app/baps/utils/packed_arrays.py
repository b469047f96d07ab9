"""Read and write arrays in the wire format of nnInteractive's clients and servers.

The format is a header (magic, version, codec, number of axes, type, shape) and chunks that blosc2 compressed. The
client's own package packs and unpacks it. It makes room for whatever shape a header declares, so the header, and the
frame of each chunk, are checked here first.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from baps.errors import InputError, MissingExtraError
from baps.utils.limits import check_size

TYPES = tuple(
    np.dtype(name)
    for name in ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16",
                 "float32", "float64")
)  # fmt: skip
"""Types of voxels that are accepted."""

_MAGIC, _VERSION, _MAX_AXES = b"NNIA", 1, 4
_FRAME_BYTES = 32
"""Size of the header of a chunk that blosc2 compressed, see README_CHUNK_FORMAT of C-Blosc2."""

_EXTENDED = 0x05
"""Flags that mark such a header."""

_COMPRESSORS, _FILTERS = (0, 1, 4), (0, 1, 2)
"""BloscLZ, LZ4 and Zstandard; no filter, shuffle and bitshuffle. Others would load plugins of blosc2."""

_SLACK_BYTES = 1 << 20
"""Bytes by which a body may exceed the array that it declares, for headers of chunks."""


@dataclass(frozen=True)
class Header:
    """What a packed array declares about itself.

    Attributes:
        dtype: Type of its values.
        shape: Its size along each axis.
        start: Position of its chunks in the body.
        nbytes: Size of the array, bytes.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    nbytes: int


def read_header(file: BinaryIO | None, what: str) -> Header:
    """Read the header of a packed array and check that it can be true.

    Args:
        file: The body of the request or reply, or None if there is none.
        what: Name of the array, for messages.

    Returns:
        The header. Its size is within the limit on volumes.

    Raises:
        InputError: If it is not a packed array, or too large.
    """
    begin = file.read(8) if file is not None else b""
    if file is None or len(begin) < 8:
        raise InputError(f"{what} is missing. Send it packed, as nninteractive-client does.")
    magic, version, _, axes, name_length = struct.unpack("<4sBBBB", begin)
    if magic != _MAGIC or version != _VERSION:
        raise InputError(f"{what} is not an array in the format of nninteractive-client 2.")
    rest = file.read(name_length + 8 * axes)
    if len(rest) < name_length + 8 * axes or not 1 <= axes <= _MAX_AXES:
        raise InputError(f"{what} has a header that is cut or declares {axes} axes. Send 3 or 4 axes.")
    name = rest[:name_length].decode("latin-1")
    dtype = next((one for one in TYPES if one.name == name), None)
    if dtype is None:
        raise InputError(f"{what} has values of a type that is not accepted. Send integers, floats or bool.")
    shape = struct.unpack(f"<{axes}q", rest[name_length:])
    if min(shape) < 1:
        raise InputError(f"{what} has an axis without voxels, or of a negative size. Send at least one voxel.")
    nbytes = check_size(what, shape, dtype.itemsize)
    start = 8 + len(rest)
    if file.seek(0, os.SEEK_END) > start + nbytes + nbytes // 8 + _SLACK_BYTES:
        raise InputError(f"{what} is larger than the array that its header declares. Send it again.")
    return Header(dtype, shape, start, nbytes)


def read_array(file: BinaryIO, header: Header, what: str) -> NDArray[Any]:
    """Unpack an array.

    Args:
        file: The body of the request or reply.
        header: Its header, for which there is room.
        what: Name of the array, for messages.

    Returns:
        The array.

    Raises:
        InputError: If the body does not hold what its header declares, or a value is NaN or infinite.
        MissingExtraError: If the package of the protocol is not installed.
    """
    unpack_array = _serialization().unpack_array
    file.seek(0)
    body = file.read()
    _check_chunks(body, header, what)
    try:
        array: NDArray[Any] = unpack_array(body)
    except (ValueError, RuntimeError, TypeError, struct.error) as error:
        raise InputError(_broken(what)) from error
    if array.dtype != header.dtype or array.shape != header.shape:
        raise InputError(_broken(what))
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(f"{what} holds values that are NaN or infinite. Replace them, for example by that of air.")
    return array


def write_array(array: NDArray[Any], is_mask: bool = True) -> bytes:
    """Pack an array.

    Args:
        array: The array.
        is_mask: Whether it is a mask, which is small without a filter. For an image, a filter is chosen.

    Returns:
        The body of the request or the reply.

    Raises:
        MissingExtraError: If the package of the protocol is not installed.
    """
    serialization = _serialization()
    filters = [serialization.blosc2.Filter.NOFILTER] if is_mask else None
    packed: bytes = serialization.pack_array(array, filters=filters, nthreads=1)
    return packed


def check_installed() -> None:
    """Check that the package of the protocol is installed.

    Raises:
        MissingExtraError: If it is not.
    """
    _serialization()


def _serialization() -> Any:
    """Import the client's module, which takes some tenths of a second."""
    try:
        from nnInteractive.inference.remote import serialization
    except ImportError as error:
        raise MissingExtraError("The protocol of nnInteractive", "nninteractive") from error
    return serialization


def _check_chunks(body: bytes, header: Header, what: str) -> None:
    """Check that the chunks, and the frames in them, have the sizes that they declare.

    Raises:
        InputError: If they have not.
    """
    offset, written = header.start + 4, 0
    if len(body) < offset:
        raise InputError(_broken(what))
    (count,) = struct.unpack_from("<I", body, header.start)
    for _ in range(count):
        if len(body) < offset + 16 + _FRAME_BYTES:
            raise InputError(_broken(what))
        unpacked, packed = struct.unpack_from("<QQ", body, offset)
        offset += 16
        if packed < _FRAME_BYTES or offset + packed > len(body) or unpacked < 1:
            raise InputError(_broken(what))
        _check_frame(body[offset : offset + _FRAME_BYTES], unpacked, packed, what)
        offset, written = offset + packed, written + unpacked
        if written > header.nbytes:
            raise InputError(_broken(what))
    if written != header.nbytes or offset != len(body):
        raise InputError(_broken(what))


def _check_frame(frame: bytes, unpacked: int, packed: int, what: str) -> None:
    """Check the header of a chunk that blosc2 compressed.

    Raises:
        InputError: If its sizes are not those declared before it, or it needs a plugin.
    """
    flags, sizes, filters = frame[2], struct.unpack_from("<3i", frame, 4), frame[16:22]
    if flags & _EXTENDED != _EXTENDED or (sizes[0], sizes[2]) != (unpacked, packed):
        raise InputError(_broken(what))
    if not 0 < sizes[1] <= unpacked or flags >> 5 not in _COMPRESSORS or set(filters) - set(_FILTERS):
        raise InputError(_broken(what))


def _broken(what: str) -> str:
    return f"{what} is broken: it does not hold what its header declares. Send it again."


def shape_text(shape: Sequence[int]) -> str:
    """Format a shape for a message.

    Args:
        shape: Size along each axis.

    Returns:
        Text such as ``512 x 512 x 90``.
    """
    return " x ".join(map(str, shape))
