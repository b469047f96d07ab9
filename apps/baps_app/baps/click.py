"""What 3D Slicer, OHIF and the command line send with a click, read into one form.

The forms are deepgrow's (``foreground``, ``background``, ``slice``, ``label``, ``roi``), deepedit's (points by label
name), and OHIF's (points alone). Voxels are (i, j, k) of the volume, as the file has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from .blackbox import Prompt
from .errors import InputError
from .geometry import AS_STORED, AXES, Plane, axis_across
from .volume import Volume

Voxel = tuple[FiniteFloat, FiniteFloat, FiniteFloat]

PACKED = "reply_packed"
"""A field that the server itself puts into a request: the reply goes out with HTTP's gzip."""

_MOST_POINTS = 1000


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
    form = _validated({key: value for key, value in request.items() if value is not None})
    if len(form.roi) not in (0, 6):
        raise InputError(f"The box must be [i0, i1, j0, j1, k0, k1], not {form.roi}.")
    label, chosen = (word if isinstance(word, str) else next(iter(word), "") for word in (form.label, form.plane))
    axis = axis_across(volume.affine, chosen)
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
    positive, negative = (
        _on_slice(points, what, plane, volume.shape, notes)
        for points, what in ((foreground, "foreground"), (form.background, "background"))
    )
    box = _box(form.roi, plane, volume.shape, notes)
    if not positive and box is None:
        said = " ".join(notes) or "There is no positive click and no box."
        raise InputError(f"{said} Click on the organ on slice {index}, or draw a box around it there.")
    return Click(label, plane, Prompt(positive, negative, box), tuple(notes))


def _validated(fields: dict[str, Any]) -> _Form:
    try:
        return _Form.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(
            f"The request's field {where!r} cannot be used: {first['msg']}. Points are [i, j, k], at most "
            f"{_MOST_POINTS} of them."
        ) from None


def _by_name(request: Mapping[str, Any], label: str, labels: Sequence[str]) -> list[Voxel]:
    """Points sent as a list by label name (deepedit): those of the asked label, else of the only one that has any."""
    given = {name: request[name] for name in labels if isinstance(request.get(name), list) and request[name]}
    points = given.get(label) or (next(iter(given.values())) if len(given) == 1 else [])
    return _validated({"foreground": points}).foreground


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


def _on_slice(
    points: list[Voxel], what: str, plane: Plane, shape: tuple[int, int, int], notes: list[str]
) -> tuple[tuple[float, float], ...]:
    """The points of the slice, (X, Y) in its pixels; what is left out is noted."""
    here = [point for point in points if _index(point, plane.axis, shape) == plane.index]
    inside = [point for point in here if _inside(point, shape)]
    if elsewhere := len(points) - len(here):
        notes.append(f"{_points(elsewhere, what)} of other slices left out.")
    if outside := len(here) - len(inside):
        notes.append(f"{_points(outside, what)} outside the volume of {' x '.join(map(str, shape))} voxels left out.")
    return tuple(plane.flatten(point) for point in inside)


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
