from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from baps.fseft.feature_cache import FeatureCache
from baps.fseft.models import OrganModel
from baps.fseft.predictor import OrganSegmenter


@pytest.fixture
def model(segmenter: OrganSegmenter) -> OrganModel:
    return segmenter.model


def image(seed: int) -> torch.Tensor:
    return torch.rand((1, 16, 16, 16), generator=torch.Generator().manual_seed(seed))


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*"), key=lambda file: file.stat().st_mtime)


@pytest.mark.parametrize("input_kind", ["features", "probabilities"])
def test_cached_features_equal_computed_ones(
    model: OrganModel, tmp_path: Path, input_kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    created, unkept = (FeatureCache(folder).get(model, input_kind, image(0)) for folder in (tmp_path, None))  # type: ignore[arg-type]
    monkeypatch.setattr("baps.fseft.feature_cache.compute_inputs", None)  # The model does not run again.
    kept = FeatureCache(tmp_path).get(model, input_kind, image(0))  # type: ignore[arg-type]
    assert kept.dtype == torch.half
    torch.testing.assert_close(kept, created, rtol=0, atol=0)
    torch.testing.assert_close(unkept, created, rtol=0, atol=0)


def test_images_are_not_cached(model: OrganModel, tmp_path: Path) -> None:
    assert FeatureCache(tmp_path).get(model, "images", image(0)) is not None
    assert files(tmp_path) == []


def test_cache_depends_on_image_kind_and_weights(model: OrganModel, tmp_path: Path) -> None:
    feature_cache = FeatureCache(tmp_path)
    for input_kind, seed in (("features", 0), ("features", 1), ("probabilities", 0)):
        feature_cache.get(model, input_kind, image(seed))  # type: ignore[arg-type]
    feature_cache.get(OrganModel(model.name, model.network, "d" * 64, model.spacing, model.side), "features", image(0))
    assert len(files(tmp_path)) == 4


def test_least_recently_used_file_is_removed(model: OrganModel, tmp_path: Path) -> None:
    size = FeatureCache(tmp_path).get(model, "features", image(0)).nbytes
    feature_cache = FeatureCache(tmp_path, 2 * (size + 1000))
    feature_cache.get(model, "features", image(1))
    first, second = files(tmp_path)
    for age, file in ((100, second), (200, first)):
        os.utime(file, (file.stat().st_atime, file.stat().st_mtime - age))
    feature_cache.get(model, "features", image(0))  # It is now the most recently used one.
    feature_cache.get(model, "features", image(2))
    assert first.exists()
    assert not second.exists()
    assert len(files(tmp_path)) == 2


@pytest.mark.parametrize("maximum", [0, 1000])
def test_file_larger_than_the_limit_is_not_cached(model: OrganModel, tmp_path: Path, maximum: int) -> None:
    assert FeatureCache(tmp_path, maximum).get(model, "features", image(0)).any()
    assert files(tmp_path) == []


@pytest.mark.parametrize("keep", [lambda content: b"", lambda content: b"junk", lambda content: content[:-100]])
def test_damaged_file_is_computed_again(model: OrganModel, tmp_path: Path, keep: object) -> None:
    feature_cache = FeatureCache(tmp_path)
    created = feature_cache.get(model, "features", image(0)).clone()
    (file,) = files(tmp_path)
    content = file.read_bytes()
    file.write_bytes(keep(content))  # type: ignore[operator]
    torch.testing.assert_close(feature_cache.get(model, "features", image(0)), created, rtol=0, atol=0)
    assert file.read_bytes() == content


def test_folder_is_private(model: OrganModel, tmp_path: Path) -> None:
    FeatureCache(tmp_path / "readings").get(model, "features", image(0))
    assert (tmp_path / "readings").stat().st_mode & 0o777 == 0o700


def test_unwritable_folder_disables_the_cache(model: OrganModel, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert FeatureCache(tmp_path / "file" / "readings").get(model, "features", image(0)).any()


def test_partial_files_of_a_killed_process_are_removed(model: OrganModel, tmp_path: Path) -> None:
    old, new = tmp_path / ".partial-old", tmp_path / ".partial-new"
    for left in (old, new):
        left.write_bytes(b"half")
    os.utime(old, (0, 0))
    FeatureCache(tmp_path).get(model, "features", image(0))
    assert new.exists()  # Another process may be writing it.
    assert not old.exists()


def test_features_of_one_image_are_computed_once_without_a_cache(
    model: OrganModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = FeatureCache(None).for_image(model, image(0))
    result = reading("features")
    monkeypatch.setattr("baps.fseft.feature_cache.compute_inputs", None)  # The model does not run again.
    assert reading("features") is result
