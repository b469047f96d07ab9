"""Read TIFF files with tifffile: all types of grey values, 8-bit colours, and pages that are the slices of a stack.

Pillow takes signed bytes for unsigned ones, cannot read 64 bits, and swaps the bytes of some big-endian files. It reads
what is left: palettes, black and white, and the formats of cameras and printers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
from numpy.typing import NDArray

from baps.errors import InputError
from baps.utils.limits import check_size

_BOUNDED_COMPRESSIONS = {
    tifffile.COMPRESSION.NONE, tifffile.COMPRESSION.LZW, tifffile.COMPRESSION.ADOBE_DEFLATE,
    tifffile.COMPRESSION.DEFLATE, tifffile.COMPRESSION.PACKBITS, tifffile.COMPRESSION.LZMA, tifffile.COMPRESSION.ZSTD,
}  # fmt: skip
"""Compressions whose decoders in imagecodecs decompress no more than is requested."""

_GREY, _COLOUR = tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB
_PILLOW_TYPES = (bool, np.uint8)
"""Types of values that Pillow reads correctly in any byte order."""

_MAX_PAGES = 16_384

_ORIENTATION = "Orientation"

_MM_PER_UNIT = {
    "nm": 1e-6, "um": 1e-3, "\u00b5m": 1e-3, "\u03bcm": 1e-3, "micron": 1e-3, "microns": 1e-3, "micrometer": 1e-3,
    "mm": 1.0, "millimeter": 1.0, "cm": 10.0, "m": 1e3, "inch": 25.4,
}  # fmt: skip
"""Units of length as ImageJ and OME write them."""


_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of TIFF and BigTIFF files."""


def is_tiff(path: Path) -> bool:
    """Return whether a file begins as TIFF and BigTIFF files do, whatever its name is.

    Args:
        path: path of the file.

    Returns:
        True for a TIFF file.
    """
    with path.open("rb") as file:
        return file.read(4) in _MAGIC


def read_tiff(path: Path) -> tuple[NDArray[Any], tuple[float, float, float]] | None:
    """Read a TIFF file of grey values or of 8-bit colours, or a stack of such pages.

    Args:
        path: path of the file.

    Returns:
        Grey values, (columns, rows, slices), or colours, (columns, rows, 1, 3), without transparency; and the spacing
        along each axis, mm, which is 1 along those of a single page. None if Pillow should read the file.

    Raises:
        InputError: if the file holds several pages and does not say that they are a stack and how far apart they are,
            or holds values that are not supported.
        ValueError: if the file is cut off.
    """
    _check_pages(path)
    # Never open other files, which OME metadata may name.
    with tifffile.TiffFile(path, _multifile=False) as file:
        series = file.series[0]
        page = series.keyframe
        pages = max(len(file.pages), series.size // max(page.size, 1))
        if page.tags.valueof(_ORIENTATION, 1) != 1:
            raise InputError(f"{path.name} has to be rotated before it is shown (EXIF orientation). Save it upright.")
        spacing = _spacing(file)
        if pages > 1 and spacing is None:
            raise InputError(
                f"{path.name} holds {pages} pages, and does not say that they are a stack of slices and how far apart "
                "they are (ImageJ or OME metadata, with units of length). Save each page as a separate file, or the "
                "stack as NRRD."
            )
        colour = page.photometric == _COLOUR and page.dtype == np.uint8 and page.samplesperpixel in (3, 4)
        grey = page.photometric == _GREY and page.samplesperpixel == 1
        if page.compression not in _BOUNDED_COMPRESSIONS or not (grey or colour):
            if pages == 1 and page.dtype in _PILLOW_TYPES:
                return None
            raise InputError(_unsupported(path.name, page))
        if page.dtype is None or page.dtype.kind not in "biuf" or (pages > 1 and colour):
            raise InputError(_unsupported(path.name, page))
        check_size(path.name, series.shape, page.dtype.itemsize)
        if page.is_tiled:
            check_size(path.name, page.chunks, page.dtype.itemsize)
        for part in series.pages:  # Some decoders fill in missing data.
            if not isinstance(part, (tifffile.TiffPage, tifffile.TiffFrame)):
                continue
            ends = map(sum, zip(part.dataoffsets, part.databytecounts, strict=True))
            if max(ends, default=0) > file.filehandle.size:
                raise ValueError("it ends before its pixels do")
        pixels = series.asarray(maxworkers=1)
        if colour:
            planes = pixels if page.planarconfig == tifffile.PLANARCONFIG.CONTIG else np.moveaxis(pixels, 0, -1)
            return planes.swapaxes(0, 1)[:, :, None, :3], (1.0, 1.0, 1.0)
    stack = pixels.reshape(-1, *pixels.shape[-2:])
    dtype = {"b": np.uint8, "f": np.float32}.get(stack.dtype.kind, stack.dtype.newbyteorder("="))
    return stack.astype(dtype).T, spacing or (1.0, 1.0, 1.0)


def _check_pages(path: Path) -> None:
    """Refuse a file with very many pages, because tifffile and Pillow would look at each of them."""
    with path.open("rb") as file:
        header = file.read(16)
        order: Literal["little", "big"] = "little" if header[:1] == b"I" else "big"
        count, tag, link = (2, 12, 4) if 42 in header[2:4] else (8, 20, 8)
        next_page = int.from_bytes(header[4:8] if link == 4 else header[8:16], order)
        for _ in range(_MAX_PAGES):
            if not next_page:
                return
            file.seek(next_page)
            file.seek(next_page + count + tag * int.from_bytes(file.read(count), order))
            next_page = int.from_bytes(file.read(link), order)
    raise InputError(f"{path.name} holds more than {_MAX_PAGES} pages. Save the stack as NRRD.")


def _unsupported(name: str, page: tifffile.TiffPage) -> str:
    """Describe the pixels of an intact file that is not supported."""
    compression, photometric = (getattr(field, "name", field) for field in (page.compression, page.photometric))
    return (
        f"{name} holds pixels that are not supported ({page.samplesperpixel} x {page.bitspersample} bits of "
        f"{page.dtype}, {photometric}, compression {compression}); save grey values, 0 as black, or 8-bit colours "
        "of one page, without compression."
    )


def _spacing(file: tifffile.TiffFile) -> tuple[float, float, float] | None:
    """Return the spacing of columns, rows and slices, mm, or None if the file is not a stack or lacks a part of it."""
    axes = file.series[0].get_axes(squeeze=True)
    if axes != "ZYX" or len(file.series) > 1:
        return None
    if file.is_imagej:
        metadata = file.imagej_metadata or {}
        page = file.pages.first
        unit = _MM_PER_UNIT.get(str(metadata.get("unit")).replace("\\u00B5", "\u00b5").lower())
        sizes = [_inverse(page.tags.valueof(tag)) for tag in ("XResolution", "YResolution")] + [metadata.get("spacing")]
        scales = [unit] * 3
    elif file.is_ome:
        image = tifffile.xml2dict(file.ome_metadata or "").get("OME", {}).get("Image")
        pixels = image.get("Pixels", {}) if isinstance(image, dict) else {}
        sizes = [pixels.get(f"PhysicalSize{axis}") for axis in "XYZ"]
        scales = [_MM_PER_UNIT.get(pixels.get(f"PhysicalSize{axis}Unit", "\u00b5m")) for axis in "XYZ"]
    else:
        return None
    x, y, z = (float(size) * scale if size and scale else 0.0 for size, scale in zip(sizes, scales, strict=True))
    return (x, y, z) if x and y and z else None


def _inverse(resolution: tuple[int, int] | None) -> float | None:
    """Return the size of a pixel from a resolution in pixels per unit (numerator, denominator)."""
    return resolution[1] / resolution[0] if resolution and resolution[0] else None
