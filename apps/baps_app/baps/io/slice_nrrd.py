"""A mask of one slice as an NRRD file of the whole volume, in milliseconds.

Viewers take a mask of the volume; all of it but one slice is zero. A general writer compresses tens of megabytes of
zeros for every click. Here zeros are compressed once a size, and their check sum is carried over by arithmetic.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import nrrd
import numpy as np
from numpy.typing import NDArray

from baps.imaging.canvas import Plane
from baps.imaging.volume import Volume
from baps.io.nrrd import nrrd_header

_GZIP = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
_LAST_BLOCK = b"\x03\x00"


def write_slice_nrrd(
    path: Path, volume: Volume, plane: Plane, mask: NDArray[np.bool_], compress: bool = True, packed: bool = False
) -> None:
    """Write a mask that is zero outside one slice, uint8.

    Args:
        path: the file; an older one is replaced.
        volume: whose frame the mask gets.
        plane: the slice.
        mask: (rows, columns) of the slice.
        compress: gzip inside the file, or raw (as OHIF needs it).
        packed: the raw file as a whole in gzip, for HTTP's Content-Encoding.
    """
    compress = compress and not packed
    header = io.BytesIO()
    nrrd.write(header, np.zeros((1, 1, 1), np.uint8), nrrd_header(volume, compress))
    text = header.getvalue().partition(b"\n\n")[0]
    text = text.replace(b"sizes: 1 1 1", b"sizes: %d %d %d" % volume.shape)
    text += b"\n\n"
    with path.open("wb") as file:
        if packed:
            file.writelines(_compressed(volume.shape, plane, mask, text))
            return
        file.write(text)
        if compress:
            file.writelines(_compressed(volume.shape, plane, mask))
            return
        start, size = file.tell(), volume.shape[0] * volume.shape[1]
        for k, slab in _slabs(volume.shape, plane, mask):
            file.seek(start + k * size)
            file.write(slab)
        file.truncate(start + size * volume.shape[2])


def _slabs(shape: tuple[int, int, int], plane: Plane, mask: NDArray[np.bool_]) -> Iterator[tuple[int, bytes]]:
    """The slabs across K that are not zero, in order, as they lie in the file: I runs fastest."""
    if plane.axis == 2:
        if mask.any():
            yield plane.index, mask.astype(np.uint8).tobytes()
        return
    for k in np.flatnonzero(mask.any(1)):  # Rows of the slice run along K.
        slab = np.zeros((shape[1], shape[0]), np.uint8)
        slab[(slice(None), plane.index) if plane.axis == 0 else plane.index] = mask[k]
        yield int(k), slab.tobytes()


def _compressed(
    shape: tuple[int, int, int], plane: Plane, mask: NDArray[np.bool_], before: bytes = b""
) -> Iterator[bytes]:
    """A gzip member, made of blocks that end at byte boundaries, with some bytes before the voxels."""
    size = shape[0] * shape[1]
    filled = dict(_slabs(shape, plane, mask))
    yield _GZIP + _deflated(before)
    check = zlib.crc32(before)
    for k in range(shape[2]):
        if k in filled:
            yield _deflated(filled[k])
            check = zlib.crc32(filled[k], check)
        else:
            yield _zeros(size)[0]
            check = _after_zeros(size, check)
    yield (
        _LAST_BLOCK + check.to_bytes(4, "little") + ((len(before) + size * shape[2]) % (1 << 32)).to_bytes(4, "little")
    )


def _deflated(data: bytes) -> bytes:
    deflate = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    return deflate.compress(data) + deflate.flush(zlib.Z_FULL_FLUSH)


@lru_cache(maxsize=64)
def _zeros(size: int) -> tuple[bytes, int, tuple[int, ...]]:
    """So many zeros compressed, their CRC-32 after a CRC of 0, and what each bit of a former CRC adds to that.

    A CRC is linear: what it becomes after the zeros is the sum (exclusive or) of what its bits become.
    """
    zeros = bytes(size)
    base = zlib.crc32(zeros)
    return _deflated(zeros), base, tuple(zlib.crc32(zeros, 1 << bit) ^ base for bit in range(32))


def _after_zeros(size: int, check: int) -> int:
    _, after, bits = _zeros(size)
    for bit in range(32):
        if check >> bit & 1:
            after ^= bits[bit]
    return after
