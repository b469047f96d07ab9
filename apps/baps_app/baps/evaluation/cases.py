"""From labelled volumes to labelled slices on the canvas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from baps.errors import InputError
from baps.evaluation.slices import AnySlice, LabelledSlice, SliceFile, SlicesByPatient, evenly_spaced
from baps.imaging.canvas import SLICE_AXIS, Canvas, Plane
from baps.imaging.label_map import LabelMap
from baps.imaging.slice_image import canvas_image
from baps.imaging.volume import Volume
from baps.imaging.windowing import Window, choose_window
from baps.io import read_label_map, read_volume

_LEAST_PIXELS = 10


@dataclass(frozen=True)
class Case:
    """A volume and its labels on disk.

    Attributes:
        image, labels: the files.
        value: of the wanted label in the labels.
        patient: whom it shows; volumes of one patient are never on both sides of a split.
        covered: slices across K on which the organ was labelled, or None for all. The others are ignored: what is not
            marked there is not background.
        source: the DICOM series or file that the image was read from, if it is another one.
    """

    image: Path
    labels: Path
    value: int
    patient: str
    covered: frozenset[int] | None = None
    source: Path | None = None


class CaseReader:
    """Reads cases; the last volume and its labels are kept, for the next case is often another label of the same."""

    def __init__(self) -> None:
        self._last: tuple[Path, Path, Volume, LabelMap, Window] | None = None

    def read(self, case: Case) -> tuple[Volume, NDArray[np.bool_], Window]:
        """The volume, where the organ is, (I, J, K), and the volume's own window.

        Raises:
            InputError: if the volume or the labels cannot be used, or the organ is nowhere in them.
        """
        if self._last is None or self._last[:2] != (case.image, case.labels):
            self._last = None  # One volume is in memory at a time.
            volume = read_volume(case.image)
            labels = read_label_map(case.labels, volume, case.source or case.image)
            self._last = case.image, case.labels, volume, labels, choose_window(volume)
        _, _, volume, labels, window = self._last
        organ = labels.mask(case.value)
        if not organ.any():
            raise InputError(
                f"The label {case.labels.name} holds no voxel of value {case.value}. Segment the organ before you "
                "save, or check the numbers of the segments."
            )
        return volume, organ, window


def slices_showing(organ: NDArray[np.bool_], canvas: Canvas, covered: frozenset[int] | None = None) -> list[int]:
    """Indices across K of the slices that show an organ well.

    Slices with less than a tenth of the organ's largest cross-section, or less than 10 pixels on the canvas, are left
    out: nobody clicks there first.

    Args:
        organ: (I, J, K).
        canvas: of its slices.
        covered: slices that count, or None for all.
    """
    areas = organ.sum(axis=(0, 1))
    if covered is not None:
        areas[[index for index in range(len(areas)) if index not in covered]] = 0
    scale_x, scale_y = canvas.scale
    least = max(areas.max() / 10, _LEAST_PIXELS / (scale_x * scale_y))
    return [int(index) for index in np.flatnonzero((areas > 0) & (areas >= min(least, areas.max())))]


def labelled_slices(
    case: Case, side: int, most: int, window: Window | None = None, reader: CaseReader | None = None
) -> list[LabelledSlice]:
    """Slices of a case that show the organ well, evenly spaced.

    Args:
        case: the volume.
        side: of the canvas, pixels.
        most: slices at the most.
        window: another window than the volume's own.
        reader: to read it with.

    Raises:
        InputError: as ``CaseReader.read``, or if the organ is too small on every slice that is covered.
    """
    volume, organ, own_window = (reader or CaseReader()).read(case)
    shown = slices_showing(organ, Canvas.fit(volume, Plane(SLICE_AXIS, 0), side), case.covered)
    window = window or own_window
    found = []
    for index in evenly_spaced(shown, most):
        plane = Plane(SLICE_AXIS, index)
        canvas = Canvas.fit(volume, plane, side)
        truth = canvas.draw(plane.extract(organ)) > 0.5
        if truth.sum() >= _LEAST_PIXELS:
            found.append(LabelledSlice(case.patient, canvas_image(volume, plane, canvas, window), truth, window))
    if not found:
        raise InputError(
            f"The organ in {case.labels.name} is smaller than {_LEAST_PIXELS} pixels of a canvas of {side} on every "
            "slice that is covered; nothing can be learned from it."
        )
    return found


def load_cases(
    cases: Sequence[Case], side: int, most: int, folder: Path | None = None
) -> tuple[SlicesByPatient, dict[str, str]]:
    """The slices of every case that can be used; one broken file does not stop the others.

    Args:
        cases: volumes; one is in memory at a time.
        side, most: as in ``labelled_slices``.
        folder: on whose disk the slices are kept as long as they are used; else where temporary files are.

    Returns:
        Slices by patient, and for each image and label that was left out the reason.
    """
    slices: dict[str, list[AnySlice]] = {}
    skipped: dict[str, str] = {}
    file, reader = SliceFile(folder), CaseReader()
    for case in cases:
        try:
            found = [file.keep(piece) for piece in labelled_slices(case, side, most, reader=reader)]
        except InputError as error:
            skipped[f"{case.image.name}, label {case.value}"] = str(error)
        else:
            slices.setdefault(case.patient, []).extend(found)
    return slices, skipped
