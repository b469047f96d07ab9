"""Labelled volumes for the adaptation of 3D black boxes; their voxels are kept on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baps.adapters.volumes.adapter import ShownVolume
from baps.errors import BapsError, InputError
from baps.evaluation.cases import Case, CaseReader
from baps.imaging.cube import Cube
from baps.prompts.volume_prompts import Mask, bounding_box

_MIN_VOXELS = 30
"""Size of the smallest organ that is learned from."""


@dataclass(frozen=True)
class LabelledVolume:
    """A labelled volume.

    Attributes:
        patient: the patient.
        image: the volume as it is shown.
        target: mask of the organ on the annotated slices, (I, J, K); not empty.
        annotated: slices across K on which the organ was annotated, (K,), or None for all. On others nothing is known.
    """

    patient: str
    image: ShownVolume
    target: Mask
    annotated: NDArray[np.bool_] | None = None

    @property
    def longest_side(self) -> float:
        """Longest side of the organ along an axis, mm."""
        box = bounding_box(self.target)
        assert box is not None
        return max((one.stop - one.start) * distance for one, distance in zip(box, self.image.spacing, strict=True))

    def dice(self, mask: Mask, part: tuple[slice, slice, slice] | None = None) -> float:
        """Compute the Dice of a mask on the annotated slices.

        Args:
            mask: predicted mask, (I, J, K), or of a part of the volume outside of which it is empty.
            part: that part, or None for the whole volume.

        Returns:
            Dice, 0 to 1.
        """
        where = part or (slice(None),) * 3
        if self.annotated is not None:
            mask = mask & self.annotated[where[2]]
        total = int(mask.sum()) + int(self.target.sum())
        return 2 * int((mask & self.target[where]).sum()) / total if total else 1.0

    def known(self, cube: Cube) -> NDArray[np.float32]:
        """Return where the target is known along the third axis of a cube.

        Args:
            cube: the cube.

        Returns:
            1 where the slice was annotated, or lies outside the volume; else 0; (S,).
        """
        if self.annotated is None:
            return np.ones(cube.side, np.float32)
        index = np.round(cube.first[2] + cube.step[2] * np.arange(cube.side)).astype(int)
        inside = (index >= 0) & (index < len(self.annotated))
        annotated = self.annotated[index.clip(0, len(self.annotated) - 1)]
        return np.where(inside, annotated, True).astype(np.float32)


VolumesByPatient = Mapping[str, Sequence[LabelledVolume]]


def load_volumes(cases: Sequence[Case], folder: Path | None = None) -> tuple[VolumesByPatient, dict[str, str]]:
    """Load every case that can be used; a broken file does not stop the others.

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
    volume, organ, window = reader.read(case)
    shown, annotated = ShownVolume.of(volume, window), None
    if case.annotated_slices is not None:
        annotated = np.isin(np.arange(volume.shape[2]), list(case.annotated_slices))
        organ = organ & annotated
    if organ.sum() < _MIN_VOXELS:
        raise InputError(
            f"The organ in {case.labels.name} has fewer than {_MIN_VOXELS} voxels on the annotated slices, which is "
            "too small to train on."
        )
    on_disk = replace(shown, voxels=_on_disk(shown.voxels, folder))
    return LabelledVolume(case.patient, on_disk, _on_disk(organ, folder), annotated)


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
