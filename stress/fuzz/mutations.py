"""Broken files: small good ones of each kind, and what an accident or an attacker may make of them."""

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

SIDE, SLICES = 16, 6
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
        kind: of file: ``nifti``.
        how: it was broken.
        suffix: what its name ends in.
        content: of the file.
    """

    kind: str
    how: str
    suffix: str
    content: bytes


def seeds() -> dict[str, tuple[str, bytes]]:
    """A small good file of each kind, cut out of the sample data: what its name ends in, and its content."""
    whole = read_volume(SAMPLES / "images" / "ct_01.nii.gz")
    cut = Volume(np.ascontiguousarray(whole.voxels[40 : 40 + SIDE, 40 : 40 + SIDE, 4 : 4 + SLICES]), whole.affine)
    labels = Volume((cut.voxels > np.median(cut.voxels.astype(float))).astype(np.uint8), cut.affine)
    adapter = Adapter(build_visual_prompt("basis"), OutputHead())
    record = {"adapter": adapter.to_dict(), "black_box": {"name": "bundled", "weights_sha256": "b" * 64}}
    return {
        "nifti": (".nii", _written(".nii", lambda path: write_nifti(path, cut))),
        "nifti_gz": (".nii.gz", _written(".nii.gz", lambda path: write_nifti(path, cut))),
        "nifti_label": (".nii.gz", _written(".nii.gz", lambda path: write_nifti(path, labels))),
        "nrrd": (".nrrd", _written(".nrrd", lambda path: write_nrrd(path, cut, compress=False))),
        "nrrd_gz": (".nrrd", _written(".nrrd", lambda path: write_nrrd(path, labels))),
        "metaimage": (".mha", _written(".mha", lambda path: _write_metaimage(path, cut, False))),
        "metaimage_gz": (".mha", _written(".mha", lambda path: _write_metaimage(path, cut, True))),
        "tiff": (".tif", _written(".tif", lambda path: _write_tiff(path, cut.voxels[..., 0]))),
        "tiff_gz": (".tif", _written(".tif", lambda path: _write_tiff(path, cut.voxels, compression="zlib"))),
        "dicom": (".dcm", _small_dicom()),
        "safetensors": (
            ".safetensors", _written(".safetensors", lambda path: write_adapter(path, adapter, record))
        ),
    }  # fmt: skip


def mutant(kind: str, seed: tuple[str, bytes], random: Random) -> Mutant:
    """A file that is broken in one to three ways.

    Args:
        kind, seed: one of ``seeds``.
        random: draws the ways.
    """
    suffix, content = seed
    ways: Mapping[str, Callable[[bytes, Random], bytes]] = {**ANY, **OF_KIND[kind.partition("_")[0]]}
    packed = suffix == ".nii.gz" and random.random() < 0.8
    if packed:
        content = gzip.decompress(content)
    done = []
    for _ in range(int(random.choice((1, 1, 2, 3)))):
        name = str(random.choice(sorted(ways)))
        done.append(name)
        content = ways[name](content, random)
    if packed:
        content = gzip.compress(content, 1)
    if random.random() < 0.02:  # Of another kind than its name says.
        suffix = str(random.choice((".nii", ".nii.gz", ".nrrd", ".mha", ".hdr", ".dcm", ".png", ".npz", ".tif")))
        done.append(f"as {suffix}")
    return Mutant(kind, ", ".join(done), suffix, content)


def _flip(content: bytes, random: Random, within: int = 0) -> bytes:
    """Some bytes are others."""
    changed = bytearray(content)
    most = min(len(changed), within or len(changed))
    for _ in range(int(random.integers(1, 16)) if most else 0):
        changed[int(random.integers(most))] = int(random.integers(256))
    return bytes(changed)


def _flip_header(content: bytes, random: Random) -> bytes:
    return _flip(content, random, 400)


def _cut(content: bytes, random: Random) -> bytes:
    """The end is missing."""
    return content[: int(random.integers(len(content) + 1))]


def _cut_header(content: bytes, random: Random) -> bytes:
    return content[: int(random.integers(min(len(content), 400) + 1))]


def _zeros(content: bytes, random: Random) -> bytes:
    """A stretch is zero."""
    if not content:
        return content
    begin = int(random.integers(len(content)))
    length = int(random.integers(1, 64))
    return content[:begin] + bytes(len(content[begin : begin + length])) + content[begin + length :]


def _twice(content: bytes, random: Random) -> bytes:
    """A stretch comes twice."""
    begin, end = sorted(random.integers(len(content) + 1, size=2).tolist())
    return content[:end] + content[begin:]


def _empty(content: bytes, random: Random) -> bytes:
    return b"" if random.random() < 0.2 else content[:1]


def _number(content: bytes, random: Random, within: int = 400) -> bytes:
    """A number of the header is another one."""
    form = str(random.choice(list("<>"))) + str(random.choice(list("hiqfd")))
    size = struct.calcsize(form)
    if len(content) < size:
        return content
    place = int(random.integers(min(len(content), within) - size + 1)) // size * size
    value: float = int(random.choice(NUMBERS))
    if form[-1] in "fd":
        value = float(random.choice((float(value), np.nan, np.inf, -np.inf, 1e30, 1e-30)))
    elif form[-1] in "hi":
        bits = 8 * size
        value = (int(value) + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)
    return content[:place] + struct.pack(form, value) + content[place + size :]


ANY: Mapping[str, Callable[[bytes, Random], bytes]] = {
    "flips": _flip, "flips in the header": _flip_header, "cut": _cut, "cut in the header": _cut_header,
    "zeros": _zeros, "twice": _twice, "empty": _empty, "number": _number,
}  # fmt: skip
"""What can be done to a file of any kind."""


def _nifti_field(content: bytes, random: Random) -> bytes:
    """A field of the header has another value."""
    try:
        header = nibabel.Nifti1Header.from_fileobj(io.BytesIO(content), check=False)
    except Exception:  # It is broken already.
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
    """A line of the header is another one, is missing, or comes twice."""
    head, mark, rest = content.partition(b"\n\n")
    lines = head.split(b"\n")
    place = int(random.integers(len(lines)))
    name = lines[place].partition(b":")[0]
    way = int(random.integers(5))
    if way == 0:
        del lines[place]
    elif way == 1:
        lines.insert(place, lines[place])
    elif way == 2:
        lines.insert(place, str(random.choice(("data file: /etc/passwd", "datafile: LIST", "line skip: -1",
                                              "byte skip: -1", "byte skip: 99999999", "sizes: 1 1 1 1",
                                              "endian: big"))).encode())  # fmt: skip
    else:
        lines[place] = name + b": " + str(random.choice(WORDS)).encode()
    return b"\n".join(lines) + mark + rest


def _metaimage_line(content: bytes, random: Random) -> bytes:
    """A line of the header is another one, is missing, or comes twice."""
    head, mark, rest = content.partition(b"ElementDataFile = ")
    lines = head.split(b"\n")
    place = int(random.integers(len(lines)))
    way = int(random.integers(5))
    if way == 0:
        del lines[place]
    elif way == 1:
        lines.insert(place, lines[place])
    elif way == 2:
        rest = rest.replace(b"LOCAL", str(random.choice(("/etc/passwd", "LIST", "local", ""))).encode())
    else:
        lines[place] = lines[place].partition(b"=")[0] + b"= " + str(random.choice(WORDS)).encode()
    return b"\n".join(lines) + mark + rest


def _tiff_number(content: bytes, random: Random) -> bytes:
    return _number(content, random, 300)


def _dicom_value(content: bytes, random: Random) -> bytes:
    """A value of the header is another one, or is missing."""
    try:
        header = pydicom.dcmread(io.BytesIO(content))
        tag = str(random.choice(_TAGS))
        way = random.random()
        if way < 0.2 and tag in header:
            delattr(header, tag)
        elif way < 0.4:
            header.file_meta.TransferSyntaxUID = str(random.choice(_SYNTAXES))
        elif way < 0.5:
            header.PixelData = header.PixelData[: int(random.integers(len(header.PixelData)))]
        elif tag in header and header[tag].VR == "US":
            setattr(header, tag, int(random.choice(NUMBERS)) % 65536)
        else:
            setattr(header, tag, str(random.choice(WORDS)))
        written = io.BytesIO()
        header.save_as(written)
        return written.getvalue()
    except Exception:  # pydicom does not write all of this.
        return _flip(content, random, 1200)


def _safetensors_header(content: bytes, random: Random) -> bytes:
    """A word or a number of the header is another one."""
    if len(content) < 8:
        return content
    (size,) = struct.unpack("<Q", content[:8])
    try:
        header = json.loads(content[8 : 8 + size])
        record = json.loads(header.get("__metadata__", {}).get("record", "{}"))
    except (AttributeError, TypeError, ValueError):  # It is broken already.
        return content
    way = random.random()
    if way < 0.15:
        return struct.pack("<Q", int(random.choice((0, 1, size - 1, size + 1, 2**32, 2**62, 2**63)))) + content[8:]
    if way < 0.6:
        header["__metadata__"] = {"record": json.dumps(_other(record, random))}
    else:
        header = _other(header, random)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


def _other(value: object, random: Random) -> object:
    """JSON with one value in it replaced, or missing."""
    if isinstance(value, dict) and value and random.random() < 0.9:
        name = str(random.choice(sorted(value)))
        if random.random() < 0.15:
            return {key: kept for key, kept in value.items() if key != name}
        return {**value, name: _other(value[name], random)}
    if isinstance(value, list) and value and random.random() < 0.7:
        place = int(random.integers(len(value)))
        return [*value[:place], _other(value[place], random), *value[place + 1 :]]
    odd: tuple[object, ...] = (
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
    return odd[int(random.integers(len(odd)))]


OF_KIND: Mapping[str, Mapping[str, Callable[[bytes, Random], bytes]]] = {
    "nifti": {"field": _nifti_field, "another field": _nifti_field},
    "nrrd": {"line": _nrrd_line, "another line": _nrrd_line},
    "metaimage": {"line": _metaimage_line, "another line": _metaimage_line},
    "tiff": {"another number": _tiff_number},
    "dicom": {"value": _dicom_value, "another value": _dicom_value},
    "safetensors": {"header": _safetensors_header, "another header": _safetensors_header},
}
"""What can be done to a file of one kind besides."""


def _written(suffix: str, write: Callable[[Path], None]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"seed{suffix}"
        write(path)
        return path.read_bytes()


def _write_metaimage(path: Path, volume: Volume, compress: bool) -> None:
    image = SimpleITK.GetImageFromArray(volume.voxels.swapaxes(0, 2))
    image.SetSpacing(volume.spacing)
    SimpleITK.WriteImage(image, str(path), compress)


def _write_tiff(path: Path, voxels: NDArray[np.generic], compression: str | None = None) -> None:
    """A picture, or a stack of ImageJ."""
    said = {"axes": "ZYX", "spacing": 2.5, "unit": "mm"} if voxels.ndim == 3 else {}
    pixels = np.ascontiguousarray(voxels.T.astype(np.uint16))
    tifffile.imwrite(path, pixels, imagej=bool(said), metadata=said, resolution=(2, 2), compression=compression)


def _small_dicom() -> bytes:
    header = pydicom.dcmread(SAMPLES.parent / "dicom" / "ct_01" / "001.dcm")
    pixels = header.pixel_array[40 : 40 + SIDE, 40 : 40 + SIDE]
    header.PixelData = np.ascontiguousarray(pixels).tobytes()
    header.Rows = header.Columns = SIDE
    written = io.BytesIO()
    header.save_as(written)
    return written.getvalue()
