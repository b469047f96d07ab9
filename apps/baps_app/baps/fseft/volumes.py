"""From labelled volumes on disk to what a model learns an organ from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from baps.errors import InputError
from baps.evaluation.cases import Case, CaseReader
from baps.fseft.models import OrganModel
from baps.fseft.preprocessing import prepare
from baps.imaging.metrics import dice


@dataclass(frozen=True)
class LabelledVolume:
    """A volume as a model takes it, with an organ's label; see ``Example`` for the masks.

    Attributes:
        patient: whom it shows.
        image: (1, H, W, D) in [0, 1].
        truth, labelled: (1, H, W, D) bool.
    """

    patient: str
    image: torch.Tensor
    truth: torch.Tensor
    labelled: torch.Tensor | None

    def dice(self, mask: torch.Tensor) -> float:
        """Of a mask (1, H, W, D) bool, where the truth is known."""
        known = torch.ones_like(self.truth) if self.labelled is None else self.labelled
        return dice((mask & known).numpy(), (self.truth & known).numpy())


VolumesByPatient = Mapping[str, Sequence[LabelledVolume]]


def load_volumes(cases: Iterable[Case], model: OrganModel) -> tuple[VolumesByPatient, dict[str, str]]:
    """The volumes of every case that can be used; one broken file does not stop the others.

    Args:
        cases: of one organ; one volume is in memory at a time as it was stored.
        model: tells the spacing and the least size.

    Returns:
        Volumes by patient, and for each image that was left out the reason.
    """
    volumes: dict[str, list[LabelledVolume]] = {}
    skipped: dict[str, str] = {}
    reader = CaseReader()
    for case in cases:
        try:
            volume, organ, _ = reader.read(case)
            if case.covered is not None:
                organ = organ & _on(case.covered, volume.shape)
                if not organ.any():
                    raise InputError(f"The label {case.labels.name} has no voxel on the slices that were labelled.")
            prepared = prepare(volume, model.spacing, model.side)
            truth = prepared.mask(organ)
            if not truth.any():
                raise InputError(
                    f"The organ in {case.labels.name} is smaller than a voxel of {model.spacing:g} mm, as which the "
                    "organ model sees it. Use clicks for it."
                )
            labelled = None if case.covered is None else prepared.mask(_on(case.covered, volume.shape))
        except InputError as error:
            skipped[f"{case.image.name}, label {case.value}"] = str(error)
        else:
            found = LabelledVolume(case.patient, prepared.image, truth, labelled)
            volumes.setdefault(case.patient, []).append(found)
    return volumes, skipped


def _on(slices: Iterable[int], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """All of some slices across K."""
    mask = np.zeros(shape, bool)
    mask[:, :, [k for k in slices if k < shape[2]]] = True
    return mask
