"""Read pictures, which have no position in a patient: PNG, JPEG and TIFF files, and NPZ files of arrays.

A picture becomes a volume of one slice with pixels of 1 x 1 mm: its columns run along I, its rows along J. It gets the
geometry that ITK, and so every viewer built on it, gives to an image without geometry: along the axes of LPS.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from baps.errors import InputError
from baps.imaging.volume import Volume
from baps.io.array_reading import read_array
from baps.io.tiff import is_tiff, read_tiff
from baps.utils.limits import check_size

_GREY_MODES = ("1", "L", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_GREY_ALPHA_MODES = ("LA", "La")
_JPEG_FORMATS = ("JPEG", "MPO")
_MAX_LABELS = 16
"""Grey labelmaps of one slice rarely have more values than this."""

_BYTES_PER_PIXEL = {"1": 2, "L": 2}
"""Memory that Pillow takes per pixel while it reads. Colours take more, and palettes become colours."""

_NPZ_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Compressions that numpy writes. Others, such as LZMA, allocate as much memory as the file asks for."""


def read_picture(path: Path) -> Volume:
    """Read a PNG, JPEG or TIFF file.

    Palettes become colours, transparency is dropped, and colours that are all grey become grey values. The EXIF
    orientation is ignored, because labels are drawn on the stored pixels; a TIFF with an EXIF orientation is refused. A
    TIFF whose pages are a stack, according to its ImageJ or OME metadata, is a volume, (columns, rows, slices) grey.

    Args:
        path: path of the file.

    Returns:
        The volume, (columns, rows, 1) grey or (columns, rows, 1, 3) colour.

    Raises:
        InputError: if the file is broken, too large for memory, holds several pages that are not a stack, or is a TIFF
            that has to be rotated.
    """
    if is_tiff(path) and (read := read_tiff(path)):
        voxels, (x, y, z) = read
        return Volume(_grey_if_equal(voxels) if voxels.ndim == 4 else voxels, np.diag([-x, -y, z, 1]))
    with _open(path) as picture:
        if picture.mode in _GREY_MODES:
            return _volume(np.array(picture))
        if picture.mode in _GREY_ALPHA_MODES:
            return _volume(np.array(picture.convert("L")))
        return _volume(_grey_if_equal(np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))))


def read_picture_labels(path: Path) -> NDArray[np.generic]:
    """Read labels from a PNG, TIFF or JPEG file.

    A palette gives its indices. JPEG blurs values, so only one object can be recognised: 255 where the file has 128 or
    more, 0 elsewhere. The same holds for a grey mask with soft edges, or a JPEG that was saved again: it has more than
    16 values, the highest of them white (255, or 65535 in 16 bit) and several others in the brighter half, and at least
    90 % of its pixels lie within 10 % of black or white. Labels 0 to 20 with 255 for unknown remain labels.

    Args:
        path: path of the file.

    Returns:
        Labels, (columns, rows, 1).

    Raises:
        InputError: if the file is broken, too large for memory, holds several pages, or holds colour.
    """
    if is_tiff(path) and (read := read_tiff(path)):
        labels = read[0]
        return _harden(_require_grey(labels, path.name) if labels.ndim == 4 else labels)
    with _open(path) as picture:
        if picture.format in _JPEG_FORMATS:
            return _volume(_threshold(np.array(picture.convert("L")), 255)).voxels
        if picture.mode == "P":
            return _volume(np.array(picture)).voxels
        if picture.mode == "PA":
            return _volume(np.array(picture)[..., 0]).voxels
        if picture.mode in _GREY_MODES:
            return _volume(_harden(np.array(picture))).voxels
        if picture.mode in _GREY_ALPHA_MODES:
            return _volume(_harden(np.array(picture.convert("L")))).voxels
        pixels = np.array(picture.convert("RGB"))
    return _volume(_harden(_require_grey(pixels, path.name))).voxels


def read_arrays(path: Path) -> Volume:
    """Read the image of an NPZ file: the array ``img``.

    Colour is given as integers from 0 to 255 or as fractions from 0 to 1. Pickled objects are never loaded.

    Args:
        path: path of the file. Its array is (rows, columns[, 1]) grey or (rows, columns, 3) colour.

    Returns:
        The volume, (columns, rows, 1) grey or (columns, rows, 1, 3) colour.

    Raises:
        InputError: if there is no such array, or its shape or range is wrong.
    """
    pixels = _array(path, "img")
    if pixels.ndim == 2:
        return _volume(pixels.astype(np.float32) if pixels.dtype.kind == "f" else pixels)
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise InputError(
            f"The array img of {path.name} has shape {pixels.shape}; (rows, columns) or (rows, columns, 3) is needed."
        )
    white = 1 if pixels.dtype.kind == "f" else 255
    if not ((pixels >= 0) & (pixels <= white)).all():
        raise InputError(
            f"The array img of {path.name} holds colours outside 0 to {white}. Save them as integers from 0 to 255, or "
            "as fractions from 0 to 1."
        )
    return _volume(_grey_if_equal((pixels.astype(np.float32) * (255 / white)).round().astype(np.uint8)))


def read_array_labels(path: Path) -> NDArray[np.generic]:
    """Read the labels of an NPZ file: the array ``seg``.

    Args:
        path: path of the file. Its array is (rows, columns[, 1]).

    Returns:
        Labels, (columns, rows, 1).

    Raises:
        InputError: if there is no such array, or its shape is wrong.
    """
    pixels = _array(path, "seg")
    if pixels.ndim != 2:
        raise InputError(f"The array seg of {path.name} has shape {pixels.shape}; (rows, columns) is needed.")
    return _volume(pixels).voxels


@contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path, formats=("PNG", "TIFF", "JPEG")) as picture:  # JPEG includes MPO.
            pages = getattr(picture, "n_frames", 1)
            if pages > 1 and picture.format != "MPO":  # MPO is a phone's JPEG whose other pages are previews.
                raise InputError(
                    f"{path.name} holds {pages} pages; a picture has one. Save each page as a separate file."
                )
            check_size(path.name, picture.size, _BYTES_PER_PIXEL.get(picture.mode, 4 if "I;16" in picture.mode else 8))
            picture.load()
            yield picture
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{path.name} is too large to be read safely ({error}). Crop it or make it smaller."
        ) from error


def _array(path: Path, key: str) -> NDArray[Any]:
    with zipfile.ZipFile(path) as archive:
        members = [
            member for member in archive.infolist() if member.filename in (key, f"{key}.npy")
        ]  # numpy reads either.
        if not members:
            raise InputError(
                f"{path.name} has no array {key}. Save the image as img and its labels as seg (numpy.savez)."
            )
        if len(members) > 1:
            raise InputError(
                f"{path.name} holds the array {key} {len(members)} times, so it is unclear which one is meant. "
                "Save it once (numpy.savez)."
            )
        if members[0].compress_type not in _NPZ_COMPRESSIONS:
            raise InputError(
                f"{path.name} is compressed in a way that numpy.savez does not write (zip method "
                f"{members[0].compress_type}). Save it with numpy.savez or numpy.savez_compressed."
            )
        with archive.open(members[0]) as packed:
            array = _read_array(packed, path.name, key)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    return array.astype(np.uint8) if array.dtype.kind == "b" else array


def _read_array(packed: IO[bytes], name: str, key: str) -> NDArray[Any]:
    """Read the array of a member: as many bytes as its header declares, and no more may follow."""
    versions = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(packed)
    if version not in versions:  # Version 3 is for field names in Unicode.
        raise InputError(f"The array {key} of {name} has fields with names; numbers are needed.")
    shape, fortran_order, dtype = versions[version](packed)
    if dtype.kind not in "biuf":
        raise InputError(f"The array {key} of {name} is of type {dtype}; numbers are needed.")
    check_size(name, shape, dtype.itemsize)
    array = read_array(packed, shape, dtype, "F" if fortran_order else "C")
    if packed.read(1):
        raise ValueError(f"the array {key} holds more bytes than its header says")
    return array


def _threshold(pixels: NDArray[Any], white: int) -> NDArray[Any]:
    """Return white where pixels are at least half of it, 0 elsewhere."""
    return np.where(pixels >= white / 2, white, 0).astype(pixels.dtype)


def _harden(pixels: NDArray[Any]) -> NDArray[Any]:
    """Threshold grey labels that look like a mask with soft edges, see ``read_picture_labels``."""
    white = 255 if pixels.dtype.itemsize == 1 else 65535
    values = np.unique(pixels)
    if values[-1] != white or len(values) <= _MAX_LABELS or (values >= white / 2).sum() <= _MAX_LABELS // 4:
        return pixels
    sharp = (pixels <= 0.1 * white) | (pixels >= 0.9 * white)
    return _threshold(pixels, white) if sharp.mean() >= 0.9 else pixels


def _require_grey(pixels: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    """Convert labels (..., 3) to (...), and refuse colour."""
    grey = _grey_if_equal(pixels)
    if grey.ndim == pixels.ndim:
        raise InputError(
            f"The label {name} holds colour where grey values are needed, one for each object. Save it as grey or "
            "with a palette."
        )
    return grey


def _grey_if_equal(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert pixels (..., 3) to (...) if red, green and blue are equal everywhere."""
    return pixels[..., 0] if (pixels == pixels[..., :1]).all() else pixels


def _volume(pixels: NDArray[Any]) -> Volume:
    """Convert pixels (rows, columns) or (rows, columns, 3) to a volume of one slice."""
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
    return Volume(np.swapaxes(pixels, 0, 1)[:, :, None], np.diag([-1.0, -1, 1, 1]))
