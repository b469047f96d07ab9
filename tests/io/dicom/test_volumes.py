from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import numpy as np
import pydicom
import pytest
import SimpleITK
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import ExplicitVRLittleEndian, RLELossless
from pydicom.valuerep import format_number_as_ds
from scipy.spatial.transform import Rotation

from baps.errors import InputError, NotFoundError
from baps.imaging.volume import Volume
from baps.io import is_dicom_folder, read_patient, read_volume, write_nifti
from tests.support.paths import ROOT

CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
X_RAY = "1.2.840.10008.5.1.4.1.1.1"
ULTRASOUND = "1.2.840.10008.5.1.4.1.1.6.1"
CINE = "1.2.840.10008.5.1.4.1.1.3.1"
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
REPORT = "1.2.840.10008.5.1.4.1.1.88.11"
PRESENTATION_STATE = "1.2.840.10008.5.1.4.1.1.11.1"
DOSE = "1.2.840.10008.5.1.4.1.1.481.2"
AXIAL = ((1.0, 0, 0), (0.0, 1, 0))
CORONAL = ((1.0, 0, 0), (0.0, 0, -1))
SAGITTAL = ((0.0, 1, 0), (0.0, 0, -1))
HEAD_DOWN = ((-1.0, 0, 0), (0.0, 1, 0))


def _numbers(values: Sequence[float] | NDArray[np.float64]) -> list[str]:
    return [format_number_as_ds(float(value)) for value in np.ravel(values)]


def _write(path: Path, pixels: NDArray[np.generic], sop_class: str = CT, **tags: object) -> Path:
    """Write a DICOM file of pixels (rows, columns), (rows, columns, 3), or (frames, rows, columns)."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = sop_class
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = f"1.2.3.{crc32(path.name.encode())}"
    image.is_little_endian, image.is_implicit_VR = True, False
    image.PatientName, image.PatientID = "Doe^Jane", "secret-17"
    image.StudyInstanceUID, image.SeriesInstanceUID = "1.2.4", "1.2.4.1"
    image.Rows, image.Columns = pixels.shape[1:3] if "NumberOfFrames" in tags else pixels.shape[:2]
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated = image.BitsStored = 8 * pixels.dtype.itemsize
    image.HighBit = image.BitsStored - 1
    image.PixelRepresentation = int(pixels.dtype.kind == "i")
    image.PixelData = pixels.tobytes()
    for keyword, value in tags.items():
        setattr(image, keyword, value)
    image.save_as(path, write_like_original=False)
    return path


def _pixels(number: int, rows: int = 3, columns: int = 4) -> NDArray[np.int16]:
    """Make values that differ by slice, row and column."""
    row, column = np.mgrid[:rows, :columns]
    return (1000 * number + 10 * row + column).astype(np.int16)


def _write_series(
    folder: Path,
    orientation: Sequence[Sequence[float]] = AXIAL,
    step: Sequence[float] | None = None,
    count: int = 4,
    spacing: tuple[float, float] = (0.5, 0.8),
    descending: bool = False,
    **tags: object,
) -> list[Path]:
    """Write a series of slices along their normal, or another step, with ascending or descending file numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    step = 2.0 * np.cross(*orientation) if step is None else np.asarray(step)
    return [
        _write(
            folder / f"{count - number if descending else number:03}.dcm",
            _pixels(number),
            ImagePositionPatient=_numbers(np.array([-10.0, 20, 30]) + number * step),
            ImageOrientationPatient=_numbers(orientation),
            PixelSpacing=_numbers(spacing),
            **tags,
        )
        for number in range(count)
    ]


def _positions(volume: Volume) -> NDArray[np.float64]:
    """Compute the positions of all voxels, (I, J, K, 3), mm, LPS."""
    index = np.stack(np.meshgrid(*(np.arange(size) for size in volume.shape), indexing="ij"), -1)
    ras = index @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    return ras * (-1, -1, 1)


def _itk_series(folder: Path) -> tuple[NDArray[np.generic], NDArray[np.float64]]:
    """Convert a series as MONAI Label does: voxels (I, J, K), and the affine in RAS."""
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).swapaxes(0, 2), np.diag([-1, -1, 1, 1]) @ affine


@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(0.2, 3)] * 2),
    distance=st.floats(0.3, 8),
    tilt=st.tuples(*[st.floats(-0.5, 0.5)] * 2),
    count=st.integers(2, 4),
    descending=st.booleans(),
)
def test_every_voxel_is_at_the_position_of_its_header(
    tmp_path_factory: pytest.TempPathFactory,
    angles: tuple[float, ...],
    spacing: tuple[float, float],
    distance: float,
    tilt: tuple[float, float],
    count: int,
    descending: bool,
) -> None:
    shifts = np.outer(
        np.arange(count), distance * np.array(tilt) / spacing[::-1]
    )  # The shift of each slice, in pixels.
    assume(np.abs(shifts % 1 - 0.5).min() > 1e-6)  # Halfway between two voxels, either one is right.
    folder = tmp_path_factory.mktemp("series")
    axes = Rotation.from_euler("xyz", angles, degrees=True).as_matrix().T
    step = distance * (axes[2] + tilt[0] * axes[0] + tilt[1] * axes[1])
    files = _write_series(folder, axes[:2], step, count, spacing, descending)
    volume = read_volume(folder)
    positions = _positions(volume)
    write_nifti(folder / "shown.nii.gz", volume)
    shown = SimpleITK.ReadImage(str(folder / "shown.nii.gz"))  # SimpleITK opens orthogonal grids only.
    for file in files:
        header = pydicom.dcmread(file)
        row, column = np.reshape(np.array(header.ImageOrientationPatient, float), (2, 3))
        between_rows, between_columns = (float(value) for value in header.PixelSpacing)
        for j in range(3):
            for i in range(4):
                physical_position = np.array(header.ImagePositionPatient, float)
                physical_position += row * between_columns * i + column * between_rows * j
                result = shown.TransformPhysicalPointToIndex(physical_position)
                assert volume.voxels[result] == shown[result] == header.pixel_array[j, i]
                away = (positions[result] - physical_position) @ axes[:2].T / (between_columns, between_rows)
                assert np.abs(away).max() < 0.502
                assert abs((positions[result] - physical_position) @ axes[2]) < 1e-3


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize(
    "orientation",
    [AXIAL, CORONAL, SAGITTAL, HEAD_DOWN, Rotation.from_euler("xyz", (20, -30, 40), degrees=True).as_matrix().T[:2]],
    ids=["axial", "coronal", "sagittal", "head down", "oblique"],
)
def test_voxels_and_affine_equal_those_of_itk(
    tmp_path: Path, orientation: Sequence[Sequence[float]], descending: bool
) -> None:
    _write_series(tmp_path, orientation, descending=descending, RescaleSlope="1", RescaleIntercept="-1024")
    volume = read_volume(tmp_path)
    voxels, affine = _itk_series(tmp_path)
    np.testing.assert_array_equal(volume.voxels, voxels)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
    assert volume.voxels.min() == -1024


def test_files_without_a_suffix_are_read(tmp_path: Path) -> None:
    for number, file in enumerate(_write_series(tmp_path)):
        file.rename(tmp_path / f"CT.1.3.12.{number}")
    assert read_volume(tmp_path).shape == (4, 3, 4)


def test_files_that_are_not_images_of_the_series_are_ignored(tmp_path: Path) -> None:
    _write_series(tmp_path)
    for number, kind in enumerate((SEGMENTATION, STRUCTURE_SET, REPORT, PRESENTATION_STATE, DOSE)):
        _write(tmp_path / f"other{number}.dcm", _pixels(0), kind, SeriesInstanceUID=f"9.9.{number}")
    (tmp_path / "README").write_text("This is no DICOM. " * 50)
    (tmp_path / "empty").touch()
    (tmp_path / "more").mkdir()
    assert read_volume(tmp_path).shape == (4, 3, 4)


def test_private_objects_are_ignored_but_private_images_are_read(tmp_path: Path) -> None:
    file = _write_series(tmp_path, count=5)[4]
    image = pydicom.dcmread(file)
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = "1.3.12.2.1107.5.99.1"
    image.save_as(file)
    assert read_volume(tmp_path).shape == (4, 3, 5)
    del image.Rows, image.Columns, image.PixelData
    image.save_as(file)
    assert read_volume(tmp_path).shape == (4, 3, 4)


def test_slopes_per_slice_are_applied(tmp_path: Path) -> None:
    for number, file in enumerate(_write_series(tmp_path)):
        image = pydicom.dcmread(file)
        image.RescaleSlope, image.RescaleIntercept = ("1", "0.5", "0.25", "2")[number], "0"
        image.save_as(file)
    expected = np.stack([_pixels(n).T * slope for n, slope in enumerate((1, 0.5, 0.25, 2))], -1)
    voxels = read_volume(tmp_path).voxels
    assert voxels.dtype == np.float32
    np.testing.assert_array_equal(voxels, expected)


def test_compressed_series_is_read(tmp_path: Path) -> None:
    """SimpleITK cannot decode RLE of less than 8 columns."""
    expected = [_pixels(number, 8, 9) for number in range(4)]
    for file, pixels in zip(_write_series(tmp_path), expected, strict=True):
        image = pydicom.dcmread(file)
        image.Rows, image.Columns, image.PixelData = *pixels.shape, pixels.tobytes()
        image.compress(RLELossless)
        image.save_as(file)
    np.testing.assert_array_equal(read_volume(tmp_path).voxels, np.stack(expected, -1).swapaxes(0, 1))


def test_rounded_positions_are_not_gaps(tmp_path: Path) -> None:
    for number, file in enumerate(_write_series(tmp_path, count=9)):
        image = pydicom.dcmread(file)
        image.ImagePositionPatient = [0, 0, round(0.625 * number, 1)]
        image.save_as(file)
    assert read_volume(tmp_path).spacing[2] == pytest.approx(0.625)


def test_missing_slices_are_refused(tmp_path: Path) -> None:
    files = _write_series(tmp_path, count=9)
    for number in (4, 5):
        files[number].unlink()
    sentence = r"missing slices or uneven gaps \(1\): 003\.dcm and 006\.dcm are 6\.00 mm apart instead of 2\.00 mm"
    with pytest.raises(InputError, match=sentence):
        read_volume(tmp_path)


def test_slices_shifted_sideways_are_refused(tmp_path: Path) -> None:
    file = _write_series(tmp_path, count=6)[3]
    image = pydicom.dcmread(file)
    image.ImagePositionPatient[0] += 5
    image.save_as(file)
    with pytest.raises(InputError, match=r"uneven gaps \(2\): 002\.dcm and 003\.dcm are 5\.39 mm apart"):
        read_volume(tmp_path)


def test_doubled_slices_are_refused(tmp_path: Path) -> None:
    files = _write_series(tmp_path)
    (tmp_path / "again.dcm").write_bytes(files[2].read_bytes())
    with pytest.raises(InputError, match=r"doubled slices \(1\): 002\.dcm and again\.dcm lie in the same plane"):
        read_volume(tmp_path)


def test_mixed_series_are_refused(tmp_path: Path) -> None:
    _write_series(tmp_path)
    _write(tmp_path / "scout.dcm", _pixels(0), SeriesInstanceUID="1.2.4.2")
    with pytest.raises(
        InputError, match="holds 2 series of images; a volume has one. Put each series into a separate folder"
    ):
        read_volume(tmp_path)


@pytest.mark.parametrize(
    ("keyword", "value", "sentence"),
    [
        ("ImageOrientationPatient", _numbers(CORONAL), "2 volumes .1: axial, 3 of 4 x 3; 2: coronal, 1 of 4 x 3."),
        ("PixelSpacing", ["0.5", "0.9"], "holds 2 volumes"),
        ("PixelSpacing", ["0.5", "0"], r"The PixelSpacing of 003.dcm is 0.5\\0; they must be above 0"),
        ("PixelSpacing", None, r"003.dcm has no pixel size .PixelSpacing."),
        ("ImageOrientationPatient", _numbers(((1, 0, 0), (1, 0, 0))), "003.dcm .* is not two perpendicular directions"),
        ("Rows", 2, "2 volumes .1: axial, 3 of 4 x 3; 2: axial, 1 of 4 x 2."),
        ("ImagePositionPatient", None, "003.dcm has no position"),
        ("ImageOrientationPatient", None, "003.dcm has no position"),
        ("RescaleSlope", 0, "The RescaleSlope of 003.dcm is 0"),
        ("NumberOfFrames", "1.5", "The NumberOfFrames of 003.dcm is '1.5'; it must be a whole number"),
        ("NumberOfFrames", 2, "frame 1 of 003.dcm has no position"),
    ],
)
def test_slices_that_cannot_be_stacked_are_refused(tmp_path: Path, keyword: str, value: object, sentence: str) -> None:
    file = _write_series(tmp_path)[3]
    image = pydicom.dcmread(file)
    setattr(image, keyword, value)
    image.save_as(file)
    with pytest.raises(InputError, match=sentence):
        read_volume(tmp_path)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_error_names_a_truncated_file(tmp_path: Path, compressed: bool) -> None:
    files = _write_series(tmp_path, count=3)
    for file in files:
        image = pydicom.dcmread(file)
        image.Rows, image.Columns, image.PixelData = 8, 9, _pixels(0, 8, 9).tobytes()
        if compressed:
            image.compress(RLELossless)
        image.save_as(file)
    assert read_volume(tmp_path).shape == (9, 8, 3)
    content = files[2].read_bytes()
    for length in range(0, len(content) - 4, 3):  # The last 4 bytes of compressed data do not matter.
        files[2].write_bytes(content[:length])
        with pytest.raises(InputError, match=r"002\.dcm") as raised:
            read_volume(tmp_path)
        assert "secret" not in str(raised.value)


def test_truncated_header_without_a_suffix_is_refused(tmp_path: Path) -> None:
    file = _write_series(tmp_path)[3]
    file.rename(tmp_path / "IM3")
    (tmp_path / "IM3").write_bytes((tmp_path / "IM3").read_bytes()[:160])
    with pytest.raises(InputError, match="IM3 does not say how many Rows"):
        read_volume(tmp_path)


def test_too_few_pixels_are_refused(tmp_path: Path) -> None:
    """SimpleITK would pad them."""
    file = _write(tmp_path / "a.dcm", _pixels(0), PixelData=_pixels(0).tobytes()[:-4])
    assert SimpleITK.ReadImage(str(file)).GetSize() == (4, 3, 1)
    with pytest.raises(InputError, match=r"a\.dcm cannot be read. The file is broken or cut off"):
        read_volume(file)


def test_file_without_pixels_is_refused(tmp_path: Path) -> None:
    file = _write(tmp_path / "a.dcm", _pixels(0))
    image = pydicom.dcmread(file)
    del image.PixelData
    image.save_as(file)
    with pytest.raises(InputError, match=r"a\.dcm has no pixels .PixelData.; its transfer syntax is Explicit"):
        read_volume(file)


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no DICOM images. Give the folder"):
        read_volume(tmp_path)
    _write(tmp_path / "seg.dcm", _pixels(0), SEGMENTATION)
    with pytest.raises(InputError, match="holds no DICOM images. Give the folder"):
        read_volume(tmp_path)
    with pytest.raises(InputError, match=r"seg.dcm is not an image: it is Segmentation Storage \(SOPClassUID 1.2.840"):
        read_volume(tmp_path / "seg.dcm")
    with pytest.raises(NotFoundError, match="absent"):
        read_volume(tmp_path / "absent")


def test_a_single_slice_keeps_its_position(tmp_path: Path) -> None:
    file = _write_series(tmp_path, SAGITTAL, count=1, SpacingBetweenSlices="3")[0]
    alone, in_folder = read_volume(file), read_volume(tmp_path)
    assert alone.same_geometry(in_folder)
    assert alone.spacing == pytest.approx((0.8, 0.5, 3))
    np.testing.assert_array_equal(alone.voxels[..., 0], _pixels(0).T)
    np.testing.assert_allclose(_positions(alone)[0, 0, 0], (-10, 20, 30))
    np.testing.assert_allclose(_positions(alone)[2, 0, 0], (-10, 20 + 2 * 0.8, 30))


@pytest.mark.parametrize(
    ("kind", "tags", "spacing"),
    [
        (ULTRASOUND, {"PixelSpacing": ["0.5", "0.8"]}, (0.8, 0.5)),
        (X_RAY, {"ImagerPixelSpacing": ["0.2", "0.3"]}, (0.3, 0.2)),
        (X_RAY, {}, (1, 1)),
    ],
)
def test_image_without_a_position_is_at_the_origin(
    tmp_path: Path, kind: str, tags: dict[str, object], spacing: tuple[float, float]
) -> None:
    volume = read_volume(_write(tmp_path / "a.dcm", _pixels(0), kind, **tags))
    np.testing.assert_allclose(volume.affine, np.diag([-spacing[0], -spacing[1], 1, 1]))
    np.testing.assert_array_equal(volume.voxels[..., 0], _pixels(0).T)


def test_frames_run_along_k(tmp_path: Path) -> None:
    frames = np.stack([_pixels(number) for number in range(5)]).astype(np.uint16)
    volume = read_volume(_write(tmp_path / "a.dcm", frames, CINE, NumberOfFrames=5))
    np.testing.assert_array_equal(volume.voxels, frames.swapaxes(0, 2))


@pytest.mark.parametrize("step", [2.0, -2.0])
def test_frames_of_an_enhanced_image_keep_their_position(tmp_path: Path, step: float) -> None:
    frames = np.stack([_pixels(number) for number in range(3)])
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = _numbers(AXIAL)
    measures.PixelSpacing, measures.SpacingBetweenSlices = ["0.5", "0.8"], "2"
    shared.PlaneOrientationSequence = DicomSequence([orientation])
    shared.PixelMeasuresSequence = DicomSequence([measures])
    volumes = []
    for number in range(3):
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = _numbers((1, 2, 3 + number * step))
        frame.PlanePositionSequence = DicomSequence([position])
        volumes.append(frame)
    file = _write(
        tmp_path / "a.dcm",
        frames,
        ENHANCED_CT,
        NumberOfFrames=3,
        SharedFunctionalGroupsSequence=DicomSequence([shared]),
        PerFrameFunctionalGroupsSequence=DicomSequence(volumes),
    )
    volume = read_volume(file)
    np.testing.assert_array_equal(volume.voxels, frames.swapaxes(0, 2)[:, :, :: 1 if step > 0 else -1])
    np.testing.assert_allclose(_positions(volume)[1, 2, 2 if step > 0 else 0], (1.8, 3, 3 + 2 * step))


@pytest.mark.parametrize("slope", ["1", "0.5"])
def test_monochrome1_is_inverted(tmp_path: Path, slope: str) -> None:
    tags: dict[str, object] = {"RescaleSlope": slope, "RescaleIntercept": "-7"}
    usual = read_volume(_write(tmp_path / "a.dcm", _pixels(1), X_RAY, **tags)).voxels
    rotated = read_volume(
        _write(tmp_path / "b.dcm", _pixels(1), X_RAY, PhotometricInterpretation="MONOCHROME1", **tags)
    ).voxels
    differences = rotated.astype(float) + usual
    assert np.ptp(differences) == 0
    assert np.ptp(usual) == np.ptp(_pixels(1)) * float(slope)


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("model", ["RGB", "YBR_FULL"])
def test_colour_is_read(tmp_path: Path, model: str, planar: int) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (3, 4, 3)).astype(np.uint8)
    stored = colours
    if model == "YBR_FULL":
        stored = pydicom.pixel_data_handlers.util.convert_color_space(colours, "RGB", "YBR_FULL")
    tags = {"SamplesPerPixel": 3, "PhotometricInterpretation": model, "PlanarConfiguration": planar}
    ordered = np.ascontiguousarray(np.moveaxis(stored, -1, 0)) if planar else stored
    volume = read_volume(_write(tmp_path / "a.dcm", ordered, ULTRASOUND, Rows=3, Columns=4, **tags))
    assert volume.colour
    assert volume.shape == (4, 3, 1)
    np.testing.assert_allclose(volume.voxels[:, :, 0].astype(int), colours.swapaxes(0, 1), atol=2)


def test_colour_of_more_than_eight_bits_is_refused(tmp_path: Path) -> None:
    colours = np.zeros((3, 4, 3), np.uint16)
    tags = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    with pytest.raises(InputError, match=r"a\.dcm holds colours of type uint16; 8 bits"):
        read_volume(_write(tmp_path / "a.dcm", colours, ULTRASOUND, **tags))


def test_patient_is_read(tmp_path: Path) -> None:
    file = _write_series(tmp_path / "series")[0]
    nameless = _write(tmp_path / "nameless.dcm", _pixels(0), PatientID="")
    assert read_patient(file.parent) == "secret-17"
    assert read_patient(file) == "secret-17"
    assert read_patient(nameless) is None
    assert read_patient(tmp_path / "a.nii.gz") is None
    (tmp_path / "empty").mkdir()
    assert read_patient(tmp_path / "empty") is None


def test_dicom_folders_are_recognised_by_content_or_suffix(tmp_path: Path) -> None:
    for name in ("marked", "unmarked", "suffixed", "pictures", "empty", "nested"):
        (tmp_path / name).mkdir()
    (tmp_path / "marked" / "a").mkdir()
    (tmp_path / "marked" / "notes.txt").write_text("x")
    _write(tmp_path / "marked" / "IM0", _pixels(0))
    content = (tmp_path / "marked" / "IM0").read_bytes()
    (tmp_path / "unmarked" / "IM0").write_bytes(content[132:])  # Without preamble.
    (tmp_path / "suffixed" / "a.DCM").touch()
    (tmp_path / "pictures" / "a.png").write_bytes(b"x" * 200)
    _write_series(tmp_path / "nested" / "series")
    results = {path.name for path in tmp_path.iterdir() if is_dicom_folder(path)}
    assert results == {"marked", "unmarked", "suffixed"}
    assert not is_dicom_folder(tmp_path / "marked" / "IM0")
    assert not is_dicom_folder(tmp_path / "absent")


def test_colour_series_is_converted_to_nifti(tmp_path: Path) -> None:
    """The server sends it to viewers in this form."""
    colours = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3)).astype(np.uint8)
    folder = tmp_path / "series"
    folder.mkdir()
    for number, pixels in enumerate(colours):
        _write(
            folder / f"{number}.dcm",
            pixels,
            SamplesPerPixel=3,
            PhotometricInterpretation="RGB",
            PlanarConfiguration=0,
            ImagePositionPatient=_numbers([-10, 20, 2 * number]),
            ImageOrientationPatient=_numbers(AXIAL),
            PixelSpacing=_numbers([0.5, 0.8]),
        )
    volume = read_volume(folder)
    write_nifti(tmp_path / "a.nii.gz", volume)
    again = read_volume(tmp_path / "a.nii.gz")
    assert again.same_geometry(volume)
    np.testing.assert_array_equal(again.voxels, volume.voxels)
    np.testing.assert_array_equal(again.voxels, colours.transpose(2, 1, 0, 3))


def test_hidden_files_and_broken_links_are_ignored(tmp_path: Path) -> None:
    """macOS writes ._0.dcm beside 0.dcm."""
    folder = tmp_path / "series"
    _write_series(folder)
    before = read_volume(folder)
    (folder / "._0.dcm").write_bytes(b"\0\x05\x16\x07rubbish")
    (folder / "9.dcm").symlink_to(tmp_path / "absent")
    np.testing.assert_array_equal(read_volume(folder).voxels, before.voxels)
    assert read_patient(folder) == "secret-17"
    assert is_dicom_folder(folder)
    (tmp_path / "rest").mkdir()
    (folder / "._0.dcm").rename(tmp_path / "rest" / "._0.dcm")
    (folder / "9.dcm").rename(tmp_path / "rest" / "9.dcm")
    assert not is_dicom_folder(tmp_path / "rest")


@pytest.mark.parametrize("nested", [False, True])
def test_value_longer_than_its_file_is_refused(tmp_path: Path, nested: bool) -> None:
    """GDCM would allocate up to 4 GB before it reads the value."""
    dataset = pydicom.dcmread(ROOT / "sample-data" / "dicom" / "ct_01" / "001.dcm")
    holder = Dataset() if nested else dataset
    holder.add_new(0x00091002, "UN", b"a value in its file.")
    if nested:
        dataset.ReferencedImageSequence = [holder]
        dataset["ReferencedImageSequence"].is_undefined_length = False
    dataset.save_as(tmp_path / "a.dcm")
    read_volume(tmp_path / "a.dcm")
    content = (tmp_path / "a.dcm").read_bytes()
    value = content.index(b"a value in")
    (tmp_path / "a.dcm").write_bytes(content[: value - 4] + (0x70000000).to_bytes(4, "little") + content[value:])
    with pytest.raises(InputError, match="cut off"):
        read_volume(tmp_path / "a.dcm")


def test_forbidden_elements_are_refused(tmp_path: Path) -> None:
    content = (ROOT / "sample-data" / "dicom" / "ct_01" / "001.dcm").read_bytes()
    offset = content.index(b"\x20\x00\x0d\x00UI")
    (tmp_path / "a.dcm").write_bytes(content[:offset] + b"\0\0\1\0UL\4\0\0\0\0\0" + content[offset:])
    with pytest.raises(InputError, match="broken or cut off"):
        read_volume(tmp_path / "a.dcm")
