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
def able(new_black_box: Callable[[], BlackBox]) -> Capabilities:
    return new_black_box().capabilities


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "above" / "adapters")


def _adapter(kind: str = "basis", seed: int = 0) -> Adapter:
    made = Adapter(build_visual_prompt(kind, seed), OutputHead(seed).eval())
    generator = torch.Generator().manual_seed(seed)
    for value in made.state_dict().values():
        if value.is_floating_point():
            value.add_(0.05 * torch.rand(value.shape, generator=generator))
    return made


def _record(able: Capabilities, kind: str = "basis") -> dict[str, object]:
    return {"adapter": _adapter(kind).to_dict(), "black_box": {"weights_sha256": able.weights_sha256}}


def _add(store: AdapterStore, label: str, able: Capabilities, status: str = "accepted") -> str:
    return store.add(label, _adapter(), _record(able), status)


def _files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_an_empty_store(store: AdapterStore, able: Capabilities) -> None:
    assert store.versions("spleen") == []
    assert store.published("spleen") is None
    assert store.served("spleen", *able.identity) is None
    with pytest.raises(NotFoundError, match="no adapter of spleen.*none"):
        store.load("spleen", "v0001")
    with pytest.raises(NotFoundError):
        store.publish("spleen", "v0001")
    assert not store.root.exists()


@pytest.mark.parametrize("kind", ["basis", "concat"])
def test_what_is_added_comes_back(store: AdapterStore, able: Capabilities, kind: str) -> None:
    made = _adapter(kind, seed=7)
    version = store.add("spleen", made, _record(able, kind), "accepted")
    stored = store.load("spleen", version)
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    answer = random.random((2, 64, 64)).astype(np.float32)
    prompts = [Prompt(((10, 20),)), Prompt(((30, 40),))]
    crops = made.crop(pixels, prompts)
    changed, refined = made.transform_images(crops), made.refine_masks(crops, answer)
    assert (changed != pixels).any()
    assert np.abs(refined - answer).max() > 0.01
    np.testing.assert_array_equal(stored.adapter.transform_images(crops), changed)
    np.testing.assert_array_equal(stored.adapter.refine_masks(crops, answer), refined)
    assert (stored.label, stored.version) == ("spleen", "v0001")
    assert stored.adapter.head is not None
    assert not (stored.adapter.visual_prompt.training or stored.adapter.head.training)


def test_the_record(store: AdapterStore, able: Capabilities) -> None:
    first = _add(store, "spleen", able)
    store.publish("spleen", first)
    second = store.add("spleen", _adapter(), {**_record(able), "seed": 5}, "rejected")
    record = store.record("spleen", second)
    assert (record["label"], record["version"], record["parent"]) == ("spleen", "v0002", "v0001")
    assert (record["status"], record["seed"]) == ("rejected", 5)
    assert record["created"].endswith("+00:00")
    assert store.record("spleen", first)["parent"] is None


def test_versions_count_up_for_each_label(store: AdapterStore, able: Capabilities) -> None:
    assert [_add(store, "spleen", able) for _ in range(12)] == [f"v{number:04d}" for number in range(1, 13)]
    assert _add(store, "liver", able) == "v0001"
    assert store.versions("spleen")[-1] == "v0012"
    assert len(store.versions("spleen")) == 12


def test_adding_does_not_publish(store: AdapterStore, able: Capabilities) -> None:
    _add(store, "spleen", able)
    assert store.published("spleen") is None
    assert store.served("spleen", *able.identity) is None


def test_publish_and_roll_back(store: AdapterStore, able: Capabilities) -> None:
    first, second = _add(store, "spleen", able), _add(store, "spleen", able)
    store.publish("spleen", second)
    assert store.served("spleen", *able.identity) == ("spleen", second)
    store.publish("spleen", first)
    assert store.served("spleen", *able.identity) == ("spleen", first)
    assert store.versions("spleen") == [first, second]
    with pytest.raises(NotFoundError):
        store.publish("spleen", "v0009")
    with pytest.raises(NotFoundError):
        store.publish("spleen", "../spleen/v0001")
    assert store.published("spleen") == first


def test_another_store_on_the_same_folder_sees_the_same(store: AdapterStore, able: Capabilities) -> None:
    store.publish("spleen", _add(store, "spleen", able))
    assert AdapterStore(store.root).served("spleen", *able.identity) == ("spleen", "v0001")


def test_an_adapter_for_another_preprocessing_is_not_served(
    store: AdapterStore, able: Capabilities, caplog: pytest.LogCaptureFixture
) -> None:
    """The record is of version 0.1, which named no preprocessing: every model saw the canvas."""
    store.publish("spleen", _add(store, "spleen", able))
    now = replace(able, preprocessing="sam")
    assert store.served("spleen", *now.identity) is None
    assert store.served("spleen", *now.identity) is None
    sentence = "v0001 of the adapter spleen is not served: it was trained with the preprocessing canvas, but"
    assert caplog.text.count(sentence) == 1
    made_for = {"weights_sha256": able.weights_sha256, "preprocessing": "sam"}
    store.publish("spleen", store.add("spleen", _adapter(), {**_record(able), "black_box": made_for}, "accepted"))
    assert store.served("spleen", *now.identity) == ("spleen", "v0002")
    assert store.served("spleen", *able.identity) is None


def test_the_shared_adapter_serves_labels_without_one(store: AdapterStore, able: Capabilities) -> None:
    store.publish(SHARED, _add(store, SHARED, able))
    assert store.served("spleen", *able.identity) == (SHARED, "v0001")
    assert store.served(SHARED, *able.identity) == (SHARED, "v0001")
    store.publish("spleen", _add(store, "spleen", able))
    assert store.served("spleen", *able.identity) == ("spleen", "v0001")
    assert store.served("liver", *able.identity) == (SHARED, "v0001")


def test_an_adapter_of_other_weights_is_not_served(store: AdapterStore, able: Capabilities) -> None:
    store.publish("spleen", _add(store, "spleen", able))
    other = replace(able, weights_sha256="c" * 64)
    assert store.served("spleen", *other.identity) is None
    assert store.served("spleen", *able.identity) == ("spleen", "v0001")
    store.publish(SHARED, _add(store, SHARED, other))
    assert store.served("liver", *other.identity) == (SHARED, "v0001")
    assert store.served("liver", *able.identity) is None


@pytest.mark.parametrize("status", ["rejected", "unverified"])
def test_the_shared_adapter_does_not_serve_a_label_that_has_versions_of_its_own(
    store: AdapterStore, able: Capabilities, status: str
) -> None:
    store.publish(SHARED, _add(store, SHARED, able))
    _add(store, "spleen", able, status)
    assert store.served("spleen", *able.identity) is None


def test_withdraw_keeps_the_versions(store: AdapterStore, able: Capabilities) -> None:
    store.publish("spleen", _add(store, "spleen", able))
    store.withdraw("spleen")
    assert store.served("spleen", *able.identity) is None
    assert store.versions("spleen") == ["v0001"]
    store.withdraw("spleen")
    with pytest.raises(NotFoundError, match=r"no adapter of liver.*adapters of: spleen\."):
        store.withdraw("liver")
    store.publish("spleen", "v0001")
    assert store.served("spleen", *able.identity) == ("spleen", "v0001")


def test_labels_come_back_as_they_were_given(store: AdapterStore, able: Capabilities) -> None:
    assert store.labels() == []
    for label in NAMES:
        _add(store, label, able)
    assert store.labels()[0] == SHARED
    assert sorted(store.labels()) == sorted(NAMES)


@pytest.mark.parametrize("label", NAMES)
def test_any_label_stays_below_the_root(store: AdapterStore, able: Capabilities, label: str) -> None:
    version = _add(store, label, able)
    store.publish(label, version)
    assert store.served(label, *able.identity) == (label, version)
    assert store.load(label, version).label == label
    above = store.root.parent.parent
    assert all(name.startswith("above/adapters/") for name in _files(above))
    assert len(list(store.root.iterdir())) == 1


def test_labels_do_not_share_folders(store: AdapterStore, able: Capabilities) -> None:
    for label in [*NAMES, "shared", "label-spleen"]:
        assert _add(store, label, able) == "v0001"


@pytest.mark.parametrize("label", ["x" * 101, "脾" * 70, "a\nb", "a\0b", "\x1b[31m"])
def test_labels_that_are_refused(store: AdapterStore, able: Capabilities, label: str) -> None:
    with pytest.raises(InputError, match="label"):
        _add(store, label, able)
    with pytest.raises(InputError, match="label"):
        store.published(label)


@pytest.mark.parametrize("label", ["脾臓" * 20, "è" * 99], ids=["3 bytes each", "2 bytes each"])
def test_a_label_of_at_most_100_characters_can_be_kept(store: AdapterStore, able: Capabilities, label: str) -> None:
    assert store.published(label) is None
    store.publish(label, _add(store, label, able))
    assert store.served(label, *able.identity) == (label, "v0001")


@pytest.mark.parametrize("label", [":" * 100, "\ud800"], ids=["escaped", "surrogate"])
def test_a_label_that_no_folder_can_be_named_after_is_refused(
    store: AdapterStore, able: Capabilities, label: str
) -> None:
    with pytest.raises(InputError, match="label"):
        _add(store, label, able)


def test_a_crash_in_saving_leaves_nothing(
    store: AdapterStore, able: Capabilities, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.publish("spleen", _add(store, "spleen", able))
    before = _files(store.root)

    def fail(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(baps.adapters.adapter_file, "save_file", fail)
    with pytest.raises(BapsError, match="No space"):
        _add(store, "spleen", able)
    assert _files(store.root) == before
    assert store.versions("spleen") == ["v0001"]
    assert not list((store.root / "label-spleen").glob(".partial*"))
    assert store.served("spleen", *able.identity) == ("spleen", "v0001")


def test_a_record_that_cannot_be_written_leaves_nothing(store: AdapterStore, able: Capabilities) -> None:
    with pytest.raises(TypeError):
        store.add("spleen", _adapter(), {**_record(able), "odd": object()}, "accepted")
    assert store.versions("spleen") == []
    assert _files(store.root) == []
    assert _add(store, "spleen", able) == "v0001"


def test_what_a_dead_process_left_is_no_version(store: AdapterStore, able: Capabilities) -> None:
    _add(store, "spleen", able)
    (store.root / "label-spleen" / ".partial-dead").mkdir()
    (store.root / "label-spleen" / ".published-dead").write_text("v0009\n")
    assert store.versions("spleen") == ["v0001"]
    assert store.published("spleen") is None
    assert _add(store, "spleen", able) == "v0002"


def test_a_published_version_is_whole_before_it_is_seen(
    store: AdapterStore, able: Capabilities, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that looks just before the rename sees no version; one that looks after sees all its files."""
    seen: list[list[str]] = []
    rename = Path.rename

    def look(path: Path, target: Path) -> Path:
        seen.append(store.versions("spleen"))
        moved = rename(path, target)
        seen.append(sorted(file.name for file in target.iterdir()))
        return moved

    monkeypatch.setattr(Path, "rename", look)
    _add(store, "spleen", able)
    assert seen == [[], ["adapter.safetensors", "record.json"]]


def test_a_number_that_json_lacks_is_refused(store: AdapterStore, able: Capabilities) -> None:
    with pytest.raises(ValueError, match="JSON"):
        store.add("spleen", _adapter(), {**_record(able), "error": float("inf")}, "accepted")
    assert store.versions("spleen") == []


def test_the_record_is_json(store: AdapterStore, able: Capabilities) -> None:
    _add(store, "spleen", able)
    assert json.loads((store.root / "label-spleen" / "v0001" / "record.json").read_text())["label"] == "spleen"
    assert store.split_memory.parent == store.root


def test_rolling_back_goes_the_way_of_publishing_backwards(store: AdapterStore, able: Capabilities) -> None:
    one, two, three = (_add(store, "spleen", able) for _ in range(3))
    for version in (one, three, two, two):
        store.publish("spleen", version)
    store.withdraw("spleen")
    store.withdraw("spleen")
    assert store.published("spleen") is None
    assert [store.roll_back("spleen") for _ in range(4)] == [two, three, one, None]
    assert store.served("spleen", *able.identity) is None
    with pytest.raises(NotFoundError, match="nothing was served before that"):
        store.roll_back("spleen")
    assert store.versions("spleen") == [one, two, three]


def test_a_disk_that_is_full_while_publishing_changes_nothing(
    store: AdapterStore, able: Capabilities, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.publish("spleen", _add(store, "spleen", able))
    second = _add(store, "spleen", able)
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


def test_a_version_is_found_by_what_it_came_of(store: AdapterStore, able: Capabilities) -> None:
    for fingerprint in ("a", "b", "b"):
        store.add("spleen", _adapter(), {**_record(able), "fingerprint": fingerprint}, "accepted")
    assert [store.find("spleen", one) for one in ("a", "b", "c")] == ["v0001", "v0003", None]


def test_the_log_is_kept_with_the_version(store: AdapterStore, able: Capabilities, tmp_path: Path) -> None:
    log = store.log("spleen")
    log.parent.mkdir(parents=True)
    log.write_text("answers")
    version = store.add("spleen", _adapter(), _record(able), "accepted", log)
    assert (log.parent / version / "training.jsonl").read_text() == "answers"
    assert store.versions("spleen") == ["v0001"]


@pytest.mark.parametrize("damage", ["gone", "empty", "foreign"])
def test_a_broken_version_is_passed_over(store: AdapterStore, able: Capabilities, damage: str) -> None:
    version = _add(store, "spleen", able)
    store.publish("spleen", version)
    folder = store.root / "label-spleen" / version
    if damage == "gone":
        folder.rename(store.root / "elsewhere")
    else:
        (folder / "record.json").write_text("" if damage == "empty" else "not JSON")
    assert store.served("spleen", *able.identity) is None
    assert store.find("spleen", "a") is None
    with pytest.raises(BapsError, match="There is no adapter|cannot be read"):
        store.record("spleen", version)


def test_what_was_served_is_known(store: AdapterStore, able: Capabilities) -> None:
    one, two, three = (_add(store, "spleen", able) for _ in range(3))
    store.publish("spleen", one)
    store.publish("spleen", two)
    store.withdraw("spleen")
    assert [store.was_served("spleen", version) for version in (one, two, three)] == [True, True, False]


def test_what_was_rolled_back_was_served(store: AdapterStore, able: Capabilities) -> None:
    one, two, three = (_add(store, "spleen", able) for _ in range(3))
    store.publish("spleen", one)
    store.publish("spleen", two)
    assert store.roll_back("spleen") == one
    assert store.roll_back("spleen") is None
    assert [store.was_served("spleen", version) for version in (one, two, three)] == [True, True, False]
    assert (store.published("spleen"), store.served("spleen", *able.identity)) == (None, None)
    store.publish("spleen", three)
    store.publish("spleen", one)
    assert [store.roll_back("spleen") for _ in range(2)] == [three, None]
    assert [store.was_served("spleen", version) for version in (one, two, three)] == [True] * 3
    with pytest.raises(NotFoundError, match="nothing was served before that"):
        store.roll_back("spleen")


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "record"])
def test_in_place_of_a_damaged_version_the_one_before_serves(
    store: AdapterStore, able: Capabilities, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        store.publish("spleen", _add(store, "spleen", able))
    assert store.served("spleen", *able.identity) == ("spleen", "v0002")
    file = store.file("spleen", "v0002")
    content = file.read_bytes()
    if damage == "flip":  # A bit of the last weight: it could be read all the same.
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        store.load("spleen", "v0002")
    elif damage == "cut":
        file.write_bytes(content[:-8])
    elif damage == "remove":
        file.unlink()
    else:
        file.with_name("record.json").write_text("{")
    assert store.served("spleen", *able.identity) == ("spleen", "v0001")
    assert "v0002 of the adapter spleen is damaged" in caplog.text
    store.file("spleen", "v0001").write_bytes(b"")
    assert store.served("spleen", *able.identity) is None
    for version in ("v0002", "v0001"):
        store.file("spleen", version).parent.rename(store.root / version)
    assert store.served("spleen", *able.identity) is None


def test_a_withdrawal_is_not_undone_by_damage(store: AdapterStore, able: Capabilities) -> None:
    store.publish("spleen", _add(store, "spleen", able))
    store.withdraw("spleen")
    store.publish("spleen", _add(store, "spleen", able))
    store.file("spleen", "v0002").write_bytes(b"")
    assert store.served("spleen", *able.identity) is None
