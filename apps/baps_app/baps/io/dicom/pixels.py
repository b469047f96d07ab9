"""The stored values of DICOM images.

pydicom reads a file, and SimpleITK decodes what is compressed or coloured: the pixels go to it in a file of their own
with the attributes that describe them and no others, so that both see the same, and no rescaling comes between. It
turns YBR colour into what is shown. MONOCHROME1, where less is brighter, is turned here: SimpleITK fails on signed
values.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pydicom
import SimpleITK
from numpy.typing import NDArray
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_pixel_data_frame, get_nr_fragments
from pydicom.errors import InvalidDicomError
from pydicom.filebase import DicomBytesIO, DicomFileLike
from pydicom.pixel_data_handlers.util import get_expected_length
from pydicom.tag import BaseTag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

from baps.errors import InputError
from baps.io.dicom.codestream import check_frames, split_frames
from baps.utils.limits import check_size, max_volume_bytes

_PIXEL_DESCRIPTION = (
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
)
_NEEDED = ("PhotometricInterpretation", "BitsAllocated")

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
"""A class of images whose values are not rescaled."""

_UNCOMPRESSED = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
_DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"
_NEWER_SYNTAXES = {
    "1.2.840.10008.1.2.4.110": "JPEG XL Lossless",
    "1.2.840.10008.1.2.4.111": "JPEG XL JPEG Recompression",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
    "1.2.840.10008.1.2.4.201": "High-Throughput JPEG 2000 Lossless",
    "1.2.840.10008.1.2.4.202": "High-Throughput JPEG 2000 with RPCL Options Lossless",
    "1.2.840.10008.1.2.4.203": "High-Throughput JPEG 2000",
    "1.2.840.10008.1.2.4.204": "JPIP HTJ2K Referenced",
    "1.2.840.10008.1.2.4.205": "JPIP HTJ2K Referenced Deflate",
    _DEFLATED_FRAMES: "Deflated Image Frame Compression",
}
"""Names of transfer syntaxes that this pydicom does not know."""

_UNDEFINED_LENGTH = 0xFFFFFFFF
"""The length of a value that ends with a mark."""

_FIRST_GROUP = 0x0008
"""Of what an image holds; those before it are the file's own, or commands."""

_PART = 1 << 20
"""Bytes of the frames that are decoded at once."""

_PIECE = 1 << 20
"""Bytes that are inflated at once."""

_ITEMS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
"""What each item of a sequence begins with, little and big endian."""

_MOST_ITEMS, _LEAST_ITEMS = 1_000_000, 100_000
"""Items of sequences, or elements beside them, of one object. An enhanced object of 20,000 frames has 200,000."""

_BYTES_EACH, _BYTES_EACH_VALUE = 1 << 12, 1 << 8
"""Of a volume as large as is allowed, for each item, which takes 500 in memory, and for each value of many."""

_LONGEST_VALUE = 1 << 20
_SHORT = frozenset(
    [
        "AE",
        "AS",
        "AT",
        "CS",
        "DA",
        "DS",
        "DT",
        "FD",
        "FL",
        "IS",
        "LO",
        "PN",
        "SH",
        "SL",
        "SS",
        "SV",
        "TM",
        "UI",
        "UL",
        "US",
        "UV",
    ]
)
"""Kinds of values of which each becomes an object. Implicit ones may be long; none that is needed is."""


def is_dicom(source: Path | BytesIO) -> bool:
    """Whether a file is DICOM by its first bytes, also one that lacks the preamble."""
    start = _start(source)
    return start[128:] == b"DICM" or _starts_with_attribute(start)


def _start(source: Path | BytesIO) -> bytes:
    if isinstance(source, BytesIO):
        return source.getbuffer()[:132].tobytes()
    with source.open("rb") as file:
        return file.read(132)


def _starts_with_attribute(start: bytes) -> bool:
    """Whether bytes begin as a data set without preamble does: with an attribute of group 2 or 8."""
    for order in ("little", "big"):
        tag = int.from_bytes(start[:2], order) << 16 | int.from_bytes(start[2:4], order)  # type: ignore[arg-type]
        if len(start) >= 16 and tag >> 16 in (0x0002, 0x0008) and dictionary_has_tag(tag):
            implicit = order == "little" and int.from_bytes(start[4:8], "little") < 256
            return implicit or start[4:6] == dictionary_VR(tag).encode()
    return False


def read_dataset(source: Path | BytesIO, pixels: bool = False, tags: tuple[str, ...] | None = None) -> FileDataset:
    """Read a DICOM file, with or without preamble, deflated or not.

    Args:
        source: the file, or its content.
        pixels: with the pixels.
        tags: keywords of the attributes that are read; None for all.

    Raises:
        InvalidDicomError: if it is no DICOM.
        InputError: if it inflates to more than is allowed.
    """
    wanted = None if tags is None else list(tags)
    force = _start(source)[128:] != b"DICM"
    if force and not is_dicom(source):
        raise InvalidDicomError
    if not force and _syntax(source) == DeflatedExplicitVRLittleEndian:
        source = _inflated(source)
    check_elements(source)
    found: FileDataset = pydicom.dcmread(source, stop_before_pixels=not pixels, specific_tags=wanted, force=force)
    return found


def check_elements(source: Path | BytesIO) -> None:
    """Refuse an object whose elements and values take more memory than voxels: two to eight bytes each become 500.

    Raises:
        InputError: if it has too many.
    """
    bound = max_volume_bytes()
    most, most_values = min(max(bound // _BYTES_EACH, _LEAST_ITEMS), _MOST_ITEMS), bound // _BYTES_EACH_VALUE
    name = source.name if isinstance(source, Path) else "The DICOM object"
    with _opened(source) as file:
        size = file.seek(0, os.SEEK_END)
        if size < 2 * min(most, most_values):  # No value is shorter.
            return
        file.seek(0)
        enough = sum(sum(map(part.count, _ITEMS)) for part in _parts(file, size)) > most
        places: list[tuple[int, str]] = []

        def is_enough(tag: BaseTag, vr: str | None, length: int) -> bool:
            nonlocal enough
            known = vr or (dictionary_VR(tag) if dictionary_has_tag(tag) else "UN")
            places.append((file.tell(), known))
            enough = len(places) > most or (known in _SHORT and length > _LONGEST_VALUE)
            return enough

        if not enough:
            file.seek(0)
            with suppress(Exception):  # What cannot be read is said when it is.
                pydicom.filereader.read_partial(file, stop_when=is_enough, specific_tags=["SOPClassUID"], force=True)
        values = 0
        for (start, vr), (end, _) in pairwise([*places, (size, "")]):
            if vr == "SQ" and not enough:
                file.seek(start)
                values += sum(part.count(b"\\") for part in _parts(file, end - start))
        enough = enough or values > most_values
    if enough:
        raise InputError(
            f"{name} has a value of more than {_LONGEST_VALUE >> 20} MB, or more than {most:,} elements or "
            f"{most_values:,} values in sequences, which no image or label needs. It is broken; export it again."
        )


def _parts(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Read so many bytes part by part; each part begins with the last three of the one before, for what is cut."""
    kept = b""
    while size > 0 and (part := file.read(min(size, _PIECE))):
        size -= len(part)
        yield kept + part
        kept = part[-3:]


def _syntax(source: Path | BytesIO) -> str:
    with _opened(source) as file:
        file.seek(132)
        return str(pydicom.filereader._read_file_meta_info(file).get("TransferSyntaxUID") or "")


@contextmanager
def _opened(source: Path | BytesIO) -> Iterator[BinaryIO]:
    """The file at its beginning, where it is again at the end."""
    if isinstance(source, BytesIO):
        yield source
        source.seek(0)
    else:
        with source.open("rb") as file:
            yield file


def _inflated(source: Path | BytesIO) -> BytesIO:
    """The file with its data set inflated, piece by piece and not beyond what is allowed."""
    name = source.name if isinstance(source, Path) else "The DICOM object"
    with _opened(source) as file:
        file.seek(132)
        meta = pydicom.filereader._read_file_meta_info(file)
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        packed = file.read()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    target = BytesIO()
    target.write(b"\0" * 128 + b"DICM")
    pydicom.filewriter.write_file_meta_info(target, meta, enforce_standard=False)
    while packed and not unpacker.eof:
        target.write(unpacker.decompress(packed, _PIECE))
        check_size(name, (target.tell(),), 1)
        packed = unpacker.unconsumed_tail
    target.seek(0)
    return target


def broken(name: str) -> InputError:
    """The error of a file that ends too early, or holds what is no DICOM."""
    return InputError(f"{name} cannot be read. The file is broken or cut off; export it again.")


def syntax_name(uid: str) -> str:
    """Name and UID of a transfer syntax, for a message."""
    name = _NEWER_SYNTAXES.get(uid) or UID(uid).name
    return f"{name} ({uid})" if name != uid else f"an unknown way ({uid})"


def decode(path: Path) -> NDArray[np.generic]:
    """Decode the stored values of a DICOM file.

    Returns:
        (frames, rows, columns) or (frames, rows, columns, 3); integers, or floats of an object that stores them.

    Raises:
        InputError: if the file is cut off, or its transfer syntax cannot be decoded; the sentence names it.
    """
    try:
        dataset = read_dataset(path, pixels=True)
    except InputError:
        raise
    except Exception as error:  # pydicom raises many kinds.
        raise broken(path.name) from error
    _check_whole(dataset, path)
    syntax = str(dataset.file_meta.get("TransferSyntaxUID") or _guessed_syntax(dataset))
    count, rows, columns = int(dataset.get("NumberOfFrames") or 1), int(dataset.Rows), int(dataset.Columns)
    samples = int(dataset.get("SamplesPerPixel") or 1)
    # What stands behind the pixels is not in the header that was read before.
    check_size(path.name, (count, rows, columns, samples), -(-int(dataset.get("BitsAllocated") or 16) // 8))
    floats = next((one for one in ("FloatPixelData", "DoubleFloatPixelData") if one in dataset), None)
    try:
        if floats:
            values = np.frombuffer(dataset[floats].value, "<f4" if floats == "FloatPixelData" else "<f8")
            if values.size < count * rows * columns:
                raise broken(path.name)
            return values[: count * rows * columns].reshape(count, rows, columns)
        if "PixelData" not in dataset:
            raise InputError(
                f"{path.name} holds no pixels (PixelData); its transfer syntax is {syntax_name(syntax)}. Export the "
                "image with its pixels."
            )
        missing = [keyword for keyword in _NEEDED if dataset.get(keyword) in (None, "")]
        if missing:
            raise InputError(
                f"{path.name} does not say how its pixels are stored ({', '.join(missing)}). Export it again."
            )
        if syntax == _DEFLATED_FRAMES:
            _inflate_frames(dataset, count)
            syntax = ExplicitVRLittleEndian
        if syntax in _UNCOMPRESSED and len(dataset.PixelData) < get_expected_length(dataset):
            raise broken(path.name)
        if syntax not in _UNCOMPRESSED:
            whole = dataset["PixelData"]
            dataset.add_new("PixelData", whole.VR, _one_fragment_a_frame(dataset))
            for table in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
                dataset.pop(table, None)
            check_frames(path.name, dataset.PixelData, syntax, count, (rows, columns, samples))
        decoded = _by_parts(dataset, syntax, path.name, count)
    except InputError:
        raise
    except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError, zlib.error) as error:
        raise _undecodable(path.name, syntax) from error
    wanted = (count, rows, columns) if samples == 1 and decoded.ndim == 3 else (count, rows, columns, 3)
    if decoded.shape != wanted:
        raise InputError(
            f"{path.name} says that it has {count} frames of {rows} rows and {columns} columns, but its pixels are "
            f"{' x '.join(map(str, decoded.shape))}. Export it again."
        )
    return decoded


def _guessed_syntax(dataset: FileDataset) -> str:
    """Of a file without the header that says it: pydicom found it out."""
    if not dataset.is_little_endian:
        return str(ExplicitVRBigEndian)
    return str(ImplicitVRLittleEndian if dataset.is_implicit_VR else ExplicitVRLittleEndian)


def _inflate_frames(dataset: Dataset, count: int) -> None:
    """Unpack frames that were deflated one by one (DICOM PS3.5, A.4.12)."""
    size = get_expected_length(dataset) // count
    frames = []
    for packed in generate_pixel_data_frame(dataset.PixelData, count):
        frames.append(zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, size + 1))
    dataset.PixelData = b"".join(frame[:size] for frame in frames)
    dataset["PixelData"].is_undefined_length = False


def decode_run_lengths(dataset: Dataset, name: str) -> NDArray[np.generic]:
    """Decode the grey values of a dataset that is packed as RLE, (frames, rows, columns), and drop its PixelData.

    pydicom would unpack all that a frame holds.

    Raises:
        InputError: if they cannot be decoded.
    """
    dataset.add_new("PhotometricInterpretation", "CS", "MONOCHROME2")  # Colours are of no interest.
    return _by_parts(dataset, str(RLELossless), name, int(dataset.get("NumberOfFrames") or 1))


def _by_parts(dataset: Dataset, syntax: str, name: str, count: int) -> NDArray[np.generic]:
    """Decode a few frames at a time: a decoder holds them three times. The dataset loses its PixelData."""
    if count == 1 or int(dataset.BitsAllocated) in (1, 64):
        return _by_itk(dataset, syntax, name)
    native, whole = syntax in _UNCOMPRESSED, dataset["PixelData"]
    frames = [] if native else list(split_frames(whole.value, syntax))
    size = get_expected_length(dataset) // count
    step = max(1, _PART // max(size, 1))
    del dataset.PixelData
    found: NDArray[np.generic] | None = None
    for begin in range(0, count, step):
        end = min(begin + step, count)
        packed = whole.value[begin * size : end * size] if native else encapsulate(frames[begin:end])
        dataset.add_new("PixelData", whole.VR, packed)
        dataset.add_new("NumberOfFrames", "IS", end - begin)
        part = _by_itk(dataset, syntax, name)
        if found is None:
            found = np.empty((count, *part.shape[1:]), part.dtype)
        found[begin:end] = part
    assert found is not None
    return found


def _by_itk(dataset: Dataset, syntax: str, name: str) -> NDArray[np.generic]:
    pixels = Dataset()
    for keyword in _PIXEL_DESCRIPTION:
        if keyword in dataset:
            pixels[keyword] = dataset[keyword]
    native = syntax in _UNCOMPRESSED
    pixels.PixelData = dataset.PixelData if native else _one_fragment_a_frame(dataset)
    darker = pixels.PhotometricInterpretation == "MONOCHROME1"
    if darker:
        pixels.PhotometricInterpretation = "MONOCHROME2"
    bits = int(pixels.BitsAllocated)
    plain = native and dataset.is_little_endian and pixels.PhotometricInterpretation == "MONOCHROME2"
    if bits in (1, 64) or (plain and bits in (8, 16, 32)):  # SimpleITK does not read the former.
        found = _by_numpy(dataset, bits, name)
        return _turned(found, pixels) if darker else found
    pixels.SamplesPerPixel = pixels.get("SamplesPerPixel") or 1
    big = native and syntax == ExplicitVRBigEndian
    # Of big-endian pixels it says whether bytes are swapped.
    pixels["PixelData"].VR = dataset["PixelData"].VR if big else "OW" if native and bits > 8 else "OB"
    pixels["PixelData"].is_undefined_length = not native
    pixels.SOPClassUID = _SECONDARY_CAPTURE
    pixels.SOPInstanceUID = generate_uid()
    pixels.file_meta = FileMetaDataset()
    pixels.file_meta.TransferSyntaxUID = UID(syntax) if big or not native else ExplicitVRLittleEndian
    pixels.file_meta.MediaStorageSOPClassUID = _SECONDARY_CAPTURE
    pixels.file_meta.MediaStorageSOPInstanceUID = pixels.SOPInstanceUID
    pixels.is_little_endian, pixels.is_implicit_VR = not big, False
    with tempfile.NamedTemporaryFile(prefix="baps-pixels-", suffix=".dcm") as file:
        write_dataset(Path(file.name), pixels)
        del dataset.PixelData, pixels.PixelData  # The decoder has its own.
        reader = SimpleITK.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(file.name)
        try:
            found = SimpleITK.GetArrayFromImage(reader.Execute())
        except RuntimeError as error:
            raise _undecodable(name, syntax) from error
    return _turned(found, pixels) if darker else found


def _one_fragment_a_frame(dataset: Dataset) -> bytes:
    """Compressed pixels with each frame in one piece, and a basic table of where they begin: ITK knows no other."""
    count = int(dataset.get("NumberOfFrames") or 1)
    if "ExtendedOffsetTable" not in dataset and _fragments(dataset.PixelData) == count:
        whole: bytes = dataset.PixelData
        return whole
    packed: bytes = encapsulate(list(generate_pixel_data_frame(dataset.PixelData, count)))
    return packed


def _fragments(packed: bytes) -> int:
    source = DicomBytesIO(packed)
    source.is_little_endian = True
    source.seek(8 + int.from_bytes(packed[4:8], "little"))  # Behind the table.
    count: int = get_nr_fragments(source)
    return count


def _turned(values: NDArray[np.generic], pixels: Dataset) -> NDArray[np.generic]:
    """Grey values of which less was brighter, so that more is: the least becomes the greatest."""
    if pixels.get("PixelRepresentation"):
        return ~values  # type: ignore[operator,no-any-return]
    bits = int(pixels.get("BitsStored") or pixels.BitsAllocated)
    return values.dtype.type(2**bits - 1) - values  # type: ignore[operator,no-any-return]


def write_dataset(path: Path, dataset: Dataset) -> None:
    """Write a data set as a file, also one of a transfer syntax that pydicom does not know and refuses to write."""
    if UID(dataset.file_meta.get("TransferSyntaxUID", "")).is_transfer_syntax:
        pydicom.dcmwrite(path, dataset, write_like_original=False)
        return
    with path.open("wb") as file:
        file.write(b"\0" * 128 + b"DICM")
        pydicom.filewriter.write_file_meta_info(file, dataset.file_meta, enforce_standard=False)
        target = DicomFileLike(file)
        target.is_little_endian, target.is_implicit_VR = dataset.is_little_endian, dataset.is_implicit_VR
        pydicom.filewriter.write_dataset(target, dataset)


def _by_numpy(dataset: Dataset, bits: int, name: str) -> NDArray[np.generic]:
    """Uncompressed grey values as they are, without the bits beside them, which hold overlays in old files."""
    if int(dataset.get("SamplesPerPixel") or 1) != 1:
        raise InputError(f"{name} holds colour of {bits} bits (BitsAllocated); 8 are needed. Export it again.")
    shape = (int(dataset.get("NumberOfFrames") or 1), int(dataset.Rows), int(dataset.Columns))
    if bits == 1:
        packed = np.frombuffer(dataset.PixelData, np.uint8)
        return np.unpackbits(packed, count=int(np.prod(shape)), bitorder="little").reshape(shape)
    order, kind = "<" if dataset.is_little_endian else ">", "i" if dataset.get("PixelRepresentation") else "u"
    values = np.frombuffer(dataset.PixelData, f"{order}{kind}{bits // 8}", count=int(np.prod(shape))).reshape(shape)
    stored = int(dataset.get("BitsStored") or bits)
    if stored >= bits:
        return values
    high = int(dataset.get("HighBit") or 0)
    above = bits - 1 - high if stored - 1 <= high < bits else bits - stored
    shifted: NDArray[np.generic] = (values << above) >> (bits - stored)  # The sign comes with it.
    return shifted


def _undecodable(name: str, syntax: str) -> InputError:
    return InputError(
        f"The pixels of {name} cannot be decoded; its transfer syntax is {syntax_name(syntax)}. Either this kind is "
        "not supported or the file is damaged. Export it again, uncompressed."
    )


def _check_whole(dataset: FileDataset, path: Path) -> None:
    """Refuse a file with values longer than itself, and one whose compressed pixels are cut off."""
    size = path.stat().st_size
    deflated = dataset.file_meta.get("TransferSyntaxUID") == ExplicitVRLittleEndian and dataset.filename is None
    if deflated:
        size = 1 << 62
    if "Rows" not in dataset:  # Where compressed pixels are cut off, pydicom 3 leaves out every element.
        raise broken(path.name)
    for part in (dataset.file_meta, dataset):
        if not _is_whole(part, size):
            raise broken(path.name)
    if any(tag.group < _FIRST_GROUP for tag in dataset.keys()):  # noqa: SIM118  # it is no dict
        raise broken(path.name)
    if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
        packed, place = dataset.PixelData, 0
        while place + 8 <= len(packed):
            place += 8 + int.from_bytes(packed[place + 4 : place + 8], "little")
        if place > len(packed):
            raise broken(path.name)


def _is_whole(dataset: Dataset, size: int) -> bool:
    """Whether no value of a dataset, or of the sequences in it, goes on behind the end."""
    for raw in list(dataset.values()):
        if isinstance(raw, RawDataElement):
            end = raw.value_tell + raw.length if raw.value is None else raw.length - len(raw.value) + size
            if raw.length != _UNDEFINED_LENGTH and end > size:
                return False
        if raw.VR == "SQ" or (raw.VR is None and dictionary_has_tag(raw.tag) and dictionary_VR(raw.tag) == "SQ"):
            items = dataset[raw.tag].value or ()
            if not all(_is_whole(item, size) for item in items):
                return False
    return True
