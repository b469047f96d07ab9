"""Decompression bombs: small files that decompress to a large size, one per format, codec and place to hide data.

A separate process reads each file and measures its memory. A file must be refused or read within twice the maximum
size of a volume. The largest files that are allowed are also among them. ``python -m stress.fuzz.bombs`` is the
process that reads.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import nibabel
import numpy as np
import pydicom
import tifffile
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from benchmarks.paths import ROOT, SAMPLE_DATA

MAX_VOLUME_MB = 32
"""Maximum size of a volume, MB."""

_MAX_VOLUMES_HELD = 2
"""Memory that a reader may use, in volumes of the maximum size."""

_SLACK_MB = 24
"""Memory that decoders and the interpreter may use in addition, MB."""

_MAX_SECONDS, _MAX_ADDRESS_SPACE = 60, 4 << 30
"""Seconds and bytes of address space that one file may take before the process is stopped."""

_PICTURE_SIZE = 8000
"""Rows and columns of a picture of 64 MB."""

_SAMPLE = SAMPLE_DATA / "dicom" / "ct_01" / "001.dcm"

_JPEG_BASELINE, _JPEG_LOSSLESS, _JPEG_LS = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80"
_JPEG_2000, _HTJ2K, _RLE = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.5"
_DEFLATED, _DEFLATED_FRAMES = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.8.1"
_IMPLICIT = "1.2.840.10008.1.2"
_SEG, _RTSTRUCT = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.481.3"


def _compressed_zeros(megabytes: int, compressor: Any = None) -> bytes:
    """Compress some megabytes of zeros."""
    compressor = compressor or zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    return b"".join(compressor.compress(bytes(1 << 20)) for _ in range(megabytes)) + compressor.flush()


def _npy(shape: Sequence[int], dtype: str = "|u1", version: int = 1) -> bytes:
    header = io.BytesIO()
    write = np.lib.format.write_array_header_1_0 if version == 1 else np.lib.format.write_array_header_2_0
    write(header, {"descr": dtype, "fortran_order": False, "shape": tuple(shape)})
    return header.getvalue()


def _npz(
    folder: Path, members: Sequence[tuple[str, bytes, int]], method: int = zipfile.ZIP_DEFLATED, zip64: bool = False
) -> Path:
    """Write an archive whose members are given by name, header, and megabytes of zeros after the header."""
    path = folder / "bomb.npz"
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", method) as archive:
        warnings.simplefilter("ignore")  # Warnings about duplicate names.
        for name, header, megabytes in members:
            with archive.open(name, "w", force_zip64=zip64) as member:
                member.write(header)
                for _ in range(megabytes):
                    member.write(bytes(1 << 20))
    return path


def _npz_with_false_size(folder: Path) -> Path:
    """Write an archive whose directory gives a size that is too small."""
    path = _npz(folder, [("img.npy", _npy((16, 16)), 160)])
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\1\2")
    content[entry + 24 : entry + 28] = struct.pack("<I", 384)
    path.write_bytes(content)
    return path


def _nifti_header(shape: Sequence[int], dtype: type = np.int16, offset: int = 352, slope: float = 0) -> bytes:
    header = nibabel.Nifti1Header()
    header.set_data_shape(tuple(shape))
    header.set_data_dtype(dtype)
    header["sform_code"], header["vox_offset"], header["magic"] = 1, offset, b"n+1"
    header.set_sform(np.eye(4))
    header["scl_slope"] = slope
    return bytes(header.binaryblock)


def _nifti(folder: Path, header: bytes, start: bytes = bytes(4), megabytes: int = 1) -> Path:
    path = folder / "bomb.nii.gz"
    path.write_bytes(gzip.compress(header + start) + _compressed_zeros(megabytes))
    return path


def _nifti_extension(folder: Path) -> Path:
    size = 160 << 20
    start = b"\1\0\0\0" + struct.pack("<ii", size, 6)
    return _nifti(folder, _nifti_header((4, 4, 4), offset=352 + size), start, 161)


def _nrrd(folder: Path, sizes: str, compressed: bytes, encoding: str = "gzip", extra: str = "") -> Path:
    path = folder / "bomb.nrrd"
    header = (
        f"NRRD0004\ntype: uint8\ndimension: 3\nspace: left-posterior-superior\nsizes: {sizes}\nspace directions: "
        f"(1,0,0) (0,1,0) (0,0,1)\nkinds: domain domain domain\nencoding: {encoding}\nspace origin: (0,0,0)\n{extra}\n"
    )
    path.write_bytes(header.encode() + compressed)
    return path


def _bzip2(megabytes: int) -> bytes:
    import bz2

    return _compressed_zeros(megabytes, bz2.BZ2Compressor())


def _metaimage(folder: Path, sizes: str, megabytes: int) -> Path:
    compressed = _compressed_zeros(megabytes, zlib.compressobj(9))
    header = f"NDims = 3\nDimSize = {sizes}\nCompressedData = True\nCompressedDataSize = {len(compressed)}\n"
    path = folder / "bomb.mha"
    path.write_bytes(header.encode() + b"ElementType = MET_UCHAR\nElementDataFile = LOCAL\n" + compressed)
    return path


def _picture(folder: Path, suffix: str, mode: str = "L", size: int = _PICTURE_SIZE, **how: Any) -> Path:
    path = folder / f"bomb.{suffix}"
    Image.new(mode, (size, size)).save(path, **how)
    return path


def _png_with_chunk(folder: Path, kind: bytes, start: bytes) -> Path:
    """Write a small picture with an additional chunk that decompresses to 160 MB."""
    path = _picture(folder, "png", size=16)
    chunk = start + _compressed_zeros(160, zlib.compressobj(9))
    framed_chunk = struct.pack(">I", len(chunk)) + kind + chunk + struct.pack(">I", zlib.crc32(kind + chunk))
    content = path.read_bytes()
    path.write_bytes(content[:33] + framed_chunk + content[33:])
    return path


def _png_texts(folder: Path) -> Path:
    texts = PngImagePlugin.PngInfo()
    for number in range(200):
        texts.add_text(f"t{number}", "0" * ((1 << 20) - 1), zip=True)
    return _picture(folder, "png", size=16, pnginfo=texts)


def _tiff(folder: Path, compressed: bytes | bytearray | None = None, size: int = _PICTURE_SIZE, **how: Any) -> Path:
    """Write a TIFF file of one page, whose only strip may be replaced by ``compressed``."""
    path = folder / "bomb.tif"
    tifffile.imwrite(path, np.zeros((size, size), np.uint8), **how)
    if compressed is not None:
        with tifffile.TiffFile(path, mode="r+") as file:
            tags, end = file.pages.first.tags, file.filehandle.size
            tags["StripOffsets"].overwrite([end])
            tags["StripByteCounts"].overwrite([len(compressed)])
        with path.open("ab") as target:
            target.write(compressed)
    return path


def _tiff_pages(folder: Path) -> Path:
    """Write a page that is followed by a hundred thousand pages of one tag each."""
    path = _tiff(folder, size=16)
    content = bytearray(path.read_bytes())
    first = struct.unpack("<I", content[4:8])[0]
    link = first + 2 + 12 * struct.unpack("<H", content[first : first + 2])[0]
    page = struct.pack("<HHHII", 1, 256, 3, 1, 16)
    for _ in range(100_000):
        content[link : link + 4] = struct.pack("<I", len(content))
        link = len(content) + len(page)
        content += page + bytes(4)
    path.write_bytes(content)
    return path


def _tiff_tile(folder: Path) -> Path:
    """Write a small page with one enormous tile."""
    path = _tiff(folder, size=16, tile=(16, 16), compression="zlib")
    with tifffile.TiffFile(path, mode="r+") as file:
        for name in ("TileWidth", "TileLength"):
            file.pages.first.tags[name].overwrite(32_000)
    return path


def _jpeg_2000(size: int = _PICTURE_SIZE, form: str = "j2k", components: int = 1) -> bytes:
    shape = (size, size) if components == 1 else (size, size, components)
    return bytes(imagecodecs.jpeg2k_encode(np.zeros(shape, np.uint8), codecformat=form, reversible=True))


def _jpeg_2000_of_components(number: int) -> bytes:
    """Build a JPEG 2000 codestream of 64 x 64 pixels whose header declares this number of components."""
    stream = _jpeg_2000(64)
    length = int.from_bytes(stream[4:6], "big") + 3 * (number - 1)
    head = stream[:4] + struct.pack(">H", length) + stream[6:40] + struct.pack(">H", number)
    return head + stream[42:45] * number + stream[45:]


def _htj2k() -> bytes:
    """Build a codestream whose header declares the block coding of HTJ2K."""
    stream = _jpeg_2000(_PICTURE_SIZE)
    end = 4 + int.from_bytes(stream[4:6], "big")
    capabilities = b"\xff\x50" + struct.pack(">HIH", 8, 1 << 17, 0)
    return stream[:6] + struct.pack(">H", 1 << 14) + stream[8:end] + capabilities + stream[end:]


def _rle(megabytes: int) -> bytes:
    return struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\0" * (megabytes << 13)


def _dicom(folder: Path, syntax: str = "", frames: Sequence[bytes | bytearray] = (), **attributes: Any) -> Path:
    """Write a DICOM slice of 64 x 64 bytes with compressed frames and changed attributes."""
    image = pydicom.dcmread(_SAMPLE)
    image.Rows = image.Columns = 64
    image.BitsAllocated = image.BitsStored = 8
    image.HighBit, image.PixelRepresentation = 7, 0
    image.RescaleSlope, image.RescaleIntercept = 1, 0
    image.PixelData = bytes(64 * 64)
    for keyword, value in attributes.items():
        setattr(image, keyword, value)
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    if frames:
        image.PixelData = encapsulate([bytes(frame) for frame in frames])
        image["PixelData"].is_undefined_length = True
        image["PixelData"].VR = "OB"
    return _save_dicom(folder, image, syntax)


def _save_dicom(folder: Path, image: Any, syntax: str) -> Path:
    path = folder / "bomb.dcm"
    if syntax:
        image.file_meta.TransferSyntaxUID = UID(syntax)
        image.is_implicit_VR = syntax == _IMPLICIT  # Implicit VR allows long values.
    if syntax not in (_DEFLATED_FRAMES, _HTJ2K):
        image.save_as(path)
        return path
    with path.open("wb") as file:  # pydicom knows neither syntax and does not write them.
        file.write(b"\0" * 128 + b"DICM")
        pydicom.filewriter.write_file_meta_info(file, image.file_meta)
        target = pydicom.filebase.DicomFileLike(file)
        target.is_little_endian, target.is_implicit_VR = True, False
        pydicom.filewriter.write_dataset(target, image)
    return path


def _dicom_deflated(folder: Path) -> Path:
    image = pydicom.dcmread(_SAMPLE)
    image.add_new(0x00091002, "OB", bytes(160 << 20))
    return _save_dicom(folder, image, _DEFLATED)


def _dicom_items(folder: Path, tag: tuple[int, int] = (0x5200, 0x9230), items: int = 1 << 20) -> Path:
    """Write a sequence of a million items of eight bytes after the pixels; each item becomes an object."""
    path = _dicom(folder)
    body = struct.pack("<HHI", 0xFFFE, 0xE000, 0) * items
    path.write_bytes(path.read_bytes() + struct.pack("<HH2sHI", *tag, b"SQ", 0, len(body)) + body)
    return path


def _dicom_elements(folder: Path) -> Path:
    """Write a million empty elements before the pixels."""
    path = _dicom(folder)
    start, pixels, end = path.read_bytes().partition(struct.pack("<HH", 0x7FE0, 0x0010))
    groups, elements = range(0x6001, 0x6001 + 32, 2), range(0x1000, 0x1000 + 0xE000)
    extra = b"".join(struct.pack("<HH2sH", group, element, b"LO", 0) for group in groups for element in elements)
    path.write_bytes(start + extra + pixels + end)
    return path


def _dicom_long_value(folder: Path, tag: tuple[int, int]) -> Path:
    """Write millions of numbers as the value of an element that has one; implicit VR allows long values."""
    path, value = _dicom(folder, _IMPLICIT), b"1\\" * (4 << 20) + b"1 "
    start, tag_bytes, end = path.read_bytes().rpartition(struct.pack("<HH", *tag))
    length = struct.unpack("<I", end[:4])[0]
    path.write_bytes(start + tag_bytes + struct.pack("<I", len(value)) + value + end[4 + length :])
    return path


def _dicom_late_rows(folder: Path) -> Path:
    """Write other values of Rows and Columns after the pixels."""
    path = _dicom(folder, _JPEG_2000, [_jpeg_2000()])
    late = Dataset()
    late.Rows = late.Columns = _PICTURE_SIZE
    target = pydicom.filebase.DicomBytesIO()
    target.is_little_endian, target.is_implicit_VR = True, False
    pydicom.filewriter.write_dataset(target, late)
    path.write_bytes(path.read_bytes() + target.getvalue())
    return path


def _segmentation(folder: Path, syntax: str = "", frames: Sequence[bytes | bytearray] = (), **attributes: Any) -> Path:
    """Write a DICOM SEG of one frame that fits the image of the labels."""
    group, position = Dataset(), Dataset()
    position.ImagePositionPatient = [0, 0, 0]
    group.PlanePositionSequence = [position]
    orientation, measures, segment, described = Dataset(), Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient, measures.PixelSpacing = [1, 0, 0, 0, 1, 0], [1, 1]
    group.PlaneOrientationSequence, group.PixelMeasuresSequence = [orientation], [measures]
    segment.ReferencedSegmentNumber = described.SegmentNumber = 1
    group.SegmentIdentificationSequence, described.SegmentLabel = [segment], "organ"
    return _dicom(
        folder, syntax, frames,
        **{"SOPClassUID": _SEG, "SegmentationType": "FRACTIONAL", "MaximumFractionalValue": 1, "NumberOfFrames": 1,
           "SegmentSequence": [described], "PerFrameFunctionalGroupsSequence": [group], **attributes},
    )  # fmt: skip


def _structures(folder: Path, contours: Sequence[NDArray[np.float64]]) -> Path:
    """Write an RTSTRUCT with one structure per contour, (N, 3) mm."""
    structures, roi_contours = [], []
    for number, points in enumerate(contours, start=1):
        structure, contour, roi = Dataset(), Dataset(), Dataset()
        structure.ROINumber = roi.ReferencedROINumber = number
        structure.ROIName = f"organ {number}"
        contour.ContourGeometricType, contour.ContourData = "CLOSED_PLANAR", points.ravel().tolist()
        roi.ContourSequence = [contour]
        structures.append(structure)
        roi_contours.append(roi)
    return _dicom(
        folder,
        _IMPLICIT,
        SOPClassUID=_RTSTRUCT,
        StructureSetROISequence=structures,
        ROIContourSequence=roi_contours,
    )


def _zigzag(points: int, size: float) -> NDArray[np.float64]:
    x = np.linspace(0, size, points)
    return np.stack([x, np.where(np.arange(points) % 2, size, 0), np.zeros(points)], 1).round(2)


def _square(size: float) -> NDArray[np.float64]:
    return np.array([[0, 0, 0], [size, 0, 0], [size, size, 0], [0, size, 0]], float)


def _safetensors(folder: Path) -> Path:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    path = folder / "bomb.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    return path


def _largest_allowed_dicom(folder: Path, syntax: str, encode: Callable[[NDArray[np.uint16]], bytes] | None) -> Path:
    """Write as many frames of 16 bits as the maximum size allows."""
    frame = np.zeros((1024, 1024), np.uint16)
    count = (MAX_VOLUME_MB << 20) // frame.nbytes
    return _dicom(
        folder, syntax, [encode(frame)] * count if encode else (),
        Rows=1024, Columns=1024, BitsAllocated=16, BitsStored=16, HighBit=15, NumberOfFrames=count,
        PixelData=bytes(count * frame.nbytes),
    )  # fmt: skip


_FRAME = (_PICTURE_SIZE, _PICTURE_SIZE)

BOMBS: dict[str, Callable[[Path], Path]] = {
    "npz header": lambda out: _npz(out, [("img.npy", _npy((60_000, 60_000)), 1)]),
    "npz name": lambda out: _npz(out, [("img", _npy(_FRAME), 62)]),
    "npz both names": lambda out: _npz(out, [("img.npy", _npy((4, 4)), 0), ("img", _npy((16_000, 10_000)), 160)]),
    "npz doubled": lambda out: _npz(out, [("img.npy", _npy((4, 4)), 0), ("img.npy", _npy((16_000, 10_000)), 160)]),
    "npz more data": lambda out: _npz(out, [("img.npy", _npy((16, 16)), 160)]),
    "npz header version 2": lambda out: _npz(out, [("img.npy", _npy((60_000, 60_000), version=2), 160)]),
    "npz zip64": lambda out: _npz(out, [("img.npy", _npy((16_000, 10_000)), 160)], zip64=True),
    "npz lzma": lambda out: _npz(out, [("img.npy", _npy((16_000, 10_000)), 160)], zipfile.ZIP_LZMA),
    "npz bzip2": lambda out: _npz(out, [("img.npy", _npy((16_000, 10_000)), 160)], zipfile.ZIP_BZIP2),
    "npz lying directory": _npz_with_false_size,
    "npz no shape": lambda out: _npz(out, [("img.npy", _npy((0, 1 << 40)), 160)]),
    "npz largest": lambda out: _npz(out, [("img.npy", _npy((4096, 8192)), MAX_VOLUME_MB)]),
    "nifti header": lambda out: _nifti(out, _nifti_header((4096, 4096, 512))),
    "nifti extension": _nifti_extension,
    "nifti offset": lambda out: _nifti(out, _nifti_header((4, 4, 4), offset=352 + (1 << 40)), megabytes=160),
    "nifti scaled": lambda out: _nifti(out, _nifti_header((512, 512, 126), np.uint8, slope=0.5), megabytes=32),
    "nifti more data": lambda out: _nifti(out, _nifti_header((16, 16, 4)), megabytes=160),
    "nifti largest": lambda out: _nifti(out, _nifti_header((512, 512, 64)), megabytes=32),
    "nifti largest, scaled": lambda out: _nifti(out, _nifti_header((512, 512, 32), np.int32, slope=0.5), megabytes=32),
    "nifti largest, fractions": lambda out: _nifti(out, _nifti_header((512, 512, 16), np.float64), megabytes=32),
    "nrrd header": lambda out: _nrrd(out, "4096 4096 512", _compressed_zeros(1)),
    "nrrd more data": lambda out: _nrrd(out, "16 16 4", _compressed_zeros(160)),
    "nrrd line skip": lambda out: _nrrd(out, "16 16 4", b"\n" + _compressed_zeros(160), extra="line skip: 1\n"),
    "nrrd byte skip": lambda out: _nrrd(out, "16 16 4", _compressed_zeros(160), extra=f"byte skip: {160 << 20}\n"),
    "nrrd byte skip from the end": lambda out: _nrrd(out, "16 16 4", _compressed_zeros(160), extra="byte skip: -1\n"),
    "nrrd bzip2": lambda out: _nrrd(out, "16 16 4", _bzip2(160), "bzip2"),
    "nrrd text": lambda out: _nrrd(out, "16 16 4", b"0 " * (24 << 20), "ascii"),
    "nrrd largest": lambda out: _nrrd(out, "512 512 128", _compressed_zeros(32)),
    "metaimage header": lambda out: _metaimage(out, "4096 4096 512", 1),
    "metaimage more data": lambda out: _metaimage(out, "16 16 4", 160),
    "metaimage largest": lambda out: _metaimage(out, "512 512 128", 32),
    "png": lambda out: _picture(out, "png", compress_level=9),
    "png colours": lambda out: _picture(out, "png", "RGB"),
    "png palette": lambda out: _picture(out, "png", "P", 5000),
    "png bits": lambda out: _picture(out, "png", "1", 12_000),
    "png profile": lambda out: _png_with_chunk(out, b"iCCP", b"p\0\0"),
    "png text": lambda out: _png_with_chunk(out, b"zTXt", b"t\0\0"),
    "png texts": _png_texts,
    "png international text": lambda out: _png_with_chunk(out, b"iTXt", b"t\0\1\0\0\0"),
    "jpeg": lambda out: _picture(out, "jpg"),
    "jpeg progressive": lambda out: _picture(out, "jpg", "RGB", progressive=True),
    "jpeg largest": lambda out: _picture(out, "jpg", "RGB", 2000),
    "tiff": lambda out: _tiff(out, compression="zlib"),
    "tiff strip, zlib": lambda out: _tiff(out, _compressed_zeros(160, zlib.compressobj(9)), 16, compression="zlib"),
    "tiff strip, lzma": lambda out: _tiff(out, imagecodecs.lzma_encode(bytes(160 << 20)), 16, compression="lzma"),
    "tiff strip, zstd": lambda out: _tiff(out, imagecodecs.zstd_encode(bytes(160 << 20)), 16, compression="zstd"),
    "tiff strip, lzw": lambda out: _tiff(out, imagecodecs.lzw_encode(bytes(80 << 20)), 16, compression="lzw"),
    "tiff strip, packbits": lambda out: _tiff(out, b"\x81\0" * (2 << 20), 16, compression="packbits"),
    "tiff strip, jpeg": lambda out: _tiff(out, imagecodecs.jpeg8_encode(np.zeros(_FRAME, np.uint8)), 16,
                                         compression="jpeg"),
    "tiff tile": _tiff_tile,
    "tiff pages": _tiff_pages,
    "tiff largest": lambda out: _tiff(out, size=5700, compression="zlib"),
    "dicom header": lambda out: _dicom(out, Rows=60_000, Columns=60_000),
    "dicom frames": lambda out: _dicom(out, NumberOfFrames=60_000),
    "dicom many frames": lambda out: _dicom(out, Rows=1, Columns=1, NumberOfFrames=30_000_000),
    "dicom jpeg": lambda out: _dicom(out, _JPEG_BASELINE, [imagecodecs.jpeg8_encode(np.zeros(_FRAME, np.uint8))]),
    "dicom jpeg lossless": lambda out: _dicom(out, _JPEG_LOSSLESS,
                                             [imagecodecs.ljpeg_encode(np.zeros(_FRAME, np.uint8))]),
    "dicom jpeg-ls": lambda out: _dicom(out, _JPEG_LS, [imagecodecs.jpegls_encode(np.zeros(_FRAME, np.uint8))]),
    "dicom jpeg 2000": lambda out: _dicom(out, _JPEG_2000, [_jpeg_2000()]),
    "dicom jpeg 2000 in boxes": lambda out: _dicom(out, _JPEG_2000, [_jpeg_2000(form="jp2")]),
    "dicom jpeg 2000 components": lambda out: _dicom(out, _JPEG_2000, [_jpeg_2000_of_components(12_000)]),
    "dicom jpeg 2000 as declared": lambda out: _dicom(out, _JPEG_2000, [_jpeg_2000(5700)], Rows=5700, Columns=5700),
    "dicom jpeg 2000, second frame": lambda out: _dicom(out, _JPEG_2000, [_jpeg_2000(64), _jpeg_2000()],
                                                       NumberOfFrames=2),
    "dicom more frames": lambda out: _dicom(out, _JPEG_BASELINE, [imagecodecs.jpeg8_encode(
        np.zeros((512, 512), np.uint8))] * 2000, Rows=512, Columns=512),
    "dicom htj2k": lambda out: _dicom(out, _HTJ2K, [_htj2k()]),
    "dicom rle": lambda out: _dicom(out, _RLE, [_rle(160)]),
    "dicom rle frames": lambda out: _dicom(out, _RLE, [_rle(1)] * 160),
    "dicom deflated": _dicom_deflated,
    "dicom deflated frame": lambda out: _dicom(out, _DEFLATED_FRAMES, [_compressed_zeros(160, zlib.compressobj(
        9, zlib.DEFLATED, -zlib.MAX_WBITS))]),
    "dicom late rows": _dicom_late_rows,
    "dicom items": _dicom_items,
    "dicom elements": _dicom_elements,
    "dicom long position": lambda out: _dicom_long_value(out, (0x0020, 0x0032)),
    "dicom long slope": lambda out: _dicom_long_value(out, (0x0028, 0x1053)),
    "dicom largest": lambda out: _largest_allowed_dicom(out, "", None),
    "dicom largest, jpeg 2000": lambda out: _largest_allowed_dicom(
        out, _JPEG_2000, lambda frame: bytes(imagecodecs.jpeg2k_encode(frame, codecformat="j2k", reversible=True))),
    "dicom largest, jpeg-ls": lambda out: _largest_allowed_dicom(out, _JPEG_LS, lambda frame: bytes(
        imagecodecs.jpegls_encode(frame))),
    "label nrrd more data": lambda out: _nrrd(out, "16 16 4", _compressed_zeros(160)),
    "label npz name": lambda out: _npz(out, [("seg", _npy(_FRAME), 62)]),
    "label seg items": lambda out: _dicom_items(out, (0x7FE1, 0x1010)),
    "label seg header": lambda out: _segmentation(out, Rows=60_000, Columns=60_000),
    "label seg frames": lambda out: _segmentation(out, NumberOfFrames=1_000_000_000),
    "label seg jpeg 2000": lambda out: _segmentation(out, _JPEG_2000, [_jpeg_2000()]),
    "label seg rle": lambda out: _segmentation(out, _RLE, [_rle(160)]),
    "label seg more frames": lambda out: _segmentation(out, _JPEG_2000, [_jpeg_2000(64)] * 20_000),
    "label structures of many edges": lambda out: _structures(out, [_zigzag(40_000, 500)]),
    "label structures that overlap": lambda out: _structures(out, [_square(400)] * 400),
    "adapter header": _safetensors,
}  # fmt: skip
"""Functions that write the bombs, by name. "label" and "adapter" at the start of a name select the reader."""


def _read(name: str, path: Path, image: Any) -> None:
    from baps.adapters.adapter_file import read_adapter
    from baps.io import read_label_map, read_volume

    if name.startswith("adapter"):
        read_adapter(path)
    elif name.startswith("label"):
        read_label_map(path, image)
    else:
        read_volume(path)


def _memory_mb(field: str) -> float:
    """Read a figure of this process: VmRSS (current memory), VmHWM (peak memory) or VmSize (address space)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def main(folder: Path) -> None:
    """Read the bombs named on standard input; print a JSON object for each, with the verdict and the memory."""
    from baps.errors import BapsError
    from baps.imaging.volume import Volume

    warnings.simplefilter("ignore")
    os.environ["BAPS_MAX_VOLUME_MB"] = str(MAX_VOLUME_MB)
    image = Volume(np.broadcast_to(np.uint8(0), (512, 512, 1)), np.diag([-1.0, -1, 1, 1]))
    warm_up: dict[str, Callable[[Path], Path]] = {
        "a": _dicom,
        "b": lambda folder: _picture(folder, "png", size=16),
        "c": lambda folder: _tiff(folder, size=16),
        "d": lambda folder: _dicom(folder, _JPEG_2000, [_jpeg_2000(64)]),
        "label e": lambda folder: _structures(folder, [_square(9)]),
    }
    for name, make in warm_up.items():  # Imports must not count as memory of a file.
        _read(name, make(folder), image)
    resource.setrlimit(resource.RLIMIT_AS, (int(_memory_mb("VmSize") * 2**20) + _MAX_ADDRESS_SPACE,) * 2)
    print("ready", flush=True)
    for line in sys.stdin:
        name, path = line.rstrip("\n").split("\t")
        signal.alarm(_MAX_SECONDS)  # Ends the process.
        _reset_peak()
        before, message = _memory_mb("VmRSS"), ""
        try:
            _read(name, Path(path), image)
            verdict = "answered"
        except BapsError as error:
            verdict, message = "refused", str(error)
        except BaseException as error:  # Any other error would be a 500.
            verdict, message = "error", f"{type(error).__name__}: {error}"
        signal.alarm(0)
        growth_mb = _memory_mb("VmHWM") - before
        print(json.dumps({"verdict": verdict, "took_mb": round(growth_mb, 1), "said": message[:300]}), flush=True)


def _reset_peak() -> None:
    """Have the kernel measure the peak memory from now on."""
    import ctypes

    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def read_bombs(names: Sequence[str] = tuple(BOMBS)) -> dict[str, Any]:
    """Read bombs in a child process, one after the other.

    Args:
        names: names of the bombs.

    Returns:
        ``bombs`` (their number), ``bombs_over_bound`` (those that took more than twice the maximum volume or ended
        the process), ``most_mb`` (the largest memory of any), and ``by_name`` with ``verdict``, ``took_mb`` and
        ``said``.
    """
    rows: dict[str, dict[str, Any]] = {}
    child: subprocess.Popen[str] | None = None
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            bomb_folder = Path(tempfile.mkdtemp(dir=folder))
            path = BOMBS[name](bomb_folder)
            if child is None:
                child = _start_reader(Path(tempfile.mkdtemp(dir=folder)))
            assert child.stdin is not None and child.stdout is not None
            child.stdin.write(f"{name}\t{path}\n")
            child.stdin.flush()
            size = path.stat().st_size
            if line := child.stdout.readline():
                rows[name] = {**json.loads(line), "file_mb": round(size / 2**20, 3)}
            else:
                rows[name] = {"verdict": "crash", "took_mb": 0.0, "said": f"exit status {child.wait()}"}
                child = None
            path.unlink()
        if child is not None:
            child.communicate()
    return judge_bombs(rows)


def judge_bombs(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Count the bombs that took too much memory or caused an error.

    Args:
        rows: ``verdict`` and ``took_mb``, by name.

    Returns:
        As ``read_bombs``.
    """
    bound = _MAX_VOLUMES_HELD * MAX_VOLUME_MB + _SLACK_MB
    allowed = ("answered", "refused")
    over_bound = [name for name, row in rows.items() if row["took_mb"] > bound or row["verdict"] not in allowed]
    return {
        "bombs": len(rows),
        "bombs_over_bound": len(over_bound),
        "over_bound": over_bound,
        "most_mb": max(row["took_mb"] for row in rows.values()),
        "by_name": rows,
    }


def _start_reader(folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    child = subprocess.Popen(
        [sys.executable, "-m", "stress.fuzz.bombs", str(folder)],
        env=environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    if child.stdout.readline() != "ready\n":
        raise RuntimeError(f"The process that reads bombs cannot be started (exit status {child.wait()}).")
    return child


if __name__ == "__main__":
    main(Path(sys.argv[1]))
