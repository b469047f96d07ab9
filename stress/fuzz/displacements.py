"""Read images with changed geometry, and check that no voxel is displaced from the position in its header.

Frames are permuted, duplicated and dropped, signs flipped, units changed and slopes varied, in series of files, in
multi-frame objects and in NIfTI. Each image must be refused with a sentence, or every voxel must lie within half a
voxel of its position in the header. pydicom and SimpleITK, not our own reader, give this position.

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
_TOLERANCE = 0.51
"""Maximum displacement, in voxels; headers keep about six digits."""

CHANGES = (
    "permuted", "dropped", "doubled", "row_flipped", "column_flipped", "one_flipped", "position_sign", "one_sign",
    "centimetres", "one_centimetres", "spacing", "one_spacing", "tilted", "rounded", "slopes", "times", "echoes",
    "stacks", "one_without_position", "shifted_sideways", "uneven",
)  # fmt: skip


@dataclass(frozen=True)
class Slice:
    """One frame of a synthetic image.

    Attributes:
        values: stored values, (rows, columns); each value occurs once in the image.
        position: ImagePositionPatient, mm in LPS, or None.
        orientation: ImageOrientationPatient, (2, 3).
        spacing: PixelSpacing, mm: between rows, between columns.
        slope: RescaleSlope.
        attributes: additional attributes, such as EchoTime.
    """

    values: NDArray[np.int16]
    position: NDArray[np.float64] | None
    orientation: NDArray[np.float64]
    spacing: tuple[float, float]
    slope: float = 1.0
    attributes: tuple[tuple[str, float], ...] = ()


def draw_slices(random: np.random.Generator) -> tuple[list[Slice], list[str]]:
    """Draw a random image; return its slices and the names of the changes."""
    count, step = int(random.integers(3, 8)), float(random.choice([1.0, 2.5, 5.0]))
    spacing = (float(random.choice([0.5, 0.9, 1.5])), float(random.choice([0.5, 0.9, 1.5])))
    axes = np.linalg.qr(random.normal(size=(3, 3)))[0] if random.random() < 0.5 else np.eye(3)[random.permutation(3)]
    origin = random.uniform(-200, 200, 3).round(3)
    changes = [str(name) for name in random.choice(CHANGES, int(random.integers(1, 4)), replace=False)]
    tilt = random.uniform(-0.6, 0.6, 2) if "tilted" in changes else np.zeros(2)
    step_direction = np.cross(axes[0], axes[1]) + tilt[0] * axes[0] + tilt[1] * axes[1]
    slices = []
    for repeat in range(2 if {"times", "echoes", "stacks"} & set(changes) else 1):
        orientation_axes = axes if repeat == 0 or "stacks" not in changes else axes[[1, 2, 0]]
        attributes: tuple[tuple[str, float], ...] = ()
        if "times" in changes:
            attributes += (("TemporalPositionIndex", 1 + repeat),)
        if "echoes" in changes:
            attributes += (("EchoTime", 10.0 * (1 + repeat)),)
        for k in range(count):
            number = repeat * count + k
            # Odd values, so that no two are equal when they are halved or doubled.
            values = 1 + 2 * (number * _ROWS * _COLUMNS + np.arange(_ROWS * _COLUMNS).reshape(_ROWS, _COLUMNS))
            direction = (
                step_direction
                if repeat == 0 or "stacks" not in changes
                else np.cross(orientation_axes[0], orientation_axes[1])
            )
            position = origin + k * step * direction
            slices.append(Slice(values.astype(np.int16), position, orientation_axes[:2], spacing, 1.0, attributes))
    for change in changes:
        slices = _apply_change(change, slices, random)
    return slices, changes


def _apply_change(change: str, slices: list[Slice], random: np.random.Generator) -> list[Slice]:
    """Apply one change to the slices; changes that were already drawn return them unchanged."""
    chosen = int(random.integers(len(slices)))

    def change_all(**values: Any) -> list[Slice]:
        return [replace(piece, **{name: make(piece) for name, make in values.items()}) for piece in slices]

    def change_one(**values: Any) -> list[Slice]:
        return [*slices[:chosen], replace(slices[chosen], **values), *slices[chosen + 1 :]]

    position, orientation = slices[chosen].position, slices[chosen].orientation
    position_or_origin = position if position is not None else np.zeros(3)
    if change == "permuted":
        return [slices[index] for index in random.permutation(len(slices))]
    if change == "dropped":
        return [piece for index, piece in enumerate(slices) if index != chosen]
    if change == "doubled":
        return [*slices, replace(slices[chosen], values=(slices[chosen].values + 10_000).astype(np.int16))]
    if change == "row_flipped":
        return change_all(orientation=lambda piece: piece.orientation * [[-1], [1]])
    if change == "column_flipped":
        return change_all(orientation=lambda piece: piece.orientation * [[1], [-1]])
    if change == "one_flipped":
        return change_one(orientation=orientation * [[-1], [1]])
    if change == "position_sign":
        return change_all(position=lambda piece: None if piece.position is None else -piece.position)
    if change == "one_sign":
        return change_one(position=position_or_origin * [1, 1, -1])
    if change == "centimetres":
        return change_all(
            position=lambda piece: None if piece.position is None else piece.position / 10,
            spacing=lambda piece: (piece.spacing[0] / 10, piece.spacing[1] / 10),
        )
    if change == "one_centimetres":
        return change_one(position=position_or_origin / 10)
    if change == "spacing":
        return change_all(spacing=lambda piece: (piece.spacing[0] * 10, piece.spacing[1]))
    if change == "one_spacing":
        return change_one(spacing=(slices[chosen].spacing[0] * 2, slices[chosen].spacing[1]))
    if change == "rounded":
        return change_all(position=lambda piece: None if piece.position is None else piece.position.round(2))
    if change == "slopes":
        return change_all(slope=lambda piece: float(random.choice([0.5, 1.0, 2.0])))
    if change == "one_without_position":
        return change_one(position=None)
    if change == "shifted_sideways":
        return change_one(position=position_or_origin + random.uniform(-3, 3) * orientation[0])
    if change == "uneven":
        return change_one(position=position_or_origin + random.uniform(-1, 1) * np.cross(*orientation))
    return slices  # Already drawn: tilted, times, echoes, stacks.


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


def _to_decimal_strings(values: Sequence[float] | NDArray[np.float64]) -> list[str]:
    return [f"{value:.9f}"[:16] for value in np.ravel(values)]


def write_series(folder: Path, slices: Sequence[Slice]) -> None:
    """Write a file for each slice."""
    folder.mkdir(parents=True)
    for number, piece in enumerate(slices, start=1):
        image = _header(_CT, piece.values.shape)
        image.InstanceNumber = number
        if piece.position is not None:
            image.ImagePositionPatient = _to_decimal_strings(piece.position)
        image.ImageOrientationPatient, image.PixelSpacing = (
            _to_decimal_strings(piece.orientation),
            _to_decimal_strings(piece.spacing),
        )
        image.RescaleSlope, image.RescaleIntercept = str(piece.slope), "0"
        for name, value in piece.attributes:
            setattr(image, "TemporalPositionIdentifier" if name == "TemporalPositionIndex" else name, int(value))
        image.PixelData = piece.values.tobytes()
        image.save_as(folder / f"{number:03}.dcm", write_like_original=False)


def write_enhanced(path: Path, slices: Sequence[Slice], random: np.random.Generator) -> None:
    """Write a multi-frame object with one frame per slice; shared attributes may be stored once."""
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
            group.PlanePositionSequence[0].ImagePositionPatient = _to_decimal_strings(piece.position)
        where = shared if same else group
        where.PlaneOrientationSequence, where.PixelMeasuresSequence = [Dataset()], [Dataset()]
        where.PlaneOrientationSequence[0].ImageOrientationPatient = _to_decimal_strings(piece.orientation)
        where.PixelMeasuresSequence[0].PixelSpacing = _to_decimal_strings(piece.spacing)
        group.PixelValueTransformationSequence = [Dataset()]
        group.PixelValueTransformationSequence[0].RescaleSlope = str(piece.slope)
        group.PixelValueTransformationSequence[0].RescaleIntercept = "0"
        group.FrameContentSequence = [Dataset()]
        for name, value in piece.attributes:
            if name == "EchoTime":
                group.MREchoSequence = [Dataset()]
                group.MREchoSequence[0].EffectiveEchoTime = value
            else:
                setattr(group.FrameContentSequence[0], name, int(value))
        groups.append(group)
    image.SharedFunctionalGroupsSequence, image.PerFrameFunctionalGroupsSequence = [shared], groups
    image.save_as(path, write_like_original=False)


def misplaced(volumes: Sequence[Any], slices: Sequence[Slice]) -> str:
    """Check that every voxel of the volumes is at the position in the header of its slice.

    Args:
        volumes: volumes with ``voxels`` (I, J, K) and ``affine`` (RAS, mm).
        slices: the slices that were written.

    Returns:
        A description of the displaced slices, or "" if there are none.
    """
    placed = 0
    for piece in slices:
        position = np.zeros(3) if piece.position is None else piece.position
        rows, columns = np.mgrid[:_ROWS, :_COLUMNS]
        expected = position + np.stack([columns * piece.spacing[1], rows * piece.spacing[0]], -1) @ piece.orientation
        for volume in volumes:
            position_index = np.linalg.solve(volume.affine, np.append(position * [-1, -1, 1], 1.0))[2]
            k = int(np.rint(position_index))
            if not 0 <= k < volume.voxels.shape[2]:
                continue
            matches = [
                np.argwhere(np.isclose(volume.voxels, value * piece.slope, atol=1e-3)) for value in piece.values[0]
            ]
            if not all(any(voxel[2] == k for voxel in found_at) for found_at in matches):
                continue
            inverse = np.linalg.inv(volume.affine)
            index = (inverse[:3, :3] @ (expected * [-1, -1, 1]).reshape(-1, 3).T).T + inverse[:3, 3]
            nearest = np.rint(index).astype(int)
            inside = ((nearest >= 0) & (nearest < volume.voxels.shape)).all(1)
            exact = np.isclose(volume.voxels[tuple(nearest[inside].T)], piece.values.ravel()[inside] * piece.slope)
            if inside.all() and exact.all():
                placed += 1
                break
            # A voxel halfway between two may be assigned to either.
            distances = [
                np.abs(np.argwhere(np.isclose(volume.voxels[:, :, k], value * piece.slope)) - voxel[:2]).max(1).min()
                if np.isclose(volume.voxels[:, :, k], value * piece.slope).any() else np.inf
                for value, voxel in zip(piece.values.ravel(), index, strict=True)
            ]  # fmt: skip
            if max(distances) <= _TOLERANCE and abs(position_index - k) <= _TOLERANCE:
                placed += 1
                break
    return "" if placed == len(slices) else f"{len(slices) - placed} of {len(slices)} slices are displaced"


def check_dicom(folder: Path, random: np.random.Generator) -> tuple[str, str]:
    """Write and read a DICOM image; return ``placed``, ``refusals``, ``displaced`` or ``error``, and a description."""
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
    description = f"{path.name}: {', '.join(changes)}"
    try:
        try:
            volumes = [read_volume(path)]
        except SeveralVolumesError as error:
            volumes, refusals = [], []
            for number in range(1, len(error.titles) + 1):
                try:
                    volumes.append(read_dicom(path, number))
                except InputError as broken:
                    refusals.append(str(broken))
            if refusals:  # The other volumes are checked by the slices that they contain.
                values_held = np.unique([value for volume in volumes for value in volume.voxels.ravel()])
                slices = [piece for piece in slices if np.isin(piece.values * piece.slope, values_held).all()]
            if not volumes:
                return "refused", description
    except InputError as error:
        return ("refused" if len(str(error).split()) > 3 else "error"), f"{description}: {error}"
    if any(piece.position is None for piece in slices):
        return "displaced", f"{description}: a slice without a position was shown"
    if problem := misplaced(volumes, slices):
        return "displaced", f"{description}: {problem}"
    return "placed", description


def check_nifti(folder: Path, random: np.random.Generator) -> tuple[str, str]:
    """Check a NIfTI file with other codes, units and signs against SimpleITK; see ``check_dicom``."""
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

    affine = drawn()
    image = nibabel.Nifti1Image(values, affine)
    codes = [int(code) for code in random.integers(0, 5, 2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image.set_sform(affine, codes[0])
        image.set_qform(affine if random.random() < 0.5 else drawn(), codes[1], strip_shears=True)
    unit = str(random.choice(["mm", "meter", "micron", "unknown"]))
    image.header.set_xyzt_units(unit)
    description = f"NIfTI: sform {codes[0]}, qform {codes[1]}, {unit}"
    path = folder / "image.nii"
    nibabel.save(image, path)
    try:
        volume = read_volume(path)
    except InputError as error:
        return "refused", f"{description}: {error}"
    try:
        reference = SimpleITK.ReadImage(str(path))
    except RuntimeError:
        return "displaced", f"{description}: no viewer opens it"
    for corner in ((0, 0, 0), (2, 3, 4), (2, 0, 4)):
        expected = np.array(reference.TransformIndexToPhysicalPoint(corner)) * [-1, -1, 1]
        distances = np.linalg.solve(volume.affine, np.append(expected, 1.0))[:3] - corner
        if np.abs(distances).max() > _TOLERANCE or volume.voxels[corner] != reference[corner]:
            return "displaced", f"{description}: voxel {corner} is {np.abs(distances).max():.2f} voxels off"
    return "placed", description


def fuzz_displacements(inputs: int, seed: int, seconds: float = 900) -> dict[str, Any]:
    """Write and read images with changed geometry.

    Args:
        inputs: number of images.
        seed: seed of the images; each image has its own generator.
        seconds: time after which no further image is written.

    Returns:
        The number of images by verdict, and examples of what went wrong.
    """
    verdicts: Counter[str] = Counter()
    examples: list[str] = []
    start, count = time.monotonic(), 0
    for number in range(inputs):
        if time.monotonic() - start > seconds:
            break
        random = np.random.default_rng([seed, number])
        with tempfile.TemporaryDirectory() as folder:
            check = check_nifti if number % 4 == 3 else check_dicom
            try:
                verdict, description = check(Path(folder), random)
            except Exception as error:  # Any other error would be a 500.
                verdict, description = "error", f"{type(error).__name__}: {error}"
        count += 1
        verdicts[verdict] += 1
        if verdict in ("displaced", "error") and len(examples) < 20:
            examples.append(f"{number}: {description}")
    return {
        "displacement_inputs": count,
        "displaced": verdicts["displaced"],
        "placed": verdicts["placed"],
        "refused": verdicts["refused"],
        "failures": verdicts["error"],
        "examples": examples,
    }


def main(
    inputs: Annotated[int, typer.Option(help="Number of images.")] = 2000,
    seed: Annotated[int, typer.Option(help="Seed of the images.")] = 0,
) -> None:
    """Read images with changed geometry, and print the figures."""
    warnings.simplefilter("ignore")
    figures = fuzz_displacements(inputs, seed)
    for name, value in figures.items():
        print(f"{name}: {value}")
    raise SystemExit(bool(figures["displaced"] or figures["failures"]))


if __name__ == "__main__":
    typer.run(main)
