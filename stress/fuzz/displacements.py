"""Images whose geometry was changed: is any voxel shown in another place than its header says, in silence?

Frames are permuted, doubled and dropped, signs are flipped, units changed, slopes varied; as files of a series, as one
object of many frames, and as NIfTI. Each image is refused with a sentence, or every voxel lies within half a voxel of
where the header puts it. The header is the judge, read by pydicom and by SimpleITK, not our own reader.

``python -m stress.fuzz.displacements --inputs 2000`` runs this alone.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import nibabel
import numpy as np
import pydicom
import SimpleITK
import typer
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

_CT, _ENHANCED_CT, _ENHANCED_MR = (
    "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.2.1",
    "1.2.840.10008.5.1.4.1.1.4.1",
)
_ROWS, _COLUMNS = 5, 6
_HALF = 0.51
"""Of a voxel; headers keep some six digits."""

CHANGES = (
    "permuted", "dropped", "doubled", "row_flipped", "column_flipped", "one_flipped", "position_sign", "one_sign",
    "centimetres", "one_centimetres", "spacing", "one_spacing", "tilted", "rounded", "slopes", "times", "echoes",
    "stacks", "one_without_position", "shifted_sideways", "uneven",
)  # fmt: skip


@dataclass(frozen=True)
class Slice:
    """One frame of a made image.

    Attributes:
        values: (rows, columns), as they are stored; each is there once in the whole image.
        position: ImagePositionPatient, mm, or None.
        orientation: (2, 3), ImageOrientationPatient.
        spacing: PixelSpacing: of rows, of columns.
        slope: of the values.
        marks: further attributes, such as EchoTime.
    """

    values: NDArray[np.int16]
    position: NDArray[np.float64] | None
    orientation: NDArray[np.float64]
    spacing: tuple[float, float]
    slope: float = 1.0
    marks: tuple[tuple[str, float], ...] = ()


def draw_slices(random: np.random.Generator) -> tuple[list[Slice], list[str]]:
    """Draw an image, and what was changed about it."""
    count, step = int(random.integers(3, 8)), float(random.choice([1.0, 2.5, 5.0]))
    spacing = (float(random.choice([0.5, 0.9, 1.5])), float(random.choice([0.5, 0.9, 1.5])))
    axes = np.linalg.qr(random.normal(size=(3, 3)))[0] if random.random() < 0.5 else np.eye(3)[random.permutation(3)]
    origin = random.uniform(-200, 200, 3).round(3)
    changes = [str(one) for one in random.choice(CHANGES, int(random.integers(1, 4)), replace=False)]
    tilt = random.uniform(-0.6, 0.6, 2) if "tilted" in changes else np.zeros(2)
    along = np.cross(axes[0], axes[1]) + tilt[0] * axes[0] + tilt[1] * axes[1]
    slices = []
    for repeat in range(2 if {"times", "echoes", "stacks"} & set(changes) else 1):
        turned = axes if repeat == 0 or "stacks" not in changes else axes[[1, 2, 0]]
        marks: tuple[tuple[str, float], ...] = ()
        if "times" in changes:
            marks += (("TemporalPositionIndex", 1 + repeat),)
        if "echoes" in changes:
            marks += (("EchoTime", 10.0 * (1 + repeat)),)
        for k in range(count):
            number = repeat * count + k
            # Odd, so that no two are the same when they are halved or doubled.
            values = 1 + 2 * (number * _ROWS * _COLUMNS + np.arange(_ROWS * _COLUMNS).reshape(_ROWS, _COLUMNS))
            direction = along if repeat == 0 or "stacks" not in changes else np.cross(turned[0], turned[1])
            position = origin + k * step * direction
            slices.append(Slice(values.astype(np.int16), position, turned[:2], spacing, 1.0, marks))
    for change in changes:
        slices = _changed(change, slices, random)
    return slices, changes


def _changed(change: str, slices: list[Slice], random: np.random.Generator) -> list[Slice]:
    """The slices after one change; what says nothing about positions is left as it is drawn."""
    one = int(random.integers(len(slices)))

    def each(**values: Any) -> list[Slice]:
        return [replace(piece, **{name: make(piece) for name, make in values.items()}) for piece in slices]

    def alone(**values: Any) -> list[Slice]:
        return [*slices[:one], replace(slices[one], **values), *slices[one + 1 :]]

    position, orientation = slices[one].position, slices[one].orientation
    known = position if position is not None else np.zeros(3)
    if change == "permuted":
        return [slices[place] for place in random.permutation(len(slices))]
    if change == "dropped":
        return [piece for place, piece in enumerate(slices) if place != one]
    if change == "doubled":
        return [*slices, replace(slices[one], values=(slices[one].values + 10_000).astype(np.int16))]
    if change == "row_flipped":
        return each(orientation=lambda piece: piece.orientation * [[-1], [1]])
    if change == "column_flipped":
        return each(orientation=lambda piece: piece.orientation * [[1], [-1]])
    if change == "one_flipped":
        return alone(orientation=orientation * [[-1], [1]])
    if change == "position_sign":
        return each(position=lambda piece: None if piece.position is None else -piece.position)
    if change == "one_sign":
        return alone(position=known * [1, 1, -1])
    if change == "centimetres":
        return each(
            position=lambda piece: None if piece.position is None else piece.position / 10,
            spacing=lambda piece: (piece.spacing[0] / 10, piece.spacing[1] / 10),
        )
    if change == "one_centimetres":
        return alone(position=known / 10)
    if change == "spacing":
        return each(spacing=lambda piece: (piece.spacing[0] * 10, piece.spacing[1]))
    if change == "one_spacing":
        return alone(spacing=(slices[one].spacing[0] * 2, slices[one].spacing[1]))
    if change == "rounded":
        return each(position=lambda piece: None if piece.position is None else piece.position.round(2))
    if change == "slopes":
        return each(slope=lambda piece: float(random.choice([0.5, 1.0, 2.0])))
    if change == "one_without_position":
        return alone(position=None)
    if change == "shifted_sideways":
        return alone(position=known + random.uniform(-3, 3) * orientation[0])
    if change == "uneven":
        return alone(position=known + random.uniform(-1, 1) * np.cross(*orientation))
    return slices  # Drawn already: tilted, times, echoes, stacks.


def _header(sop_class: str, shape: tuple[int, ...]) -> Dataset:
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = sop_class
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = pydicom.uid.generate_uid()
    image.is_little_endian, image.is_implicit_VR = True, False
    image.StudyInstanceUID, image.SeriesInstanceUID, image.PatientID = "1.2.3", "1.2.3.4", "fuzz"
    (image.Rows, image.Columns), image.SamplesPerPixel = shape, 1
    image.PhotometricInterpretation, image.PixelRepresentation = "MONOCHROME2", 1
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
    return image


def _text(values: Sequence[float] | NDArray[np.float64]) -> list[str]:
    return [f"{value:.9f}"[:16] for value in np.ravel(values)]


def write_series(folder: Path, slices: Sequence[Slice]) -> None:
    """Write a file for each slice."""
    folder.mkdir(parents=True)
    for number, piece in enumerate(slices, start=1):
        image = _header(_CT, piece.values.shape)
        image.InstanceNumber = number
        if piece.position is not None:
            image.ImagePositionPatient = _text(piece.position)
        image.ImageOrientationPatient, image.PixelSpacing = _text(piece.orientation), _text(piece.spacing)
        image.RescaleSlope, image.RescaleIntercept = str(piece.slope), "0"
        for name, value in piece.marks:
            setattr(image, "TemporalPositionIdentifier" if name == "TemporalPositionIndex" else name, int(value))
        image.PixelData = piece.values.tobytes()
        image.save_as(folder / f"{number:03}.dcm", write_like_original=False)


def write_enhanced(path: Path, slices: Sequence[Slice], random: np.random.Generator) -> None:
    """Write one object with a frame for each slice; what all frames share may stand once."""
    image = _header(str(random.choice([_ENHANCED_CT, _ENHANCED_MR])), slices[0].values.shape)
    image.InstanceNumber, image.NumberOfFrames = 1, len(slices)
    image.PixelData = b"".join(piece.values.tobytes() for piece in slices)
    shared, groups = Dataset(), []
    same = all(
        np.array_equal(piece.orientation, slices[0].orientation) and piece.spacing == slices[0].spacing
        for piece in slices
    )
    for piece in slices:
        group = Dataset()
        if piece.position is not None:
            group.PlanePositionSequence = [Dataset()]
            group.PlanePositionSequence[0].ImagePositionPatient = _text(piece.position)
        where = shared if same else group
        where.PlaneOrientationSequence, where.PixelMeasuresSequence = [Dataset()], [Dataset()]
        where.PlaneOrientationSequence[0].ImageOrientationPatient = _text(piece.orientation)
        where.PixelMeasuresSequence[0].PixelSpacing = _text(piece.spacing)
        group.PixelValueTransformationSequence = [Dataset()]
        group.PixelValueTransformationSequence[0].RescaleSlope = str(piece.slope)
        group.PixelValueTransformationSequence[0].RescaleIntercept = "0"
        group.FrameContentSequence = [Dataset()]
        for name, value in piece.marks:
            if name == "EchoTime":
                group.MREchoSequence = [Dataset()]
                group.MREchoSequence[0].EffectiveEchoTime = value
            else:
                setattr(group.FrameContentSequence[0], name, int(value))
        groups.append(group)
    image.SharedFunctionalGroupsSequence, image.PerFrameFunctionalGroupsSequence = [shared], groups
    image.save_as(path, write_like_original=False)


def misplaced(volumes: Sequence[Any], slices: Sequence[Slice]) -> str:
    """What is wrong with volumes that were read from slices; "" if every voxel is where its header says.

    Args:
        volumes: with ``voxels`` (I, J, K) and ``affine`` (RAS, mm).
        slices: as they were written.
    """
    found = 0
    for piece in slices:
        position = np.zeros(3) if piece.position is None else piece.position
        rows, columns = np.mgrid[:_ROWS, :_COLUMNS]
        there = position + np.stack([columns * piece.spacing[1], rows * piece.spacing[0]], -1) @ piece.orientation
        for volume in volumes:
            at = np.linalg.solve(volume.affine, np.append(position * [-1, -1, 1], 1.0))[2]
            k = int(np.rint(at))
            if not 0 <= k < volume.voxels.shape[2]:
                continue
            spots = [
                np.argwhere(np.isclose(volume.voxels, value * piece.slope, atol=1e-3)) for value in piece.values[0]
            ]
            if not all(any(spot[2] == k for spot in one) for one in spots):
                continue
            inverse = np.linalg.inv(volume.affine)
            index = (inverse[:3, :3] @ (there * [-1, -1, 1]).reshape(-1, 3).T).T + inverse[:3, 3]
            nearest = np.rint(index).astype(int)
            inside = ((nearest >= 0) & (nearest < volume.voxels.shape)).all(1)
            exact = np.isclose(volume.voxels[tuple(nearest[inside].T)], piece.values.ravel()[inside] * piece.slope)
            if inside.all() and exact.all():
                found += 1
                break
            # A voxel that lies half-way may be shown on either side.
            off = [
                np.abs(np.argwhere(np.isclose(volume.voxels[:, :, k], value * piece.slope)) - place[:2]).max(1).min()
                if np.isclose(volume.voxels[:, :, k], value * piece.slope).any() else np.inf
                for value, place in zip(piece.values.ravel(), index, strict=True)
            ]  # fmt: skip
            if max(off) <= _HALF and abs(at - k) <= _HALF:
                found += 1
                break
    return "" if found == len(slices) else f"{len(slices) - found} of {len(slices)} slices are not where they belong"


def check_dicom(folder: Path, random: np.random.Generator) -> tuple[str, str]:
    """Write and read one image; the verdict (``placed``, ``refused``, ``displaced`` or ``error``) and what was said."""
    from baps.errors import InputError
    from baps.io import SeveralVolumesError, read_dicom, read_volume

    slices, changes = draw_slices(random)
    if not slices:
        return "refused", "nothing was drawn"
    path = folder / "image"
    if random.random() < 0.5:
        write_series(path, slices)
    else:
        path = folder / "image.dcm"
        write_enhanced(path, slices, random)
    told = f"{path.name}: {', '.join(changes)}"
    try:
        try:
            volumes = [read_volume(path)]
        except SeveralVolumesError as error:
            volumes, refused = [], []
            for number in range(1, len(error.titles) + 1):
                try:
                    volumes.append(read_dicom(path, number))
                except InputError as broken:
                    refused.append(str(broken))
            if refused:  # The others are judged by the slices that they hold.
                held = np.unique([value for volume in volumes for value in volume.voxels.ravel()])
                slices = [piece for piece in slices if np.isin(piece.values * piece.slope, held).all()]
            if not volumes:
                return "refused", told
    except InputError as error:
        return ("refused" if len(str(error).split()) > 3 else "error"), f"{told}: {error}"
    if any(piece.position is None for piece in slices):
        return "displaced", f"{told}: a slice without a position was shown"
    if wrong := misplaced(volumes, slices):
        return "displaced", f"{told}: {wrong}"
    return "placed", told


def check_nifti(folder: Path, random: np.random.Generator) -> tuple[str, str]:
    """As ``check_dicom``, of a NIfTI file with other codes, units and signs; SimpleITK is the judge."""
    from baps.errors import InputError
    from baps.io import read_volume

    values = np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5)
    spacing = random.uniform(0.4, 4, 3)

    def drawn() -> NDArray[np.float64]:
        affine = np.eye(4)
        affine[:3, :3] = np.linalg.qr(random.normal(size=(3, 3)))[0] * spacing * random.choice([-1, 1], 3)
        affine[:3, 3] = random.uniform(-100, 100, 3)
        if random.random() < 0.15:
            affine[0, 1] += 0.3 * spacing[1]  # A shear.
        return affine

    one = drawn()
    image = nibabel.Nifti1Image(values, one)
    codes = [int(code) for code in random.integers(0, 5, 2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image.set_sform(one, codes[0])
        image.set_qform(one if random.random() < 0.5 else drawn(), codes[1], strip_shears=True)
    unit = str(random.choice(["mm", "meter", "micron", "unknown"]))
    image.header.set_xyzt_units(unit)
    told = f"NIfTI: sform {codes[0]}, qform {codes[1]}, {unit}"
    path = folder / "image.nii"
    nibabel.save(image, path)
    try:
        volume = read_volume(path)
    except InputError as error:
        return "refused", f"{told}: {error}"
    try:
        judge = SimpleITK.ReadImage(str(path))
    except RuntimeError:
        return "displaced", f"{told}: no viewer opens it"
    for corner in ((0, 0, 0), (2, 3, 4), (2, 0, 4)):
        right = np.array(judge.TransformIndexToPhysicalPoint(corner)) * [-1, -1, 1]
        off = np.linalg.solve(volume.affine, np.append(right, 1.0))[:3] - corner
        if np.abs(off).max() > _HALF or volume.voxels[corner] != judge[corner]:
            return "displaced", f"{told}: voxel {corner} is {np.abs(off).max():.2f} voxels off"
    return "placed", told


def fuzz_displacements(inputs: int, seed: int, seconds: float = 900) -> dict[str, Any]:
    """Make and read images; the figures, and examples of what went wrong.

    Args:
        inputs: how many.
        seed: of what is drawn; each image has a generator of its own.
        seconds: after which no other is begun.
    """
    verdicts: Counter[str] = Counter()
    wrong: list[str] = []
    begun, made = time.monotonic(), 0
    for number in range(inputs):
        if time.monotonic() - begun > seconds:
            break
        random = np.random.default_rng([seed, number])
        with tempfile.TemporaryDirectory() as folder:
            check = check_nifti if number % 4 == 3 else check_dicom
            try:
                verdict, told = check(Path(folder), random)
            except Exception as error:  # Whatever it is, it would have been a 500.
                verdict, told = "error", f"{type(error).__name__}: {error}"
        made += 1
        verdicts[verdict] += 1
        if verdict in ("displaced", "error") and len(wrong) < 20:
            wrong.append(f"{number}: {told}")
    return {
        "displacement_inputs": made,
        "displaced": verdicts["displaced"],
        "placed": verdicts["placed"],
        "refused": verdicts["refused"],
        "failures": verdicts["error"],
        "examples": wrong,
    }


def main(
    inputs: Annotated[int, typer.Option(help="How many images are made.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 0,
) -> None:
    """Make images with changed geometry, read them, and print the figures."""
    warnings.simplefilter("ignore")
    found = fuzz_displacements(inputs, seed)
    for name, value in found.items():
        print(f"{name}: {value}")
    raise SystemExit(bool(found["displaced"] or found["failures"]))


if __name__ == "__main__":
    typer.run(main)
