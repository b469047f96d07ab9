from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pydicom.data
import pytest
import SimpleITK
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended, generate_pixel_data_frame
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from baps.errors import InputError
from baps.io import is_dicom_folder, read_dicom, read_volume
from baps.io.dicom.pixels import decode_pixels, read_dataset
from tests.support.paths import ROOT

CASES = ROOT.parent / "shared" / "cases"
SAMPLE = ROOT / "sample-data" / "dicom" / "ct_01" / "001.dcm"
CORPUS = Path(pydicom.data.__file__).parent


def _sample() -> tuple[pydicom.FileDataset, np.ndarray]:
    image = pydicom.dcmread(SAMPLE)
    return image, read_volume(SAMPLE).voxels


def test_deflated_file_is_read(tmp_path: Path) -> None:
    image, voxels = _sample()
    image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    image.save_as(tmp_path / "a.dcm")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.dcm").voxels, voxels)
    content = (tmp_path / "a.dcm").read_bytes()
    (tmp_path / "cut.dcm").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="cut.dcm"):
        read_volume(tmp_path / "cut.dcm")


def test_deflated_frames_are_read(tmp_path: Path) -> None:
    image, voxels = _sample()
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(image.PixelData) + packer.flush()
    image.PixelData = encapsulate([packed + b"\0" * (len(packed) % 2)])
    image["PixelData"].VR = "OB"
    image["PixelData"].is_undefined_length = True
    image.save_as(tmp_path / "a.dcm")
    content = (tmp_path / "a.dcm").read_bytes()
    old, new = ExplicitVRLittleEndian.encode(), b"1.2.840.10008.1.2.8.1"
    at = content.index(old + b"\0")
    padded = new + b"\0"
    content = content[: at - 2] + len(padded).to_bytes(2, "little") + padded + content[at + len(old) + 1 :]
    length = content.index(b"\2\0\0\0UL\4\0") + 8
    size = int.from_bytes(content[length : length + 4], "little") + len(padded) - len(old) - 1
    (tmp_path / "a.dcm").write_bytes(content[:length] + size.to_bytes(4, "little") + content[length + 4 :])
    np.testing.assert_array_equal(read_volume(tmp_path / "a.dcm").voxels, voxels)


@pytest.mark.parametrize("meta", [True, False])
def test_file_without_preamble_is_read(tmp_path: Path, meta: bool) -> None:
    image, voxels = _sample()
    if meta:
        image.save_as(tmp_path / "whole.dcm")
        content = (tmp_path / "whole.dcm").read_bytes()[132:]
    else:
        image.file_meta = pydicom.dataset.FileMetaDataset()
        image.preamble = None
        image.save_as(tmp_path / "whole.dcm", write_like_original=True)
        content = (tmp_path / "whole.dcm").read_bytes()
    for name in ("a.dcm", "IM0001"):
        (tmp_path / "series").mkdir(exist_ok=True)
        (tmp_path / "series" / name).write_bytes(content)
        np.testing.assert_array_equal(read_dicom(tmp_path / "series" / name).voxels, voxels)
        np.testing.assert_array_equal(read_volume(tmp_path / "series").voxels, voxels)
        assert is_dicom_folder(tmp_path / "series")
        (tmp_path / "series" / name).unlink()


@pytest.mark.parametrize(
    ("uid", "name"),
    [
        ("1.2.840.10008.1.2.4.110", "JPEG XL Lossless"),
        ("1.2.840.10008.1.2.4.202", "High-Throughput JPEG 2000 with RPCL"),
        ("1.2.840.10008.1.2.4.102", "MPEG-4 AVC/H.264 High Profile / Level 4.1"),
        ("1.2.3.4.5", "an unknown syntax"),
    ],
)
def test_error_for_undecodable_pixels(tmp_path: Path, uid: str, name: str) -> None:
    image, _ = _sample()
    image.PixelData = encapsulate([b"\xff\x0a" + bytes(98)])
    image["PixelData"].is_undefined_length = True
    image["PixelData"].VR = "OB"
    image.file_meta.TransferSyntaxUID = UID(uid)
    with (tmp_path / "a.dcm").open("wb") as file:
        file.write(b"\0" * 128 + b"DICM")
        pydicom.filewriter.write_file_meta_info(file, image.file_meta)
        target = pydicom.filebase.DicomFileLike(file)
        target.is_little_endian, target.is_implicit_VR = True, False
        pydicom.filewriter.write_dataset(target, image)
    with pytest.raises(InputError, match=rf"transfer syntax is {name}.* \({uid.replace('.', '[.]')}\)") as raised:
        read_volume(tmp_path / "a.dcm")
    assert "cut off" not in str(raised.value)


@pytest.mark.parametrize(("keyword", "kind"), [("FloatPixelData", np.float32), ("DoubleFloatPixelData", np.float64)])
def test_float_pixels_are_read(tmp_path: Path, keyword: str, kind: type) -> None:
    image, _ = _sample()
    values = np.random.default_rng(0).normal(size=(image.Rows, image.Columns)).astype(kind)
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.30"
    image.BitsAllocated = 8 * values.itemsize
    del image.PixelData, image.BitsStored, image.HighBit, image.PixelRepresentation
    image.RescaleSlope, image.RescaleIntercept = 1, 0
    setattr(image, keyword, values.tobytes())
    image.save_as(tmp_path / "a.dcm")
    np.testing.assert_allclose(read_volume(tmp_path / "a.dcm").voxels[:, :, 0], values.T, rtol=1e-6)


@pytest.mark.parametrize("sample", ["MR_small_jp2klossless.dcm", "MR_small_RLE.dcm", "MR_small_jpeg_ls_lossless.dcm"])
@pytest.mark.parametrize("variant", ["no table", "fragments", "extended table"])
def test_fragments_and_offset_tables_of_compressed_frames(tmp_path: Path, sample: str, variant: str) -> None:
    expected = pydicom.dcmread(CORPUS / "test_files" / "MR_small.dcm").pixel_array.T
    image = pydicom.dcmread(CORPUS / "test_files" / sample)
    frames = 3 * list(generate_pixel_data_frame(image.PixelData, 1))
    if variant == "extended table":
        image.PixelData, image.ExtendedOffsetTable, image.ExtendedOffsetTableLengths = encapsulate_extended(frames)
    else:
        pieces = 2 if variant == "fragments" else 1
        image.PixelData = encapsulate(frames, fragments_per_frame=pieces, has_bot=variant != "no table")
    image.NumberOfFrames, image["PixelData"].is_undefined_length = 3, True
    image.save_as(tmp_path / "a.dcm")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.dcm").voxels, np.stack(3 * [expected], -1))


@pytest.mark.parametrize(("signed", "stored"), [(0, 12), (0, 16), (1, 12), (1, 16)])
def test_monochrome1_of_every_type_is_inverted(tmp_path: Path, signed: int, stored: int) -> None:
    image, _ = _sample()
    image.PhotometricInterpretation, image.PixelRepresentation = "MONOCHROME1", signed
    image.BitsStored, image.HighBit, image.RescaleIntercept = stored, stored - 1, 0
    values = np.random.default_rng(0).integers(-2000 * signed, 2000, (image.Rows, image.Columns))
    image.PixelData = values.astype("<i2").tobytes()
    image.save_as(tmp_path / "a.dcm")
    greatest = -1 if signed else 2**stored - 1
    np.testing.assert_array_equal(read_volume(tmp_path / "a.dcm").voxels[:, :, 0], greatest - values.T)


@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize(("stored", "high"), [(12, 11), (12, 13), (12, 15), (16, 15), (10, 9)])
def test_unused_bits_are_ignored(tmp_path: Path, signed: int, stored: int, high: int) -> None:
    image, _ = _sample()
    image.PixelRepresentation, image.BitsStored, image.HighBit, image.RescaleIntercept = signed, stored, high, 0
    random = np.random.default_rng(stored + high)
    minimum = -(2 ** (stored - 1)) * signed
    values = random.integers(minimum, minimum + 2**stored, (image.Rows, image.Columns))
    low = high + 1 - stored
    mask = (2**stored - 1) << low
    beside = random.integers(0, 2**16, values.shape) & ~mask  # An overlay.
    image.PixelData = (((values << low) & mask) | beside).astype("<u2").tobytes()
    image.save_as(tmp_path / "a.dcm")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.dcm").voxels[:, :, 0], values.T)
    if low == 0:
        judge = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "a.dcm")))
        np.testing.assert_array_equal(judge[0], values)


def test_error_names_missing_pixel_attributes(tmp_path: Path) -> None:
    image, _ = _sample()
    del image.PhotometricInterpretation
    image.save_as(tmp_path / "a.dcm")
    with pytest.raises(InputError, match=r"does not say how its pixels are stored \(PhotometricInterpretation\)"):
        read_volume(tmp_path / "a.dcm")


def test_pixels_of_a_wrong_size_are_refused(tmp_path: Path) -> None:
    image = pydicom.dcmread(CORPUS / "test_files" / "MR_small_jp2klossless.dcm")
    image.Rows, image.Columns = 32, 32
    image.save_as(tmp_path / "a.dcm")
    with pytest.raises(InputError, match="a.dcm"):
        read_volume(tmp_path / "a.dcm")


def _encode_rle(frame: np.ndarray) -> bytes:
    """Compress a frame (rows, columns) of 16 bits with RLE."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.Rows, image.Columns = frame.shape
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 0
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelData = 16, 16, 15, frame.tobytes()
    image.compress(RLELossless, encoding_plugin="pydicom")
    return next(generate_pixel_data_frame(image.PixelData, 1))


PACKERS: dict[str, Callable[[np.ndarray], bytes]] = {
    "1.2.840.10008.1.2.4.90": lambda frame: imagecodecs.jpeg2k_encode(frame, codecformat="j2k", reversible=True),
    "1.2.840.10008.1.2.4.80": imagecodecs.jpegls_encode,
    "1.2.840.10008.1.2.5": _encode_rle,
}


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", *PACKERS])
def test_frames_are_decoded_in_parts(tmp_path: Path, syntax: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image, _ = _sample()
    frames = np.random.default_rng(0).integers(0, 900, (5, 20, 30)).astype(np.uint16)
    image.NumberOfFrames, image.Rows, image.Columns, image.PixelRepresentation = len(frames), *frames.shape[1:], 0
    image.PixelData = frames.astype(">u2").tobytes() if syntax == "1.2.840.10008.1.2.2" else frames.tobytes()
    if syntax in PACKERS:
        image.PixelData = encapsulate([bytes(PACKERS[syntax](frame)) for frame in frames])
        image["PixelData"].is_undefined_length = True
    image["PixelData"].VR = "OB" if syntax in PACKERS else "OW"
    image.file_meta.TransferSyntaxUID = UID(syntax)
    written = Dataset()  # pydicom 3 does not save in the other byte order what it read in this one.
    for element in image:
        written.add(element)
    written.file_meta, written.preamble = image.file_meta, bytes(128)
    written.is_little_endian, written.is_implicit_VR = syntax != "1.2.840.10008.1.2.2", False
    written.save_as(tmp_path / "a.dcm")
    for part in (1, 2 * frames[0].nbytes, 1 << 20):
        monkeypatch.setattr("baps.io.dicom.pixels._DECODED_BYTES", part)
        np.testing.assert_array_equal(decode_pixels(tmp_path / "a.dcm"), frames)


@pytest.mark.skipif(not CASES.is_dir(), reason="needs the cases beside the repository (shared/cases)")
def test_high_throughput_jpeg_2000_is_read() -> None:
    volume = read_volume(CASES / "dicom_htj2k" / "a.dcm")
    judge = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(CASES / "dicom_htj2k" / "a.dcm")))
    np.testing.assert_array_equal(volume.voxels, judge.swapaxes(0, 2))
    assert (volume.voxels.min(), volume.voxels.max()) == (150, 267)


@pytest.mark.filterwarnings("ignore")
def test_files_of_pydicom_are_read_like_simpleitk_or_refused() -> None:
    files = [path for path in sorted(CORPUS.rglob("*")) if path.is_file() and path.suffix not in (".py", ".pyc")]
    read, refused = 0, {}
    for file in files:
        try:
            volume = read_dicom(file)
        except InputError as error:
            refused[file.name] = str(error)
            continue
        reader = SimpleITK.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(file))
        judge = SimpleITK.GetArrayFromImage(reader.Execute()).swapaxes(0, 2)
        np.testing.assert_allclose(volume.voxels, judge, atol=1e-3, err_msg=file.name)
        regions = pydicom.dcmread(file).get("SequenceOfUltrasoundRegions")
        if regions is None:  # SimpleITK ignores the spacing of this file.
            assert volume.spacing[:2] == pytest.approx(reader.GetSpacing()[:2], rel=1e-3), file.name
        else:
            assert volume.spacing[:2] == pytest.approx((10 * regions[0].PhysicalDeltaX, 10 * regions[0].PhysicalDeltaY))
        read += 1
    assert read > 60
    true = {
        "MR_truncated.dcm": "broken or cut off",
        "JPEG2000-embedded-sequence-delimiter.dcm": "compressed pixels has 1024 rows, 3722445056 columns",
        "chrJapMulti.dcm": "has no pixels",
        "rtdose.dcm": "is not an image: it is RT",
        "rtstruct.dcm": "is not an image: it is RT",
        "liver_1frame.dcm": "is not an image: it is Segmentation",  # A segmentation.
        "DICOMDIR": "is not an image: it is Media Storage Directory",
        "ExplVR_BigEndNoMeta.dcm": "is not an image: it is RT Ion Plan",  # A treatment plan.
        "IM000000": "how many Rows and Columns",  # Its pixels were removed.
    }
    for name, sentence in true.items():
        assert sentence in refused[name]
    assert [name for name, message in refused.items() if "broken or cut off" in message] == ["MR_truncated.dcm"]


@pytest.mark.parametrize("what", ["items", "elements", "value", "values in a sequence"])
def test_too_many_elements_or_values_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setenv("BAPS_MAX_VOLUME_MB", "1")
    dataset = Dataset()
    dataset.PatientID = "1"
    if what == "items":
        dataset.ReferencedImageSequence = [Dataset() for _ in range(100_001)]
    elif what == "elements":
        for number in range(100_001):
            dataset.add_new((0x6001 + 2 * (number // 50_000), 0x1000 + number % 50_000), "LO", "")
    elif what == "value":
        dataset.ImagePositionPatient = [1] * 600_000
    else:
        item = Dataset()
        item.ContourData = [1] * 150_000
        dataset.ROIContourSequence = [item]
    dataset.is_little_endian, dataset.is_implicit_VR = True, True
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2"
    dataset.save_as(tmp_path / "a.dcm", write_like_original=False)
    with pytest.raises(InputError, match=r"a\.dcm has a value of more than 1 MB, or more than"):
        read_dataset(tmp_path / "a.dcm")
