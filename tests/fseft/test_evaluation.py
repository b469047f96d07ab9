"""Surface distances against closed forms, and the scores of a volume."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from baps.evaluation.cases import Case
from baps.evaluation.surface_distances import surface_distances
from baps.fseft.adapters import ModelOutput, build_adapter
from baps.fseft.evaluation import evaluate_organ, evaluate_organs
from baps.fseft.feature_cache import FeatureCache
from baps.fseft.inference import compute_inputs, segment
from baps.fseft.models import FoundationModel, OrganModel
from baps.fseft.preprocessing import preprocess
from baps.imaging.metrics import dice
from baps.imaging.volume import Volume
from baps.io import write_nifti

Phantom = Callable[..., tuple[Volume, NDArray[np.bool_]]]


@pytest.fixture
def model(unet: FoundationModel) -> OrganModel:
    return OrganModel("tiny", unet, "0" * 64, spacing=2.0, side=16)


@pytest.fixture
def case(tmp_path: Path, new_phantom: Phantom) -> Case:
    volume, organ = new_phantom()
    write_nifti(tmp_path / "a.nii.gz", volume)
    write_nifti(tmp_path / "a_label.nii.gz", Volume(organ.astype(np.uint8), volume.affine))
    return Case(tmp_path / "a.nii.gz", tmp_path / "a_label.nii.gz", 1, "a")


def test_organ_without_a_model_is_missed(model: OrganModel, case: Case) -> None:
    scored, skipped = evaluate_organ(model, None, [case], FeatureCache(None))
    result = scored["a.nii.gz"]
    assert not skipped
    assert (result.patient, result.dice, result.hd95, result.surface) == ("a", 0, math.inf, math.inf)


def test_scores_are_computed_at_the_voxels_of_the_volume(model: OrganModel, case: Case, new_phantom: Phantom) -> None:
    adapter = build_adapter("linear_probe", model.network, "liver")
    volume, organ = new_phantom()
    prepared = preprocess(volume, 2.0, 16)
    mask = (
        prepared.restore(segment(adapter, compute_inputs(model.network, "features", prepared.image, 16).half())) > 0.5
    )
    result = evaluate_organ(model, adapter, [case], FeatureCache(None))[0]["a.nii.gz"]
    assert mask.any()
    assert result.dice == pytest.approx(dice(mask, organ))
    distances = surface_distances(mask, organ, np.array([1.0, 1.0, 2.0]))
    assert (result.hd95, result.surface) == pytest.approx(distances)


def test_a_broken_file_does_not_stop_the_others(model: OrganModel, case: Case, tmp_path: Path) -> None:
    (tmp_path / "b.nii.gz").write_bytes(b"broken")
    broken = Case(tmp_path / "b.nii.gz", case.labels, 1, "b")
    scored, skipped = evaluate_organ(model, None, [broken, case], FeatureCache(None))
    assert list(scored) == ["a.nii.gz"]
    assert "b.nii.gz" in skipped["b.nii.gz"]


def test_several_organs_of_a_volume_share_one_pass_of_the_model(
    model: OrganModel, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adapters that read features and one that reads landmarks, which are made from them, without a cache on disk."""
    adapters = {
        "liver": build_adapter("linear_probe", model.network, "liver"),
        "heart": build_adapter("landmarks", model.network, "heart"),
        "spleen": build_adapter("linear_probe", model.network, "spleen"),
        "lung": None,
    }
    separate = {
        organ: evaluate_organ(model, adapter, [case], FeatureCache(None))[0] for organ, adapter in adapters.items()
    }
    passes: list[str] = []

    def compute(network: FoundationModel, kind: ModelOutput, image: torch.Tensor, side: int) -> torch.Tensor:
        passes.append(kind)
        return compute_inputs(network, kind, image, side)

    monkeypatch.setattr("baps.fseft.feature_cache.compute_inputs", compute)
    cases = [replace(case, organ=organ) for organ in adapters]
    missing = replace(case, organ="liver", value=3)
    scored, skipped = evaluate_organs(model, adapters, [*cases, missing], FeatureCache(None))
    assert passes == ["features"]
    assert scored == separate
    assert list(skipped) == ["a.nii.gz, liver"]
