"""What 3D Slicer, OHIF and the command line send with a click, read into one form.

The forms are deepgrow's (``foreground``, ``background``, ``slice``, ``label``, ``roi``), deepedit's (points by label
name), and OHIF's (points alone). Voxels are (i, j, k) of the volume, as the file has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from baps.errors import InputError
from baps.imaging.canvas import AS_STORED, AXES, SLICE_AXIS, Plane, plane_axis
from baps.imaging.volume import Volume
from baps.inference.requests.form import read_form
from baps.prompts import Point, Prompt

Voxel = tuple[FiniteFloat, FiniteFloat, FiniteFloat]

PACKED = "reply_packed"
"""A field that the server itself puts into a request: the reply goes out with HTTP's gzip."""

_MOST_POINTS = 1000
_USAGE = f"Points are [i, j, k], at most {_MOST_POINTS} of them."


class _Form(BaseModel):
    """The fields of a request that say what was clicked; the host's other fields are left alone."""

    model_config = ConfigDict(extra="ignore")

    foreground: list[Voxel] = Field(default_factory=list, max_length=_MOST_POINTS)
    background: list[Voxel] = Field(default_factory=list, max_length=_MOST_POINTS)
    roi: list[FiniteFloat] = Field(default_factory=list)
    slice: int | None = None
    plane: str | list[str] = AS_STORED
    label: str | list[str] = ""


@dataclass(frozen=True)
class Click:
    """A request for one mask.

    Attributes:
        label: the organ, or "" if the viewer named none.
        plane: the slice that is asked for.
        prompt: clicks and box in pixels of that slice.
        notes: sentences on what of the request was left out, for the reply.
    """

    label: str
    plane: Plane
    prompt: Prompt
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class OrganClicks:
    """A request for a whole organ. Slices are those across K, and points lie in their pixels.

    Attributes:
        label: the organ, or "" if the viewer named none.
        prompts: clicks and box of each slice that has a foreground click, or else of the box's middle slice; in order.
        background: clicks beside the organ on other slices.
        first, last: slices that the organ may reach.
        notes: sentences on what of the request was left out, for the reply.
    """

    label: str
    prompts: Mapping[int, Prompt]
    background: Mapping[int, tuple[Point, ...]]
    first: int
    last: int
    notes: tuple[str, ...] = ()


def read_click(request: Mapping[str, Any], volume: Volume, labels: Sequence[str]) -> Click:
    """Read a request.

    A list in place of a word counts by its first item: Slicer merges the choices of a model's options into the request.

    Args:
        request: as it came.
        volume: that was clicked on.
        labels: that the site knows, to find points sent by label name.

    Returns:
        The click. Without ``slice`` (an index across K) the last foreground point says which slice is meant. Points of
        other slices are left out, and so are points outside the volume if others remain; the notes say so.

    Raises:
        InputError: if a field has the wrong form, or nothing on the slice is left to prompt with.
    """
    form, label = _read(request)
    chosen = form.plane if isinstance(form.plane, str) else next(iter(form.plane), "")
    axis = plane_axis(volume.affine, chosen)
    foreground = form.foreground or _by_name(request, label, labels)
    notes: list[str] = []
    named = form.slice if axis == AXES["K"] else None
    if named is not None and form.roi and not foreground and not min(form.roi[4:]) <= named <= max(form.roi[4:]):
        # Slicer names the slice of its view in millimetres where there is a box but no point.
        notes.append(f"Slice {named} lies outside the box, whose middle slice was taken.")
        named = None
    index = named if named is not None else _slice_meant(foreground, form.roi, axis, volume.shape)
    if not 0 <= index < volume.shape[axis]:
        raise InputError(f"Slice {index} lies outside the volume, which has slices 0 to {volume.shape[axis] - 1}.")
    plane = Plane(axis, index)
    clicks = []
    for points, what in ((foreground, "foreground"), (form.background, "background")):
        by_slice = _by_slice(points, what, axis, volume.shape, notes)
        clicks.append(by_slice.pop(index, ()))
        if elsewhere := sum(map(len, by_slice.values())):
            notes.append(f"{_points(elsewhere, what)} of other slices left out.")
    positive, negative = clicks
    box = _box(form.roi, plane, volume.shape, notes)
    if not positive and box is None:
        said = " ".join(notes) or "There is no positive click and no box."
        raise InputError(f"{said} Click on the organ on slice {index}, or draw a box around it there.")
    return Click(label, plane, Prompt(positive, negative, box), tuple(notes))


def read_organ_clicks(request: Mapping[str, Any], volume: Volume, labels: Sequence[str]) -> OrganClicks:
    """Read a request for a whole organ: points of any number of slices, a box that it lies in, or both.

    Args:
        request, volume, labels: as for ``read_click``. The box goes with the clicks of its slices, and says between
            which slices the organ lies; a box alone prompts its middle slice.

    Raises:
        InputError: if a field has the wrong form, or nothing is left to prompt with.
    """
    form, label = _read(request)
    shape, notes = volume.shape, list[str]()
    last = shape[SLICE_AXIS] - 1
    ends = sorted(form.roi[4:]) if form.roi else [0, last]
    low, high = (min(max(round(end), 0), last) for end in ends)
    foreground, background = (
        _by_slice(points, what, SLICE_AXIS, shape, notes)
        for points, what in (
            (form.foreground or _by_name(request, label, labels), "foreground"), (form.background, "background")
        )
    )  # fmt: skip
    for by_slice, what in ((foreground, "foreground"), (background, "background")):
        beyond = [index for index in by_slice if not low <= index <= high]
        if count := sum(len(by_slice.pop(index)) for index in beyond):
            notes.append(f"{_points(count, what)} on slices that the box does not reach left out.")
    middle = [round((low + high) / 2)] if form.roi and not foreground else []
    prompts = {}
    for index in sorted([*foreground, *middle]):
        box = _box(form.roi, Plane(SLICE_AXIS, index), shape, notes)
        if index in foreground or box:
            prompts[index] = Prompt(foreground.get(index, ()), background.pop(index, ()), box)
    if not prompts:
        said = " ".join(notes) or "There is no positive click and no box."
        raise InputError(f"{said} Click on the organ on one slice or more, or draw a box around it.")
    return OrganClicks(label, prompts, background, low, high, tuple(dict.fromkeys(notes)))


def _read(request: Mapping[str, Any]) -> tuple[_Form, str]:
    """The fields of a request, and the label that it names."""
    form = read_form(_Form, request, _USAGE)
    if len(form.roi) not in (0, 6):
        raise InputError(f"The box must be [i0, i1, j0, j1, k0, k1], not {form.roi}.")
    return form, form.label if isinstance(form.label, str) else next(iter(form.label), "")


def _by_name(request: Mapping[str, Any], label: str, labels: Sequence[str]) -> list[Voxel]:
    """Points sent as a list by label name (deepedit): those of the asked label, else of the only one that has any."""
    given = {name: request[name] for name in labels if isinstance(request.get(name), list) and request[name]}
    points = given.get(label) or (next(iter(given.values())) if len(given) == 1 else [])
    return read_form(_Form, {"foreground": points}, _USAGE).foreground


def _slice_meant(foreground: list[Voxel], roi: list[float], axis: int, shape: tuple[int, int, int]) -> int:
    if foreground:
        return _index(([point for point in foreground if _inside(point, shape)] or foreground)[-1], axis, shape)
    if roi:
        first, last = (min(max(end, 0), shape[axis] - 1) for end in roi[2 * axis : 2 * axis + 2])
        return round((first + last) / 2)
    raise InputError("There is no click and no box in the request. Click on the organ, or draw a box around it.")


def _index(point: Voxel, axis: int, shape: tuple[int, int, int]) -> int:
    """The slice on which a point lies; the last one where it lies on that one's far edge."""
    index = round(point[axis])
    return min(index, shape[axis] - 1) if _inside(point, shape) else index


def _inside(point: Voxel, shape: tuple[int, int, int]) -> bool:
    return all(-0.5 <= value <= size - 0.5 for value, size in zip(point, shape, strict=True))


def _by_slice(
    points: list[Voxel], what: str, axis: int, shape: tuple[int, int, int], notes: list[str]
) -> dict[int, tuple[Point, ...]]:
    """The points of each slice, (X, Y) in its pixels; those outside the volume are left out and noted."""
    inside = [point for point in points if _inside(point, shape)]
    if outside := len(points) - len(inside):
        notes.append(f"{_points(outside, what)} outside the volume of {' x '.join(map(str, shape))} voxels left out.")
    found: dict[int, tuple[Point, ...]] = {}
    for point in inside:
        index = _index(point, axis, shape)
        found[index] = (*found.get(index, ()), Plane(axis, index).project(point))
    return found


def _points(count: int, what: str) -> str:
    return f"{count} {what} point{'' if count == 1 else 's'}"


def _box(
    roi: list[float], plane: Plane, shape: tuple[int, int, int], notes: list[str]
) -> tuple[float, float, float, float] | None:
    """Slicer's [i0, i1, j0, j1, k0, k1], pairs possibly inverted, as (X0, Y0, X1, Y1) clipped to the slice."""
    if not roi:
        return None
    ranges = [sorted(roi[n : n + 2]) for n in (0, 2, 4)]
    low, high = ranges[plane.axis]
    if not low - 0.5 <= plane.index <= high + 0.5:
        notes.append("The box does not reach this slice and was left out.")
        return None
    x, y = (axis for axis in range(3) if axis != plane.axis)
    if any(ranges[axis][1] < 0 or ranges[axis][0] > shape[axis] - 1 for axis in (x, y)):
        notes.append(f"The box {roi} lies outside the volume of {' x '.join(map(str, shape))} voxels.")
        return None
    (x0, x1), (y0, y1) = ((max(ranges[axis][0], 0.0), min(ranges[axis][1], shape[axis] - 1.0)) for axis in (x, y))
    return x0, y0, x1, y1
