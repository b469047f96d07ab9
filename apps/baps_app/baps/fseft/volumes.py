"""Load labelled volumes from disk, as a model takes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from baps.errors import InputError
from baps.evaluation.cases import Case, CaseReader
from baps.fseft.models import OrganModel
from baps.fseft.preprocessing import PreparedVolume
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
    volumes, skipped = load_volumes_of_organs((replace(case, organ="") for case in cases), model)
    return volumes.get("", {}), skipped


def load_volumes_of_organs(
    cases: Iterable[Case], model: OrganModel
) -> tuple[Mapping[str, VolumesByPatient], dict[str, str]]:
    """Load volumes as ``load_volumes``, for several organs; the organs of a volume share its image.

    Args:
        cases: cases with their organs, all organs of a volume one after the other, so that it is read once.
        model: gives the spacing and the smallest size.

    Returns:
        Volumes by organ and patient, and the reason for each image that was skipped.
    """
    volumes: dict[str, dict[str, list[LabelledVolume]]] = {}
    skipped: dict[str, str] = {}
    reader = PreparedReader(model)
    for case in cases:
        try:
            loaded = _load_volume(case, reader, model)
        except InputError as error:
            skipped[f"{case.image.name}, label {case.value}"] = str(error)
        else:
            volumes.setdefault(case.organ, {}).setdefault(case.patient, []).append(loaded)
    return volumes, skipped


class PreparedReader:
    """Read cases as a model takes them.

    The last volume is kept, because the next case is often another organ of the same volume.

    Args:
        model: gives the spacing and the smallest size.
    """

    def __init__(self, model: OrganModel) -> None:
        self._organ_model, self._reader = model, CaseReader()
        self._last: PreparedVolume | None = None

    def read(self, case: Case) -> tuple[PreparedVolume, NDArray[np.bool_]]:
        """Read a case.

        Args:
            case: the volume and the organ.

        Returns:
            The preprocessed volume, the same object for each organ of it, and the mask of the organ, (I, J, K).

        Raises:
            InputError: if the volume or the labels cannot be used, or the organ is not marked.
        """
        volume, organ, _ = self._reader.read(case)
        if self._last is None or self._last.volume is not volume:
            self._last = None  # Keep one volume in memory at a time.
            self._last = self._organ_model.prepare(volume)
        return self._last, organ


def _load_volume(case: Case, reader: PreparedReader, model: OrganModel) -> LabelledVolume:
    """Load the volume of a case.

    Raises:
        InputError: if it cannot be read, or the organ is on no annotated slice or too small.
    """
    prepared, organ = reader.read(case)
    annotated = None if case.annotated_slices is None else _slice_mask(case.annotated_slices, organ.shape)
    if annotated is not None:
        organ = organ & annotated
        if not organ.any():
            raise InputError(f"The label {case.labels.name} has no voxel on the annotated slices.")
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
