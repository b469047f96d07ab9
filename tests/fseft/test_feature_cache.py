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
def test_kept_or_not_the_numbers_are_the_same(
    model: OrganModel, tmp_path: Path, input_kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    created, unkept = (FeatureCache(folder).get(model, input_kind, image(0)) for folder in (tmp_path, None))  # type: ignore[arg-type]
    monkeypatch.setattr("baps.fseft.feature_cache.compute_inputs", None)  # The model is not asked again.
    kept = FeatureCache(tmp_path).get(model, input_kind, image(0))  # type: ignore[arg-type]
    assert kept.dtype == torch.half
    torch.testing.assert_close(kept, created, rtol=0, atol=0)
    torch.testing.assert_close(unkept, created, rtol=0, atol=0)


def test_what_is_read_as_it_is_is_not_kept(model: OrganModel, tmp_path: Path) -> None:
    assert FeatureCache(tmp_path).get(model, "images", image(0)) is not None
    assert files(tmp_path) == []


def test_other_images_other_reads_and_other_weights_have_readings_of_their_own(
    model: OrganModel, tmp_path: Path
) -> None:
    feature_cache = FeatureCache(tmp_path)
    for input_kind, seed in (("features", 0), ("features", 1), ("probabilities", 0)):
        feature_cache.get(model, input_kind, image(seed))  # type: ignore[arg-type]
    feature_cache.get(OrganModel(model.name, model.network, "d" * 64, model.spacing, model.side), "features", image(0))
    assert len(files(tmp_path)) == 4


def test_the_longest_unused_one_goes_when_it_is_full(model: OrganModel, tmp_path: Path) -> None:
    one = FeatureCache(tmp_path).get(model, "features", image(0)).nbytes
    feature_cache = FeatureCache(tmp_path, 2 * (one + 1000))
    feature_cache.get(model, "features", image(1))
    first, second = files(tmp_path)
    for age, file in ((100, second), (200, first)):
        os.utime(file, (file.stat().st_atime, file.stat().st_mtime - age))
    feature_cache.get(model, "features", image(0))  # It is the younger one now.
    feature_cache.get(model, "features", image(2))
    assert first.exists()
    assert not second.exists()
    assert len(files(tmp_path)) == 2


@pytest.mark.parametrize("maximum", [0, 1000])
def test_one_that_is_larger_than_the_bound_is_not_kept(model: OrganModel, tmp_path: Path, maximum: int) -> None:
    assert FeatureCache(tmp_path, maximum).get(model, "features", image(0)).any()
    assert files(tmp_path) == []


@pytest.mark.parametrize("keep", [lambda whole: b"", lambda whole: b"junk", lambda whole: whole[:-100]])
def test_a_broken_file_is_made_again(model: OrganModel, tmp_path: Path, keep: object) -> None:
    feature_cache = FeatureCache(tmp_path)
    created = feature_cache.get(model, "features", image(0)).clone()
    (file,) = files(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(keep(whole))  # type: ignore[operator]
    torch.testing.assert_close(feature_cache.get(model, "features", image(0)), created, rtol=0, atol=0)
    assert file.read_bytes() == whole


def test_only_the_owner_may_open_the_folder(model: OrganModel, tmp_path: Path) -> None:
    FeatureCache(tmp_path / "readings").get(model, "features", image(0))
    assert (tmp_path / "readings").stat().st_mode & 0o777 == 0o700


def test_a_folder_that_cannot_be_written_to_is_no_hindrance(model: OrganModel, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert FeatureCache(tmp_path / "file" / "readings").get(model, "features", image(0)).any()


def test_what_a_killed_process_left_half_written_goes(model: OrganModel, tmp_path: Path) -> None:
    old, new = tmp_path / ".partial-old", tmp_path / ".partial-new"
    for left in (old, new):
        left.write_bytes(b"half")
    os.utime(old, (0, 0))
    FeatureCache(tmp_path).get(model, "features", image(0))
    assert new.exists()  # Somebody may be writing it.
    assert not old.exists()


def test_of_one_image_nothing_is_read_twice_also_where_nothing_is_kept(
    model: OrganModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = FeatureCache(None).for_image(model, image(0))
    result = reading("features")
    monkeypatch.setattr("baps.fseft.feature_cache.compute_inputs", None)  # The model is not asked again.
    assert reading("features") is result
