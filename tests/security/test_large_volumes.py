"""Small files that decompress to a large size are refused before they are decompressed; large CTs are read."""

from __future__ import annotations

import gzip
import io
import resource
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import tifffile

from baps.errors import InputError
from baps.imaging.volume import Volume
from baps.io import read_labels, read_volume
from baps.utils.limits import MAX_VOLUME_MB_VARIABLE, check_size
from stress.fuzz.bombs import read_bombs
from tests.support.paths import ROOT


@pytest.fixture(autouse=True)
def volume_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the maximum size of a volume to 16 MB."""
    monkeypatch.setenv(MAX_VOLUME_MB_VARIABLE, "16")


def _nifti(folder: Path) -> Path:
    header = nibabel.Nifti1Header()
    header.set_data_shape((4096, 4096, 512))
    header.set_data_dtype(np.int16)
    header["sform_code"] = 1
    header.set_sform(np.eye(4))
    header["vox_offset"] = 352
    path = folder / "bomb.nii.gz"
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4) + bytes(1 << 20)))
    return path


def _nrrd(folder: Path, sizes: str, zeros: int) -> Path:
    header = (
        f"NRRD0004\ntype: uint8\ndimension: 3\nspace: left-posterior-superior\nsizes: {sizes}\n"
        "space directions: (1,0,0) (0,1,0) (0,0,1)\nkinds: domain domain domain\nencoding: gzip\n"
        "space origin: (0,0,0)\n\n"
    )
    path = folder / "bomb.nrrd"
    compressor = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    with path.open("wb") as file:
        file.write(header.encode())
        for _ in range(zeros >> 20):
            file.write(compressor.compress(bytes(1 << 20)))
        file.write(compressor.flush())
    return path


def _pair(folder: Path) -> Path:
    """Write NIfTI as two files."""
    _nifti(folder)
    header = bytearray(gzip.decompress((folder / "bomb.nii.gz").read_bytes())[:348])
    header[344:348] = b"ni1\0"
    (folder / "bomb.hdr").write_bytes(header)
    (folder / "bomb.img").write_bytes(bytes(1 << 20))
    return folder / "bomb.hdr"


def _metaimage(folder: Path, sizes: str = "4096 4096 512", zeros: int = 1 << 20) -> Path:
    compressor = zlib.compressobj(9)
    compressed = b"".join(compressor.compress(bytes(1 << 20)) for _ in range(zeros >> 20)) + compressor.flush()
    header = f"NDims = 3\nDimSize = {sizes}\nCompressedData = True\nCompressedDataSize = {len(compressed)}\n"
    path = folder / "bomb.mha"
    path.write_bytes(header.encode() + b"ElementType = MET_UCHAR\nElementDataFile = LOCAL\n" + compressed)
    return path


def _tiff(folder: Path) -> Path:
    path = folder / "bomb.tif"
    tifffile.imwrite(path, np.zeros((5000, 5000), np.uint8), compression="zlib")
    return path


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(folder: Path) -> Path:
    size = 9000  # Pillow itself refuses from 13,000 or so.
    shape = struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)
    path = folder / "bomb.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", shape) + _chunk(b"IDAT", zlib.compress(bytes((size + 1) * size), 9))
        + _chunk(b"IEND", b"")
    )  # fmt: skip
    return path


def _npz(folder: Path) -> Path:
    array = io.BytesIO()
    np.lib.format.write_array_header_1_0(array, {"descr": "|u1", "fortran_order": False, "shape": (60_000, 60_000)})
    path = folder / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("img.npy", array.getvalue() + bytes(1 << 20))
    return path


def _dicom(folder: Path) -> Path:
    image = pydicom.dcmread(ROOT / "sample-data" / "dicom" / "ct_01" / "001.dcm")
    image.Rows, image.Columns, image.NumberOfFrames = 60_000, 60_000, 1000
    image.save_as(folder / "bomb.dcm")
    return folder / "bomb.dcm"


def _dicom_series(folder: Path) -> Path:
    """Write slices that are within the limit each, but not together."""
    (folder / "bomb").mkdir()
    for number in range(3):
        image = pydicom.dcmread(ROOT / "sample-data" / "dicom" / "ct_01" / f"00{number + 1}.dcm")
        image.Rows = image.Columns = 4000
        image.save_as(folder / "bomb" / f"{number}.dcm")
    return folder / "bomb"


BOMBS = {
    "nifti": _nifti, "pair": _pair, "nrrd": lambda folder: _nrrd(folder, "4096 4096 512", 1 << 20),
    "metaimage": _metaimage, "png": _png, "tiff": _tiff, "npz": _npz, "dicom": _dicom, "series": _dicom_series,
}  # fmt: skip


@pytest.mark.parametrize("make", BOMBS.values(), ids=BOMBS.keys())
def test_file_with_too_large_header_is_refused(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="MB are allowed"):
        read_volume(make(tmp_path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # Kilobytes.


def test_label_map_larger_than_its_header_is_not_decompressed(tmp_path: Path) -> None:
    path = _nrrd(tmp_path, "16 16 4", 2 << 30)
    assert path.stat().st_size < 4 << 20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="more than its header says"):
        read_labels(path, Volume(np.zeros((16, 16, 4), np.int16), np.diag([-1.0, -1, 1, 1])))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_metaimage_larger_than_its_header_is_not_decompressed(tmp_path: Path) -> None:
    path = _metaimage(tmp_path, "16 16 4", 2 << 30)
    assert path.stat().st_size < 4 << 20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="more voxels than its header says"):
        read_volume(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_deflated_dicom_is_not_inflated_beyond_the_limit(tmp_path: Path) -> None:
    image = pydicom.dcmread(ROOT / "sample-data" / "dicom" / "ct_01" / "001.dcm")
    image.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    image.save_as(tmp_path / "a.dcm")
    assert read_volume(tmp_path / "a.dcm").shape == (128, 128, 1)
    image.add_new(0x00091002, "OB", bytes(1 << 30))
    image.save_as(tmp_path / "bomb.dcm")
    del image
    assert (tmp_path / "bomb.dcm").stat().st_size < 4 << 20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="MB are allowed"):
        read_volume(tmp_path / "bomb.dcm")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # Kilobytes.


def test_error_for_too_many_frames_gives_their_number(tmp_path: Path) -> None:
    image = pydicom.dcmread(ROOT / "sample-data" / "dicom" / "ct_01" / "001.dcm")
    image.Rows = image.Columns = 1
    image.NumberOfFrames = 30_000_000
    image.save_as(tmp_path / "a.dcm")
    with pytest.raises(InputError, match="30000000 frames .NumberOfFrames."):
        read_volume(tmp_path / "a.dcm")


def test_no_bomb_takes_more_than_twice_the_maximum_volume() -> None:
    """Read some bombs of each kind in a separate process; ``make bench-trust`` reads all of them."""
    figures = read_bombs([
        "npz name", "npz both names", "npz more data", "npz lying directory", "nifti extension", "nifti largest",
        "nrrd line skip", "metaimage largest", "png texts", "tiff tile", "tiff pages", "dicom jpeg", "dicom jpeg-ls",
        "dicom jpeg 2000", "dicom jpeg 2000 in boxes", "dicom jpeg 2000 components", "dicom jpeg 2000, second frame",
        "dicom htj2k", "dicom rle", "dicom late rows", "dicom more frames", "dicom largest, jpeg 2000", "label seg rle",
        "label seg jpeg 2000", "label structures of many edges", "label structures that overlap",
    ])  # fmt: skip
    assert figures["over_bound"] == []
    messages = {name: row["said"] for name, row in figures["by_name"].items()}
    for name in ("dicom jpeg", "dicom jpeg-ls", "dicom jpeg 2000", "dicom htj2k", "label seg jpeg 2000"):
        assert "64 rows, 64 columns and 1 samples" in messages[name], name
        assert "of its compressed pixels has 8000 rows, 8000 columns" in messages[name], name
    assert "but its compressed pixels hold 2000" in messages["dicom more frames"]
    assert "has 64 rows, 64 columns and 12000 samples" in messages["dicom jpeg 2000 components"]
    assert "unpacks to 61 MB (8000 x 8000 voxels)" in messages["npz name"]
    assert {name for name, row in figures["by_name"].items() if row["verdict"] == "answered"} <= {
        "nifti largest", "metaimage largest", "dicom largest, jpeg 2000", "dicom rle", "label seg rle",
        "label structures of many edges",
    }  # fmt: skip


def test_files_within_the_limit_are_read(tmp_path: Path) -> None:
    for name in ("ct_01", "dicom"):
        source = ROOT / "sample-data" / ("dicom/ct_01" if name == "dicom" else "ct/images/ct_01.nii.gz")
        assert read_volume(source).shape == (128, 128, 24)
    path = _nrrd(tmp_path, "16 16 4096", 1 << 20)
    assert read_volume(path).shape == (16, 16, 4096)


def test_large_ct_is_allowed_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MAX_VOLUME_MB_VARIABLE)
    assert check_size("ct.nii.gz", (1024, 1024, 2000), 2) == 4000 << 20
    with pytest.raises(InputError, match="8,192 MB are allowed"):
        check_size("ct.nii.gz", (1024, 1024, 20_000), 2)
    with pytest.raises(InputError, match="sizes below 0"):
        check_size("ct.nii.gz", (-1, 1024, -1), 2)


def test_file_of_wrong_format_is_refused(tmp_path: Path) -> None:
    shutil.copy(ROOT / "setup.cfg", tmp_path / "a.npz")
    with pytest.raises(InputError, match=r"a\.npz cannot be read"):
        read_volume(tmp_path / "a.npz")
