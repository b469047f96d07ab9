"""Parse the labelmap of strokes that 3D Slicer sends: foreground, background, and what is already segmented.

The labelmap holds every segment of the scene, including the two segments of strokes; ``label_info`` gives the value of
each name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, FiniteFloat

from baps.errors import InputError
from baps.imaging.volume import Volume
from baps.inference.requests.form import read_form
from baps.inference.scribbles import Box
from baps.io import read_labels

FOREGROUND, BACKGROUND = "foreground_scribbles", "background_scribbles"
"""Names that 3D Slicer gives the two segments of strokes."""

_DEFAULT_VALUES = {BACKGROUND: 2, FOREGROUND: 3}
"""Their values if the request does not give them, as in MONAI Label's own scribbles."""


_USAGE = 'Strokes are sent as a labelmap file, with label_info as a list of {"name", "id"}.'


class _Segment(BaseModel):
    name: str
    id: int = Field(ge=1)


class _Form(BaseModel, extra="ignore"):
    # The fields of a request that describe the strokes; MONAI Label's other fields are ignored.

    label: str = ""
    label_info: list[_Segment] = Field(default_factory=list, max_length=1000)
    selected_label_name: str = ""
    roi: list[FiniteFloat] = Field(default_factory=list)


@dataclass(frozen=True)
class Scribbles:
    """A request for the mask of one organ, from strokes.

    Attributes:
        label: the organ, or "" if the viewer named none.
        foreground: strokes on the organ, (I, J, K).
        background: strokes beside the organ, (I, J, K).
        segmented: what the viewer already shows as the organ, (I, J, K).
        box: box around the organ on its slices, (X0, Y0, X1, Y1) in pixels, or None.
        inside: the part of the volume that may change, a range of indices along I, J and K.
        notes: sentences for the reply on what was skipped.
    """

    label: str
    foreground: NDArray[np.bool_]
    background: NDArray[np.bool_]
    segmented: NDArray[np.bool_]
    box: Box | None
    inside: tuple[slice, slice, slice]
    notes: tuple[str, ...] = ()


def read_scribbles(request: Mapping[str, Any], volume: Volume) -> Scribbles:
    """Parse a request for a mask from strokes.

    Args:
        request: the request as it was received; ``label`` is the path of the labelmap, ``roi`` a box [i0, i1, j0, j1,
            k0, k1] in voxels.
        volume: the volume that was painted on.

    Returns:
        The strokes. With a box, strokes outside it are skipped, and the notes say so.

    Raises:
        InputError: if a field is invalid, the labelmap is missing, broken or does not lie where the volume does, or
            there is no foreground stroke.
    """
    form = read_form(_Form, request, _USAGE)
    if not form.label:
        raise InputError("The request contains no labelmap of strokes. Send it as the file named label.")
    values = {segment.name: segment.id for segment in form.label_info} or _DEFAULT_VALUES
    used = [values[name] for name in (FOREGROUND, BACKGROUND, form.selected_label_name) if name in values]
    if len(set(used)) < len(used):
        raise InputError(
            f"The strokes and the segment {form.selected_label_name!r} share a value of the labelmap: {values}. Give "
            "each its own in label_info."
        )
    labels = read_labels(Path(form.label), volume)
    foreground, background, segmented = (
        labels == values[name] if name in values else np.zeros(volume.shape, bool)
        for name in (FOREGROUND, BACKGROUND, form.selected_label_name)
    )
    inside, notes = _inside(form.roi, volume.shape), []
    for strokes, what in ((foreground, "foreground"), (background, "background")):
        kept = strokes[inside].copy("K")  # Copying into another memory order would take seconds.
        if outside := int(strokes.sum()) - int(kept.sum()):
            notes.append(f"{outside} voxels of {what} strokes outside the box skipped.")
            strokes[:] = False
            strokes[inside] = kept
    if not foreground.any():
        problem = " ".join(notes) or "There is no foreground stroke."
        raise InputError(
            f"{problem} Choose Foreground and paint over the organ, on each slice that is to be segmented."
        )
    (x0, x1), (y0, y1) = ((float(edge.start), float(edge.stop - 1)) for edge in inside[:2])
    box = (x0, y0, x1, y1) if form.roi else None
    return Scribbles(form.selected_label_name, foreground, background, segmented, box, inside, tuple(notes))


def _inside(roi: list[float], shape: tuple[int, int, int]) -> tuple[slice, slice, slice]:
    """Return the range of voxels of a box, pairs possibly inverted; without a box, the whole volume.

    Raises:
        InputError: if the box is invalid or lies outside the volume.
    """
    if not roi:
        roi = [end for size in shape for end in (0, size - 1)]
    if len(roi) != 6:
        raise InputError(f"The box must be [i0, i1, j0, j1, k0, k1], not {roi}.")
    ends = [sorted(round(end) for end in roi[n : n + 2]) for n in (0, 2, 4)]
    if any(last < 0 or first >= size for (first, last), size in zip(ends, shape, strict=True)):
        raise InputError(
            f"The box {roi} lies outside the volume of {' x '.join(map(str, shape))} voxels. Draw it around the organ, "
            "or remove it."
        )
    i, j, k = (slice(max(first, 0), min(last + 1, size)) for (first, last), size in zip(ends, shape, strict=True))
    return i, j, k
