"""From labelled volumes to labelled slices on the canvas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..geometry import AXES, Canvas, Plane
from ..intensity import Window, choose_window
from ..slice_image import canvas_image
from ..volume import read_labels, read_volume

_LEAST_PIXELS = 10
Item = TypeVar("Item")


@dataclass(frozen=True)
class Case:
    """A volume and its labels on disk.

    Attributes:
        image, labels: the files.
        value: of the wanted label in the labels.
        patient: whom it shows; volumes of one patient are never on both sides of a split.
    """

    image: Path
    labels: Path
    value: int
    patient: str


@dataclass(frozen=True)
class LabelledSlice:
    """A slice as the black box sees it.

    Attributes:
        patient: whom it shows.
        image: (S, S, 3) uint8.
        truth: (S, S) where the organ is; never empty.
        window: how grey values became levels.
    """

    patient: str
    image: NDArray[np.uint8]
    truth: NDArray[np.bool_]
    window: Window


def evenly_spaced(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many of the items, the first and the last among them."""
    places = np.unique(np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int))
    return [items[place] for place in places]


def labelled_slices(case: Case, side: int, most: int, window: Window | None = None) -> list[LabelledSlice]:
    """Slices of a case that show the organ well, evenly spaced.

    Slices with less than a tenth of the organ's largest cross-section, or less than 10 pixels on the canvas, are left
    out: nobody clicks there first.

    Args:
        case: the volume.
        side: of the canvas, pixels.
        most: slices at the most.
        window: another window than the volume's own.

    Raises:
        InputError: if the volume or the labels cannot be used, or the organ is nowhere in them.
    """
    volume = read_volume(case.image)
    organ = read_labels(case.labels, volume) == case.value
    if not organ.any():
        raise InputError(
            f"The label {case.labels.name} holds no voxel of value {case.value}. Segment the organ before you save, "
            "or check the numbers of the segments."
        )
    axis = AXES["K"]
    areas = organ.sum(axis=(0, 1))
    scale_x, scale_y = Canvas.fit(volume, Plane(axis, 0), side).scale
    least = max(areas.max() / 10, _LEAST_PIXELS / (scale_x * scale_y))
    shown = np.flatnonzero(areas >= min(least, areas.max()))
    window = window or choose_window(volume)
    found = []
    for index in evenly_spaced(shown.tolist(), most):
        plane = Plane(axis, index)
        canvas = Canvas.fit(volume, plane, side)
        truth = canvas.draw(plane.of(organ)) > 0.5
        if truth.sum() >= _LEAST_PIXELS:
            found.append(LabelledSlice(case.patient, canvas_image(volume, plane, canvas, window), truth, window))
    if not found:
        raise InputError(
            f"The organ in {case.labels.name} is smaller than {_LEAST_PIXELS} pixels on every slice of a canvas of "
            f"{side} pixels; nothing can be learned from it."
        )
    return found


SlicesByPatient = dict[str, list[LabelledSlice]]


def load_cases(cases: Sequence[Case], side: int, most: int) -> tuple[SlicesByPatient, dict[str, str]]:
    """The slices of every case that can be used; one broken file does not stop the others.

    Args:
        cases: volumes.
        side, most: as in ``labelled_slices``.

    Returns:
        Slices by patient, and for each image that was left out the reason.
    """
    slices: SlicesByPatient = {}
    left_out: dict[str, str] = {}
    for case in cases:
        try:
            slices.setdefault(case.patient, []).extend(labelled_slices(case, side, most))
        except InputError as error:
            left_out[case.image.name] = str(error)
    return {patient: found for patient, found in slices.items() if found}, left_out
