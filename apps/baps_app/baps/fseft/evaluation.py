"""Evaluate organ masks: overlap and surface distances at the voxels of the volume."""

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
from baps.fseft.predictor import predict
from baps.fseft.preprocessing import preprocess
from baps.imaging.metrics import dice


@dataclass(frozen=True)
class OrganScores:
    """Scores of one volume.

    Attributes:
        patient: the patient.
        dice: 0 to 1.
        hd95: 95th percentile of the Hausdorff distance, mm; infinite if exactly one of the masks is empty.
        surface: average symmetric surface distance, mm; infinite if exactly one of the masks is empty.
    """

    patient: str
    dice: float
    hd95: float
    surface: float


@convert_out_of_memory
def evaluate_organ(
    model: OrganModel, adapter: FewShotAdapter | None, cases: Iterable[Case], feature_cache: FeatureCache
) -> tuple[dict[str, OrganScores], dict[str, str]]:
    """Score an adapter on labelled volumes; a broken file does not stop the others.

    Args:
        model: the foundation model.
        adapter: an adapter for the organ, or None for empty masks, as of a model that does not know the organ.
        cases: cases of the organ, annotated on all slices.
        feature_cache: cache of the model's features.

    Returns:
        Scores by the image's name, and the reason for each image that was skipped.

    Raises:
        BapsError: if the GPU is out of memory.
    """
    scores: dict[str, OrganScores] = {}
    skipped: dict[str, str] = {}
    reader = CaseReader()
    for case in cases:
        try:
            volume, target, _ = reader.read(case)
            prepared = preprocess(volume, model.spacing, model.side)
            mask = predict(adapter, prepared, feature_cache.for_image(model, prepared.image), model.side) > 0.5
        except InputError as error:
            skipped[case.image.name] = str(error)
            continue
        spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
        distances = surface_distances(mask, target, spacing)
        scores[case.image.name] = OrganScores(case.patient, dice(mask, target), *distances)
    return scores, skipped


def surface_distances(
    mask: NDArray[np.bool_], target: NDArray[np.bool_], spacing: NDArray[np.float64]
) -> tuple[float, float]:
    """Compute surface distances with MONAI's metrics.

    Args:
        mask: (I, J, K).
        target: (I, J, K). If both are empty, the distances are 0; if one is, infinite.
        spacing: size of a voxel along I, J and K, (3,), mm.

    Returns:
        The 95th percentile of the Hausdorff distance, and the average symmetric surface distance, mm.
    """
    if not mask.any() or not target.any():
        return (0.0, 0.0) if mask.any() == target.any() else (math.inf, math.inf)
    either = np.nonzero(mask | target)
    box = tuple(slice(axis.min(), axis.max() + 1) for axis in either)
    first, second = (np.pad(surface_mask[box], 1)[None, None] for surface_mask in (mask, target))
    pair = torch.from_numpy(first).float(), torch.from_numpy(second).float()
    sizes = spacing.tolist()
    hd95 = compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=sizes)
    surface = compute_average_surface_distance(*pair, include_background=True, symmetric=True, spacing=sizes)
    return float(hd95), float(surface)
