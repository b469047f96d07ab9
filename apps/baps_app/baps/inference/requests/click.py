"""Parse the clicks that 3D Slicer, OHIF and the command line send.

The accepted forms are deepgrow's (``foreground``, ``background``, ``slice``, ``label``, ``roi``), deepedit's (points by
label name) and OHIF's (points only). Voxels are (i, j, k) of the volume, in the order of the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Field, FiniteFloat

from baps.errors import InputError
from baps.imaging.canvas import AS_STORED, AXES, SLICE_AXIS, Plane, plane_axis
from baps.imaging.volume import Volume
from baps.inference.requests.form import read_form
from baps.prompts import Point, Prompt

Voxel = tuple[FiniteFloat, FiniteFloat, FiniteFloat]

PACKED = "reply_packed"
"""A field that the server adds to a request: the reply will be compressed by HTTP's gzip."""

_MAX_POINTS = 1000
_USAGE = f"Points are [i, j, k], at most {_MAX_POINTS} of them."


class _Form(BaseModel, extra="ignore"):
    # The fields of a request that hold clicks; MONAI Label's other fields are ignored.

    foreground: list[Voxel] = Field(default_factory=list, max_length=_MAX_POINTS)
    background: list[Voxel] = Field(default_factory=list, max_length=_MAX_POINTS)
    roi: list[FiniteFloat] = Field(default_factory=list)
    slice: int | None = None
    plane: str | list[str] = AS_STORED
    label: str | list[str] = ""


@dataclass(frozen=True)
class Click:
    """A request for the mask of one slice.

    Attributes:
        label: the organ, or "" if the viewer named none.
        plane: the requested slice.
        prompt: clicks and box, (X, Y) in pixels of the slice.
        notes: sentences for the reply on what was skipped.
    """

    label: str
    plane: Plane
    prompt: Prompt
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class OrganClicks:
    """A request for a whole organ. Slices are indices across K, and points are (X, Y) in pixels of their slice.

    Attributes:
        label: the organ, or "" if the viewer named none.
        prompts: clicks and box of each slice that has a foreground click, in order; without any, of the box's middle
            slice.
        background: background clicks on other slices.
        first: first slice that the organ may reach.
        last: last slice that the organ may reach, inclusive.
        notes: sentences for the reply on what was skipped.
    """

    label: str
    prompts: Mapping[int, Prompt]
    background: Mapping[int, tuple[Point, ...]]
    first: int
    last: int
    notes: tuple[str, ...] = ()


def read_click(request: Mapping[str, Any], volume: Volume, labels: Sequence[str]) -> Click:
    """Parse a request for the mask of one slice.

    Where a word is expected, a list counts by its first item: 3D Slicer merges the choices of a model's options into
    the request.

    Args:
        request: the request as it was received.
        volume: the volume that was clicked.
        labels: label names of the site, to find points that are sent by label name.

    Returns:
        The click. Without ``slice`` (an index across K), the last foreground point determines the slice. Points on
            other slices are skipped, and so are points outside the volume if others remain; the notes say so.

    Raises:
        InputError: if a field is invalid, or no prompt is left on the slice.
    """
    form, label = _read_label_form(request)
    plane_name = form.plane if isinstance(form.plane, str) else next(iter(form.plane), "")
    axis = plane_axis(volume.affine, plane_name)
    foreground = form.foreground or _points_by_label(request, label, labels)
    notes: list[str] = []
    requested = form.slice if axis == AXES["K"] else None
    if (
        requested is not None
        and form.roi
        and not foreground
        and not min(form.roi[4:]) <= requested <= max(form.roi[4:])
    ):
        # Slicer names the slice of its view in millimetres where there is a box but no point.
        notes.append(f"Slice {requested} lies outside the box; the middle slice of the box was used.")
        requested = None
    index = requested if requested is not None else _requested_slice(foreground, form.roi, axis, volume.shape)
    if not 0 <= index < volume.shape[axis]:
        raise InputError(f"Slice {index} lies outside the volume, which has slices 0 to {volume.shape[axis] - 1}.")
    plane = Plane(axis, index)
    clicks = []
    for points, what in ((foreground, "foreground"), (form.background, "background")):
        by_slice = _group_by_slice(points, what, axis, volume.shape, notes)
        clicks.append(by_slice.pop(index, ()))
        if elsewhere := sum(map(len, by_slice.values())):
            notes.append(f"{_count_points(elsewhere, what)} of other slices skipped.")
    positive, negative = clicks
    box = _box_on_slice(form.roi, plane, volume.shape, notes)
    if not positive and box is None:
        problem = " ".join(notes) or "There is no positive click and no box."
        raise InputError(f"{problem} Click on the organ on slice {index}, or draw a box around it there.")
    return Click(label, plane, Prompt(positive, negative, box), tuple(notes))


def read_organ_clicks(request: Mapping[str, Any], volume: Volume, labels: Sequence[str]) -> OrganClicks:
    """Parse a request for a whole organ: points on any number of slices, a box around the organ, or both.

    Args:
        request: the request as it was received.
        volume: the volume that was clicked.
        labels: label names of the site, see ``read_click``.

    Returns:
        The clicks. The box is added to the clicks of its slices, and bounds the slices that the organ may reach. A box
            without points prompts its middle slice.

    Raises:
        InputError: if a field is invalid, or no prompt is left.
    """
    form, label = _read_label_form(request)
    shape, notes = volume.shape, list[str]()
    last = shape[SLICE_AXIS] - 1
    ends = sorted(form.roi[4:]) if form.roi else [0, last]
    low, high = (min(max(round(end), 0), last) for end in ends)
    foreground, background = (
        _group_by_slice(points, what, SLICE_AXIS, shape, notes)
        for points, what in (
            (form.foreground or _points_by_label(request, label, labels), "foreground"), (form.background, "background")
        )
    )  # fmt: skip
    for by_slice, what in ((foreground, "foreground"), (background, "background")):
        beyond = [index for index in by_slice if not low <= index <= high]
        if count := sum(len(by_slice.pop(index)) for index in beyond):
            notes.append(f"{_count_points(count, what)} on slices that the box does not reach skipped.")
    middle = [round((low + high) / 2)] if form.roi and not foreground else []
    prompts = {}
    for index in sorted([*foreground, *middle]):
        box = _box_on_slice(form.roi, Plane(SLICE_AXIS, index), shape, notes)
        if index in foreground or box:
            prompts[index] = Prompt(foreground.get(index, ()), background.pop(index, ()), box)
    if not prompts:
        problem = " ".join(notes) or "There is no positive click and no box."
        raise InputError(f"{problem} Click on the organ on one slice or more, or draw a box around it.")
    return OrganClicks(label, prompts, background, low, high, tuple(dict.fromkeys(notes)))


def _read_label_form(request: Mapping[str, Any]) -> tuple[_Form, str]:
    """Read the fields of a request, and the label that it names.

    Raises:
        InputError: if a field is invalid.
    """
    form = read_form(_Form, request, _USAGE)
    if len(form.roi) not in (0, 6):
        raise InputError(f"The box must be [i0, i1, j0, j1, k0, k1], not {form.roi}.")
    return form, form.label if isinstance(form.label, str) else next(iter(form.label), "")


def _points_by_label(request: Mapping[str, Any], label: str, labels: Sequence[str]) -> list[Voxel]:
    """Read points sent as a list by label name (deepedit): those of ``label``, else of the only label with points."""
    given = {name: request[name] for name in labels if isinstance(request.get(name), list) and request[name]}
    points = given.get(label) or (next(iter(given.values())) if len(given) == 1 else [])
    return read_form(_Form, {"foreground": points}, _USAGE).foreground


def _requested_slice(foreground: list[Voxel], roi: list[float], axis: int, shape: tuple[int, int, int]) -> int:
    """Choose the slice that a request means.

    This is the slice of its last foreground point inside the volume, or the middle slice of its box.

    Raises:
        InputError: if there is neither.
    """
    if foreground:
        return _index(([point for point in foreground if _inside(point, shape)] or foreground)[-1], axis, shape)
    if roi:
        first, last = (min(max(end, 0), shape[axis] - 1) for end in roi[2 * axis : 2 * axis + 2])
        return round((first + last) / 2)
    raise InputError("There is no click and no box in the request. Click on the organ, or draw a box around it.")


def _index(point: Voxel, axis: int, shape: tuple[int, int, int]) -> int:
    """Return the slice on which a point lies; a point on the far edge of the last slice lies on that slice."""
    index = round(point[axis])
    return min(index, shape[axis] - 1) if _inside(point, shape) else index


def _inside(point: Voxel, shape: tuple[int, int, int]) -> bool:
    return all(-0.5 <= value <= size - 0.5 for value, size in zip(point, shape, strict=True))


def _group_by_slice(
    points: list[Voxel], what: str, axis: int, shape: tuple[int, int, int], notes: list[str]
) -> dict[int, tuple[Point, ...]]:
    """Group points by slice, (X, Y) in its pixels; points outside the volume are skipped with a note."""
    inside = [point for point in points if _inside(point, shape)]
    if outside := len(points) - len(inside):
        notes.append(
            f"{_count_points(outside, what)} outside the volume of {' x '.join(map(str, shape))} voxels skipped."
        )
    by_index: dict[int, tuple[Point, ...]] = {}
    for point in inside:
        index = _index(point, axis, shape)
        by_index[index] = (*by_index.get(index, ()), Plane(axis, index).project(point))
    return by_index


def _count_points(count: int, what: str) -> str:
    return f"{count} {what} point{'' if count == 1 else 's'}"


def _box_on_slice(
    roi: list[float], plane: Plane, shape: tuple[int, int, int], notes: list[str]
) -> tuple[float, float, float, float] | None:
    """Convert Slicer's [i0, i1, j0, j1, k0, k1], pairs possibly inverted, to (X0, Y0, X1, Y1) clipped to the slice."""
    if not roi:
        return None
    ranges = [sorted(roi[n : n + 2]) for n in (0, 2, 4)]
    low, high = ranges[plane.axis]
    if not low - 0.5 <= plane.index <= high + 0.5:
        notes.append("The box does not reach this slice and was skipped.")
        return None
    x, y = (axis for axis in range(3) if axis != plane.axis)
    if any(ranges[axis][1] < 0 or ranges[axis][0] > shape[axis] - 1 for axis in (x, y)):
        notes.append(f"The box {roi} lies outside the volume of {' x '.join(map(str, shape))} voxels.")
        return None
    (x0, x1), (y0, y1) = ((max(ranges[axis][0], 0.0), min(ranges[axis][1], shape[axis] - 1.0)) for axis in (x, y))
    return x0, y0, x1, y1
