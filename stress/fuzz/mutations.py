"""Broken files: small valid files of each kind, and random mutations of them."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import SimpleITK
import tifffile
from numpy.typing import NDArray

from baps.adapters.adapter import Adapter
from baps.adapters.adapter_file import write_adapter
from baps.adapters.output_head import OutputHead
from baps.adapters.visual_prompt import build_visual_prompt
from baps.imaging.volume import Volume
from baps.io import read_volume, write_nifti, write_nrrd
from stress.served_site import SAMPLES

IMAGE_SIZE, SLICES = 16, 6
NUMBERS = (0, 1, -1, 2, 3, 7, 127, 128, 255, 256, 32767, -32768, 65535, 2**31 - 1, -(2**31), 2**32 - 1)
WORDS = (
    "", "0", "-1", "1e999", "nan", "none", "99999999999999999999", "0 0 0", "-1 -1 -1", "65536 65536 65536", "17",
    "/etc/passwd", "../../x", "block", "float", "ascii", "bzip2", "hex", "(1,0,0) (1,0,0) (1,0,0)", "\x00", "ä",
    "x" * 5000,
)  # fmt: skip

_TAGS = (
    "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "SamplesPerPixel", "PixelRepresentation",
    "NumberOfFrames", "PlanarConfiguration", "RescaleSlope", "RescaleIntercept", "PixelSpacing", "ImagePositionPatient",
    "ImageOrientationPatient", "PhotometricInterpretation", "SOPClassUID", "SeriesInstanceUID", "PatientID",
)  # fmt: skip
_SYNTAXES = (
    "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.5", "1.2.3", "",
)  # fmt: skip

Random = np.random.Generator


@dataclass(frozen=True)
class Mutant:
    """A broken file.

    Attributes:
        kind: kind of file, such as ``nifti``.
        how: mutations that were applied.
        suffix: suffix of the file name.
        content: content of the file.
    """

    kind: str
    how: str
    suffix: str
    content: bytes


def seeds() -> dict[str, tuple[str, bytes]]:
    """Build a small valid file of each kind from the sample data; return the suffix and content by kind."""
    image = read_volume(SAMPLES / "images" / "ct_01.nii.gz")
    cut = Volume(
        np.ascontiguousarray(image.voxels[40 : 40 + IMAGE_SIZE, 40 : 40 + IMAGE_SIZE, 4 : 4 + SLICES]), image.affine
    )
    labels = Volume((cut.voxels > np.median(cut.voxels.astype(float))).astype(np.uint8), cut.affine)
    adapter = Adapter(build_visual_prompt("basis"), OutputHead())
    record = {"adapter": adapter.to_dict(), "black_box": {"name": "bundled", "weights_sha256": "b" * 64}}
    return {
        "nifti": (".nii", _file_content(".nii", lambda path: write_nifti(path, cut))),
        "nifti_gz": (".nii.gz", _file_content(".nii.gz", lambda path: write_nifti(path, cut))),
        "nifti_label": (".nii.gz", _file_content(".nii.gz", lambda path: write_nifti(path, labels))),
        "nrrd": (".nrrd", _file_content(".nrrd", lambda path: write_nrrd(path, cut, compress=False))),
        "nrrd_gz": (".nrrd", _file_content(".nrrd", lambda path: write_nrrd(path, labels))),
        "metaimage": (".mha", _file_content(".mha", lambda path: _write_metaimage(path, cut, False))),
        "metaimage_gz": (".mha", _file_content(".mha", lambda path: _write_metaimage(path, cut, True))),
        "tiff": (".tif", _file_content(".tif", lambda path: _write_tiff(path, cut.voxels[..., 0]))),
        "tiff_gz": (".tif", _file_content(".tif", lambda path: _write_tiff(path, cut.voxels, compression="zlib"))),
        "dicom": (".dcm", _small_dicom()),
        "safetensors": (
            ".safetensors", _file_content(".safetensors", lambda path: write_adapter(path, adapter, record))
        ),
    }  # fmt: skip


def mutant(kind: str, seed: tuple[str, bytes], random: Random) -> Mutant:
    """Break a file by one to three random mutations.

    Args:
        kind: kind of the file, a key of ``seeds``.
        seed: suffix and content of the valid file.
        random: draws the mutations.
    """
    suffix, content = seed
    mutations: Mapping[str, Callable[[bytes, Random], bytes]] = {
        **GENERAL_MUTATIONS,
        **MUTATIONS_BY_KIND[kind.partition("_")[0]],
    }
    compressed = suffix == ".nii.gz" and random.random() < 0.8
    if compressed:
        content = gzip.decompress(content)
    applied = []
    for _ in range(int(random.choice((1, 1, 2, 3)))):
        name = str(random.choice(sorted(mutations)))
        applied.append(name)
        content = mutations[name](content, random)
    if compressed:
        content = gzip.compress(content, 1)
    if random.random() < 0.02:  # The suffix does not match the content.
        suffix = str(random.choice((".nii", ".nii.gz", ".nrrd", ".mha", ".hdr", ".dcm", ".png", ".npz", ".tif")))
        applied.append(f"as {suffix}")
    return Mutant(kind, ", ".join(applied), suffix, content)


def _flip(content: bytes, random: Random, within: int = 0) -> bytes:
    """Replace some bytes by random ones."""
    changed = bytearray(content)
    limit = min(len(changed), within or len(changed))
    for _ in range(int(random.integers(1, 16)) if limit else 0):
        changed[int(random.integers(limit))] = int(random.integers(256))
    return bytes(changed)


def _flip_header(content: bytes, random: Random) -> bytes:
    return _flip(content, random, 400)


def _truncate(content: bytes, random: Random) -> bytes:
    """Remove the end."""
    return content[: int(random.integers(len(content) + 1))]


def _truncate_header(content: bytes, random: Random) -> bytes:
    return content[: int(random.integers(min(len(content), 400) + 1))]


def _zeros(content: bytes, random: Random) -> bytes:
    """Replace a range of bytes by zeros."""
    if not content:
        return content
    begin = int(random.integers(len(content)))
    length = int(random.integers(1, 64))
    return content[:begin] + bytes(len(content[begin : begin + length])) + content[begin + length :]


def _repeat(content: bytes, random: Random) -> bytes:
    """Repeat a range of bytes."""
    begin, end = sorted(random.integers(len(content) + 1, size=2).tolist())
    return content[:end] + content[begin:]


def _empty(content: bytes, random: Random) -> bytes:
    return b"" if random.random() < 0.2 else content[:1]


def _number(content: bytes, random: Random, within: int = 400) -> bytes:
    """Replace a number in the header."""
    form = str(random.choice(list("<>"))) + str(random.choice(list("hiqfd")))
    size = struct.calcsize(form)
    if len(content) < size:
        return content
    index = int(random.integers(min(len(content), within) - size + 1)) // size * size
    value: float = int(random.choice(NUMBERS))
    if form[-1] in "fd":
        value = float(random.choice((float(value), np.nan, np.inf, -np.inf, 1e30, 1e-30)))
    elif form[-1] in "hi":
        bits = 8 * size
        value = (int(value) + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)
    return content[:index] + struct.pack(form, value) + content[index + size :]


GENERAL_MUTATIONS: Mapping[str, Callable[[bytes, Random], bytes]] = {
    "flips": _flip, "flips in the header": _flip_header, "cut": _truncate, "cut in the header": _truncate_header,
    "zeros": _zeros, "twice": _repeat, "empty": _empty, "number": _number,
}  # fmt: skip
"""Mutations for files of any kind."""


def _nifti_field(content: bytes, random: Random) -> bytes:
    """Replace the value of a header field."""
    try:
        header = nibabel.Nifti1Header.from_fileobj(io.BytesIO(content), check=False)
    except Exception:  # The header is already broken.
        return content
    name = str(random.choice(("dim", "datatype", "bitpix", "pixdim", "vox_offset", "scl_slope", "scl_inter", "srow_x",
                              "srow_y", "srow_z", "sform_code", "qform_code", "quatern_b", "qoffset_x", "intent_code",
                              "sizeof_hdr", "magic")))  # fmt: skip
    field = header[name]
    if field.dtype.kind == "S":
        header[name] = bytes(random.integers(256, size=3).tolist())
    else:
        values = np.array(field, copy=True).reshape(-1)
        drawn: float = int(random.choice(NUMBERS))
        if values.dtype.kind == "f":
            drawn = float(random.choice((float(drawn), np.nan, np.inf, 1e30, 1e-30)))
        with np.errstate(all="ignore"):
            values[int(random.integers(len(values)))] = np.asarray(drawn).astype(values.dtype)
        header[name] = values.reshape(field.shape)
    return bytes(header.binaryblock) + content[348:]


def _nrrd_line(content: bytes, random: Random) -> bytes:
    """Replace, remove or repeat a line of the header."""
    head, mark, rest = content.partition(b"\n\n")
    lines = head.split(b"\n")
    index = int(random.integers(len(lines)))
    name = lines[index].partition(b":")[0]
    choice = int(random.integers(5))
    if choice == 0:
        del lines[index]
    elif choice == 1:
        lines.insert(index, lines[index])
    elif choice == 2:
        lines.insert(index, str(random.choice(("data file: /etc/passwd", "datafile: LIST", "line skip: -1",
                                              "byte skip: -1", "byte skip: 99999999", "sizes: 1 1 1 1",
                                              "endian: big"))).encode())  # fmt: skip
    else:
        lines[index] = name + b": " + str(random.choice(WORDS)).encode()
    return b"\n".join(lines) + mark + rest


def _metaimage_line(content: bytes, random: Random) -> bytes:
    """Replace, remove or repeat a line of the header."""
    head, mark, rest = content.partition(b"ElementDataFile = ")
    lines = head.split(b"\n")
    index = int(random.integers(len(lines)))
    choice = int(random.integers(5))
    if choice == 0:
        del lines[index]
    elif choice == 1:
        lines.insert(index, lines[index])
    elif choice == 2:
        rest = rest.replace(b"LOCAL", str(random.choice(("/etc/passwd", "LIST", "local", ""))).encode())
    else:
        lines[index] = lines[index].partition(b"=")[0] + b"= " + str(random.choice(WORDS)).encode()
    return b"\n".join(lines) + mark + rest


def _tiff_number(content: bytes, random: Random) -> bytes:
    return _number(content, random, 300)


def _dicom_value(content: bytes, random: Random) -> bytes:
    """Replace or remove a value of the header."""
    try:
        header = pydicom.dcmread(io.BytesIO(content))
        tag = str(random.choice(_TAGS))
        choice = random.random()
        if choice < 0.2 and tag in header:
            delattr(header, tag)
        elif choice < 0.4:
            header.file_meta.TransferSyntaxUID = str(random.choice(_SYNTAXES))
        elif choice < 0.5:
            header.PixelData = header.PixelData[: int(random.integers(len(header.PixelData)))]
        elif tag in header and header[tag].VR == "US":
            setattr(header, tag, int(random.choice(NUMBERS)) % 65536)
        else:
            setattr(header, tag, str(random.choice(WORDS)))
        written = io.BytesIO()
        header.save_as(written)
        return written.getvalue()
    except Exception:  # pydicom cannot write some of these values.
        return _flip(content, random, 1200)


def _safetensors_header(content: bytes, random: Random) -> bytes:
    """Replace a word or a number of the header."""
    if len(content) < 8:
        return content
    (size,) = struct.unpack("<Q", content[:8])
    try:
        header = json.loads(content[8 : 8 + size])
        record = json.loads(header.get("__metadata__", {}).get("record", "{}"))
    except (AttributeError, TypeError, ValueError):  # The header is already broken.
        return content
    choice = random.random()
    if choice < 0.15:
        return struct.pack("<Q", int(random.choice((0, 1, size - 1, size + 1, 2**32, 2**62, 2**63)))) + content[8:]
    if choice < 0.6:
        header["__metadata__"] = {"record": json.dumps(_change_json(record, random))}
    else:
        header = _change_json(header, random)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


def _change_json(value: object, random: Random) -> object:
    """Replace or remove one value in JSON data."""
    if isinstance(value, dict) and value and random.random() < 0.9:
        name = str(random.choice(sorted(value)))
        if random.random() < 0.15:
            return {key: kept_value for key, kept_value in value.items() if key != name}
        return {**value, name: _change_json(value[name], random)}
    if isinstance(value, list) and value and random.random() < 0.7:
        index = int(random.integers(len(value)))
        return [*value[:index], _change_json(value[index], random), *value[index + 1 :]]
    odd_values: tuple[object, ...] = (
        None,
        True,
        [],
        {},
        "",
        "x",
        "clip",
        "concat",
        "F64",
        "I8",
        -1,
        0,
        1e30,
        2**63,
        [0],
        [[1, 2]],
        "/etc/passwd",
    )
    return odd_values[int(random.integers(len(odd_values)))]


MUTATIONS_BY_KIND: Mapping[str, Mapping[str, Callable[[bytes, Random], bytes]]] = {
    "nifti": {"field": _nifti_field, "another field": _nifti_field},
    "nrrd": {"line": _nrrd_line, "another line": _nrrd_line},
    "metaimage": {"line": _metaimage_line, "another line": _metaimage_line},
    "tiff": {"another number": _tiff_number},
    "dicom": {"value": _dicom_value, "another value": _dicom_value},
    "safetensors": {"header": _safetensors_header, "another header": _safetensors_header},
}
"""Additional mutations by kind of file."""


def _file_content(suffix: str, write: Callable[[Path], None]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"seed{suffix}"
        write(path)
        return path.read_bytes()


def _write_metaimage(path: Path, volume: Volume, compress: bool) -> None:
    image = SimpleITK.GetImageFromArray(volume.voxels.swapaxes(0, 2))
    image.SetSpacing(volume.spacing)
    SimpleITK.WriteImage(image, str(path), compress)


def _write_tiff(path: Path, voxels: NDArray[np.generic], compression: str | None = None) -> None:
    """Write a picture, or an ImageJ stack."""
    metadata = {"axes": "ZYX", "spacing": 2.5, "unit": "mm"} if voxels.ndim == 3 else {}
    pixels = np.ascontiguousarray(voxels.T.astype(np.uint16))
    tifffile.imwrite(path, pixels, imagej=bool(metadata), metadata=metadata, resolution=(2, 2), compression=compression)


def _small_dicom() -> bytes:
    header = pydicom.dcmread(SAMPLES.parent / "dicom" / "ct_01" / "001.dcm")
    pixels = header.pixel_array[40 : 40 + IMAGE_SIZE, 40 : 40 + IMAGE_SIZE]
    header.PixelData = np.ascontiguousarray(pixels).tobytes()
    header.Rows = header.Columns = IMAGE_SIZE
    written = io.BytesIO()
    header.save_as(written)
    return written.getvalue()
