"""NRRD files."""

from __future__ import annotations

import bz2
import gzip
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import nrrd
import numpy as np

from ..errors import InputError
from ..size import check_size
from ..volume import Volume
from .dimensions import three_dimensional

_TO_RAS = {
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
}

_PIECE = 1 << 20
"""Bytes that are unpacked at once."""

_COLOURS = ("rgb-color", "3-color", "vector", "3-vector")
"""Kinds of the axis along which a file keeps red, green and blue."""


def read_nrrd(path: Path, channels: bool = False) -> Volume:
    """Read an NRRD file, of grey values or of colour (bytes; the axis of the channels may come first or last).

    Args:
        path: the file.
        channels: whether several values a voxel are kept as they are, (I, J, K, C).

    Raises:
        InputError: if it is not three-dimensional, has no affine, or keeps its voxels in another file: that may be any
            file of this computer.
    """
    with path.open("rb") as file:
        header = nrrd.read_header(file)
        if "data file" in header or "datafile" in header:
            raise InputError(f"{path.name} keeps its voxels in another file; save it as one file.")
        kind = str(header.get("type", "")).lower()
        itemsize = (
            1 if "char" in kind or "8" in kind else 8 if kind == "double" or "64" in kind or "long" in kind else 4
        )
        size = check_size(path.name, header.get("sizes", ()), itemsize)
        encoding = str(header.get("encoding", "raw")).lower()
        if encoding in ("gzip", "gz", "bzip2", "bz2"):
            _check_packed(file, encoding, path.name, size)
        voxels = nrrd.read_data(header, file)
    space = str(header.get("space", "")).lower()
    directions, origin = header.get("space directions"), header.get("space origin")
    if space not in _TO_RAS or directions is None or origin is None:
        raise InputError(f"{path.name} has no affine (space, space directions and space origin). Export it again.")
    rows = np.asarray(directions, float)
    spatial = np.isfinite(rows).all(1)  # An axis that is no direction in space, of channels say, has none.
    if spatial.sum() != 3:
        raise InputError(f"{path.name} has {spatial.sum()} directions in space; a volume has three. Export one alone.")
    affine = np.eye(4)
    affine[:3, :3] = rows[spatial].T
    affine[:3, 3] = origin
    affine[:3] *= np.array(_TO_RAS[space])[:, None]
    if channels and voxels.ndim == 4:
        return Volume(np.moveaxis(voxels, int(np.flatnonzero(~spatial)[0]), -1), affine)
    if voxels.dtype == np.uint8 and voxels.ndim == 4:
        axis = int(np.flatnonzero(~spatial)[0])
        kind = str(header.get("kinds", [""] * 4)[axis]).lower()
        if voxels.shape[axis] == 3 and kind in _COLOURS:
            return Volume(np.moveaxis(voxels, axis, -1), affine)
    return Volume(three_dimensional(voxels, path.name), affine)


def _check_packed(file: BinaryIO, encoding: str, name: str, size: int) -> None:
    """Refuse packed voxels that unpack to more than the header says; pynrrd would unpack them all, and then count."""
    begun, unpacked = file.tell(), 0
    opened = (bz2.open if encoding.startswith("b") else gzip.open)(file)
    with suppress(EOFError, OSError, zlib.error):  # Whether it is whole, pynrrd tells.
        while unpacked <= size + _PIECE and (piece := opened.read(_PIECE)):
            unpacked += len(piece)
    file.seek(begun)
    if unpacked > size + _PIECE:
        raise InputError(f"{name} unpacks to more than its header says. It is broken; export it again.")


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
