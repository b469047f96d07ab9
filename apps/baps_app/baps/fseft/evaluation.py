"""How good are the masks that a user gets? Overlap and distance of surfaces at the voxels of the volume."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from numpy.typing import NDArray

from baps.blackbox.local import convert_out_of_memory
from baps.errors import InputError
from baps.evaluation.cases import Case, CaseReader
from baps.fseft.adapters import FewShotAdapter
from baps.fseft.feature_cache import FeatureCache
from baps.fseft.models import OrganModel
from baps.fseft.predictor import ask
from baps.fseft.preprocessing import prepare
from baps.imaging.metrics import dice


@dataclass(frozen=True)
class Scored:
    """One volume.

    Attributes:
        patient: whom it shows.
        dice: 0 to 1.
        hd95: 95th percentile of the Hausdorff distance, mm; infinite where only one of the masks is empty.
        surface: average symmetric surface distance, mm; likewise.
    """

    patient: str
    dice: float
    hd95: float
    surface: float


@convert_out_of_memory
def evaluate_organ(
    model: OrganModel, adapter: FewShotAdapter | None, cases: Iterable[Case], readings: FeatureCache
) -> tuple[dict[str, Scored], dict[str, str]]:
    """Score an adapter on labelled volumes; one broken file does not stop the others.

    Args:
        model: the foundation model.
        readings: where its features are kept.
        adapter: of the organ; None for one that answers with nothing, as a model does that does not know it.
        cases: of the organ, labelled on all slices.

    Returns:
        Scores by the image's name, and for each image that was left out the reason.

    Raises:
        BapsError: if the GPU has not enough memory.
    """
    scored: dict[str, Scored] = {}
    skipped: dict[str, str] = {}
    reader = CaseReader()
    for case in cases:
        try:
            volume, truth, _ = reader.read(case)
            prepared = prepare(volume, model.spacing, model.side)
            mask = ask(adapter, prepared, readings.of_image(model, prepared.image), model.side) > 0.5
        except InputError as error:
            skipped[case.image.name] = str(error)
            continue
        spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
        distances = surface_distances(mask, truth, spacing)
        scored[case.image.name] = Scored(case.patient, dice(mask, truth), *distances)
    return scored, skipped


def surface_distances(
    mask: NDArray[np.bool_], truth: NDArray[np.bool_], spacing: NDArray[np.float64]
) -> tuple[float, float]:
    """95th percentile of the Hausdorff distance, and average symmetric surface distance, mm (MONAI's metrics).

    Args:
        mask, truth: (I, J, K). Where both are empty, the distances are 0; where one is, infinite.
        spacing: (3,), mm.
    """
    if not mask.any() or not truth.any():
        return (0.0, 0.0) if mask.any() == truth.any() else (math.inf, math.inf)
    either = np.nonzero(mask | truth)
    box = tuple(slice(axis.min(), axis.max() + 1) for axis in either)
    first, second = (np.pad(one[box], 1)[None, None] for one in (mask, truth))
    pair = torch.from_numpy(first).float(), torch.from_numpy(second).float()
    sizes = spacing.tolist()
    hd95 = compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=sizes)
    surface = compute_average_surface_distance(*pair, include_background=True, symmetric=True, spacing=sizes)
    return float(hd95), float(surface)
