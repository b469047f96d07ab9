"""Read and write NRRD files with the geometry of ITK, and so of every viewer built on it."""

from __future__ import annotations

import bz2
import gzip
import io
import math
import os
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import nrrd
import numpy as np
from numpy.typing import NDArray

from baps.errors import InputError
from baps.imaging.volume import Volume
from baps.io.dimensions import slice_normal, stack_colour, to_three_dimensions
from baps.utils.limits import check_size

_TO_RAS = {
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
    # Spaces without the patient's left; ITK and the viewers take them for LPS.
    "scanner-xyz": (-1, -1, 1),
    "3d-right-handed": (-1, -1, 1),
    "3d-left-handed": (-1, -1, 1),
    "space dimension 3": (-1, -1, 1),
    "space dimension 2": (-1, -1),
}

_ENCODINGS = ("raw", "gzip", "gz", "bzip2", "bz2", "ascii", "text", "txt")

_COMPRESSED = ("gzip", "gz", "bzip2", "bz2")

_CHUNK_BYTES = 1 << 20
"""Number of bytes that are decompressed at once."""

_COLOUR_KINDS = ("rgb-color", "3-color", "vector", "3-vector")
"""Kinds of the axis along which a file stores red, green and blue."""


def read_nrrd(path: Path, channels: bool = False) -> Volume:
    """Read an NRRD file of grey values or of colour (8 bits; the axis of the channels may come first or last).

    An image of two dimensions is one slice, 1 mm thick.

    Args:
        path: path of the file.
        channels: whether to keep several values per voxel, (I, J, K, C).

    Returns:
        The volume.

    Raises:
        InputError: if the file has other than two or three dimensions, has no affine, or names another file for its
            voxels: that could be any file of this computer.
    """
    with path.open("rb") as file:
        header = nrrd.read_header(file)
        if "data file" in header or "datafile" in header:
            raise InputError(f"{path.name} keeps its voxels in another file; save it as one file.")
        encoding, kind = (str(header.get(field, "raw")).lower() for field in ("encoding", "type"))
        if encoding not in _ENCODINGS or kind == "block":
            raise InputError(f"{path.name} holds {kind} voxels, encoded as {encoding}; save numbers, as raw or gzip.")
        voxels = _read_voxels(header, file, encoding, path.name)
    affine, spatial = _geometry(header, path.name)
    others = np.flatnonzero(~spatial)
    if channels and voxels.ndim == 4 and len(others) == 1:
        return Volume(np.moveaxis(voxels, others[0], -1), affine)
    if voxels.dtype == np.uint8 and len(others) == 1:
        kind = str(header.get("kinds", [""] * voxels.ndim)[others[0]]).lower()
        if voxels.shape[others[0]] == 3 and kind in _COLOUR_KINDS:
            return Volume(stack_colour(np.moveaxis(voxels, others[0], 0), path.name), affine)
    return Volume(to_three_dimensions(np.moveaxis(voxels, others, range(-len(others), 0)), path.name), affine)


def read_nrrd_affine(path: Path) -> NDArray[np.float64]:
    """Read the affine of an NRRD file, without voxels.

    Args:
        path: path of the file.

    Returns:
        Voxel index to patient position in mm (RAS), (4, 4).

    Raises:
        InputError: if the file has no affine.
    """
    with path.open("rb") as file:
        return _geometry(nrrd.read_header(file), path.name)[0]


def _geometry(header: Mapping[str, Any], name: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the affine, and which axes of the file run through space."""
    space = str(header.get("space", f"space dimension {header.get('space dimension')}")).lower()
    directions, origin = header.get("space directions"), header.get("space origin")
    if directions is None or origin is None:
        raise InputError(f"{name} has no affine (space, space directions and space origin). Export it again.")
    if space not in _TO_RAS:
        raise InputError(f"{name} lies in the space {space!r}, which viewers do not know; export it in LPS.")
    rows = np.asarray(directions, float)
    spatial = np.isfinite(rows).all(1)  # An axis without a direction in space, such as channels, is NaN.
    steps = rows[spatial]
    if len(steps) not in (2, 3) or len(steps) > len(_TO_RAS[space]):
        raise InputError(f"{name} has {len(steps)} directions in space; a volume has three. Export a single volume.")
    affine = np.eye(4)
    affine[: steps.shape[1], : len(steps)] = steps.T
    affine[: steps.shape[1], 3] = origin
    if steps.shape == (2, 3):  # A slice in space, 1 mm thick.
        affine[:3, 2] = slice_normal(*steps)
    affine[: len(_TO_RAS[space])] *= np.array(_TO_RAS[space])[:, None]
    return affine, spatial


def _read_voxels(header: Mapping[str, Any], file: BinaryIO, encoding: str, name: str) -> NDArray[Any]:
    """Read as many bytes as the header declares; pynrrd would decompress everything before it counts.

    Lines are skipped in the file, bytes in the decompressed data.

    Raises:
        ValueError: if the header and the data do not agree.
    """
    # Let pynrrd find the type by reading zero voxels; text has no byte order.
    order = {} if encoding in (*_COMPRESSED, "raw") else {"endian": "little"}
    empty = {**header, "encoding": "raw", "dimension": 1, "sizes": np.zeros(1, int), **order}
    for unit in ("line", "byte"):
        empty |= {f"{unit} skip": 0, f"{unit}skip": 0}
    dtype = nrrd.read_data(empty, io.BytesIO()).dtype
    sizes = [int(size) for size in header["sizes"]]
    if len(sizes) != header["dimension"]:
        raise ValueError(f"sizes must be {header['dimension']} numbers")
    size = check_size(name, sizes, dtype.itemsize)
    lines, skip = (int(header.get(f"{unit} skip", header.get(f"{unit}skip", 0))) for unit in ("line", "byte"))
    if lines < 0 or skip < -1:
        raise ValueError("line skip and byte skip must be whole numbers from 0 on (byte skip: or -1)")
    for _ in range(lines):
        if not file.readline():
            break
    if encoding in _COMPRESSED:
        content = _decompressed(file, encoding, name, size)
        start = len(content) - size if skip < 0 else skip
        voxels = np.frombuffer(memoryview(content)[start:] if 0 <= start <= len(content) else b"", dtype)
    else:
        file.seek(*((-size, os.SEEK_END) if skip < 0 else (skip, os.SEEK_CUR)))
        voxels = np.fromfile(file, dtype, math.prod(sizes) + 1, "" if encoding == "raw" else " ")
    if voxels.size != math.prod(sizes):
        raise ValueError(f"it holds {voxels.size} voxels, not {math.prod(sizes)} as its header says")
    return voxels.reshape(sizes[::-1]).T


def _decompressed(file: BinaryIO, encoding: str, name: str, size: int) -> bytearray:
    """Decompress a number of bytes, and a few more that may be skipped."""
    opened, content = (bz2.open if encoding.startswith("b") else gzip.open)(file), bytearray()
    with suppress(EOFError, OSError, zlib.error):  # The number of bytes tells whether they are complete.
        while len(content) <= size + _CHUNK_BYTES and (chunk := opened.read(_CHUNK_BYTES)):
            content += chunk
    if len(content) > size + _CHUNK_BYTES:
        raise InputError(f"{name} unpacks to more than its header says. It is broken; export it again.")
    return content


def write_nrrd(path: Path, volume: Volume, compress: bool = True, gzip_file: bool = False) -> None:
    """Write a mask as NRRD, in the voxel order of the volume.

    Args:
        path: path of the file; an older file is replaced.
        volume: the mask; its voxels keep their type.
        compress: whether to compress the voxels inside the file; OHIF needs them raw.
        gzip_file: whether to compress the whole file with gzip, for HTTP's Content-Encoding; the voxels inside are raw
            then.
    """
    if gzip_file:
        with gzip.open(path, "wb", compresslevel=1) as file:
            nrrd.write(file, volume.voxels, nrrd_header(volume, compress=False))
        return
    nrrd.write(str(path), volume.voxels, nrrd_header(volume, compress), compression_level=1)


def nrrd_header(volume: Volume, compress: bool) -> dict[str, Any]:
    """Make the header fields that describe the geometry of a volume.

    Args:
        volume: the volume.
        compress: whether the voxels are compressed with gzip.

    Returns:
        The fields by name.
    """
    affine = volume.affine.copy()
    affine[:2] *= -1  # RAS to LPS, which every NRRD reader knows.
    return {
        "space": "left-posterior-superior",
        "space directions": affine[:3, :3].T,
        "space origin": affine[:3, 3],
        "kinds": ["domain"] * 3,
        "encoding": "gzip" if compress else "raw",
    }
