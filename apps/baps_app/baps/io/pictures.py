"""Pictures, which have no place in a patient: PNG, JPEG and TIFF files, and NPZ files of arrays.

A picture becomes a volume of one slice, pixels 1 mm wide and high: its columns run along I, its rows along J. It lies
where ITK, and so every viewer that is built on it, puts an image without geometry: along the axes of LPS.
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
from baps.io.read_exactly import read_exactly
from baps.io.tiff import is_tiff, read_tiff
from baps.utils.limits import check_size

_GREY = ("1", "L", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_GREY_AND_ALPHA = ("LA", "La")
_JPEGS = ("JPEG", "MPO")
_SHADES = 16
"""Grey labelmaps of one slice rarely have more values."""

_BYTES = {"1": 2, "L": 2}
"""What Pillow takes for a pixel while it is read; colours take more, and palettes become colours."""

_NPZ_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Those that numpy writes; others, LZMA say, ask for memory by what the file says."""


def read_picture(path: Path) -> Volume:
    """Read a PNG, JPEG or TIFF file, (columns, rows, 1) grey or (columns, rows, 1, 3) colour.

    Palettes become colours, transparency is dropped, and colours that are all grey become grey values. The EXIF
    orientation is ignored: labels are drawn over the pixels as they are stored. A TIFF that has one is refused. A TIFF
    whose pages are a stack, by its ImageJ or OME metadata, is a volume, (columns, rows, slices) grey.

    Raises:
        InputError: if it is broken, too large for memory, holds several pages that are no stack, or is a TIFF that has
            to be turned.
    """
    if is_tiff(path) and (read := read_tiff(path)):
        voxels, (x, y, z) = read
        return Volume(_grey_if_equal(voxels) if voxels.ndim == 4 else voxels, np.diag([-x, -y, z, 1]))
    with _open(path) as picture:
        if picture.mode in _GREY:
            return _volume(np.array(picture))
        if picture.mode in _GREY_AND_ALPHA:
            return _volume(np.array(picture.convert("L")))
        return _volume(_grey_if_equal(np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))))


def read_picture_labels(path: Path) -> NDArray[np.generic]:
    """Read labels from a PNG, TIFF or JPEG file, (columns, rows, 1).

    A palette gives its indices. JPEG blurs values, so that only one object can be told: 255 where the file has 128 or
    more, 0 elsewhere. So it is with a grey mask of soft edges, or a JPEG that was saved again: one of more than 16
    values, the highest of them white (255, or 65535 in 16 bit) and several others in the brighter half, of whose pixels
    at least 90 % lie within 10 % of black or white. Labels 0 to 20 with 255 for what is unknown remain labels.

    Raises:
        InputError: if it is broken, too large for memory, holds several pages, or is of colour.
    """
    if is_tiff(path) and (read := read_tiff(path)):
        labels = read[0]
        return _hardened(_one_grey(labels, path.name) if labels.ndim == 4 else labels)
    with _open(path) as picture:
        if picture.format in _JPEGS:
            return _volume(_black_and_white(np.array(picture.convert("L")), 255)).voxels
        if picture.mode == "P":
            return _volume(np.array(picture)).voxels
        if picture.mode == "PA":
            return _volume(np.array(picture)[..., 0]).voxels
        if picture.mode in _GREY:
            return _volume(_hardened(np.array(picture))).voxels
        if picture.mode in _GREY_AND_ALPHA:
            return _volume(_hardened(np.array(picture.convert("L")))).voxels
        pixels = np.array(picture.convert("RGB"))
    return _volume(_hardened(_one_grey(pixels, path.name))).voxels


def read_arrays(path: Path) -> Volume:
    """Read the image of an NPZ file: ``img``, (rows, columns[, 1]) grey or (rows, columns, 3) colour.

    Colour is of integers from 0 to 255 or of fractions from 0 to 1. Pickled objects are never loaded.

    Raises:
        InputError: if there is no such array, or it is of another shape or range.
    """
    pixels = _array(path, "img")
    if pixels.ndim == 2:
        return _volume(pixels.astype(np.float32) if pixels.dtype.kind == "f" else pixels)
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise InputError(
            f"The array img of {path.name} has shape {pixels.shape}; (rows, columns) or (rows, columns, 3) is needed."
        )
    most = 1 if pixels.dtype.kind == "f" else 255
    if not ((pixels >= 0) & (pixels <= most)).all():
        raise InputError(
            f"The array img of {path.name} holds colours outside 0 to {most}. Save them as integers from 0 to 255, or "
            "as fractions from 0 to 1."
        )
    return _volume(_grey_if_equal((pixels.astype(np.float32) * (255 / most)).round().astype(np.uint8)))


def read_array_labels(path: Path) -> NDArray[np.generic]:
    """Read labels from an NPZ file, its array ``seg`` of (rows, columns[, 1]), as (columns, rows, 1).

    Raises:
        InputError: if there is no such array, or it is of another shape.
    """
    pixels = _array(path, "seg")
    if pixels.ndim != 2:
        raise InputError(f"The array seg of {path.name} has shape {pixels.shape}; (rows, columns) is needed.")
    return _volume(pixels).voxels


@contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path, formats=("PNG", "TIFF", "JPEG")) as picture:  # JPEG finds MPO.
            pages = getattr(picture, "n_frames", 1)
            if pages > 1 and picture.format != "MPO":  # A telephone's JPEG; its other pages are previews.
                raise InputError(
                    f"{path.name} holds {pages} pages; a picture is one. Save each page as a file of its own."
                )
            check_size(path.name, picture.size, _BYTES.get(picture.mode, 4 if "I;16" in picture.mode else 8))
            picture.load()
            yield picture
    except Image.DecompressionBombError as error:
        raise InputError(f"{path.name} is too large to be read safely ({error}). Cut it or make it smaller.") from error


def _array(path: Path, key: str) -> NDArray[Any]:
    with zipfile.ZipFile(path) as archive:
        members = [one for one in archive.infolist() if one.filename in (key, f"{key}.npy")]  # numpy opens either.
        if not members:
            raise InputError(
                f"{path.name} holds no array {key}. Save the image as img and its labels as seg (numpy.savez)."
            )
        if len(members) > 1:
            raise InputError(
                f"{path.name} holds the array {key} {len(members)} times, so that it is unclear which one counts. "
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
    """The array of a member; its header says how many bytes are read, and there must be as many."""
    versions = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(packed)
    if version not in versions:  # The third is that of names in Unicode.
        raise InputError(f"The array {key} of {name} has fields with names; numbers are needed.")
    shape, by_columns, kind = versions[version](packed)
    if kind.kind not in "biuf":
        raise InputError(f"The array {key} of {name} is of type {kind}; numbers are needed.")
    check_size(name, shape, kind.itemsize)
    array = read_exactly(packed, shape, kind, "F" if by_columns else "C")
    if packed.read(1):
        raise ValueError(f"the array {key} holds more bytes than its header says")
    return array


def _black_and_white(pixels: NDArray[Any], white: int) -> NDArray[Any]:
    """White where pixels are at least half of it, 0 elsewhere."""
    return np.where(pixels >= white / 2, white, 0).astype(pixels.dtype)


def _hardened(pixels: NDArray[Any]) -> NDArray[Any]:
    """Grey labels; black and white if they look like a mask with soft edges, by the rule of ``read_picture_labels``."""
    white = 255 if pixels.dtype.itemsize == 1 else 65535
    values = np.unique(pixels)
    if values[-1] != white or len(values) <= _SHADES or (values >= white / 2).sum() <= _SHADES // 4:
        return pixels
    sharp = (pixels <= 0.1 * white) | (pixels >= 0.9 * white)
    return _black_and_white(pixels, white) if sharp.mean() >= 0.9 else pixels


def _one_grey(pixels: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    """Labels (..., 3) as (...), if they are all grey."""
    grey = _grey_if_equal(pixels)
    if grey.ndim == pixels.ndim:
        raise InputError(
            f"The label {name} holds colour where grey values are needed, one for each object. Save it as grey or "
            "with a palette."
        )
    return grey


def _grey_if_equal(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(..., 3) as (...) where red, green and blue are the same everywhere."""
    return pixels[..., 0] if (pixels == pixels[..., :1]).all() else pixels


def _volume(pixels: NDArray[Any]) -> Volume:
    """Pixels (rows, columns) or (rows, columns, 3) as a volume of one slice."""
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
    return Volume(np.swapaxes(pixels, 0, 1)[:, :, None], np.diag([-1.0, -1, 1, 1]))
