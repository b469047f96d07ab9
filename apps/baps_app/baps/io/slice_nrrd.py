"""Write the mask of one slice as an NRRD file of the whole volume, in milliseconds.

Viewers expect a mask of the volume, which is zero outside one slice. A general writer compresses tens of megabytes of
zeros for every click. Here zeros are compressed once per size, and their checksum is computed by arithmetic.
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

_GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
_LAST_BLOCK = b"\x03\x00"


def write_slice_nrrd(
    path: Path, volume: Volume, plane: Plane, mask: NDArray[np.bool_], compress: bool = True, gzip_file: bool = False
) -> None:
    """Write a uint8 mask that is zero outside one slice.

    Args:
        path: path of the file; an older file is replaced.
        volume: volume whose geometry the mask gets.
        plane: the slice.
        mask: mask of the slice, (rows, columns).
        compress: whether to compress the voxels inside the file; OHIF needs them raw.
        gzip_file: whether to compress the whole file with gzip, for HTTP's Content-Encoding; the voxels inside are raw
            then.
    """
    compress = compress and not gzip_file
    header = io.BytesIO()
    nrrd.write(header, np.zeros((1, 1, 1), np.uint8), nrrd_header(volume, compress))
    text = header.getvalue().partition(b"\n\n")[0]
    text = text.replace(b"sizes: 1 1 1", b"sizes: %d %d %d" % volume.shape)
    text += b"\n\n"
    with path.open("wb") as file:
        if gzip_file:
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
    """Yield the slices along K that are not zero, in order, as bytes in which I varies fastest."""
    if plane.axis == 2:
        if mask.any():
            yield plane.index, mask.astype(np.uint8).tobytes()
        return
    for k in np.flatnonzero(mask.any(1)):  # Rows of the slice run along K.
        slab = np.zeros((shape[1], shape[0]), np.uint8)
        slab[(slice(None), plane.index) if plane.axis == 0 else plane.index] = mask[k]
        yield int(k), slab.tobytes()


def _compressed(
    shape: tuple[int, int, int], plane: Plane, mask: NDArray[np.bool_], prefix: bytes = b""
) -> Iterator[bytes]:
    """Yield a gzip member that holds a prefix and the voxels, made of blocks that end at byte boundaries."""
    size = shape[0] * shape[1]
    nonzero = dict(_slabs(shape, plane, mask))
    yield _GZIP_HEADER + _deflated(prefix)
    checksum = zlib.crc32(prefix)
    for k in range(shape[2]):
        if k in nonzero:
            yield _deflated(nonzero[k])
            checksum = zlib.crc32(nonzero[k], checksum)
        else:
            yield _zeros(size)[0]
            checksum = _after_zeros(size, checksum)
    yield (
        _LAST_BLOCK
        + checksum.to_bytes(4, "little")
        + ((len(prefix) + size * shape[2]) % (1 << 32)).to_bytes(4, "little")
    )


def _deflated(data: bytes) -> bytes:
    deflate = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    return deflate.compress(data) + deflate.flush(zlib.Z_FULL_FLUSH)


@lru_cache(maxsize=64)
def _zeros(size: int) -> tuple[bytes, int, tuple[int, ...]]:
    """Return compressed zeros, their CRC-32 after a CRC of 0, and what each bit of an earlier CRC adds to that.

    A CRC is linear: the CRC after the zeros is the exclusive or of the contributions of its bits.
    """
    zeros = bytes(size)
    base = zlib.crc32(zeros)
    return _deflated(zeros), base, tuple(zlib.crc32(zeros, 1 << bit) ^ base for bit in range(32))


def _after_zeros(size: int, checksum: int) -> int:
    _, after, bits = _zeros(size)
    for bit in range(32):
        if checksum >> bit & 1:
            after ^= bits[bit]
    return after
