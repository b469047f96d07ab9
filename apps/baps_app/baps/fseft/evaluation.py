"""Evaluate organ masks: overlap and surface distances at the voxels of the volume."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from baps.blackbox.local import convert_out_of_memory
from baps.errors import InputError
from baps.evaluation.cases import Case, CaseReader
from baps.evaluation.surface_distances import surface_distances
from baps.fseft.adapters import FewShotAdapter
from baps.fseft.feature_cache import FeatureCache
from baps.fseft.models import OrganModel
from baps.fseft.predictor import predict
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
            prepared = model.prepare(volume)
            mask = predict(adapter, prepared, feature_cache.for_image(model, prepared.image), model.side) > 0.5
        except InputError as error:
            skipped[case.image.name] = str(error)
            continue
        spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
        distances = surface_distances(mask, target, spacing)
        scores[case.image.name] = OrganScores(case.patient, dice(mask, target), *distances)
    return scores, skipped
