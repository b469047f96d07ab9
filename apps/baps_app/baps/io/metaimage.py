"""Read MetaImage files (.mha) with the geometry of ITK, and so of every viewer built on it.

SimpleITK is not used, because it opens any file that a header names, and fills in voxels that are missing from
compressed data.
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
from baps.io.array_reading import read_array
from baps.io.dimensions import to_three_dimensions
from baps.utils.limits import check_size

_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip

_MAX_HEADER_BYTES = 1 << 20
"""Maximum size of a header."""

_CHUNK_BYTES = 1 << 18
"""Number of bytes that are read, or decompressed, at once."""

_ZLIB_OR_GZIP = zlib.MAX_WBITS | 32


def read_metaimage(path: Path) -> Volume:
    """Read a MetaImage file of grey values or of colour (8 bits; transparency is dropped).

    An image of two dimensions is one slice, 1 mm thick.

    Args:
        path: path of the file.

    Returns:
        The volume.

    Raises:
        InputError: if the file has other than two or three dimensions, holds neither grey values nor colour, or names
            another file for its voxels: that could be any file of this computer.
        ValueError: if the header is broken.
    """
    with path.open("rb") as file:
        header = _read_header(file)
        if header["ElementDataFile"].upper() != "LOCAL":
            raise InputError(f"{path.name} keeps its voxels in another file; save it as one file (.mha).")
        element_type = header["ElementType"]
        if (
            element_type not in _TYPES
            or not _is_true(header.get("BinaryData", "True"))
            or int(header.get("HeaderSize", 0))
        ):
            raise InputError(
                f"{path.name} holds voxels of type {element_type}, as text, or after a gap; save it with binary "
                "voxels of one number each."
            )
        channels = int(header.get("ElementNumberOfChannels", 1))
        shape = [int(size) for size in header["DimSize"].split()]
        if len(shape) != int(header["NDims"]):
            raise ValueError(f"DimSize must be {header['NDims']} numbers")
        order = header.get("BinaryDataByteOrderMSB", header.get("ElementByteOrderMSB", "False"))
        dtype = np.dtype(_TYPES[element_type]).newbyteorder(">" if _is_true(order) else "<")
        size = check_size(path.name, (channels, *shape), dtype.itemsize)
        if _is_true(header.get("CompressedData", "False")):
            content = _read_compressed(file, size, int(header.get("CompressedDataSize", 0)))
        else:
            content = read_array(file, (size,), np.uint8, "C")
    voxels = content.view(dtype).reshape((channels, *shape), order="F")
    affine = _affine(header, len(shape))
    if channels == 1:
        return Volume(to_three_dimensions(voxels[0].astype(dtype.newbyteorder("="), copy=False), path.name), affine)
    if channels not in (3, 4):
        raise InputError(f"{path.name} holds {channels} values for each voxel; export one channel alone, or colour.")
    return Volume(np.stack([to_three_dimensions(channel, path.name) for channel in voxels[:3]], axis=-1), affine)


def read_metaimage_affine(path: Path) -> NDArray[np.float64]:
    """Read the affine of a MetaImage file, without voxels.

    Args:
        path: path of the file.

    Returns:
        Voxel index to patient position in mm (RAS), (4, 4).
    """
    with path.open("rb") as file:
        header = _read_header(file)
    return _affine(header, len(header["DimSize"].split()))


def _read_header(file: BinaryIO) -> dict[str, str]:
    """Read the fields, up to the first byte of the voxels."""
    header: dict[str, str] = {}
    while "ElementDataFile" not in header:
        line = file.readline(_MAX_HEADER_BYTES)
        if not line.endswith(b"\n") or file.tell() > _MAX_HEADER_BYTES:
            raise ValueError("the header has no ElementDataFile")
        name, _, value = line.decode("latin-1").partition("=")
        header[name.strip()] = value.strip()
    return header


def _read_compressed(file: BinaryIO, size: int, compressed_size: int) -> NDArray[np.uint8]:
    """Decompress the voxels in chunks, and check both sizes."""
    stream, content, filled, taken = zlib.decompressobj(_ZLIB_OR_GZIP), np.empty(size, np.uint8), 0, 0
    while not stream.eof:
        taken += len(data := stream.unconsumed_tail or file.read(_CHUNK_BYTES)) - len(stream.unconsumed_tail)
        chunk = stream.decompress(data, _CHUNK_BYTES)
        if not data and not chunk:
            raise ValueError("its compressed voxels have no end")
        if filled + len(chunk) > size:
            raise ValueError("it holds more voxels than its header says")
        content[filled : filled + len(chunk)] = np.frombuffer(chunk, np.uint8)
        filled += len(chunk)
    if compressed_size != taken - len(stream.unused_data):  # ITK would read different voxels.
        raise ValueError("its CompressedDataSize is not that of its voxels")
    if filled < size:
        raise ValueError("it holds fewer voxels than its header says")
    return content


def _affine(header: Mapping[str, str], dimensions: int) -> NDArray[np.float64]:
    """Return the affine (RAS); a slice of two dimensions lies at z = 0."""
    directions = _numbers(header, ("TransformMatrix", "Rotation", "Orientation"), np.eye(dimensions).ravel())
    origin = _numbers(header, ("Offset", "Position", "Origin"), np.zeros(dimensions))
    spacing = _numbers(header, ("ElementSpacing", "ElementSize"), np.ones(dimensions))
    count = min(dimensions, 3)
    affine = np.eye(4)
    affine[:count, :count] = (directions.reshape(dimensions, dimensions).T * spacing)[:count, :count]
    affine[:count, 3] = origin[:count]
    affine[:2] *= -1  # LPS to RAS.
    return affine


def _numbers(header: Mapping[str, str], names: tuple[str, ...], default: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the numbers of the first field that is present."""
    text = next((header[name] for name in names if name in header), None)
    if text is None:
        return default
    numbers = np.array([float(number) for number in text.split()])
    if numbers.shape != default.shape:
        raise ValueError(f"{names[0]} must be {len(default)} numbers")
    return numbers


def _is_true(text: str) -> bool:
    return text[:1] in ("T", "t", "1")
