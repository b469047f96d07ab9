from __future__ import annotations

from pathlib import Path

import pytest

from baps.adapters.visual_prompt.model_files import find_model_file
from baps.errors import BapsError

huggingface_hub = pytest.importorskip("huggingface_hub", reason="the extra 'encoders' is not installed")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use an empty cache of the hub, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def _cache_file(cache: Path, revision: str, commit: str) -> Path:
    """Store a file in the cache as the hub's client does."""
    model = cache / "models--owner--name"
    (model / "refs" / revision).parent.mkdir(parents=True, exist_ok=True)
    (model / "refs" / revision).write_text(commit)
    (model / "snapshots" / commit).mkdir(parents=True)
    path = model / "snapshots" / commit / "config.json"
    path.write_text("{}")
    return path


def test_local_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert find_model_file(str(tmp_path), "config.json") == tmp_path / "config.json"


@pytest.mark.parametrize("source", ["owner/name", "hf-hub:owner/name", "owner/name@main"])
def test_cached_file_is_used_without_the_network(cache: Path, source: str) -> None:
    expected = _cache_file(cache, "main", "a" * 40)
    _cache_file(cache, "refs/pr/3", "b" * 40)
    assert find_model_file(source, "config.json") == expected


def test_revision_is_selected(cache: Path) -> None:
    _cache_file(cache, "main", "a" * 40)
    expected = _cache_file(cache, "refs/pr/3", "b" * 40)
    assert find_model_file("owner/name@refs/pr/3", "config.json") == expected


def test_a_file_that_is_not_cached_is_downloaded(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = []

    def download(
        repository: str, name: str, revision: str | None = None, local_files_only: bool = False
    ) -> str:  # As the hub's client does.
        queries.append((repository, name, revision, local_files_only))
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not kept")
        return "/fetched/config.json"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert find_model_file("owner/name@v2", "config.json") == Path("/fetched/config.json")
    assert queries == [("owner/name", "config.json", "v2", True), ("owner/name", "config.json", "v2", False)]


def test_unreachable_hub_is_an_error(cache: Path) -> None:
    with pytest.raises(BapsError, match="config.json.*'owner/name' is not on this machine.*copy it here, and give its"):
        find_model_file("owner/name", "config.json")


@pytest.mark.parametrize("source", ["/no/such/folder", "./owner/name", "nowhere.pth", "a/b/c", ""])
def test_a_path_that_does_not_exist_is_not_requested_from_the_hub(
    source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def download(*arguments: object, **more: object) -> str:
        raise AssertionError("the hub was queried")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BapsError, match=r"does not exist. Give a folder|not a folder that holds config.json"):
        find_model_file(source, "config.json")


def test_folder_without_the_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BapsError, match="is not a folder that holds model.safetensors. Give the encoder's folder"):
        find_model_file(str(tmp_path), "model.safetensors")
