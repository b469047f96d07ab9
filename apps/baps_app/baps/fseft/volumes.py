"""Load labelled volumes from disk, as a model takes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from baps.errors import InputError
from baps.evaluation.cases import Case, CaseReader
from baps.fseft.models import OrganModel
from baps.imaging.metrics import dice


@dataclass(frozen=True)
class LabelledVolume:
    """A volume as a model takes it, with the label of an organ; see ``Example`` for the masks.

    Attributes:
        patient: the patient.
        image: (1, H, W, D) in [0, 1].
        target: mask of the organ, (1, H, W, D) bool.
        labelled: voxels that were annotated, (1, H, W, D) bool, or None for all.
    """

    patient: str
    image: torch.Tensor
    target: torch.Tensor
    labelled: torch.Tensor | None

    def dice(self, mask: torch.Tensor) -> float:
        """Compute the Dice of a mask over the annotated voxels.

        Args:
            mask: (1, H, W, D) bool.

        Returns:
            0 to 1.
        """
        known = torch.ones_like(self.target) if self.labelled is None else self.labelled
        return dice((mask & known).numpy(), (self.target & known).numpy())


VolumesByPatient = Mapping[str, Sequence[LabelledVolume]]


def load_volumes(cases: Iterable[Case], model: OrganModel) -> tuple[VolumesByPatient, dict[str, str]]:
    """Load the volumes of every case that can be used; a broken file does not stop the others.

    Args:
        cases: cases of one organ; one volume is in memory at a time in its stored form.
        model: gives the spacing and the smallest size.

    Returns:
        Volumes by patient, and the reason for each image that was skipped.
    """
    volumes: dict[str, list[LabelledVolume]] = {}
    skipped: dict[str, str] = {}
    reader = CaseReader()
    for case in cases:
        try:
            loaded = _load_volume(case, reader, model)
        except InputError as error:
            skipped[f"{case.image.name}, label {case.value}"] = str(error)
        else:
            volumes.setdefault(case.patient, []).append(loaded)
    return volumes, skipped


def _load_volume(case: Case, reader: CaseReader, model: OrganModel) -> LabelledVolume:
    """Load the volume of a case.

    Raises:
        InputError: if it cannot be read, or the organ is on no annotated slice or too small.
    """
    volume, organ, _ = reader.read(case)
    annotated = None if case.annotated_slices is None else _slice_mask(case.annotated_slices, volume.shape)
    if annotated is not None:
        organ = organ & annotated
        if not organ.any():
            raise InputError(f"The label {case.labels.name} has no voxel on the annotated slices.")
    prepared = model.prepare(volume)
    target = prepared.mask(organ)
    if not target.any():
        voxel = " x ".join(f"{size:g}" for size in np.atleast_1d(model.spacing))
        raise InputError(
            f"The organ in {case.labels.name} is smaller than a voxel of {voxel} mm, the resolution of the "
            "organ model. Use clicks for it."
        )
    return LabelledVolume(case.patient, prepared.image, target, None if annotated is None else prepared.mask(annotated))


def _slice_mask(slices: Iterable[int], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Mark whole slices across K."""
    mask = np.zeros(shape, bool)
    mask[:, :, [k for k in slices if k < shape[2]]] = True
    return mask
