"""Sort frames of DICOM images into volumes: which belong together, in which order, and where their voxels lie.

Files for viewers store a volume as a grid of boxes, because ITK opens no other. So a stack whose frames are shifted
against each other, by a tilted gantry or by rounded positions, is straightened: each frame is shifted within its plane
by whole pixels. No value changes, and no voxel is farther than half a pixel from its position in the header.
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
from baps.io.dicom.frames import DISTINGUISHING_KEYWORDS, Frame, read_frames

LPS_TO_RAS = np.diag([-1.0, -1, 1, 1])

STRAIGHTENED_NOTE = (
    "The slices are shifted against each other (a tilted gantry); they are shown straightened, each moved by whole "
    "pixels to where it lies."
)
"""Note of a stack that was straightened: its slices differ from those of the files."""

_SAME_PLANE = 0.01
"""Maximum distance of frames in the same plane along their normal, mm; or a tenth of a smaller pixel."""

_MAX_UNEVENNESS = 0.2
"""Maximum deviation of a step between slices, as a share of the median step."""

_ROUNDING, _MAX_ROUNDING_SHARE = 0.15, 0.45
"""Deviation of a step that is always allowed, mm, and its maximum as a share of the step.

Headers round positions, to 0.1 mm at worst.
"""

_MAX_DRIFT = 0.5
"""Maximum distance of a slice from its position in the grid, as a share of the step."""

_TIME_KEYWORDS = (
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
"""Attributes that order the frames of a plane if every plane has its own times, as in a cine."""

_MAX_LISTED = 12
"""Maximum number of volumes that a message lists."""


@dataclass(frozen=True)
class Stack:
    """Frames that make one volume.

    Attributes:
        frames: frames in the order of K.
        affine: voxel index to patient position in mm (RAS), (4, 4); its axes are perpendicular.
        shape: (I, J, K) of the volume.
        offsets: I and J of the first pixel of each frame, (K, 2) integers.
        notes: sentences on what the headers do not say, or what was changed.
    """

    frames: tuple[Frame, ...]
    affine: NDArray[np.float64]
    shape: tuple[int, int, int]
    offsets: NDArray[np.intp]
    notes: tuple[str, ...] = ()

    @property
    def straightened(self) -> bool:
        """Whether frames were shifted within their plane."""
        return bool(self.offsets.any())


def split_volumes(name: str, frames: Sequence[Frame]) -> dict[str, list[Frame]]:
    """Sort the frames of one series into volumes.

    Frames of different size, orientation, spacing or StackID belong to different volumes. Frames of one orientation in
    the same plane are distinguished by as few attributes as possible, such as the echo or the time point, or else by
    the order of their times. Files without a position are an image each.

    Args:
        name: name of the file or folder, for error messages.
        frames: frames of one series, in any order.

    Returns:
        Frames of each volume by its title, which is "" if there is only one volume. Frames that nothing distinguishes
        stay together: ``stack_frames`` refuses them.

    Raises:
        InputError: if some frames have a position or a pixel size and others do not.
    """
    _check_positions(name, frames)
    grids = _groups_by_grid(frames)
    groups = [one for grid in grids for one in _distinguish(grid)]
    if len(groups) == 1:
        return {"": groups[0][1]}
    groups.sort(key=lambda one: min((frame.number, frame.source, frame.index) for frame in one[1]))
    titles = [_title(values, group, len(grids) > 1) for values, group in groups]
    repeated = Counter(titles)
    return {
        title if repeated[title] == 1 else f"{title}, number {number}": group
        for number, (title, (_, group)) in enumerate(zip(titles, groups, strict=True), start=1)
    }


def format_titles(titles: Sequence[str]) -> str:
    """Format the titles of volumes for a message.

    Args:
        titles: titles of the volumes.

    Returns:
        The text.
    """
    text = "; ".join(f"{number}: {title}" for number, title in enumerate(titles[:_MAX_LISTED], start=1))
    return text + ("; ..." if len(titles) > _MAX_LISTED else "")


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
    oriented = one.orientation is not None and other.orientation is not None
    if oriented and not np.allclose(one.orientation, other.orientation, rtol=0, atol=1e-3):  # type: ignore[arg-type]
        return False
    if one.spacing is None or other.spacing is None:
        return one.spacing is other.spacing
    return bool(np.allclose(one.spacing, other.spacing, rtol=1e-3))


def _distinguish(frames: list[Frame]) -> list[tuple[list[tuple[str, str]], list[Frame]]]:
    """Split the frames of one grid into groups without two frames in one plane; return the attributes that did it."""
    planes = _planes(frames)
    if planes is None:
        files: dict[int, list[Frame]] = {}
        for frame in frames:
            files.setdefault(frame.source, []).append(frame)
        return [([("InstanceNumber", str(file[0].number))] if len(files) > 1 else [], file) for file in files.values()]
    if len(set(planes)) == len(planes):
        return [([], frames)]
    names = dict.fromkeys([*DISTINGUISHING_KEYWORDS, *(name for frame in frames for name in frame.distinctions)])
    useful = _useful_keywords(frames, list(names))
    uneven: list[tuple[list[tuple[str, str]], list[Frame]]] | None = None
    for count, candidates in ((1, 24), (2, 24), (3, 12), (4, 8)):
        for chosen in combinations(useful[:candidates], count):
            groups: dict[tuple[str, ...], list[int]] = {}
            for index, frame in enumerate(frames):
                groups.setdefault(tuple(frame.distinctions.get(name, "") for name in chosen), []).append(index)
            plane_sets = [{planes[index] for index in group} for group in groups.values()]
            if any(len(group) != len(one) for group, one in zip(groups.values(), plane_sets, strict=True)):
                continue
            split = [
                (list(zip(chosen, values, strict=True)), [frames[index] for index in group])
                for values, group in groups.items()
            ]
            if all(one == plane_sets[0] for one in plane_sets):
                return split
            if uneven is None and all(len(group) > 1 for group in groups.values()):
                uneven = split
    return uneven or _split_by_time(frames, planes) or [([], frames)]


def _split_by_time(frames: Sequence[Frame], planes: Sequence[int]) -> list[tuple[list[tuple[str, str]], list[Frame]]]:
    """Group the first frame of each plane, the second of each, and so on, by a time that differs from plane to plane.

    Returns:
        As ``_distinguish``; nothing if planes have different numbers of frames, or there is no such time.
    """
    frames_per_plane = Counter(planes)
    if len(set(frames_per_plane.values())) > 1:
        return []
    for name in _TIME_KEYWORDS:
        try:
            times = [float(frame.distinctions[name]) for frame in frames]
        except (KeyError, ValueError):
            continue
        if len(set(zip(planes, times, strict=True))) < len(frames):
            continue
        groups: dict[int, list[Frame]] = {}
        seen: Counter[int] = Counter()
        for index in sorted(range(len(frames)), key=lambda index: times[index]):
            seen[planes[index]] += 1
            groups.setdefault(seen[planes[index]], []).append(frames[index])
        return [([(name, f"{number} of {len(groups)}")], group) for number, group in groups.items()]
    return []


def _useful_keywords(frames: Sequence[Frame], names: Sequence[str]) -> list[str]:
    """Return the attributes that split frames, without those that split them as an earlier one does."""
    splits: dict[tuple[int, ...], str] = {}
    for name in names:
        numbers: dict[str | None, int] = {}
        split = tuple(numbers.setdefault(frame.distinctions.get(name), len(numbers)) for frame in frames)
        if len(numbers) > 1:
            splits.setdefault(split, name)
    return list(splits.values())


def _planes(frames: Sequence[Frame]) -> list[int] | None:
    """Number the plane of each frame; None if a frame has no position."""
    if any(frame.position is None or frame.orientation is None for frame in frames):
        return None
    depths = np.array([frame.position for frame in frames]) @ frames[0].normal
    order = np.argsort(depths, kind="stable")
    steps = np.diff(depths[order]) >= _min_step(frames[0])
    planes = np.empty(len(frames), int)
    planes[order] = np.concatenate([[0], np.cumsum(steps)])
    return planes.tolist()


def _min_step(frame: Frame) -> float:
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
    """Order the frames of one volume, and compute where their voxels lie.

    Args:
        name: name of the file or folder, for error messages.
        frames: frames of one volume, in any order.

    Returns:
        The stack.

    Raises:
        InputError: if slices are missing, doubled, or spaced unevenly.
    """
    if frames[0].position is None or frames[0].orientation is None:
        return _unplaced(frames)
    normal = frames[0].normal
    positions = np.array([frame.position for frame in frames])
    order = np.argsort(positions @ normal, kind="stable")
    ordered, positions = [frames[index] for index in order], positions[order]
    step = _step(name, ordered, positions, normal)
    return _straighten(ordered, positions, normal, step)


def _check_positions(name: str, frames: Sequence[Frame]) -> None:
    """Refuse frames of which some have no position."""
    complete = [frame.position is not None and frame.orientation is not None for frame in frames]
    partial = [frame.position is not None or frame.orientation is not None for frame in frames]
    if (any(complete) or (any(partial) and len(frames) > 1)) and not all(complete):
        frame = frames[complete.index(False)]
        raise InputError(
            f"{name} holds {len(frames)} images, but {frame.name} has no position (ImagePositionPatient, "
            "ImageOrientationPatient), so they cannot be ordered. Export it again, or give each file alone."
        )
    for frame in frames:
        if len(frames) > 1 and frame.position is not None and frame.spacing is None:
            raise InputError(f"{frame.name} has no pixel size (PixelSpacing). Export it again.")


def _unplaced(frames: Sequence[Frame]) -> Stack:
    """Stack one image, or the frames of one file, that have no position: along the axes of LPS, in file order."""
    first = frames[0]
    notes = [first.spacing_note] if first.spacing_note else []
    if first.spacing is None:
        notes.append("The header has no pixel size; 1 mm is assumed.")
    if len(frames) > 1:
        notes.append("The frames have no positions; they are shown in the order of the file, 1 mm apart.")
    affine = np.diag([*(first.spacing or (1.0, 1.0)), (first.thickness or 1.0) if len(frames) == 1 else 1.0, 1.0])
    shape = (*first.size, len(frames))
    return Stack(tuple(frames), LPS_TO_RAS @ affine, shape, np.zeros((len(frames), 2), int), tuple(notes))


def _step(name: str, frames: Sequence[Frame], positions: NDArray[np.float64], normal: NDArray[np.float64]) -> float:
    """Return the distance of neighbouring slices, mm, and refuse doubled or missing slices."""
    if len(frames) == 1:
        return frames[0].thickness or 1.0
    steps = np.diff(positions, axis=0)
    doubled = np.flatnonzero(steps @ normal < _min_step(frames[0]))
    if len(doubled):
        first = doubled[0]
        raise InputError(
            f"{name} has doubled slices ({len(doubled)}): {frames[first].name} and {frames[first + 1].name} lie in the "
            "same plane, and nothing in their headers distinguishes them. Export one time point, echo or "
            "reconstruction alone."
        )
    usual = np.median(steps, axis=0)
    length = np.linalg.norm(usual)
    allowed = max(_MAX_UNEVENNESS * length, min(_ROUNDING, _MAX_ROUNDING_SHARE * length))
    uneven = np.flatnonzero(np.linalg.norm(steps - usual, axis=1) > allowed)
    depths = positions @ normal
    step = float(depths[-1] - depths[0]) / (len(frames) - 1)
    even_depths = depths[0] + step * np.arange(len(frames))
    if not len(uneven):  # Small differences may accumulate.
        uneven = np.flatnonzero(np.abs(depths - even_depths)[:-1] > _MAX_DRIFT * step)
    if len(uneven):
        first = uneven[0]
        raise InputError(
            f"{name} has missing slices or uneven gaps ({len(uneven)}): {frames[first].name} and "
            f"{frames[first + 1].name} are {np.linalg.norm(steps[first]):.2f} mm apart instead of "
            f"{length:.2f} mm. Export the whole series again, or resample it to even slices."
        )
    return step


def _straighten(
    frames: Sequence[Frame], positions: NDArray[np.float64], normal: NDArray[np.float64], step: float
) -> Stack:
    first = frames[0]
    assert first.orientation is not None
    spacing = np.array(first.spacing or (1.0, 1.0))
    along = first.orientation[0] / np.linalg.norm(first.orientation[0])
    axes = np.stack([along, np.cross(normal, along), normal])  # Perpendicular, even if the header is rounded.
    within = (positions - positions[0]) @ axes[:2].T / spacing  # Position of each frame, pixels.
    # Centre the rounding errors, so that a stack that is straight except for them does not change.
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
        notes.append(STRAIGHTENED_NOTE)
    if first.spacing is None:
        notes.append("The header has no pixel size; 1 mm is assumed.")
    shape = (int(size[0]), int(size[1]), len(frames))
    return Stack(tuple(frames), LPS_TO_RAS @ affine, shape, offsets, tuple(notes))


def find_stack(headers: Sequence[Dataset], image: Volume, number: int | None = None) -> Stack:
    """Find the frames that a volume was read from.

    Args:
        headers: headers of the objects of its series, without pixels, in any order.
        image: the volume.
        number: number of the volume, from 1, if the series holds several; None to find it by its geometry.

    Returns:
        The stack.

    Raises:
        InputError: if the series holds no such volume, or its frames have no positions.
    """
    frames = [
        frame for source, header in enumerate(headers) for frame in read_frames(header, _object_name(header), source)
    ]
    if not frames or any(frame.position is None or frame.orientation is None for frame in frames):
        raise InputError("The images of the series have no positions, so no DICOM segmentation fits them.")
    volumes = list(split_volumes("The series", frames).values())
    for volume in volumes if number is None else volumes[number - 1 : number]:
        with suppress(InputError):
            stack = stack_frames("The series", volume)
            if image.same_geometry(Volume(np.empty(stack.shape, bool), stack.affine)):
                return stack
    raise InputError(
        f"The series has {len(frames)} slices that make {len(volumes)} volumes, none of which has the geometry of the "
        f"image ({image.shape[2]} slices). Fetch the series again."
    )


def _object_name(header: Dataset) -> str:
    return f"image {header.get('InstanceNumber') or ''}".strip()


def round_half_up(values: NDArray[np.float64]) -> NDArray[np.intp]:
    """Round to whole pixels. A half, even with rounding errors, is always rounded up.

    Args:
        values: pixels.

    Returns:
        Integers, of the same shape.
    """
    return np.floor(values + 0.5 + 1e-3).astype(int)
