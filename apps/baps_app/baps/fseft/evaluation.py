"""Evaluate organ masks: overlap and surface distances at the voxels of the volume."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from baps.blackbox.local import convert_out_of_memory
from baps.errors import InputError
from baps.evaluation.cases import Case
from baps.evaluation.surface_distances import surface_distances
from baps.fseft.adapters import FewShotAdapter
from baps.fseft.feature_cache import FeatureCache, InputGetter
from baps.fseft.models import OrganModel
from baps.fseft.predictor import predict
from baps.fseft.preprocessing import PreparedVolume
from baps.fseft.volumes import PreparedReader
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
    unnamed = (replace(case, organ="") for case in cases)
    scores, skipped = evaluate_organs(model, {"": adapter}, unnamed, feature_cache)
    return scores.get("", {}), skipped


@convert_out_of_memory
def evaluate_organs(
    model: OrganModel,
    adapters: Mapping[str, FewShotAdapter | None],
    cases: Iterable[Case],
    feature_cache: FeatureCache,
) -> tuple[dict[str, dict[str, OrganScores]], dict[str, str]]:
    """Score the adapters of several organs as ``evaluate_organ``; the frozen model runs once per volume.

    Args:
        model: the foundation model.
        adapters: the adapter of each organ, or None for empty masks.
        cases: cases with their organs, annotated on all slices, all organs of a volume one after the other.
        feature_cache: cache of the model's features.

    Returns:
        Scores by organ and the image's name, and the reason for each image that was skipped.

    Raises:
        BapsError: if the GPU is out of memory.
    """
    scores: dict[str, dict[str, OrganScores]] = {}
    skipped: dict[str, str] = {}
    reader = PreparedReader(model)
    last: tuple[PreparedVolume, InputGetter] | None = None
    for case in cases:
        try:
            prepared, target = reader.read(case)
        except InputError as error:
            skipped[f"{case.image.name}, {case.organ}" if case.organ else case.image.name] = str(error)
            continue
        if last is None or last[0] is not prepared:
            last = prepared, feature_cache.for_image(model, prepared.image)
        mask = predict(adapters[case.organ], prepared, last[1], model.side) > 0.5
        spacing = np.linalg.norm(prepared.volume.affine[:3, :3], axis=0)
        distances = surface_distances(mask, target, spacing)
        result = OrganScores(case.patient, dice(mask, target), *distances)
        scores.setdefault(case.organ, {})[case.image.name] = result
    return scores, skipped
