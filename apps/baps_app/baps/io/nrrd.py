"""NRRD files: where ITK, and so every viewer that is built on it, puts their voxels."""

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
from baps.io.dimensions import three_dimensional
from baps.utils.limits import check_size

_TO_RAS = {
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
    # Spaces that do not say where the patient's left is; ITK takes them for LPS, and so the viewers show them.
    "scanner-xyz": (-1, -1, 1),
    "3d-right-handed": (-1, -1, 1),
    "3d-left-handed": (-1, -1, 1),
    "space dimension 3": (-1, -1, 1),
    "space dimension 2": (-1, -1),
}

_ENCODINGS = ("raw", "gzip", "gz", "bzip2", "bz2", "ascii", "text", "txt")

_PACKED = ("gzip", "gz", "bzip2", "bz2")

_PIECE = 1 << 20
"""Bytes that are unpacked at once."""

_COLOURS = ("rgb-color", "3-color", "vector", "3-vector")
"""Kinds of the axis along which a file keeps red, green and blue."""


def read_nrrd(path: Path, channels: bool = False) -> Volume:
    """Read an NRRD file, of grey values or of colour (bytes; the axis of the channels may come first or last).

    One of two dimensions is one slice, 1 mm thick.

    Args:
        path: the file.
        channels: whether several values a voxel are kept as they are, (I, J, K, C).

    Raises:
        InputError: if it has other than two or three dimensions, has no affine, or keeps its voxels in another file:
            that may be any file of this computer.
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
        if voxels.shape[others[0]] == 3 and kind in _COLOURS:
            red_green_blue = np.moveaxis(voxels, others[0], 0)
            return Volume(np.stack([three_dimensional(channel, path.name) for channel in red_green_blue], -1), affine)
    return Volume(three_dimensional(np.moveaxis(voxels, others, range(-len(others), 0)), path.name), affine)


def read_nrrd_affine(path: Path) -> NDArray[np.float64]:
    """Read the affine of an NRRD file, and no voxels.

    Raises:
        InputError: if it has none.
    """
    with path.open("rb") as file:
        return _geometry(nrrd.read_header(file), path.name)[0]


def _geometry(header: Mapping[str, Any], name: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The affine, and which axes of the file run through space."""
    space = str(header.get("space", f"space dimension {header.get('space dimension')}")).lower()
    directions, origin = header.get("space directions"), header.get("space origin")
    if directions is None or origin is None:
        raise InputError(f"{name} has no affine (space, space directions and space origin). Export it again.")
    if space not in _TO_RAS:
        raise InputError(f"{name} lies in the space {space!r}, which viewers do not place; export it in LPS.")
    rows = np.asarray(directions, float)
    spatial = np.isfinite(rows).all(1)  # An axis that is no direction in space, of channels say, has none.
    steps = rows[spatial]
    if len(steps) not in (2, 3) or len(steps) > len(_TO_RAS[space]):
        raise InputError(f"{name} has {len(steps)} directions in space; a volume has three. Export one alone.")
    affine = np.eye(4)
    affine[: steps.shape[1], : len(steps)] = steps.T
    affine[: steps.shape[1], 3] = origin
    if steps.shape == (2, 3):  # A slice in space, 1 mm thick.
        normal = np.cross(*steps)
        affine[:3, 2] = normal / (np.linalg.norm(normal) or 1)
    affine[: len(_TO_RAS[space])] *= np.array(_TO_RAS[space])[:, None]
    return affine, spatial


def _read_voxels(header: Mapping[str, Any], file: BinaryIO, encoding: str, name: str) -> NDArray[Any]:
    """Read the voxels, as many bytes as the header says; pynrrd would unpack all that there is, and then count.

    Lines are skipped in the file, bytes in what is unpacked.
    """
    # Of no voxels, pynrrd says the type; text has no byte order.
    order = {} if encoding in (*_PACKED, "raw") else {"endian": "little"}
    none = {**header, "encoding": "raw", "dimension": 1, "sizes": np.zeros(1, int), **order}
    for unit in ("line", "byte"):
        none |= {f"{unit} skip": 0, f"{unit}skip": 0}
    dtype = nrrd.read_data(none, io.BytesIO()).dtype
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
    if encoding in _PACKED:
        content = _unpacked(file, encoding, name, size)
        begin = len(content) - size if skip < 0 else skip
        voxels = np.frombuffer(memoryview(content)[begin:] if 0 <= begin <= len(content) else b"", dtype)
    else:
        file.seek(*((-size, os.SEEK_END) if skip < 0 else (skip, os.SEEK_CUR)))
        voxels = np.fromfile(file, dtype, math.prod(sizes) + 1, "" if encoding == "raw" else " ")
    if voxels.size != math.prod(sizes):
        raise ValueError(f"it holds {voxels.size} voxels, not {math.prod(sizes)} as its header says")
    return voxels.reshape(sizes[::-1]).T


def _unpacked(file: BinaryIO, encoding: str, name: str, size: int) -> bytearray:
    """Unpack so many bytes, and a few more that may be skipped."""
    opened, content = (bz2.open if encoding.startswith("b") else gzip.open)(file), bytearray()
    with suppress(EOFError, OSError, zlib.error):  # Their number tells whether they are whole.
        while len(content) <= size + _PIECE and (piece := opened.read(_PIECE)):
            content += piece
    if len(content) > size + _PIECE:
        raise InputError(f"{name} unpacks to more than its header says. It is broken; export it again.")
    return content


def write_nrrd(path: Path, volume: Volume, compress: bool = True, packed: bool = False) -> None:
    """Write a mask as NRRD, in the voxel order of the volume.

    Args:
        path: the file; an older one is replaced.
        volume: the mask; its voxels keep their type.
        compress: gzip at its fastest, or raw (as OHIF needs it).
        packed: the raw file as a whole in gzip, for HTTP's Content-Encoding.
    """
    if packed:
        with gzip.open(path, "wb", compresslevel=1) as file:
            nrrd.write(file, volume.voxels, nrrd_header(volume, compress=False))
        return
    nrrd.write(str(path), volume.voxels, nrrd_header(volume, compress), compression_level=1)


def nrrd_header(volume: Volume, compress: bool) -> dict[str, Any]:
    """The header that says where a volume lies."""
    affine = volume.affine.copy()
    affine[:2] *= -1  # RAS to LPS, which every reader of NRRD knows.
    return {
        "space": "left-posterior-superior",
        "space directions": affine[:3, :3].T,
        "space origin": affine[:3, 3],
        "kinds": ["domain"] * 3,
        "encoding": "gzip" if compress else "raw",
    }
