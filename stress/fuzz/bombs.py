"""Small files that unpack to much, one for every format, codec and way to hide it: what memory does reading them take?

Each is read by the reader itself in a process of its own kind, which may hold twice the volume that is allowed and no
more; it is refused, or read within that. The largest files that are allowed are among them.
``python -m stress.fuzz.bombs`` is that process.
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

MOST_MB = 32
"""What a volume may have."""

_TIMES = 2
"""What a reader may hold, in volumes."""

_SLACK_MB = 24
"""What decoders and the interpreter take beside them, however large the volume."""

_SECONDS, _ROOM = 60, 4 << 30
"""What one file may take before the process is stopped."""

_SIDE = 8000
"""Of a picture of 64 MB."""

_SAMPLE = SAMPLE_DATA / "dicom" / "ct_01" / "001.dcm"

_JPEG_BASELINE, _JPEG_LOSSLESS, _JPEG_LS = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80"
_JPEG_2000, _HTJ2K, _RLE = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.5"
_DEFLATED, _DEFLATED_FRAMES = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.8.1"
_IMPLICIT = "1.2.840.10008.1.2"
_SEG, _RTSTRUCT = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.481.3"


def _zeros(megabytes: int, packer: Any = None) -> bytes:
    """So many megabytes of zeros, packed."""
    packer = packer or zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(megabytes)) + packer.flush()


def _npy(shape: Sequence[int], dtype: str = "|u1", version: int = 1) -> bytes:
    header = io.BytesIO()
    write = np.lib.format.write_array_header_1_0 if version == 1 else np.lib.format.write_array_header_2_0
    write(header, {"descr": dtype, "fortran_order": False, "shape": tuple(shape)})
    return header.getvalue()


def _npz(
    folder: Path, members: Sequence[tuple[str, bytes, int]], method: int = zipfile.ZIP_DEFLATED, zip64: bool = False
) -> Path:
    """Members by name, header, and megabytes of zeros behind it."""
    path = folder / "bomb.npz"
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", method) as archive:
        warnings.simplefilter("ignore")  # Of doubled names.
        for name, header, megabytes in members:
            with archive.open(name, "w", force_zip64=zip64) as member:
                member.write(header)
                for _ in range(megabytes):
                    member.write(bytes(1 << 20))
    return path


def _npz_lying(folder: Path) -> Path:
    """The directory says that the member is small."""
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


def _nifti(folder: Path, header: bytes, begin: bytes = bytes(4), megabytes: int = 1) -> Path:
    path = folder / "bomb.nii.gz"
    path.write_bytes(gzip.compress(header + begin) + _zeros(megabytes))
    return path


def _nifti_extension(folder: Path) -> Path:
    size = 160 << 20
    begin = b"\1\0\0\0" + struct.pack("<ii", size, 6)
    return _nifti(folder, _nifti_header((4, 4, 4), offset=352 + size), begin, 161)


def _nrrd(folder: Path, sizes: str, packed: bytes, encoding: str = "gzip", more: str = "") -> Path:
    path = folder / "bomb.nrrd"
    header = (
        f"NRRD0004\ntype: uint8\ndimension: 3\nspace: left-posterior-superior\nsizes: {sizes}\nspace directions: "
        f"(1,0,0) (0,1,0) (0,0,1)\nkinds: domain domain domain\nencoding: {encoding}\nspace origin: (0,0,0)\n{more}\n"
    )
    path.write_bytes(header.encode() + packed)
    return path


def _bzip2(megabytes: int) -> bytes:
    import bz2

    return _zeros(megabytes, bz2.BZ2Compressor())


def _metaimage(folder: Path, sizes: str, megabytes: int) -> Path:
    packed = _zeros(megabytes, zlib.compressobj(9))
    header = f"NDims = 3\nDimSize = {sizes}\nCompressedData = True\nCompressedDataSize = {len(packed)}\n"
    path = folder / "bomb.mha"
    path.write_bytes(header.encode() + b"ElementType = MET_UCHAR\nElementDataFile = LOCAL\n" + packed)
    return path


def _picture(folder: Path, suffix: str, mode: str = "L", side: int = _SIDE, **how: Any) -> Path:
    path = folder / f"bomb.{suffix}"
    Image.new(mode, (side, side)).save(path, **how)
    return path


def _png_with(folder: Path, kind: bytes, begin: bytes) -> Path:
    """A small picture, and beside it a chunk that unpacks to much."""
    path = _picture(folder, "png", side=16)
    chunk = begin + _zeros(160, zlib.compressobj(9))
    framed = struct.pack(">I", len(chunk)) + kind + chunk + struct.pack(">I", zlib.crc32(kind + chunk))
    content = path.read_bytes()
    path.write_bytes(content[:33] + framed + content[33:])
    return path


def _png_texts(folder: Path) -> Path:
    texts = PngImagePlugin.PngInfo()
    for number in range(200):
        texts.add_text(f"t{number}", "0" * ((1 << 20) - 1), zip=True)
    return _picture(folder, "png", side=16, pnginfo=texts)


def _tiff(folder: Path, packed: bytes | bytearray | None = None, side: int = _SIDE, **how: Any) -> Path:
    """A page; its only strip may be replaced by another, appended to the file."""
    path = folder / "bomb.tif"
    tifffile.imwrite(path, np.zeros((side, side), np.uint8), **how)
    if packed is not None:
        with tifffile.TiffFile(path, mode="r+") as file:
            tags, end = file.pages.first.tags, file.filehandle.size
            tags["StripOffsets"].overwrite([end])
            tags["StripByteCounts"].overwrite([len(packed)])
        with path.open("ab") as target:
            target.write(packed)
    return path


def _tiff_pages(folder: Path) -> Path:
    """A page that is followed by a hundred thousand others, of one tag each."""
    path = _tiff(folder, side=16)
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
    """A small page of one enormous tile."""
    path = _tiff(folder, side=16, tile=(16, 16), compression="zlib")
    with tifffile.TiffFile(path, mode="r+") as file:
        for name in ("TileWidth", "TileLength"):
            file.pages.first.tags[name].overwrite(32_000)
    return path


def _jpeg_2000(side: int = _SIDE, form: str = "j2k", components: int = 1) -> bytes:
    shape = (side, side) if components == 1 else (side, side, components)
    return bytes(imagecodecs.jpeg2k_encode(np.zeros(shape, np.uint8), codecformat=form, reversible=True))


def _components(number: int) -> bytes:
    """A JPEG 2000 codestream of 64 x 64 pixels that says it has so many components."""
    stream = _jpeg_2000(64)
    length = int.from_bytes(stream[4:6], "big") + 3 * (number - 1)
    head = stream[:4] + struct.pack(">H", length) + stream[6:40] + struct.pack(">H", number)
    return head + stream[42:45] * number + stream[45:]


def _high_throughput() -> bytes:
    """The beginning of a codestream in which the blocks are said to be those of HTJ2K."""
    stream = _jpeg_2000(_SIDE)
    end = 4 + int.from_bytes(stream[4:6], "big")
    capabilities = b"\xff\x50" + struct.pack(">HIH", 8, 1 << 17, 0)
    return stream[:6] + struct.pack(">H", 1 << 14) + stream[8:end] + capabilities + stream[end:]


def _rle(megabytes: int) -> bytes:
    return struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\0" * (megabytes << 13)


def _dicom(folder: Path, syntax: str = "", frames: Sequence[bytes | bytearray] = (), **attributes: Any) -> Path:
    """A slice of 64 x 64 bytes, and other attributes; its pixels are compressed frames."""
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
    return _saved(folder, image, syntax)


def _saved(folder: Path, image: Any, syntax: str) -> Path:
    path = folder / "bomb.dcm"
    if syntax:
        image.file_meta.TransferSyntaxUID = UID(syntax)
        image.is_implicit_VR = syntax == _IMPLICIT  # Whose values may be long.
    if syntax not in (_DEFLATED_FRAMES, _HTJ2K):
        image.save_as(path)
        return path
    with path.open("wb") as file:  # pydicom knows neither, and would not write them.
        file.write(b"\0" * 128 + b"DICM")
        pydicom.filewriter.write_file_meta_info(file, image.file_meta)
        target = pydicom.filebase.DicomFileLike(file)
        target.is_little_endian, target.is_implicit_VR = True, False
        pydicom.filewriter.write_dataset(target, image)
    return path


def _dicom_deflated(folder: Path) -> Path:
    image = pydicom.dcmread(_SAMPLE)
    image.add_new(0x00091002, "OB", bytes(160 << 20))
    return _saved(folder, image, _DEFLATED)


def _dicom_items(folder: Path, tag: tuple[int, int] = (0x5200, 0x9230), items: int = 1 << 20) -> Path:
    """Behind the pixels a sequence of a million items of eight bytes, each of which becomes an object."""
    path = _dicom(folder)
    body = struct.pack("<HHI", 0xFFFE, 0xE000, 0) * items
    path.write_bytes(path.read_bytes() + struct.pack("<HH2sHI", *tag, b"SQ", 0, len(body)) + body)
    return path


def _dicom_elements(folder: Path) -> Path:
    """A million empty elements before the pixels."""
    path = _dicom(folder)
    begin, pixels, end = path.read_bytes().partition(struct.pack("<HH", 0x7FE0, 0x0010))
    groups, elements = range(0x6001, 0x6001 + 32, 2), range(0x1000, 0x1000 + 0xE000)
    more = b"".join(struct.pack("<HH2sH", group, element, b"LO", 0) for group in groups for element in elements)
    path.write_bytes(begin + more + pixels + end)
    return path


def _dicom_long_value(folder: Path, tag: tuple[int, int]) -> Path:
    """Millions of numbers where one belongs: implicit values may be long."""
    path, value = _dicom(folder, _IMPLICIT), b"1\\" * (4 << 20) + b"1 "
    begin, found, end = path.read_bytes().rpartition(struct.pack("<HH", *tag))
    length = struct.unpack("<I", end[:4])[0]
    path.write_bytes(begin + found + struct.pack("<I", len(value)) + value + end[4 + length :])
    return path


def _dicom_late_rows(folder: Path) -> Path:
    """Behind the pixels it says once more how large it is."""
    path = _dicom(folder, _JPEG_2000, [_jpeg_2000()])
    late = Dataset()
    late.Rows = late.Columns = _SIDE
    target = pydicom.filebase.DicomBytesIO()
    target.is_little_endian, target.is_implicit_VR = True, False
    pydicom.filewriter.write_dataset(target, late)
    path.write_bytes(path.read_bytes() + target.getvalue())
    return path


def _segmentation(folder: Path, syntax: str = "", frames: Sequence[bytes | bytearray] = (), **attributes: Any) -> Path:
    """A segmentation of one frame on the image that labels are read for, if it were sound."""
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
    """A structure set, one structure a contour, (N, 3) mm."""
    said, drawn = [], []
    for number, points in enumerate(contours, start=1):
        structure, contour, roi = Dataset(), Dataset(), Dataset()
        structure.ROINumber = roi.ReferencedROINumber = number
        structure.ROIName = f"organ {number}"
        contour.ContourGeometricType, contour.ContourData = "CLOSED_PLANAR", points.ravel().tolist()
        roi.ContourSequence = [contour]
        said.append(structure)
        drawn.append(roi)
    return _dicom(folder, _IMPLICIT, SOPClassUID=_RTSTRUCT, StructureSetROISequence=said, ROIContourSequence=drawn)


def _zigzag(points: int, side: float) -> NDArray[np.float64]:
    x = np.linspace(0, side, points)
    return np.stack([x, np.where(np.arange(points) % 2, side, 0), np.zeros(points)], 1).round(2)


def _square(side: float) -> NDArray[np.float64]:
    return np.array([[0, 0, 0], [side, 0, 0], [side, side, 0], [0, side, 0]], float)


def _safetensors(folder: Path) -> Path:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    path = folder / "bomb.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    return path


def _largest_dicom(folder: Path, syntax: str, encode: Callable[[NDArray[np.uint16]], bytes] | None) -> Path:
    """Many frames of 16 bits, as many as are allowed."""
    frame = np.zeros((1024, 1024), np.uint16)
    count = (MOST_MB << 20) // frame.nbytes
    return _dicom(
        folder, syntax, [encode(frame)] * count if encode else (),
        Rows=1024, Columns=1024, BitsAllocated=16, BitsStored=16, HighBit=15, NumberOfFrames=count,
        PixelData=bytes(count * frame.nbytes),
    )  # fmt: skip


_FRAME = (_SIDE, _SIDE)

BOMBS: dict[str, Callable[[Path], Path]] = {
    "npz header": lambda to: _npz(to, [("img.npy", _npy((60_000, 60_000)), 1)]),
    "npz name": lambda to: _npz(to, [("img", _npy(_FRAME), 62)]),
    "npz both names": lambda to: _npz(to, [("img.npy", _npy((4, 4)), 0), ("img", _npy((16_000, 10_000)), 160)]),
    "npz doubled": lambda to: _npz(to, [("img.npy", _npy((4, 4)), 0), ("img.npy", _npy((16_000, 10_000)), 160)]),
    "npz more data": lambda to: _npz(to, [("img.npy", _npy((16, 16)), 160)]),
    "npz header version 2": lambda to: _npz(to, [("img.npy", _npy((60_000, 60_000), version=2), 160)]),
    "npz zip64": lambda to: _npz(to, [("img.npy", _npy((16_000, 10_000)), 160)], zip64=True),
    "npz lzma": lambda to: _npz(to, [("img.npy", _npy((16_000, 10_000)), 160)], zipfile.ZIP_LZMA),
    "npz bzip2": lambda to: _npz(to, [("img.npy", _npy((16_000, 10_000)), 160)], zipfile.ZIP_BZIP2),
    "npz lying directory": _npz_lying,
    "npz no shape": lambda to: _npz(to, [("img.npy", _npy((0, 1 << 40)), 160)]),
    "npz largest": lambda to: _npz(to, [("img.npy", _npy((4096, 8192)), MOST_MB)]),
    "nifti header": lambda to: _nifti(to, _nifti_header((4096, 4096, 512))),
    "nifti extension": _nifti_extension,
    "nifti offset": lambda to: _nifti(to, _nifti_header((4, 4, 4), offset=352 + (1 << 40)), megabytes=160),
    "nifti scaled": lambda to: _nifti(to, _nifti_header((512, 512, 126), np.uint8, slope=0.5), megabytes=32),
    "nifti more data": lambda to: _nifti(to, _nifti_header((16, 16, 4)), megabytes=160),
    "nifti largest": lambda to: _nifti(to, _nifti_header((512, 512, 64)), megabytes=32),
    "nifti largest, scaled": lambda to: _nifti(to, _nifti_header((512, 512, 32), np.int32, slope=0.5), megabytes=32),
    "nifti largest, fractions": lambda to: _nifti(to, _nifti_header((512, 512, 16), np.float64), megabytes=32),
    "nrrd header": lambda to: _nrrd(to, "4096 4096 512", _zeros(1)),
    "nrrd more data": lambda to: _nrrd(to, "16 16 4", _zeros(160)),
    "nrrd line skip": lambda to: _nrrd(to, "16 16 4", b"\n" + _zeros(160), more="line skip: 1\n"),
    "nrrd byte skip": lambda to: _nrrd(to, "16 16 4", _zeros(160), more=f"byte skip: {160 << 20}\n"),
    "nrrd byte skip from the end": lambda to: _nrrd(to, "16 16 4", _zeros(160), more="byte skip: -1\n"),
    "nrrd bzip2": lambda to: _nrrd(to, "16 16 4", _bzip2(160), "bzip2"),
    "nrrd text": lambda to: _nrrd(to, "16 16 4", b"0 " * (24 << 20), "ascii"),
    "nrrd largest": lambda to: _nrrd(to, "512 512 128", _zeros(32)),
    "metaimage header": lambda to: _metaimage(to, "4096 4096 512", 1),
    "metaimage more data": lambda to: _metaimage(to, "16 16 4", 160),
    "metaimage largest": lambda to: _metaimage(to, "512 512 128", 32),
    "png": lambda to: _picture(to, "png", compress_level=9),
    "png colours": lambda to: _picture(to, "png", "RGB"),
    "png palette": lambda to: _picture(to, "png", "P", 5000),
    "png bits": lambda to: _picture(to, "png", "1", 12_000),
    "png profile": lambda to: _png_with(to, b"iCCP", b"p\0\0"),
    "png text": lambda to: _png_with(to, b"zTXt", b"t\0\0"),
    "png texts": _png_texts,
    "png international text": lambda to: _png_with(to, b"iTXt", b"t\0\1\0\0\0"),
    "jpeg": lambda to: _picture(to, "jpg"),
    "jpeg progressive": lambda to: _picture(to, "jpg", "RGB", progressive=True),
    "jpeg largest": lambda to: _picture(to, "jpg", "RGB", 2000),
    "tiff": lambda to: _tiff(to, compression="zlib"),
    "tiff strip, zlib": lambda to: _tiff(to, _zeros(160, zlib.compressobj(9)), 16, compression="zlib"),
    "tiff strip, lzma": lambda to: _tiff(to, imagecodecs.lzma_encode(bytes(160 << 20)), 16, compression="lzma"),
    "tiff strip, zstd": lambda to: _tiff(to, imagecodecs.zstd_encode(bytes(160 << 20)), 16, compression="zstd"),
    "tiff strip, lzw": lambda to: _tiff(to, imagecodecs.lzw_encode(bytes(80 << 20)), 16, compression="lzw"),
    "tiff strip, packbits": lambda to: _tiff(to, b"\x81\0" * (2 << 20), 16, compression="packbits"),
    "tiff strip, jpeg": lambda to: _tiff(to, imagecodecs.jpeg8_encode(np.zeros(_FRAME, np.uint8)), 16,
                                         compression="jpeg"),
    "tiff tile": _tiff_tile,
    "tiff pages": _tiff_pages,
    "tiff largest": lambda to: _tiff(to, side=5700, compression="zlib"),
    "dicom header": lambda to: _dicom(to, Rows=60_000, Columns=60_000),
    "dicom frames": lambda to: _dicom(to, NumberOfFrames=60_000),
    "dicom many frames": lambda to: _dicom(to, Rows=1, Columns=1, NumberOfFrames=30_000_000),
    "dicom jpeg": lambda to: _dicom(to, _JPEG_BASELINE, [imagecodecs.jpeg8_encode(np.zeros(_FRAME, np.uint8))]),
    "dicom jpeg lossless": lambda to: _dicom(to, _JPEG_LOSSLESS,
                                             [imagecodecs.ljpeg_encode(np.zeros(_FRAME, np.uint8))]),
    "dicom jpeg-ls": lambda to: _dicom(to, _JPEG_LS, [imagecodecs.jpegls_encode(np.zeros(_FRAME, np.uint8))]),
    "dicom jpeg 2000": lambda to: _dicom(to, _JPEG_2000, [_jpeg_2000()]),
    "dicom jpeg 2000 in boxes": lambda to: _dicom(to, _JPEG_2000, [_jpeg_2000(form="jp2")]),
    "dicom jpeg 2000 components": lambda to: _dicom(to, _JPEG_2000, [_components(12_000)]),
    "dicom jpeg 2000 as said": lambda to: _dicom(to, _JPEG_2000, [_jpeg_2000(5700)], Rows=5700, Columns=5700),
    "dicom jpeg 2000, second frame": lambda to: _dicom(to, _JPEG_2000, [_jpeg_2000(64), _jpeg_2000()],
                                                       NumberOfFrames=2),
    "dicom more frames": lambda to: _dicom(to, _JPEG_BASELINE, [imagecodecs.jpeg8_encode(
        np.zeros((512, 512), np.uint8))] * 2000, Rows=512, Columns=512),
    "dicom htj2k": lambda to: _dicom(to, _HTJ2K, [_high_throughput()]),
    "dicom rle": lambda to: _dicom(to, _RLE, [_rle(160)]),
    "dicom rle frames": lambda to: _dicom(to, _RLE, [_rle(1)] * 160),
    "dicom deflated": _dicom_deflated,
    "dicom deflated frame": lambda to: _dicom(to, _DEFLATED_FRAMES, [_zeros(160, zlib.compressobj(
        9, zlib.DEFLATED, -zlib.MAX_WBITS))]),
    "dicom late rows": _dicom_late_rows,
    "dicom items": _dicom_items,
    "dicom elements": _dicom_elements,
    "dicom long position": lambda to: _dicom_long_value(to, (0x0020, 0x0032)),
    "dicom long slope": lambda to: _dicom_long_value(to, (0x0028, 0x1053)),
    "dicom largest": lambda to: _largest_dicom(to, "", None),
    "dicom largest, jpeg 2000": lambda to: _largest_dicom(
        to, _JPEG_2000, lambda frame: bytes(imagecodecs.jpeg2k_encode(frame, codecformat="j2k", reversible=True))),
    "dicom largest, jpeg-ls": lambda to: _largest_dicom(to, _JPEG_LS, lambda frame: bytes(
        imagecodecs.jpegls_encode(frame))),
    "label nrrd more data": lambda to: _nrrd(to, "16 16 4", _zeros(160)),
    "label npz name": lambda to: _npz(to, [("seg", _npy(_FRAME), 62)]),
    "label seg items": lambda to: _dicom_items(to, (0x7FE1, 0x1010)),
    "label seg header": lambda to: _segmentation(to, Rows=60_000, Columns=60_000),
    "label seg frames": lambda to: _segmentation(to, NumberOfFrames=1_000_000_000),
    "label seg jpeg 2000": lambda to: _segmentation(to, _JPEG_2000, [_jpeg_2000()]),
    "label seg rle": lambda to: _segmentation(to, _RLE, [_rle(160)]),
    "label seg more frames": lambda to: _segmentation(to, _JPEG_2000, [_jpeg_2000(64)] * 20_000),
    "label structures of many edges": lambda to: _structures(to, [_zigzag(40_000, 500)]),
    "label structures that overlap": lambda to: _structures(to, [_square(400)] * 400),
    "adapter header": _safetensors,
}  # fmt: skip
"""By what they are; what comes first says whether they are read as labels or as an adapter, or as an image."""


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
    """VmRSS is held now, VmHWM was held at most, VmSize is mapped."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def main(folder: Path) -> None:
    """Read the bomb of each name that comes in; print a JSON object for each: what happened, what it took."""
    from baps.errors import BapsError
    from baps.imaging.volume import Volume

    warnings.simplefilter("ignore")
    os.environ["BAPS_MAX_VOLUME_MB"] = str(MOST_MB)
    image = Volume(np.broadcast_to(np.uint8(0), (512, 512, 1)), np.diag([-1.0, -1, 1, 1]))
    small: dict[str, Callable[[Path], Path]] = {
        "a": _dicom,
        "b": lambda to: _picture(to, "png", side=16),
        "c": lambda to: _tiff(to, side=16),
        "d": lambda to: _dicom(to, _JPEG_2000, [_jpeg_2000(64)]),
        "label e": lambda to: _structures(to, [_square(9)]),
    }
    for name, make in small.items():  # Imports are no part of what a file takes.
        _read(name, make(folder), image)
    resource.setrlimit(resource.RLIMIT_AS, (int(_memory_mb("VmSize") * 2**20) + _ROOM,) * 2)
    print("ready", flush=True)
    for line in sys.stdin:
        name, path = line.rstrip("\n").split("\t")
        signal.alarm(_SECONDS)  # Which ends the process.
        _reset_peak()
        before, said = _memory_mb("VmRSS"), ""
        try:
            _read(name, Path(path), image)
            verdict = "answered"
        except BapsError as error:
            verdict, said = "refused", str(error)
        except BaseException as error:  # Whatever it is, it would have been a 500.
            verdict, said = "error", f"{type(error).__name__}: {error}"
        signal.alarm(0)
        took = _memory_mb("VmHWM") - before
        print(json.dumps({"verdict": verdict, "took_mb": round(took, 1), "said": said[:300]}), flush=True)


def _reset_peak() -> None:
    """Have the kernel count the most memory from now on."""
    import ctypes

    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def read_bombs(names: Sequence[str] = tuple(BOMBS)) -> dict[str, Any]:
    """Have bombs read, one after the other.

    Returns:
        ``bombs``, ``bombs_over_bound`` (those that took more than twice the volume that is allowed, or that the process
        did not survive), ``most_mb`` of any, and by name what happened: ``verdict``, ``took_mb``, ``said``.
    """
    rows: dict[str, dict[str, Any]] = {}
    child: subprocess.Popen[str] | None = None
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            own = Path(tempfile.mkdtemp(dir=folder))
            path = BOMBS[name](own)
            if child is None:
                child = _started(Path(tempfile.mkdtemp(dir=folder)))
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
    """Count the bombs that took too much memory, or were answered with an error.

    Args:
        rows: what happened, by name: ``verdict`` and ``took_mb``.

    Returns:
        As ``read_bombs``.
    """
    most = _TIMES * MOST_MB + _SLACK_MB
    good = ("answered", "refused")
    over = [name for name, row in rows.items() if row["took_mb"] > most or row["verdict"] not in good]
    return {
        "bombs": len(rows),
        "bombs_over_bound": len(over),
        "over_bound": over,
        "most_mb": max(row["took_mb"] for row in rows.values()),
        "by_name": rows,
    }


def _started(folder: Path) -> subprocess.Popen[str]:
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
