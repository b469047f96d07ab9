"""Labelled volumes for the adaptation of 3D black boxes; their voxels are kept on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baps.adapters.volumes.adapter import ShownVolume
from baps.errors import BapsError, InputError
from baps.evaluation.cases import Case, CaseReader
from baps.prompts.volume_prompts import Mask, bounding_box

_MIN_VOXELS = 30
"""Size of the smallest organ that is learned from."""


@dataclass(frozen=True)
class LabelledVolume:
    """A labelled volume.

    Attributes:
        patient: the patient.
        image: the volume as it is shown.
        target: mask of the organ, (I, J, K); not empty.
    """

    patient: str
    image: ShownVolume
    target: Mask

    @property
    def longest_side(self) -> float:
        """Longest side of the organ along an axis, mm."""
        box = bounding_box(self.target)
        assert box is not None
        return max((one.stop - one.start) * distance for one, distance in zip(box, self.image.spacing, strict=True))


VolumesByPatient = Mapping[str, Sequence[LabelledVolume]]


def load_volumes(cases: Sequence[Case], folder: Path | None = None) -> tuple[VolumesByPatient, dict[str, str]]:
    """Load every case that can be used; a broken file does not stop the others.

    Volumes that were annotated on some slices only are skipped, because the rest of the organ is unknown.

    Args:
        cases: the cases; one volume is in memory at a time.
        folder: folder on whose disk voxels are kept while they are used, or None for the folder of temporary files.

    Returns:
        Volumes by patient, and the reason for each image and label that was skipped.
    """
    volumes: dict[str, list[LabelledVolume]] = {}
    skipped: dict[str, str] = {}
    reader = CaseReader()
    for case in cases:
        try:
            labelled = _load(case, reader, folder)
        except InputError as error:
            skipped[f"{case.image.name}, label {case.value}"] = str(error)
        else:
            volumes.setdefault(case.patient, []).append(labelled)
    return volumes, skipped


def _load(case: Case, reader: CaseReader, folder: Path | None) -> LabelledVolume:
    if case.annotated_slices is not None:
        raise InputError("Only some slices were annotated. Annotate the whole organ to adapt a 3D model to it.")
    volume, organ, window = reader.read(case)
    if volume.colour:
        raise InputError("The volume has colours; a 3D model takes grey values.")
    if organ.sum() < _MIN_VOXELS:
        raise InputError(f"The organ has fewer than {_MIN_VOXELS} voxels, which is too small to train on.")
    voxels = _on_disk(np.ascontiguousarray(volume.voxels), folder)
    return LabelledVolume(case.patient, ShownVolume(voxels, volume.spacing, window), _on_disk(organ, folder))


def _on_disk(array: NDArray[Any], folder: Path | None) -> NDArray[Any]:
    """Copy an array to a nameless file, which is removed when it is no longer used."""
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            kept = np.memmap(file, array.dtype, "w+", shape=array.shape)
            kept[:] = array
            return kept
    except OSError as error:
        raise BapsError(f"Volumes cannot be kept in {folder} ({error.strerror}). Choose another folder.") from error
