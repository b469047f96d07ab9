"""Decode the stored values of DICOM images.

pydicom reads a file, and SimpleITK decodes compressed or coloured pixels. The pixels are passed to it in a separate
file with only the attributes that describe them, so that both libraries see the same and no rescaling comes between.
SimpleITK converts YBR to RGB. MONOCHROME1, in which lower values are brighter, is inverted here, because SimpleITK
fails on signed values.
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
_REQUIRED_KEYWORDS = ("PhotometricInterpretation", "BitsAllocated")

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
"""A SOP class whose values are not rescaled."""

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
"""Names of transfer syntaxes that this version of pydicom does not know."""

_UNDEFINED_LENGTH = 0xFFFFFFFF
"""Length of a value that ends with a delimiter."""

_FIRST_GROUP = 0x0008
"""First group of an image's attributes; lower groups are file meta information or commands."""

_DECODED_BYTES = 1 << 20
"""Bytes of frames that are decoded at once."""

_CHUNK_BYTES = 1 << 20
"""Bytes that are inflated at once."""

_ITEM_TAGS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
"""First bytes of each item of a sequence, little and big endian."""

_MAX_ITEMS, _MIN_ITEMS = 1_000_000, 100_000
"""Limits on the number of sequence items, or of other elements, of an object.

An enhanced object of 20,000 frames has 200,000 items.
"""

_BYTES_PER_ITEM, _BYTES_PER_VALUE = 1 << 12, 1 << 8
"""Divisors of the limit on a volume: for items, which take 500 bytes in memory, and for values of multiple values."""

_MAX_VALUE_BYTES = 1 << 20
_SHORT_VRS = frozenset(
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
"""Value representations of which each value becomes an object. Implicit ones may be long, but no needed one is."""


def is_dicom(source: Path | BytesIO) -> bool:
    """Return whether a file is DICOM by its first bytes, with or without the preamble.

    Args:
        source: path or content of the file.

    Returns:
        True if it looks like DICOM.
    """
    start = _start(source)
    return start[128:] == b"DICM" or _starts_with_attribute(start)


def _start(source: Path | BytesIO) -> bytes:
    if isinstance(source, BytesIO):
        return source.getbuffer()[:132].tobytes()
    with source.open("rb") as file:
        return file.read(132)


def _starts_with_attribute(start: bytes) -> bool:
    """Return whether bytes begin as a dataset without preamble does: with an attribute of group 2 or 8."""
    for order in ("little", "big"):
        tag = int.from_bytes(start[:2], order) << 16 | int.from_bytes(start[2:4], order)  # type: ignore[arg-type]
        if len(start) >= 16 and tag >> 16 in (0x0002, 0x0008) and dictionary_has_tag(tag):
            implicit = order == "little" and int.from_bytes(start[4:8], "little") < 256
            return implicit or start[4:6] == dictionary_VR(tag).encode()
    return False


def read_dataset(source: Path | BytesIO, pixels: bool = False, tags: tuple[str, ...] | None = None) -> FileDataset:
    """Read a DICOM file, with or without preamble, deflated or not.

    Args:
        source: path or content of the file.
        pixels: whether to read the pixels.
        tags: keywords of the attributes to read, or None for all.

    Returns:
        The dataset.

    Raises:
        InvalidDicomError: if the file is not DICOM.
        InputError: if it inflates to more than the limit, or has too many elements.
    """
    specific_tags = None if tags is None else list(tags)
    force = _start(source)[128:] != b"DICM"
    if force and not is_dicom(source):
        raise InvalidDicomError
    if not force and _syntax(source) == DeflatedExplicitVRLittleEndian:
        source = _inflate(source)
    check_elements(source)
    dataset: FileDataset = pydicom.dcmread(
        source, stop_before_pixels=not pixels, specific_tags=specific_tags, force=force
    )
    return dataset


def check_elements(source: Path | BytesIO) -> None:
    """Refuse an object with too many elements or values: two to eight bytes in the file become 500 in memory.

    Args:
        source: path or content of the file.

    Raises:
        InputError: if there are too many.
    """
    bound = max_volume_bytes()
    max_items, max_values = min(max(bound // _BYTES_PER_ITEM, _MIN_ITEMS), _MAX_ITEMS), bound // _BYTES_PER_VALUE
    name = source.name if isinstance(source, Path) else "The DICOM object"
    with _opened(source) as file:
        size = file.seek(0, os.SEEK_END)
        if size < 2 * min(max_items, max_values):  # Each item and value has at least two bytes.
            return
        file.seek(0)
        too_many = sum(sum(map(part.count, _ITEM_TAGS)) for part in _chunks(file, size)) > max_items
        offsets: list[tuple[int, str]] = []

        def is_too_many(tag: BaseTag, vr: str | None, length: int) -> bool:
            nonlocal too_many
            known = vr or (dictionary_VR(tag) if dictionary_has_tag(tag) else "UN")
            offsets.append((file.tell(), known))
            too_many = len(offsets) > max_items or (known in _SHORT_VRS and length > _MAX_VALUE_BYTES)
            return too_many

        if not too_many:
            file.seek(0)
            with suppress(Exception):  # Errors are reported when the file is read.
                pydicom.filereader.read_partial(file, stop_when=is_too_many, specific_tags=["SOPClassUID"], force=True)
        values = 0
        for (start, vr), (end, _) in pairwise([*offsets, (size, "")]):
            if vr == "SQ" and not too_many:
                file.seek(start)
                values += sum(part.count(b"\\") for part in _chunks(file, end - start))
        too_many = too_many or values > max_values
    if too_many:
        raise InputError(
            f"{name} has a value of more than {_MAX_VALUE_BYTES >> 20} MB, or more than {max_items:,} elements or "
            f"{max_values:,} values in sequences, which no image or label needs. It is broken; export it again."
        )


def _chunks(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Yield bytes in chunks; each begins with the last three bytes of the one before, for tags at a border."""
    overlap = b""
    while size > 0 and (part := file.read(min(size, _CHUNK_BYTES))):
        size -= len(part)
        yield overlap + part
        overlap = part[-3:]


def _syntax(source: Path | BytesIO) -> str:
    with _opened(source) as file:
        file.seek(132)
        return str(pydicom.filereader._read_file_meta_info(file).get("TransferSyntaxUID") or "")


@contextmanager
def _opened(source: Path | BytesIO) -> Iterator[BinaryIO]:
    """Open a file at its beginning. Content in memory is rewound at the end."""
    if isinstance(source, BytesIO):
        yield source
        source.seek(0)
    else:
        with source.open("rb") as file:
            yield file


def _inflate(source: Path | BytesIO) -> BytesIO:
    """Inflate the dataset of a file, in chunks and not beyond the limit."""
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
        target.write(unpacker.decompress(packed, _CHUNK_BYTES))
        check_size(name, (target.tell(),), 1)
        packed = unpacker.unconsumed_tail
    target.seek(0)
    return target


def broken_file_message(name: str) -> str:
    """Return the message about a file that ends too early, or is not DICOM.

    Args:
        name: name of the file.

    Returns:
        The message.
    """
    return f"{name} cannot be read. The file is broken or cut off; export it again."


def syntax_name(uid: str) -> str:
    """Return name and UID of a transfer syntax, for a message.

    Args:
        uid: UID of the transfer syntax.

    Returns:
        The text.
    """
    name = _NEWER_SYNTAXES.get(uid) or UID(uid).name
    return f"{name} ({uid})" if name != uid else f"an unknown syntax ({uid})"


def decode_pixels(path: Path) -> NDArray[np.generic]:
    """Decode the stored values of a DICOM file.

    Args:
        path: path of the file.

    Returns:
        Values, (frames, rows, columns) or (frames, rows, columns, 3); integers, or floats if the object stores floats.

    Raises:
        InputError: if the file is cut off, or its transfer syntax, which the message names, cannot be decoded.
    """
    try:
        dataset = read_dataset(path, pixels=True)
    except InputError:
        raise
    except Exception as error:  # pydicom raises many types.
        raise InputError(broken_file_message(path.name)) from error
    _check_complete(dataset, path)
    syntax = str(dataset.file_meta.get("TransferSyntaxUID") or _guess_syntax(dataset))
    count, rows, columns = int(dataset.get("NumberOfFrames") or 1), int(dataset.Rows), int(dataset.Columns)
    samples = int(dataset.get("SamplesPerPixel") or 1)
    # The sizes may differ from the header that was read without what follows the pixels.
    check_size(path.name, (count, rows, columns, samples), -(-int(dataset.get("BitsAllocated") or 16) // 8))
    float_keyword = next(
        (keyword for keyword in ("FloatPixelData", "DoubleFloatPixelData") if keyword in dataset), None
    )
    try:
        if float_keyword:
            values = np.frombuffer(dataset[float_keyword].value, "<f4" if float_keyword == "FloatPixelData" else "<f8")
            if values.size < count * rows * columns:
                raise InputError(broken_file_message(path.name))
            return values[: count * rows * columns].reshape(count, rows, columns)
        if "PixelData" not in dataset:
            raise InputError(
                f"{path.name} has no pixels (PixelData); its transfer syntax is {syntax_name(syntax)}. Export the "
                "image with its pixels."
            )
        missing = [keyword for keyword in _REQUIRED_KEYWORDS if dataset.get(keyword) in (None, "")]
        if missing:
            raise InputError(
                f"{path.name} does not say how its pixels are stored ({', '.join(missing)}). Export it again."
            )
        if syntax == _DEFLATED_FRAMES:
            _inflate_frames(dataset, count)
            syntax = ExplicitVRLittleEndian
        if syntax in _UNCOMPRESSED and len(dataset.PixelData) < get_expected_length(dataset):
            raise InputError(broken_file_message(path.name))
        if syntax not in _UNCOMPRESSED:
            element = dataset["PixelData"]
            dataset.add_new("PixelData", element.VR, _one_fragment_per_frame(dataset))
            for table in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
                dataset.pop(table, None)
            check_frames(path.name, dataset.PixelData, syntax, count, (rows, columns, samples))
        decoded = _decode_in_parts(dataset, syntax, path.name, count)
    except InputError:
        raise
    except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError, zlib.error) as error:
        raise InputError(_undecodable_message(path.name, syntax)) from error
    expected = (count, rows, columns) if samples == 1 and decoded.ndim == 3 else (count, rows, columns, 3)
    if decoded.shape != expected:
        raise InputError(
            f"{path.name} says that it has {count} frames of {rows} rows and {columns} columns, but its pixels have "
            f"the shape {' x '.join(map(str, decoded.shape))}. Export it again."
        )
    return decoded


def _guess_syntax(dataset: FileDataset) -> str:
    """Return the syntax that pydicom detected in a file without file meta information."""
    if not dataset.is_little_endian:
        return str(ExplicitVRBigEndian)
    return str(ImplicitVRLittleEndian if dataset.is_implicit_VR else ExplicitVRLittleEndian)


def _inflate_frames(dataset: Dataset, count: int) -> None:
    """Inflate frames that were deflated one by one (DICOM PS3.5, A.4.12)."""
    size = get_expected_length(dataset) // count
    frames = []
    for packed in generate_pixel_data_frame(dataset.PixelData, count):
        frames.append(zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, size + 1))
    dataset.PixelData = b"".join(frame[:size] for frame in frames)
    dataset["PixelData"].is_undefined_length = False


def decode_rle(dataset: Dataset, name: str) -> NDArray[np.generic]:
    """Decode the grey values of a dataset with RLE compression, and drop its PixelData.

    pydicom would decompress more than a frame is declared to hold.

    Args:
        dataset: the dataset.
        name: name of the file, for the error message.

    Returns:
        Values, (frames, rows, columns).

    Raises:
        InputError: if the pixels cannot be decoded.
    """
    dataset.add_new("PhotometricInterpretation", "CS", "MONOCHROME2")  # Labels have no colour.
    return _decode_in_parts(dataset, str(RLELossless), name, int(dataset.get("NumberOfFrames") or 1))


def _decode_in_parts(dataset: Dataset, syntax: str, name: str, count: int) -> NDArray[np.generic]:
    """Decode a few frames at a time, because a decoder holds them three times. The dataset loses its PixelData."""
    if count == 1 or int(dataset.BitsAllocated) in (1, 64):
        return _decode_with_itk(dataset, syntax, name)
    native, element = syntax in _UNCOMPRESSED, dataset["PixelData"]
    frames = [] if native else list(split_frames(element.value, syntax))
    size = get_expected_length(dataset) // count
    step = max(1, _DECODED_BYTES // max(size, 1))
    del dataset.PixelData
    decoded: NDArray[np.generic] | None = None
    for begin in range(0, count, step):
        end = min(begin + step, count)
        packed = element.value[begin * size : end * size] if native else encapsulate(frames[begin:end])
        dataset.add_new("PixelData", element.VR, packed)
        dataset.add_new("NumberOfFrames", "IS", end - begin)
        part = _decode_with_itk(dataset, syntax, name)
        if decoded is None:
            decoded = np.empty((count, *part.shape[1:]), part.dtype)
        decoded[begin:end] = part
    assert decoded is not None
    return decoded


def _decode_with_itk(dataset: Dataset, syntax: str, name: str) -> NDArray[np.generic]:
    pixels = Dataset()
    for keyword in _PIXEL_DESCRIPTION:
        if keyword in dataset:
            pixels[keyword] = dataset[keyword]
    native = syntax in _UNCOMPRESSED
    pixels.PixelData = dataset.PixelData if native else _one_fragment_per_frame(dataset)
    inverted = pixels.PhotometricInterpretation == "MONOCHROME1"
    if inverted:
        pixels.PhotometricInterpretation = "MONOCHROME2"
    bits = int(pixels.BitsAllocated)
    plain = native and dataset.is_little_endian and pixels.PhotometricInterpretation == "MONOCHROME2"
    if bits in (1, 64) or (plain and bits in (8, 16, 32)):  # SimpleITK cannot read 1 and 64 bits.
        decoded = _decode_with_numpy(dataset, bits, name)
        return _invert(decoded, pixels) if inverted else decoded
    pixels.SamplesPerPixel = pixels.get("SamplesPerPixel") or 1
    big = native and syntax == ExplicitVRBigEndian
    # For big-endian pixels the VR tells whether bytes are swapped.
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
        del dataset.PixelData, pixels.PixelData  # The decoder has its own copy.
        reader = SimpleITK.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(file.name)
        try:
            decoded = SimpleITK.GetArrayFromImage(reader.Execute())
        except RuntimeError as error:
            raise InputError(_undecodable_message(name, syntax)) from error
    return _invert(decoded, pixels) if inverted else decoded


def _one_fragment_per_frame(dataset: Dataset) -> bytes:
    """Put each compressed frame into one fragment, with a basic offset table, because ITK reads nothing else."""
    count = int(dataset.get("NumberOfFrames") or 1)
    if "ExtendedOffsetTable" not in dataset and _fragments(dataset.PixelData) == count:
        unchanged: bytes = dataset.PixelData
        return unchanged
    packed: bytes = encapsulate(list(generate_pixel_data_frame(dataset.PixelData, count)))
    return packed


def _fragments(packed: bytes) -> int:
    source = DicomBytesIO(packed)
    source.is_little_endian = True
    source.seek(8 + int.from_bytes(packed[4:8], "little"))  # After the offset table.
    count: int = get_nr_fragments(source)
    return count


def _invert(values: NDArray[np.generic], pixels: Dataset) -> NDArray[np.generic]:
    """Invert grey values in which lower is brighter."""
    if pixels.get("PixelRepresentation"):
        return ~values  # type: ignore[operator,no-any-return]
    bits = int(pixels.get("BitsStored") or pixels.BitsAllocated)
    return values.dtype.type(2**bits - 1) - values  # type: ignore[operator,no-any-return]


def write_dataset(path: Path, dataset: Dataset) -> None:
    """Write a dataset to a file, also with a transfer syntax that pydicom does not know and refuses to write.

    Args:
        path: path of the file.
        dataset: the dataset.
    """
    if UID(dataset.file_meta.get("TransferSyntaxUID", "")).is_transfer_syntax:
        pydicom.dcmwrite(path, dataset, write_like_original=False)
        return
    with path.open("wb") as file:
        file.write(b"\0" * 128 + b"DICM")
        pydicom.filewriter.write_file_meta_info(file, dataset.file_meta, enforce_standard=False)
        target = DicomFileLike(file)
        target.is_little_endian, target.is_implicit_VR = dataset.is_little_endian, dataset.is_implicit_VR
        pydicom.filewriter.write_dataset(target, dataset)


def _decode_with_numpy(dataset: Dataset, bits: int, name: str) -> NDArray[np.generic]:
    """Decode uncompressed grey values, without the bits beside them, which hold overlays in old files."""
    if int(dataset.get("SamplesPerPixel") or 1) != 1:
        raise InputError(f"{name} holds colour of {bits} bits (BitsAllocated); 8 are needed. Export it again.")
    shape = (int(dataset.get("NumberOfFrames") or 1), int(dataset.Rows), int(dataset.Columns))
    if bits == 1:
        packed = np.frombuffer(dataset.PixelData, np.uint8)
        return np.unpackbits(packed, count=int(np.prod(shape)), bitorder="little").reshape(shape)
    order, letter = "<" if dataset.is_little_endian else ">", "i" if dataset.get("PixelRepresentation") else "u"
    values = np.frombuffer(dataset.PixelData, f"{order}{letter}{bits // 8}", count=int(np.prod(shape))).reshape(shape)
    stored_bits = int(dataset.get("BitsStored") or bits)
    if stored_bits >= bits:
        return values
    high = int(dataset.get("HighBit") or 0)
    above = bits - 1 - high if stored_bits - 1 <= high < bits else bits - stored_bits
    shifted: NDArray[np.generic] = (values << above) >> (bits - stored_bits)  # This extends the sign.
    return shifted


def _undecodable_message(name: str, syntax: str) -> str:
    return (
        f"The pixels of {name} cannot be decoded; its transfer syntax is {syntax_name(syntax)}. Either it is "
        "not supported or the file is damaged. Export it again, uncompressed."
    )


def _check_complete(dataset: FileDataset, path: Path) -> None:
    """Refuse a file with values longer than itself, or with compressed pixels that are cut off."""
    size = path.stat().st_size
    deflated = dataset.file_meta.get("TransferSyntaxUID") == ExplicitVRLittleEndian and dataset.filename is None
    if deflated:
        size = 1 << 62
    if "Rows" not in dataset:  # If compressed pixels are cut off, pydicom 3 drops every element.
        raise InputError(broken_file_message(path.name))
    for part in (dataset.file_meta, dataset):
        if not _is_complete(part, size):
            raise InputError(broken_file_message(path.name))
    if any(tag.group < _FIRST_GROUP for tag in dataset.keys()):  # noqa: SIM118  # it is not a dict
        raise InputError(broken_file_message(path.name))
    if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
        packed, offset = dataset.PixelData, 0
        while offset + 8 <= len(packed):
            offset += 8 + int.from_bytes(packed[offset + 4 : offset + 8], "little")
        if offset > len(packed):
            raise InputError(broken_file_message(path.name))


def _is_complete(dataset: Dataset, size: int) -> bool:
    """Return whether no value of a dataset, or of the sequences in it, extends beyond the end of the file."""
    for raw in list(dataset.values()):
        if isinstance(raw, RawDataElement):
            end = raw.value_tell + raw.length if raw.value is None else raw.length - len(raw.value) + size
            if raw.length != _UNDEFINED_LENGTH and end > size:
                return False
        if raw.VR == "SQ" or (raw.VR is None and dictionary_has_tag(raw.tag) and dictionary_VR(raw.tag) == "SQ"):
            items = dataset[raw.tag].value or ()
            if not all(_is_complete(item, size) for item in items):
                return False
    return True
