"""What 3D Slicer and OHIF send with a click, read into one form.

The forms are deepgrow's (``foreground``, ``background``, ``slice``, ``label``, ``roi``), deepedit's (points by label
name), and OHIF's (points alone). Voxels are (i, j, k) of the volume, as the file has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from baps.blackbox import Prompt
from baps.errors import InputError
from baps.geometry import AXES, Plane

Voxel = tuple[FiniteFloat, FiniteFloat, FiniteFloat]


class _Form(BaseModel):
    """The fields of a request that say what was clicked; the host's other fields are left alone."""

    model_config = ConfigDict(extra="ignore")

    foreground: list[Voxel] = Field(default_factory=list)
    background: list[Voxel] = Field(default_factory=list)
    roi: list[FiniteFloat] = Field(default_factory=list)
    slice: int | None = None
    label: str | list[str] = ""


@dataclass(frozen=True)
class Click:
    """A request for one mask.

    Attributes:
        label: the organ, or "" if the viewer named none.
        plane: the slice that is asked for.
        prompt: clicks and box in pixels of that slice.
    """

    label: str
    plane: Plane
    prompt: Prompt


def read_click(request: dict[str, Any], shape: tuple[int, ...], labels: list[str]) -> Click:
    """Read a request.

    Args:
        request: as it came.
        shape: of the volume, voxels (I, J, K).
        labels: that the site knows, to find points sent by label name.

    Returns:
        The click. Without ``slice`` the last foreground point says which slice is meant; other slices' points are left
        out.

    Raises:
        InputError: if a field has the wrong form, a point lies outside the volume, or nothing is left to prompt with.
    """
    try:
        form = _Form.model_validate({key: value for key, value in request.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(
            f"The request's field {where!r} cannot be used: {first['msg']}. Points are [i, j, k]."
        ) from None
    if len(form.roi) not in (0, 6):
        raise InputError(f"The box must be [i0, i1, j0, j1, k0, k1], not {form.roi}.")
    label = form.label if isinstance(form.label, str) else next(iter(form.label), "")
    foreground = form.foreground or _by_name(request, label, labels)
    axis = AXES["K"]
    index = form.slice if form.slice is not None else _slice_meant(foreground, form.roi)
    if not 0 <= index < shape[axis]:
        raise InputError(f"Slice {index} lies outside the volume, which has slices 0 to {shape[axis] - 1}.")
    plane = Plane(axis, index)
    positive, negative = (
        tuple(plane.flatten(_inside(point, shape)) for point in points if round(point[axis]) == index)
        for points in (foreground, form.background)
    )
    box = _box(form.roi, index, shape)
    if not positive and box is None:
        raise InputError(f"There is no positive click and no box on slice {index}. Click on the organ on this slice.")
    return Click(label, plane, Prompt(positive, negative, box))


def _by_name(request: dict[str, Any], label: str, labels: list[str]) -> list[Voxel]:
    """Points sent as a list by label name (deepedit): those of the asked label, else of the only one that has any."""
    given = {name: request[name] for name in labels if isinstance(request.get(name), list) and request[name]}
    points = given.get(label) or (next(iter(given.values())) if len(given) == 1 else [])
    try:
        return _Form(foreground=points).foreground
    except ValidationError:
        raise InputError(f"The points of {label!r} are not of the form [i, j, k].") from None


def _slice_meant(foreground: list[Voxel], roi: list[float]) -> int:
    if foreground:
        return round(foreground[-1][2])
    if roi:
        return round((roi[4] + roi[5]) / 2)
    raise InputError("There is no click and no box in the request. Click on the organ, or draw a box around it.")


def _inside(point: Voxel, shape: tuple[int, ...]) -> Voxel:
    if any(not -0.5 <= value <= size - 0.5 for value, size in zip(point, shape, strict=True)):
        raise InputError(
            f"The point {list(point)} lies outside the volume of {list(shape)} voxels. Click inside the image."
        )
    return point


def _box(roi: list[float], index: int, shape: tuple[int, ...]) -> tuple[float, float, float, float] | None:
    """Slicer's [i0, i1, j0, j1, k0, k1], pairs possibly inverted, as (X0, Y0, X1, Y1) clipped to the slice."""
    if not roi:
        return None
    i, j, k = (sorted(roi[n : n + 2]) for n in (0, 2, 4))
    if not k[0] - 0.5 <= index <= k[1] + 0.5:
        return None
    for pair, size in ((i, shape[0]), (j, shape[1])):
        if pair[1] < 0 or pair[0] > size - 1:
            raise InputError(f"The box {roi} lies outside the volume of {list(shape)} voxels. Draw it on the image.")
    return max(i[0], 0), max(j[0], 0), min(i[1], shape[0] - 1), min(j[1], shape[1] - 1)
