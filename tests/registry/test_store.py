from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import baps.adapters.adapter_file
from baps.adapters.adapter import Adapter
from baps.adapters.output_head import OutputHead
from baps.adapters.visual_prompt import build_visual_prompt
from baps.blackbox import BlackBox, Capabilities
from baps.errors import BapsError, InputError, NotFoundError
from baps.prompts import Prompt
from baps.registry.store import SHARED, AdapterStore

NAMES = ["spleen", "", "..", ".", "a/b", "../../up", "/etc", "a\\b", "left kidney", "Milz %2F", "è", "published"]


@pytest.fixture
def capabilities(new_black_box: Callable[[], BlackBox]) -> Capabilities:
    return new_black_box().capabilities


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "above" / "adapters")


def _adapter(kind: str = "basis", seed: int = 0) -> Adapter:
    adapter = Adapter(build_visual_prompt(kind, seed), OutputHead(seed).eval())
    generator = torch.Generator().manual_seed(seed)
    for value in adapter.state_dict().values():
        if value.is_floating_point():
            value.add_(0.05 * torch.rand(value.shape, generator=generator))
    return adapter


def _record(capabilities: Capabilities, kind: str = "basis") -> dict[str, object]:
    return {"adapter": _adapter(kind).to_dict(), "black_box": {"weights_sha256": capabilities.weights_sha256}}


def _add(store: AdapterStore, label: str, capabilities: Capabilities, status: str = "accepted") -> str:
    return store.add(label, _adapter(), _record(capabilities), status)


def _files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_empty_store(store: AdapterStore, capabilities: Capabilities) -> None:
    assert store.versions("spleen") == []
    assert store.published("spleen") is None
    assert store.served("spleen", *capabilities.identity) is None
    with pytest.raises(NotFoundError, match="no adapter of spleen.*none"):
        store.load("spleen", "v0001")
    with pytest.raises(NotFoundError):
        store.publish("spleen", "v0001")
    assert not store.root.exists()


@pytest.mark.parametrize("kind", ["basis", "concat"])
def test_added_adapter_is_loaded(store: AdapterStore, capabilities: Capabilities, kind: str) -> None:
    adapter = _adapter(kind, seed=7)
    version = store.add("spleen", adapter, _record(capabilities, kind), "accepted")
    stored = store.load("spleen", version)
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    answer = random.random((2, 64, 64)).astype(np.float32)
    prompts = [Prompt(((10, 20),)), Prompt(((30, 40),))]
    crops = adapter.crop(pixels, prompts)
    changed, refined = adapter.transform_images(crops), adapter.refine_masks(crops, answer)
    assert (changed != pixels).any()
    assert np.abs(refined - answer).max() > 0.01
    np.testing.assert_array_equal(stored.adapter.transform_images(crops), changed)
    np.testing.assert_array_equal(stored.adapter.refine_masks(crops, answer), refined)
    assert (stored.label, stored.version) == ("spleen", "v0001")
    assert stored.adapter.head is not None
    assert not (stored.adapter.visual_prompt.training or stored.adapter.head.training)


def test_record_is_stored(store: AdapterStore, capabilities: Capabilities) -> None:
    first = _add(store, "spleen", capabilities)
    store.publish("spleen", first)
    second = store.add("spleen", _adapter(), {**_record(capabilities), "seed": 5}, "rejected")
    record = store.record("spleen", second)
    assert (record["label"], record["version"], record["parent"]) == ("spleen", "v0002", "v0001")
    assert (record["status"], record["seed"]) == ("rejected", 5)
    assert record["created"].endswith("+00:00")
    assert store.record("spleen", first)["parent"] is None


def test_versions_count_up_for_each_label(store: AdapterStore, capabilities: Capabilities) -> None:
    assert [_add(store, "spleen", capabilities) for _ in range(12)] == [f"v{number:04d}" for number in range(1, 13)]
    assert _add(store, "liver", capabilities) == "v0001"
    assert store.versions("spleen")[-1] == "v0012"
    assert len(store.versions("spleen")) == 12


def test_adding_does_not_publish(store: AdapterStore, capabilities: Capabilities) -> None:
    _add(store, "spleen", capabilities)
    assert store.published("spleen") is None
    assert store.served("spleen", *capabilities.identity) is None


def test_publish_and_roll_back(store: AdapterStore, capabilities: Capabilities) -> None:
    first, second = _add(store, "spleen", capabilities), _add(store, "spleen", capabilities)
    store.publish("spleen", second)
    assert store.served("spleen", *capabilities.identity) == ("spleen", second)
    store.publish("spleen", first)
    assert store.served("spleen", *capabilities.identity) == ("spleen", first)
    assert store.versions("spleen") == [first, second]
    with pytest.raises(NotFoundError):
        store.publish("spleen", "v0009")
    with pytest.raises(NotFoundError):
        store.publish("spleen", "../spleen/v0001")
    assert store.published("spleen") == first


def test_second_store_on_the_folder_sees_the_same(store: AdapterStore, capabilities: Capabilities) -> None:
    store.publish("spleen", _add(store, "spleen", capabilities))
    assert AdapterStore(store.root).served("spleen", *capabilities.identity) == ("spleen", "v0001")


def test_adapter_of_another_preprocessing_is_not_served(
    store: AdapterStore, capabilities: Capabilities, caplog: pytest.LogCaptureFixture
) -> None:
    """The record is of version 0.1, which named no preprocessing: every model saw the canvas."""
    store.publish("spleen", _add(store, "spleen", capabilities))
    changed = replace(capabilities, preprocessing="sam")
    assert store.served("spleen", *changed.identity) is None
    assert store.served("spleen", *changed.identity) is None
    sentence = "v0001 of the adapter spleen is not served: it was trained with the preprocessing canvas, but"
    assert caplog.text.count(sentence) == 1
    trained_for = {"weights_sha256": capabilities.weights_sha256, "preprocessing": "sam"}
    record = {**_record(capabilities), "black_box": trained_for}
    store.publish("spleen", store.add("spleen", _adapter(), record, "accepted"))
    assert store.served("spleen", *changed.identity) == ("spleen", "v0002")
    assert store.served("spleen", *capabilities.identity) is None


def test_the_shared_adapter_serves_labels_without_one(store: AdapterStore, capabilities: Capabilities) -> None:
    store.publish(SHARED, _add(store, SHARED, capabilities))
    assert store.served("spleen", *capabilities.identity) == (SHARED, "v0001")
    assert store.served(SHARED, *capabilities.identity) == (SHARED, "v0001")
    store.publish("spleen", _add(store, "spleen", capabilities))
    assert store.served("spleen", *capabilities.identity) == ("spleen", "v0001")
    assert store.served("liver", *capabilities.identity) == (SHARED, "v0001")


def test_an_adapter_of_other_weights_is_not_served(store: AdapterStore, capabilities: Capabilities) -> None:
    store.publish("spleen", _add(store, "spleen", capabilities))
    other_capabilities = replace(capabilities, weights_sha256="c" * 64)
    assert store.served("spleen", *other_capabilities.identity) is None
    assert store.served("spleen", *capabilities.identity) == ("spleen", "v0001")
    store.publish(SHARED, _add(store, SHARED, other_capabilities))
    assert store.served("liver", *other_capabilities.identity) == (SHARED, "v0001")
    assert store.served("liver", *capabilities.identity) is None


@pytest.mark.parametrize("status", ["rejected", "unverified"])
def test_the_shared_adapter_does_not_serve_a_label_that_has_versions_of_its_own(
    store: AdapterStore, capabilities: Capabilities, status: str
) -> None:
    store.publish(SHARED, _add(store, SHARED, capabilities))
    _add(store, "spleen", capabilities, status)
    assert store.served("spleen", *capabilities.identity) is None


def test_withdraw_keeps_the_versions(store: AdapterStore, capabilities: Capabilities) -> None:
    store.publish("spleen", _add(store, "spleen", capabilities))
    store.withdraw("spleen")
    assert store.served("spleen", *capabilities.identity) is None
    assert store.versions("spleen") == ["v0001"]
    store.withdraw("spleen")
    with pytest.raises(NotFoundError, match=r"no adapter of liver.*adapters of: spleen\."):
        store.withdraw("liver")
    store.publish("spleen", "v0001")
    assert store.served("spleen", *capabilities.identity) == ("spleen", "v0001")


def test_labels_survive_a_round_trip(store: AdapterStore, capabilities: Capabilities) -> None:
    assert store.labels() == []
    for label in NAMES:
        _add(store, label, capabilities)
    assert store.labels()[0] == SHARED
    assert sorted(store.labels()) == sorted(NAMES)


@pytest.mark.parametrize("label", NAMES)
def test_folders_of_labels_stay_below_the_root(store: AdapterStore, capabilities: Capabilities, label: str) -> None:
    version = _add(store, label, capabilities)
    store.publish(label, version)
    assert store.served(label, *capabilities.identity) == (label, version)
    assert store.load(label, version).label == label
    above = store.root.parent.parent
    assert all(name.startswith("above/adapters/") for name in _files(above))
    assert len(list(store.root.iterdir())) == 1


def test_labels_do_not_share_folders(store: AdapterStore, capabilities: Capabilities) -> None:
    for label in [*NAMES, "shared", "label-spleen"]:
        assert _add(store, label, capabilities) == "v0001"


@pytest.mark.parametrize("label", ["x" * 101, "脾" * 70, "a\nb", "a\0b", "\x1b[31m"])
def test_invalid_labels_are_refused(store: AdapterStore, capabilities: Capabilities, label: str) -> None:
    with pytest.raises(InputError, match="label"):
        _add(store, label, capabilities)
    with pytest.raises(InputError, match="label"):
        store.published(label)


@pytest.mark.parametrize("label", ["脾臓" * 20, "è" * 99], ids=["3 bytes each", "2 bytes each"])
def test_label_of_100_characters_is_allowed(store: AdapterStore, capabilities: Capabilities, label: str) -> None:
    assert store.published(label) is None
    store.publish(label, _add(store, label, capabilities))
    assert store.served(label, *capabilities.identity) == (label, "v0001")


@pytest.mark.parametrize("label", [":" * 100, "\ud800"], ids=["escaped", "surrogate"])
def test_label_too_long_for_a_folder_name_is_refused(
    store: AdapterStore, capabilities: Capabilities, label: str
) -> None:
    with pytest.raises(InputError, match="label"):
        _add(store, label, capabilities)


def test_crash_during_saving_leaves_nothing(
    store: AdapterStore, capabilities: Capabilities, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.publish("spleen", _add(store, "spleen", capabilities))
    before = _files(store.root)

    def fail(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(baps.adapters.adapter_file, "save_file", fail)
    with pytest.raises(BapsError, match="No space"):
        _add(store, "spleen", capabilities)
    assert _files(store.root) == before
    assert store.versions("spleen") == ["v0001"]
    assert not list((store.root / "label-spleen").glob(".partial*"))
    assert store.served("spleen", *capabilities.identity) == ("spleen", "v0001")


def test_a_record_that_cannot_be_written_leaves_nothing(store: AdapterStore, capabilities: Capabilities) -> None:
    with pytest.raises(TypeError):
        store.add("spleen", _adapter(), {**_record(capabilities), "odd": object()}, "accepted")
    assert store.versions("spleen") == []
    assert _files(store.root) == []
    assert _add(store, "spleen", capabilities) == "v0001"


def test_rest_of_a_killed_process_is_not_a_version(store: AdapterStore, capabilities: Capabilities) -> None:
    _add(store, "spleen", capabilities)
    (store.root / "label-spleen" / ".partial-dead").mkdir()
    (store.root / "label-spleen" / ".published-dead").write_text("v0009\n")
    assert store.versions("spleen") == ["v0001"]
    assert store.published("spleen") is None
    assert _add(store, "spleen", capabilities) == "v0002"


def test_version_is_complete_when_it_becomes_visible(
    store: AdapterStore, capabilities: Capabilities, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader sees no version just before the rename, and all its files after it."""
    listings: list[list[str]] = []
    rename = Path.rename

    def look(path: Path, target: Path) -> Path:
        listings.append(store.versions("spleen"))
        moved = rename(path, target)
        listings.append(sorted(file.name for file in target.iterdir()))
        return moved

    monkeypatch.setattr(Path, "rename", look)
    _add(store, "spleen", capabilities)
    assert listings == [[], ["adapter.safetensors", "record.json"]]


def test_non_finite_number_in_a_record_is_refused(store: AdapterStore, capabilities: Capabilities) -> None:
    with pytest.raises(ValueError, match="JSON"):
        store.add("spleen", _adapter(), {**_record(capabilities), "error": float("inf")}, "accepted")
    assert store.versions("spleen") == []


def test_the_record_is_json(store: AdapterStore, capabilities: Capabilities) -> None:
    _add(store, "spleen", capabilities)
    assert json.loads((store.root / "label-spleen" / "v0001" / "record.json").read_text())["label"] == "spleen"


def test_rollback_reverses_publishing(store: AdapterStore, capabilities: Capabilities) -> None:
    first, second, third = (_add(store, "spleen", capabilities) for _ in range(3))
    for version in (first, third, second, second):
        store.publish("spleen", version)
    store.withdraw("spleen")
    store.withdraw("spleen")
    assert store.published("spleen") is None
    assert [store.roll_back("spleen") for _ in range(4)] == [second, third, first, None]
    assert store.served("spleen", *capabilities.identity) is None
    with pytest.raises(NotFoundError, match="nothing was served before that"):
        store.roll_back("spleen")
    assert store.versions("spleen") == [first, second, third]


def test_full_disk_while_publishing_changes_nothing(
    store: AdapterStore, capabilities: Capabilities, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.publish("spleen", _add(store, "spleen", capabilities))
    second = _add(store, "spleen", capabilities)
    before = _files(store.root)

    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("baps.utils.atomic_write.os.replace", full)
    with pytest.raises(BapsError, match="No space left.*is still served"):
        store.publish("spleen", second)
    with pytest.raises(BapsError, match="No space left"):
        store.withdraw("spleen")
    assert _files(store.root) == before
    assert store.published("spleen") == "v0001"


def test_version_is_found_by_its_fingerprint(store: AdapterStore, capabilities: Capabilities) -> None:
    for fingerprint in ("a", "b", "b"):
        store.add("spleen", _adapter(), {**_record(capabilities), "fingerprint": fingerprint}, "accepted")
    assert [store.find("spleen", first) for first in ("a", "b", "c")] == ["v0001", "v0003", None]


def test_the_log_is_kept_with_the_version(store: AdapterStore, capabilities: Capabilities, tmp_path: Path) -> None:
    log = store.log("spleen")
    log.parent.mkdir(parents=True)
    log.write_text("answers")
    version = store.add("spleen", _adapter(), _record(capabilities), "accepted", log)
    assert (log.parent / version / "training.jsonl").read_text() == "answers"
    assert store.versions("spleen") == ["v0001"]


@pytest.mark.parametrize("damage", ["gone", "empty", "foreign"])
def test_damaged_version_is_skipped(store: AdapterStore, capabilities: Capabilities, damage: str) -> None:
    version = _add(store, "spleen", capabilities)
    store.publish("spleen", version)
    folder = store.root / "label-spleen" / version
    if damage == "gone":
        folder.rename(store.root / "elsewhere")
    else:
        (folder / "record.json").write_text("" if damage == "empty" else "not JSON")
    assert store.served("spleen", *capabilities.identity) is None
    assert store.find("spleen", "a") is None
    with pytest.raises(BapsError, match="There is no adapter|cannot be read"):
        store.record("spleen", version)


def test_served_versions_are_recorded(store: AdapterStore, capabilities: Capabilities) -> None:
    first, second, third = (_add(store, "spleen", capabilities) for _ in range(3))
    store.publish("spleen", first)
    store.publish("spleen", second)
    store.withdraw("spleen")
    assert [store.was_served("spleen", version) for version in (first, second, third)] == [True, True, False]


def test_rolled_back_version_counts_as_served(store: AdapterStore, capabilities: Capabilities) -> None:
    first, second, third = (_add(store, "spleen", capabilities) for _ in range(3))
    store.publish("spleen", first)
    store.publish("spleen", second)
    assert store.roll_back("spleen") == first
    assert store.roll_back("spleen") is None
    assert [store.was_served("spleen", version) for version in (first, second, third)] == [True, True, False]
    assert (store.published("spleen"), store.served("spleen", *capabilities.identity)) == (None, None)
    store.publish("spleen", third)
    store.publish("spleen", first)
    assert [store.roll_back("spleen") for _ in range(2)] == [third, None]
    assert [store.was_served("spleen", version) for version in (first, second, third)] == [True] * 3
    with pytest.raises(NotFoundError, match="nothing was served before that"):
        store.roll_back("spleen")


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "record"])
def test_previous_version_replaces_a_damaged_one(
    store: AdapterStore, capabilities: Capabilities, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        store.publish("spleen", _add(store, "spleen", capabilities))
    assert store.served("spleen", *capabilities.identity) == ("spleen", "v0002")
    file = store.file("spleen", "v0002")
    content = file.read_bytes()
    if damage == "flip":  # One bit of the last weight is changed, so that the file could still be read.
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        store.load("spleen", "v0002")
    elif damage == "cut":
        file.write_bytes(content[:-8])
    elif damage == "remove":
        file.unlink()
    else:
        file.with_name("record.json").write_text("{")
    assert store.served("spleen", *capabilities.identity) == ("spleen", "v0001")
    assert "v0002 of the adapter spleen is damaged" in caplog.text
    store.file("spleen", "v0001").write_bytes(b"")
    assert store.served("spleen", *capabilities.identity) is None
    for version in ("v0002", "v0001"):
        store.file("spleen", version).parent.rename(store.root / version)
    assert store.served("spleen", *capabilities.identity) is None


def test_a_withdrawal_is_not_undone_by_damage(store: AdapterStore, capabilities: Capabilities) -> None:
    store.publish("spleen", _add(store, "spleen", capabilities))
    store.withdraw("spleen")
    store.publish("spleen", _add(store, "spleen", capabilities))
    store.file("spleen", "v0002").write_bytes(b"")
    assert store.served("spleen", *capabilities.identity) is None
