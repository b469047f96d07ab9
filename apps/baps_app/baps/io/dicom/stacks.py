"""Frames of DICOM images as volumes: which belong together, in which order, and where their voxels lie.

Files for viewers hold a volume as a grid of boxes (ITK opens no other), so a stack whose frames are shifted against
each other, by a tilted gantry or by rounded positions, is straightened: each frame is moved within its plane by whole
pixels. No value is changed, and no voxel lies farther than half a pixel from where its header says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from baps.errors import InputError
from baps.imaging.volume import Volume
from baps.io.dicom.frames import DISTINCTIONS, Frame, frames_of

LPS_TO_RAS = np.diag([-1.0, -1, 1, 1])

STRAIGHTENED = (
    "The slices are shifted against each other (a tilted gantry); they are shown straightened, each moved by whole "
    "pixels to where it lies."
)
"""The note of a stack that was straightened: its slices have other pixels than those of the files."""

_SAME_PLANE = 0.01
"""Frames nearer to each other than this along their normal lie in the same plane, mm; or a tenth of a smaller pixel."""

_UNEVEN = 0.2
"""Share of the usual step by which a step between slices may differ."""

_ROUNDED, _ROUNDED_SHARE = 0.15, 0.45
"""What a step may differ by in any case, mm, for headers round positions, to 0.1 mm at worst; at most this share."""

_OUT_OF_PLACE = 0.5
"""Share of a step by which a slice may lie beside its place in the grid."""

_TIMES = (
    "TriggerTime",
    "NominalCardiacTriggerDelayTime",
    "TemporalPositionTimeOffset",
    "FrameReferenceTime",
    "FrameReferenceDateTime",
    "FrameAcquisitionDateTime",
    "AcquisitionDateTime",
    "AcquisitionTime",
    "ContentTime",
)
"""Attributes by which frames of a plane are put into order where every plane has times of its own, as in a cine."""

_MOST_TOLD = 12
"""Volumes that a message lists."""


@dataclass(frozen=True)
class Stack:
    """Frames that make one volume.

    Attributes:
        frames: in the order of K.
        affine: (4, 4), voxel index to patient position, mm, RAS; its axes are perpendicular.
        shape: (I, J, K) of the volume.
        offsets: (K, 2) integers: the I and J of the first pixel of each frame.
        notes: sentences on what the headers do not say or what was changed.
    """

    frames: tuple[Frame, ...]
    affine: NDArray[np.float64]
    shape: tuple[int, int, int]
    offsets: NDArray[np.intp]
    notes: tuple[str, ...] = ()

    @property
    def straightened(self) -> bool:
        """Whether frames were moved within their plane."""
        return bool(self.offsets.any())


def split_volumes(name: str, frames: Sequence[Frame]) -> dict[str, list[Frame]]:
    """Sort the frames of one series into volumes.

    Frames of other size, orientation, spacing or StackID belong to other volumes. Where frames of one orientation
    lie in the same plane, they are told apart by the fewest attributes that do it, such as the echo or the time point;
    or else by the order of their times. Files that do not say where they lie are an image each.

    Args:
        name: of the file or folder, for messages.
        frames: of one series, in any order.

    Returns:
        Frames of each volume by what tells it from the others, or "" if there is one. Frames that nothing tells apart
        stay together: ``stack_frames`` refuses them.

    Raises:
        InputError: if some say where they lie, or how large their pixels are, and others do not.
    """
    _check_placed(name, frames)
    grids = _groups_by_grid(frames)
    found = [one for grid in grids for one in _tell_apart(grid)]
    if len(found) == 1:
        return {"": found[0][1]}
    found.sort(key=lambda one: min((frame.number, frame.source, frame.index) for frame in one[1]))
    titles = [_title(values, group, len(grids) > 1) for values, group in found]
    again = Counter(titles)
    return {
        title if again[title] == 1 else f"{title}, number {number}": group
        for number, (title, (_, group)) in enumerate(zip(titles, found, strict=True), start=1)
    }


def list_volumes(titles: Sequence[str]) -> str:
    """The volumes of a series for a message."""
    told = "; ".join(f"{number}: {title}" for number, title in enumerate(titles[:_MOST_TOLD], start=1))
    return told + ("; ..." if len(titles) > _MOST_TOLD else "")


def _groups_by_grid(frames: Sequence[Frame]) -> list[list[Frame]]:
    groups: list[list[Frame]] = []
    for frame in frames:
        for group in groups:
            if _same_grid(group[0], frame):
                group.append(frame)
                break
        else:
            groups.append([frame])
    return groups


def _same_grid(one: Frame, other: Frame) -> bool:
    if one.size != other.size or one.channels != other.channels or one.stack != other.stack:
        return False
    placed = one.orientation is not None and other.orientation is not None
    if placed and not np.allclose(one.orientation, other.orientation, rtol=0, atol=1e-3):  # type: ignore[arg-type]
        return False
    if one.spacing is None or other.spacing is None:
        return one.spacing is other.spacing
    return bool(np.allclose(one.spacing, other.spacing, rtol=1e-3))


def _tell_apart(frames: list[Frame]) -> list[tuple[list[tuple[str, str]], list[Frame]]]:
    """Frames of one grid in groups without two frames in the same plane, with the attributes that did it."""
    planes = _planes(frames)
    if planes is None:
        files: dict[int, list[Frame]] = {}
        for frame in frames:
            files.setdefault(frame.source, []).append(frame)
        return [([("InstanceNumber", str(file[0].number))] if len(files) > 1 else [], file) for file in files.values()]
    if len(set(planes)) == len(planes):
        return [([], frames)]
    names = dict.fromkeys([*DISTINCTIONS, *(name for frame in frames for name in frame.distinctions)])
    useful = _distinct(frames, list(names))
    uneven: list[tuple[list[tuple[str, str]], list[Frame]]] | None = None
    for count, most in ((1, 24), (2, 24), (3, 12), (4, 8)):
        for chosen in combinations(useful[:most], count):
            groups: dict[tuple[str, ...], list[int]] = {}
            for index, frame in enumerate(frames):
                groups.setdefault(tuple(frame.distinctions.get(name, "") for name in chosen), []).append(index)
            held = [{planes[index] for index in group} for group in groups.values()]
            if any(len(group) != len(one) for group, one in zip(groups.values(), held, strict=True)):
                continue
            found = [
                (list(zip(chosen, values, strict=True)), [frames[index] for index in group])
                for values, group in groups.items()
            ]
            if all(one == held[0] for one in held):
                return found
            if uneven is None and all(len(group) > 1 for group in groups.values()):
                uneven = found
    return uneven or _by_time(frames, planes) or [([], frames)]


def _by_time(frames: Sequence[Frame], planes: Sequence[int]) -> list[tuple[list[tuple[str, str]], list[Frame]]]:
    """The first of each plane, the second of each, and so on, by a time that differs from plane to plane.

    Returns:
        As ``_tell_apart``; none if planes have other numbers of frames, or there is no such time.
    """
    held = Counter(planes)
    if len(set(held.values())) > 1:
        return []
    for name in _TIMES:
        try:
            times = [float(frame.distinctions[name]) for frame in frames]
        except (KeyError, ValueError):
            continue
        if len(set(zip(planes, times, strict=True))) < len(frames):
            continue
        found: dict[int, list[Frame]] = {}
        seen: Counter[int] = Counter()
        for index in sorted(range(len(frames)), key=lambda index: times[index]):
            seen[planes[index]] += 1
            found.setdefault(seen[planes[index]], []).append(frames[index])
        return [([(name, f"{number} of {len(found)}")], group) for number, group in found.items()]
    return []


def _distinct(frames: Sequence[Frame], names: Sequence[str]) -> list[str]:
    """The attributes that split frames, without those that split them as one before does."""
    splits: dict[tuple[int, ...], str] = {}
    for name in names:
        numbers: dict[str | None, int] = {}
        split = tuple(numbers.setdefault(frame.distinctions.get(name), len(numbers)) for frame in frames)
        if len(numbers) > 1:
            splits.setdefault(split, name)
    return list(splits.values())


def _planes(frames: Sequence[Frame]) -> list[int] | None:
    """A number for the plane of each frame; None where one does not say where it lies."""
    if any(frame.position is None or frame.orientation is None for frame in frames):
        return None
    depths = np.array([frame.position for frame in frames]) @ frames[0].normal
    order = np.argsort(depths, kind="stable")
    steps = np.diff(depths[order]) >= _least_step(frames[0])
    planes = np.empty(len(frames), int)
    planes[order] = np.concatenate([[0], np.cumsum(steps)])
    return planes.tolist()


def _least_step(frame: Frame) -> float:
    return min([_SAME_PLANE, *(0.1 * size for size in frame.spacing or ())])


def _title(values: Sequence[tuple[str, str]], frames: Sequence[Frame], several_grids: bool) -> str:
    parts = [f"{name} {value}" for name, value in values]
    if several_grids:
        first = frames[0]
        stack = f"StackID {first.stack}, " if first.stack else ""
        parts.insert(0, f"{stack}{_plane_name(first)}, {len(frames)} of {first.size[0]} x {first.size[1]}")
    return ", ".join(parts) or f"{len(frames)} slices"


def _plane_name(frame: Frame) -> str:
    if frame.orientation is None:
        return "without a position"
    return ("sagittal", "coronal", "axial")[int(np.abs(frame.normal).argmax())]


def stack_frames(name: str, frames: Sequence[Frame]) -> Stack:
    """Put the frames of one volume into order and say where their voxels lie.

    Args:
        name: of the file or folder, for messages.
        frames: of one volume, in any order.

    Raises:
        InputError: if slices are missing or doubled, or lie unevenly.
    """
    if frames[0].position is None or frames[0].orientation is None:
        return _unplaced(frames)
    normal = frames[0].normal
    positions = np.array([frame.position for frame in frames])
    order = np.argsort(positions @ normal, kind="stable")
    ordered, positions = [frames[index] for index in order], positions[order]
    step = _step(name, ordered, positions, normal)
    return _straighten(ordered, positions, normal, step)


def _check_placed(name: str, frames: Sequence[Frame]) -> None:
    """Refuse frames of which some do not say where they lie."""
    placed = [frame.position is not None and frame.orientation is not None for frame in frames]
    half = [frame.position is not None or frame.orientation is not None for frame in frames]
    if (any(placed) or (any(half) and len(frames) > 1)) and not all(placed):
        frame = frames[placed.index(False)]
        raise InputError(
            f"{name} holds {len(frames)} images, but {frame.name} does not say where it lies (ImagePositionPatient, "
            "ImageOrientationPatient), so they have no order. Export it again, or give each file alone."
        )
    for frame in frames:
        if len(frames) > 1 and frame.position is not None and frame.spacing is None:
            raise InputError(f"{frame.name} does not say how large its pixels are (PixelSpacing). Export it again.")


def _unplaced(frames: Sequence[Frame]) -> Stack:
    """One image, or the frames of one file, without a position: along the axes of LPS, in the order of the file."""
    first = frames[0]
    notes = [first.spacing_note] if first.spacing_note else []
    if first.spacing is None:
        notes.append("The header does not say how large a pixel is; 1 mm is taken.")
    if len(frames) > 1:
        notes.append("The frames do not say where they lie; they are shown in the order of the file, 1 mm apart.")
    affine = np.diag([*(first.spacing or (1.0, 1.0)), (first.thickness or 1.0) if len(frames) == 1 else 1.0, 1.0])
    shape = (*first.size, len(frames))
    return Stack(tuple(frames), LPS_TO_RAS @ affine, shape, np.zeros((len(frames), 2), int), tuple(notes))


def _step(name: str, frames: Sequence[Frame], positions: NDArray[np.float64], normal: NDArray[np.float64]) -> float:
    """The distance of neighbouring slices, mm; refuses slices that are doubled or missing."""
    if len(frames) == 1:
        return frames[0].thickness or 1.0
    steps = np.diff(positions, axis=0)
    doubled = np.flatnonzero(steps @ normal < _least_step(frames[0]))
    if len(doubled):
        here = doubled[0]
        raise InputError(
            f"{name} has doubled slices ({len(doubled)}): {frames[here].name} and {frames[here + 1].name} lie in the "
            "same plane, and nothing in their headers tells them apart. Export one time point, echo or reconstruction "
            "alone."
        )
    usual = np.median(steps, axis=0)
    length = np.linalg.norm(usual)
    allowed = max(_UNEVEN * length, min(_ROUNDED, _ROUNDED_SHARE * length))
    uneven = np.flatnonzero(np.linalg.norm(steps - usual, axis=1) > allowed)
    depths = positions @ normal
    step = float(depths[-1] - depths[0]) / (len(frames) - 1)
    places = depths[0] + step * np.arange(len(frames))
    if not len(uneven):  # Small differences may add up.
        uneven = np.flatnonzero(np.abs(depths - places)[:-1] > _OUT_OF_PLACE * step)
    if len(uneven):
        here = uneven[0]
        raise InputError(
            f"{name} has missing slices or uneven gaps ({len(uneven)}): {frames[here].name} and "
            f"{frames[here + 1].name} lie {np.linalg.norm(steps[here]):.2f} mm apart where "
            f"{length:.2f} mm are usual. Export the whole series again, or resample it to even slices."
        )
    return step


def _straighten(
    frames: Sequence[Frame], positions: NDArray[np.float64], normal: NDArray[np.float64], step: float
) -> Stack:
    first = frames[0]
    assert first.orientation is not None
    spacing = np.array(first.spacing or (1.0, 1.0))
    along = first.orientation[0] / np.linalg.norm(first.orientation[0])
    axes = np.stack([along, np.cross(normal, along), normal])  # Perpendicular, whatever the header rounds.
    within = (positions - positions[0]) @ axes[:2].T / spacing  # Of each frame, pixels.
    # The middle of the rounding: a stack that is straight but for rounded positions stays as it is.
    low, high = within.min(0), within.max(0)
    start = np.where(high - low < 1, (low + high) / 2, low)
    offsets = round_half_up(within - start)
    start = start + offsets.min(0)
    offsets -= offsets.min(0)
    size = np.array(first.size) + offsets.max(0)
    affine = np.eye(4)
    affine[:3, :3] = axes.T * (*spacing, step)
    affine[:3, 3] = positions[0] + (start * spacing) @ axes[:2]
    notes = [first.spacing_note] if first.spacing_note else []
    if offsets.any():
        notes.append(STRAIGHTENED)
    if first.spacing is None:
        notes.append("The header does not say how large a pixel is; 1 mm is taken.")
    shape = (int(size[0]), int(size[1]), len(frames))
    return Stack(tuple(frames), LPS_TO_RAS @ affine, shape, offsets, tuple(notes))


def find_stack(headers: Sequence[Dataset], image: Volume, number: int | None = None) -> Stack:
    """Find the frames that a volume was read from.

    Args:
        headers: of the objects of its series, without pixels, in any order.
        image: the volume.
        number: of the volume, from 1, where the series holds several; None to go by where it lies.

    Raises:
        InputError: if the series holds no such volume, or does not say where its frames lie.
    """
    frames = [
        frame for source, header in enumerate(headers) for frame in frames_of(header, _object_name(header), source)
    ]
    if not frames or any(frame.position is None or frame.orientation is None for frame in frames):
        raise InputError("The images of the series do not say where they lie: no DICOM segmentation fits.")
    volumes = list(split_volumes("The series", frames).values())
    for volume in volumes if number is None else volumes[number - 1 : number]:
        with suppress(InputError):
            stack = stack_frames("The series", volume)
            if image.same_geometry(Volume(np.empty(stack.shape, bool), stack.affine)):
                return stack
    raise InputError(
        f"The series has {len(frames)} slices that make {len(volumes)} volumes, none of which lies where the image "
        f"does ({image.shape[2]} slices). Fetch the series again."
    )


def _object_name(header: Dataset) -> str:
    return f"image {header.get('InstanceNumber') or ''}".strip()


def round_half_up(values: NDArray[np.float64]) -> NDArray[np.intp]:
    """Round to whole pixels; what lies half-way but for rounding errors goes up, however often it is computed."""
    return np.floor(values + 0.5 + 1e-3).astype(int)
