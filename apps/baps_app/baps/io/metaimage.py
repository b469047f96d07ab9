"""MetaImage files (.mha): where ITK, and so every viewer that is built on it, puts their voxels.

They are read here rather than by SimpleITK, which opens any file that a header names, and fills up voxels that are
missing from compressed data.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from baps.errors import InputError
from baps.imaging.volume import Volume
from baps.io.dimensions import three_dimensional
from baps.io.read_exactly import read_exactly
from baps.utils.limits import check_size

_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip

_MOST_HEADER = 1 << 20
"""Bytes that a header may have."""

_PIECE = 1 << 18
"""Bytes that are read, or unpacked, at once."""

_ZLIB_OR_GZIP = zlib.MAX_WBITS | 32


def read_metaimage(path: Path) -> Volume:
    """Read a MetaImage file, of grey values or of colour (bytes; transparency is dropped).

    One of two dimensions is one slice, 1 mm thick.

    Raises:
        InputError: if it has other than two or three dimensions, holds neither grey values nor colour, or keeps its
            voxels in another file: that may be any file of this computer.
    """
    with path.open("rb") as file:
        header = _read_header(file)
        if header["ElementDataFile"].upper() != "LOCAL":
            raise InputError(f"{path.name} keeps its voxels in another file; save it as one file (.mha).")
        kind = header["ElementType"]
        if kind not in _TYPES or not _is_true(header.get("BinaryData", "True")) or int(header.get("HeaderSize", 0)):
            raise InputError(
                f"{path.name} holds voxels of type {kind}, as text, or after a gap; save it with binary voxels, one "
                "number each."
            )
        channels = int(header.get("ElementNumberOfChannels", 1))
        shape = [int(size) for size in header["DimSize"].split()]
        if len(shape) != int(header["NDims"]):
            raise ValueError(f"DimSize must be {header['NDims']} numbers")
        order = header.get("BinaryDataByteOrderMSB", header.get("ElementByteOrderMSB", "False"))
        dtype = np.dtype(_TYPES[kind]).newbyteorder(">" if _is_true(order) else "<")
        size = check_size(path.name, (channels, *shape), dtype.itemsize)
        if _is_true(header.get("CompressedData", "False")):
            content = _read_compressed(file, size, int(header.get("CompressedDataSize", 0)))
        else:
            content = read_exactly(file, (size,), np.uint8, "C")
    voxels = content.view(dtype).reshape((channels, *shape), order="F")
    affine = _affine(header, len(shape))
    if channels == 1:
        return Volume(three_dimensional(voxels[0].astype(dtype.newbyteorder("="), copy=False), path.name), affine)
    if channels not in (3, 4):
        raise InputError(f"{path.name} holds {channels} values for each voxel; export one channel alone, or colour.")
    return Volume(np.stack([three_dimensional(channel, path.name) for channel in voxels[:3]], axis=-1), affine)


def read_metaimage_affine(path: Path) -> NDArray[np.float64]:
    """Read the affine of a MetaImage file, and no voxels."""
    with path.open("rb") as file:
        header = _read_header(file)
    return _affine(header, len(header["DimSize"].split()))


def _read_header(file: BinaryIO) -> dict[str, str]:
    """Read the fields; the file is then at its voxels."""
    header: dict[str, str] = {}
    while "ElementDataFile" not in header:
        line = file.readline(_MOST_HEADER)
        if not line.endswith(b"\n") or file.tell() > _MOST_HEADER:
            raise ValueError("the header has no ElementDataFile")
        name, _, value = line.decode("latin-1").partition("=")
        header[name.strip()] = value.strip()
    return header


def _read_compressed(file: BinaryIO, size: int, packed: int) -> NDArray[np.uint8]:
    """Unpack so many bytes from so many that are packed, piece by piece."""
    stream, content, filled, taken = zlib.decompressobj(_ZLIB_OR_GZIP), np.empty(size, np.uint8), 0, 0
    while not stream.eof:
        taken += len(fed := stream.unconsumed_tail or file.read(_PIECE)) - len(stream.unconsumed_tail)
        piece = stream.decompress(fed, _PIECE)
        if not fed and not piece:
            raise ValueError("its compressed voxels have no end")
        if filled + len(piece) > size:
            raise ValueError("it holds more voxels than its header says")
        content[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
        filled += len(piece)
    if packed != taken - len(stream.unused_data):  # ITK would read other voxels.
        raise ValueError("its CompressedDataSize is not that of its voxels")
    if filled < size:
        raise ValueError("it holds fewer voxels than its header says")
    return content


def _affine(header: Mapping[str, str], dimensions: int) -> NDArray[np.float64]:
    """The affine, RAS; of two dimensions, the slice lies at z = 0."""
    directions = _numbers(header, ("TransformMatrix", "Rotation", "Orientation"), np.eye(dimensions).ravel())
    origin = _numbers(header, ("Offset", "Position", "Origin"), np.zeros(dimensions))
    spacing = _numbers(header, ("ElementSpacing", "ElementSize"), np.ones(dimensions))
    kept = min(dimensions, 3)
    affine = np.eye(4)
    affine[:kept, :kept] = (directions.reshape(dimensions, dimensions).T * spacing)[:kept, :kept]
    affine[:kept, 3] = origin[:kept]
    affine[:2] *= -1  # LPS to RAS.
    return affine


def _numbers(header: Mapping[str, str], names: tuple[str, ...], default: NDArray[np.float64]) -> NDArray[np.float64]:
    """The numbers of the first of these fields that is there."""
    said = next((header[name] for name in names if name in header), None)
    if said is None:
        return default
    numbers = np.array([float(number) for number in said.split()])
    if numbers.shape != default.shape:
        raise ValueError(f"{names[0]} must be {len(default)} numbers")
    return numbers


def _is_true(said: str) -> bool:
    return said[:1] in ("T", "t", "1")
