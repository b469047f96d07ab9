from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.dataset import Dataset
from scipy.spatial.transform import Rotation

from baps.errors import InputError
from baps.io import STRAIGHTENED_NOTE, SeveralVolumesError, read_dicom, read_each_volume, read_volume, write_nifti
from baps.io.dicom import volumes
from baps.io.dicom.pixels import decode_pixels
from stress.fuzz.displacements import Slice, misplaced, write_enhanced, write_series
from tests.support.paths import ROOT

CASES = ROOT.parent / "shared" / "cases"
RANDOM = np.random.default_rng(0)


def _titles(path: Path) -> list[str]:
    return [title for title, _ in read_each_volume(path)]


def _slices(count: int = 6, first: int = 0, step: tuple[float, float, float] = (0, 0, 3)) -> list[Slice]:
    values = (1 + 30 * first + np.arange(30 * count)).astype(np.int16).reshape(count, 5, 6)
    start = np.array([-20.0, 5, -20])
    return [Slice(values[k], start + k * np.array(step), np.eye(3)[:2], (1.5, 0.9)) for k in range(count)]


def test_frames_out_of_order_are_sorted_by_position(tmp_path: Path) -> None:
    slices = _slices()
    write_enhanced(tmp_path / "a.dcm", [slices[k] for k in (0, 2, 4, 1, 5, 3)], RANDOM)
    volume = read_volume(tmp_path / "a.dcm")
    np.testing.assert_array_equal(volume.voxels, np.stack([piece.values.T for piece in slices], -1))
    np.testing.assert_allclose(volume.affine @ (1, 1, 2, 1), (20 - 0.9, -5 - 1.5, -14, 1), atol=1e-6)


@pytest.mark.parametrize(
    ("kept_frames", "sentence"),
    [
        (
            (0, 1, 2, 4, 5),
            r"missing slices or uneven gaps \(1\): frame 3 of a.dcm and frame 4 of a.dcm are 6.00 mm apart",
        ),
        ((0, 1, 1, 2, 3), r"doubled slices \(1\): frame 2 of a.dcm and frame 3 of a.dcm lie in the same plane"),
    ],
)
def test_frames_that_are_missing_or_doubled_are_refused(
    tmp_path: Path, kept_frames: tuple[int, ...], sentence: str
) -> None:
    slices = _slices()
    write_enhanced(tmp_path / "a.dcm", [slices[k] for k in kept_frames], RANDOM)
    with pytest.raises(InputError, match=sentence):
        read_volume(tmp_path / "a.dcm")


def test_each_frame_has_its_own_slope(tmp_path: Path) -> None:
    slices = [replace(piece, slope=(1.0, 0.5, 2.0)[k % 3]) for k, piece in enumerate(_slices())]
    write_enhanced(tmp_path / "a.dcm", slices, RANDOM)
    expected = np.stack([piece.values.T * piece.slope for piece in slices], -1)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.dcm").voxels, expected)


@pytest.mark.parametrize("mark", ["TemporalPositionIndex", "EchoTime"])
@pytest.mark.parametrize("enhanced", [True, False])
def test_time_points_and_echoes_are_separate_volumes(tmp_path: Path, mark: str, enhanced: bool) -> None:
    slices = [
        replace(piece, attributes=((mark, value),)) for n, value in enumerate((4, 9)) for piece in _slices(4, 4 * n)
    ]
    mixed = [slices[index] for index in np.random.default_rng(1).permutation(8)]
    path = tmp_path / ("a.dcm" if enhanced else "a")
    if enhanced:
        write_enhanced(path, mixed, RANDOM)
    else:
        write_series(path, mixed)
    with pytest.raises(SeveralVolumesError, match="holds 2 volumes .*an image has one. Choose one of them") as raised:
        read_volume(path)
    assert sorted(float(title.split()[-1]) for title in raised.value.titles) == [4, 9]
    assert _titles(path) == list(raised.value.titles)
    for number, title in enumerate(raised.value.titles, start=1):
        own = [piece for piece in slices if piece.attributes[0][1] == float(title.split()[-1])]
        assert misplaced([read_dicom(path, number)], own) == ""
    with pytest.raises(InputError, match="holds 2 volumes, so there is no volume 3"):
        read_dicom(path, 3)


def test_each_file_is_decoded_once_for_all_its_volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = [[replace(piece, attributes=(("EchoTime", n),)) for piece in _slices(4, 4 * n)] for n in range(4)]
    del times[2][1]
    slices = [piece for time in times for piece in time]
    write_enhanced(tmp_path / "a.dcm", [slices[index] for index in RANDOM.permutation(len(slices))], RANDOM)
    decoded = []
    monkeypatch.setattr(volumes, "decode_pixels", lambda path: decoded.append(path) or decode_pixels(path))
    results = dict(read_each_volume(tmp_path / "a.dcm"))
    assert len(decoded) == 1
    for n, time in enumerate(times):
        (volume,) = [one for title, one in results.items() if float(title.split()[-1]) == n]
        if n == 2:
            assert isinstance(volume, InputError)
        else:
            assert misplaced([volume], time) == ""


def test_frames_distinguished_by_three_attributes_are_separate(tmp_path: Path) -> None:
    marks = [
        (("TemporalPositionIndex", time), ("EchoTime", echo), ("FlipAngle", angle))
        for time in (1, 2)
        for echo in (4, 9)
        for angle in (10, 20)
    ]
    volumes = [[replace(piece, attributes=mark) for piece in _slices(3, 3 * n)] for n, mark in enumerate(marks)]
    slices = [piece for volume in volumes for piece in volume]
    write_enhanced(tmp_path / "a.dcm", [slices[index] for index in RANDOM.permutation(len(slices))], RANDOM)
    results = [read_dicom(tmp_path / "a.dcm", number) for number in range(1, 9)]
    assert len(_titles(tmp_path / "a.dcm")) == 8
    for volume in volumes:
        assert any(misplaced([one], volume) == "" for one in results)


def test_phases_with_different_times_per_slice(tmp_path: Path) -> None:
    phases = [
        [replace(piece, attributes=(("TriggerTime", 37 * n + 1.3 * k),)) for k, piece in enumerate(_slices(4, 4 * n))]
        for n in range(3)
    ]
    slices = [piece for phase in phases for piece in phase]
    write_series(tmp_path / "a", [slices[index] for index in RANDOM.permutation(len(slices))])
    assert sorted(_titles(tmp_path / "a")) == [f"TriggerTime {number} of 3" for number in (1, 2, 3)]
    for title, volume in read_each_volume(tmp_path / "a"):
        assert misplaced([volume], phases[int(title.split()[1]) - 1]) == ""
    write_series(tmp_path / "b", slices[:-1])
    with pytest.raises(InputError, match="doubled slices"):
        read_volume(tmp_path / "b")


def test_rounded_positions_differ_from_a_missing_slice(tmp_path: Path) -> None:
    slices = _slices(40, step=(0, 0, 0.3125))
    rounded = [replace(piece, position=np.round(piece.position, 1)) for piece in slices]
    write_enhanced(tmp_path / "a.dcm", rounded, RANDOM)
    assert misplaced([read_volume(tmp_path / "a.dcm")], rounded) == ""
    write_enhanced(tmp_path / "b.dcm", rounded[:20] + rounded[21:], RANDOM)
    with pytest.raises(InputError, match="missing slices"):
        read_volume(tmp_path / "b.dcm")


def test_slices_of_a_few_micrometres_are_read(tmp_path: Path) -> None:
    slices = [replace(piece, spacing=(0.005, 0.005)) for piece in _slices(step=(0, 0, 0.005))]
    write_enhanced(tmp_path / "a.dcm", slices, RANDOM)
    assert read_volume(tmp_path / "a.dcm").spacing == pytest.approx((0.005, 0.005, 0.005))


def test_stacks_of_several_orientations_are_separate_volumes(tmp_path: Path) -> None:
    rotated = np.eye(3)[[1, 2, 0]]
    scout = [replace(_slices(1, 6)[0], orientation=rotated[:2], position=np.array([7.0, 8, 9]))]
    write_enhanced(tmp_path / "a.dcm", _slices() + scout, RANDOM)
    assert _titles(tmp_path / "a.dcm") == ["axial, 6 of 6 x 5", "sagittal, 1 of 6 x 5"]
    assert misplaced([read_dicom(tmp_path / "a.dcm", 1)], _slices()) == ""
    assert misplaced([read_dicom(tmp_path / "a.dcm", 2)], scout) == ""


def test_objects_with_and_without_positions_are_refused(tmp_path: Path) -> None:
    slices = _slices()
    write_enhanced(tmp_path / "a.dcm", [*slices[:3], replace(slices[3], position=None), *slices[4:]], RANDOM)
    with pytest.raises(InputError, match="frame 4 of a.dcm has no position"):
        read_volume(tmp_path / "a.dcm")


def test_error_names_a_wrong_number_of_frames(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "a.dcm", _slices(), RANDOM)
    image = pydicom.dcmread(tmp_path / "a.dcm")
    image.PerFrameFunctionalGroupsSequence = image.PerFrameFunctionalGroupsSequence[:4]
    image.save_as(tmp_path / "a.dcm")
    with pytest.raises(InputError, match=r"6 frames \(NumberOfFrames\), but describes 4 of them"):
        read_volume(tmp_path / "a.dcm")


def test_an_object_in_several_files_is_one_volume(tmp_path: Path) -> None:
    """A concatenation."""
    slices = _slices()
    (tmp_path / "a").mkdir()
    write_enhanced(tmp_path / "a" / "1.dcm", slices[3:], RANDOM)
    write_enhanced(tmp_path / "a" / "2.dcm", slices[:3], RANDOM)
    assert misplaced([read_volume(tmp_path / "a")], slices) == ""


@pytest.mark.parametrize("step", [(0.8, 0, 3), (0, -1.4, 3), (0.5, 0.7, 2)])
def test_a_tilted_stack_is_straightened_by_whole_pixels(tmp_path: Path, step: tuple[float, float, float]) -> None:
    slices = _slices(9, step=step)
    write_series(tmp_path / "a", slices)
    volume = read_volume(tmp_path / "a")
    assert STRAIGHTENED_NOTE in volume.notes
    assert any("straightened" in note for note in volume.notes)
    assert misplaced([volume], slices) == ""
    write_nifti(tmp_path / "a.nii.gz", volume)
    shown = SimpleITK.ReadImage(str(tmp_path / "a.nii.gz"))
    for piece in slices:
        for j, i in np.ndindex(5, 6):
            position = (
                piece.position
                + i * piece.spacing[1] * piece.orientation[0]
                + j * piece.spacing[0] * piece.orientation[1]
            )
            assert shown[shown.TransformPhysicalPointToIndex(position)] == piece.values[j, i]


def test_volume_with_rounded_positions_opens_in_itk(tmp_path: Path) -> None:
    rotated = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    normal = np.cross(rotated[0], rotated[1])
    slices = [
        replace(piece, orientation=rotated[:2], position=(np.array([1.0, 2, 3]) + k * 1.3 * normal).round(2))
        for k, piece in enumerate(_slices(40))
    ]
    write_series(tmp_path / "a", slices)
    volume = read_volume(tmp_path / "a")
    assert volume.shape == (6, 5, 40)
    assert misplaced([volume], slices) == ""
    write_nifti(tmp_path / "a.nii.gz", volume)
    assert SimpleITK.ReadImage(str(tmp_path / "a.nii.gz")).GetSize() == (6, 5, 40)


def test_accumulated_differences_of_steps_are_refused(tmp_path: Path) -> None:
    slices = _slices(40)
    moved = [
        replace(piece, position=np.array([0, 0, 3.0 * k + 0.2 * max(0, k - 20)])) for k, piece in enumerate(slices)
    ]
    write_series(tmp_path / "a", moved[:24])
    assert read_volume(tmp_path / "a").shape == (6, 5, 24)
    write_series(tmp_path / "b", moved)
    with pytest.raises(InputError, match="missing slices or uneven gaps"):
        read_volume(tmp_path / "b")


def _nuclear(path: Path, kind: str, vectors: dict[str, list[int]]) -> Path:
    """Write an NM image of 6 frames, described by SliceVector and others."""
    write_enhanced(path, _slices(), RANDOM)
    image = pydicom.dcmread(path)
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.20"
    image.Modality, image.ImageType = "NM", ["ORIGINAL", "PRIMARY", kind, "EMISSION"]
    del image.PerFrameFunctionalGroupsSequence, image.SharedFunctionalGroupsSequence
    detector = Dataset()
    detector.ImagePositionPatient, detector.ImageOrientationPatient = [-20, 5, -20], [1, 0, 0, 0, 1, 0]
    image.DetectorInformationSequence = [detector]
    image.PixelSpacing, image.SliceThickness, image.SpacingBetweenSlices = [1.5, 0.9], 3, 3
    for name, numbers in vectors.items():
        setattr(image, name, numbers)
    image.save_as(path)
    return path


def test_reconstructed_slices_of_nuclear_medicine_are_read(tmp_path: Path) -> None:
    order = [2, 1, 3, 6, 5, 4]
    volume = read_volume(_nuclear(tmp_path / "a.dcm", "RECON TOMO", {"SliceVector": order}))
    slices = _slices()
    expected = np.stack([slices[order.index(k)].values.T for k in range(1, 7)], -1)
    np.testing.assert_array_equal(volume.voxels, expected)
    assert volume.spacing == pytest.approx((0.9, 1.5, 3))
    path = _nuclear(
        tmp_path / "b.dcm",
        "RECON GATED TOMO",
        {"SliceVector": [1, 2, 3, 1, 2, 3], "TimeSlotVector": [1, 1, 1, 2, 2, 2]},
    )
    assert _titles(path) == ["TimeSlotVector 1", "TimeSlotVector 2"]
    assert read_dicom(path, 2).shape == (6, 5, 3)
    flat = read_volume(_nuclear(tmp_path / "c.dcm", "STATIC", {"DetectorVector": [1, 1, 1, 2, 2, 2]}))
    assert flat.spacing == pytest.approx((0.9, 1.5, 1))
    assert any("have no positions" in note for note in flat.notes)


def test_one_slice_of_nuclear_medicine_has_the_position_of_its_detector(tmp_path: Path) -> None:
    path = _nuclear(tmp_path / "a.dcm", "RECON TOMO", {})
    image = pydicom.dcmread(path)
    image.NumberOfFrames, image.PixelData = 1, image.PixelData[: 2 * image.Rows * image.Columns]
    image.save_as(path)
    judge = SimpleITK.ReadImage(str(path))
    assert judge.GetOrigin() == (-20, 5, -20)
    np.testing.assert_allclose(read_volume(path).affine[:3, 3], (20, -5, -20))


def test_ultrasound_volume_is_read(tmp_path: Path) -> None:
    """Enhanced US Volume Storage has its own attributes, and its name does not contain "Image"."""
    slices = _slices()
    write_enhanced(tmp_path / "a.dcm", [slices[k] for k in (5, 0, 3, 1, 4, 2)], RANDOM)
    image = pydicom.dcmread(tmp_path / "a.dcm")
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.6.2"
    for group in (*image.SharedFunctionalGroupsSequence, *image.PerFrameFunctionalGroupsSequence):
        for index, kind in (("PlanePosition", "ImagePosition"), ("PlaneOrientation", "ImageOrientation")):
            if f"{index}Sequence" in group:
                item = Dataset()
                values = group[f"{index}Sequence"].value[0][f"{kind}Patient"].value
                setattr(item, f"{kind}Volume", list(map(float, values)))
                setattr(group, f"{index}VolumeSequence", [item])
                delattr(group, f"{index}Sequence")
    image.save_as(tmp_path / "a.dcm")
    assert misplaced([read_volume(tmp_path / "a.dcm")], slices) == ""


def test_films_of_one_series_are_separate_images(tmp_path: Path) -> None:
    write_series(tmp_path / "a", [replace(piece, position=None) for piece in _slices(3)])
    assert _titles(tmp_path / "a") == [f"InstanceNumber {number}" for number in (1, 2, 3)]
    assert read_dicom(tmp_path / "a", 2).shape == (6, 5, 1)


@pytest.mark.skipif(not CASES.is_dir(), reason="needs the cases beside the repository (shared/cases)")
def test_enhanced_series_with_unusual_frames() -> None:
    for case in ("enhanced_interleaved", "enhanced_slopes"):
        volume = read_volume(CASES / case / "a.dcm")
        np.testing.assert_array_equal(volume.voxels, np.load(CASES / case / "truth.npy"))
        assert volume.spacing == pytest.approx((1.5, 1.5, 3))
    with pytest.raises(InputError, match="missing slices"):
        read_volume(CASES / "enhanced_missing_frames" / "a.dcm")


@pytest.mark.skipif(not shutil.which("dcm2niix"), reason="dcm2niix is not installed: apt-get install dcm2niix")
def test_geometry_equals_that_of_dcm2niix(tmp_path: Path) -> None:
    axes = Rotation.from_euler("xyz", (20, -30, 40), degrees=True).as_matrix().T
    slices = [
        replace(piece, orientation=axes[:2], position=np.array([-20.0, 5, 9]) + 3 * k * axes[2])
        for k, piece in enumerate(_slices(8))
    ]
    write_series(tmp_path / "a", [slices[k] for k in (0, 2, 4, 6, 1, 3, 5, 7)])
    command = ["dcm2niix", "-z", "n", "-f", "judge", "-o", str(tmp_path), str(tmp_path / "a")]
    subprocess.run(command, check=True, capture_output=True)
    judge, volume = SimpleITK.ReadImage(str(tmp_path / "judge.nii")), read_volume(tmp_path / "a")
    for index in np.ndindex(volume.shape):
        position = (volume.affine @ (*index, 1))[:3] * (-1, -1, 1)
        assert judge[judge.TransformPhysicalPointToIndex(position)] == volume.voxels[index]
