"""Load labelled slices on the canvas from labelled volumes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from baps.errors import InputError
from baps.evaluation.slices import AnySlice, LabelledSlice, SliceFile, SlicesByPatient, evenly_spaced
from baps.evaluation.splits import patient_hash
from baps.imaging.canvas import SLICE_AXIS, Canvas, Plane
from baps.imaging.label_map import LabelMap
from baps.imaging.slice_image import canvas_image
from baps.imaging.volume import Volume
from baps.imaging.windowing import Window, choose_window
from baps.io import read_label_map, read_volume
from baps.prompts import Prompt

_MIN_PIXELS = 10
"""Smallest area of an organ on the canvas, in pixels."""


@dataclass(frozen=True)
class Case:
    """A volume and its labels on disk.

    Attributes:
        image: file or DICOM folder of the volume.
        labels: file of the labels.
        value: value of the organ in the labels.
        patient: the patient; volumes of one patient are never on both sides of a split.
        annotated_slices: indices across K of the slices on which the organ was annotated, or None for all. Other slices
            are ignored, because what is not marked there is not background.
        source: the DICOM series or file that the image was converted from, or None.
        name: name of the image in a datastore, or "".
        label_version: version of the label in a datastore, or "" if it is not the newest.
        organ: name of the organ, or "" if it is not needed.
    """

    image: Path
    labels: Path
    value: int
    patient: str
    annotated_slices: frozenset[int] | None = None
    source: Path | None = None
    name: str = ""
    label_version: str = ""
    organ: str = ""


class CaseReader:
    """Read cases.

    The last volume and its labels are kept, because the next case is often another label of the same volume.
    """

    def __init__(self) -> None:
        self._last: tuple[Path, Path, Volume, LabelMap, Window] | None = None

    def read(self, case: Case) -> tuple[Volume, NDArray[np.bool_], Window]:
        """Read a case.

        Args:
            case: the volume and the organ.

        Returns:
            The volume, the mask of the organ (I, J, K), and the volume's own window.

        Raises:
            InputError: if the volume or the labels cannot be used, or the organ is not marked.
        """
        if self._last is None or self._last[:2] != (case.image, case.labels):
            self._last = None  # Keep one volume in memory at a time.
            volume = read_volume(case.image)
            labels = read_label_map(case.labels, volume, case.source or case.image)
            self._last = case.image, case.labels, volume, labels, choose_window(volume)
        _, _, volume, labels, window = self._last
        organ = labels.mask(case.value)
        if not organ.any():
            raise InputError(
                f"The label {case.labels.name} has no voxel of value {case.value}. Segment the organ before you "
                "save, or check the numbers of the segments."
            )
        return volume, organ, window


def label_versions_by_patient(cases: Sequence[Case]) -> dict[str, dict[str, str]]:
    """List the labels that a training reads, so that changed ones do not count as evidence later.

    Args:
        cases: the cases of a label.

    Returns:
        Version of each label by hash of the image, by hash of the patient.
    """
    versions: dict[str, dict[str, str]] = {}
    for case in cases:
        if case.label_version:
            versions.setdefault(patient_hash(case.patient), {})[patient_hash(case.name)] = case.label_version
    return versions


def slices_showing(
    organ: NDArray[np.bool_], canvas: Canvas, annotated_slices: frozenset[int] | None = None
) -> list[int]:
    """Find the slices that show an organ well.

    Slices with less than a tenth of the organ's largest cross-section, or fewer than 10 pixels of it on the canvas, are
    excluded, because users do not click there first.

    Args:
        organ: mask of the organ, (I, J, K).
        canvas: canvas of its slices across K.
        annotated_slices: slices to consider, or None for all.

    Returns:
        Indices across K, in order.
    """
    areas = organ.sum(axis=(0, 1))
    if annotated_slices is not None:
        areas[[index for index in range(len(areas)) if index not in annotated_slices]] = 0
    scale_x, scale_y = canvas.scale
    min_area = max(areas.max() / 10, _MIN_PIXELS / (scale_x * scale_y))
    return [int(index) for index in np.flatnonzero((areas > 0) & (areas >= min(min_area, areas.max())))]


def labelled_slices(
    case: Case, side: int, max_slices: int, window: Window | None = None, reader: CaseReader | None = None
) -> list[LabelledSlice]:
    """Load slices of a case that show the organ well, evenly spaced.

    Args:
        case: the volume and the organ.
        side: side of the canvas, pixels.
        max_slices: maximum number of slices.
        window: a window to use instead of the volume's own.
        reader: reads the case, or None for a new reader.

    Returns:
        The labelled slices; there is at least one.

    Raises:
        InputError: as ``CaseReader.read``, or if the organ is too small on every annotated slice.
    """
    return [piece for piece, _ in _load_slices(case, side, max_slices, (), window, reader)]


def prompted_slices(
    case: Case, side: int, max_slices: int, prompts: Mapping[int, Prompt]
) -> list[tuple[LabelledSlice, Prompt | None]]:
    """Load slices of a case that show the organ well: those that a user prompted first, and others, evenly spaced.

    Args:
        case: the volume and the organ.
        side: side of the canvas, pixels.
        max_slices: maximum number of slices.
        prompts: prompts by index across K, (X, Y) in pixels of the slice.

    Returns:
        The labelled slices, each with its prompt on the canvas if there is one; there is at least one.

    Raises:
        InputError: as ``labelled_slices``.
    """
    return [
        (piece, prompts[plane.index].mapped(canvas.to_canvas) if plane.index in prompts else None)
        for piece, (plane, canvas) in _load_slices(case, side, max_slices, prompts)
    ]


def _load_slices(
    case: Case,
    side: int,
    max_slices: int,
    first: Collection[int],
    window: Window | None = None,
    reader: CaseReader | None = None,
) -> list[tuple[LabelledSlice, tuple[Plane, Canvas]]]:
    volume, organ, own_window = (reader or CaseReader()).read(case)
    indices = slices_showing(organ, Canvas.fit(volume, Plane(SLICE_AXIS, 0), side), case.annotated_slices)
    window = window or own_window
    labelled = []
    preferred = evenly_spaced([index for index in indices if index in first], max_slices)
    others = [index for index in indices if index not in first]
    for index in sorted([*preferred, *evenly_spaced(others, max_slices - len(preferred))]):
        plane = Plane(SLICE_AXIS, index)
        canvas = Canvas.fit(volume, plane, side)
        target = canvas.draw(plane.extract(organ)) > 0.5
        if target.sum() >= _MIN_PIXELS:
            image = canvas_image(volume, plane, canvas, window)
            piece = LabelledSlice(case.patient, image, target, window, canvas.size)
            labelled.append((piece, (plane, canvas)))
    if not labelled:
        raise InputError(
            f"The organ in {case.labels.name} is smaller than {_MIN_PIXELS} pixels of a canvas of {side} on every "
            "annotated slice, which is too small to train on. Annotate more slices."
        )
    return labelled


def load_cases(
    cases: Sequence[Case], side: int, max_slices: int, folder: Path | None = None
) -> tuple[SlicesByPatient, dict[str, str]]:
    """Load the slices of every case that can be used; a broken file does not stop the others.

    Args:
        cases: the cases; one volume is in memory at a time.
        side: side of the canvas, pixels.
        max_slices: maximum number of slices per case.
        folder: folder on whose disk the slices are kept while they are used, or None for the folder of temporary files.

    Returns:
        Slices by patient, and the reason for each image and label that was skipped.
    """
    slices: dict[str, list[AnySlice]] = {}
    skipped: dict[str, str] = {}
    file, reader = SliceFile(folder), CaseReader()
    for case in cases:
        try:
            labelled = [file.keep(piece) for piece in labelled_slices(case, side, max_slices, reader=reader)]
        except InputError as error:
            skipped[f"{case.image.name}, label {case.value}"] = str(error)
        else:
            slices.setdefault(case.patient, []).extend(labelled)
    return slices, skipped
