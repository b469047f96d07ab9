"""Removal of label versions: never the served one, nor versions that a training used."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baps.adapters.adapter import identity_adapter
from baps.annotations.history import LabelHistory, Version
from baps.annotations.retention import RetentionRule, _removable, prune
from baps.errors import InputError
from baps.registry.store import AdapterStore, adapter_times

NOW = datetime(2026, 11, 29, 12, tzinfo=timezone.utc)


@pytest.fixture
def history(tmp_path: Path) -> LabelHistory:
    """Create six versions of a label."""
    studies = tmp_path / "studies"
    studies.mkdir()
    (studies / "datastore_v2.json").write_text(
        json.dumps({"objects": {"ct": {"image": {"ext": ".nii"}, "labels": {}}}})
    )
    history_ = LabelHistory(studies)
    for number in range(6):
        (tmp_path / "new").write_text(f"{number}")
        history_.save("ct", "final", tmp_path / "new", ".nii.gz", {"author": "anna"})
    return history_


def _names(history: LabelHistory) -> list[str]:
    return [version.name for version in history.versions("ct", "final")]


def _later(days: float) -> datetime:
    return datetime.now(timezone.utc) + timedelta(days=days)


def test_newest_versions_and_the_served_label_stay(history: LabelHistory, tmp_path: Path) -> None:
    before = _names(history)
    planned = list(prune(history, RetentionRule(2), adapter_times(tmp_path), dry_run=True))
    assert _names(history) == before
    assert list(prune(history, RetentionRule(2), adapter_times(tmp_path))) == planned == [("ct", "final", before[:4])]
    assert _names(history) == before[4:]
    assert history.served("ct", "final")[0].read_text() == "5"
    assert [(version["version"], version["why"]) for version in history.removed("ct", "final")] == [
        (name, "pruned") for name in before[:4]
    ]
    assert "anna" not in json.dumps(history.removed("ct", "final"))
    with pytest.raises(InputError, match="is the newest, which is served"):
        history.remove("ct", "final", _names(history)[-1:], "no")


def test_both_limits_must_be_exceeded(history: LabelHistory, tmp_path: Path) -> None:
    assert not list(prune(history, RetentionRule(1, 30), adapter_times(tmp_path), now=_later(29)))
    assert not list(prune(history, RetentionRule(6, 30), adapter_times(tmp_path), now=_later(31)))
    assert [
        len(removable)
        for _, _, removable in prune(history, RetentionRule(4, 30), adapter_times(tmp_path), now=_later(31))
    ] == [2]


def test_versions_used_by_a_training_stay(history: LabelHistory, tmp_path: Path) -> None:
    first, second = _names(history)[:2]
    history.mark_used([history.version("ct", "final", second).file, tmp_path / "studies" / "labels" / "ct.nii.gz"])
    list(prune(history, RetentionRule(1), adapter_times(tmp_path)))
    assert _names(history)[0] == second
    assert first not in _names(history)


@pytest.mark.parametrize("folder", [".", "organs", "volumes"])
def test_versions_served_before_an_adapter_was_made_stay(history: LabelHistory, tmp_path: Path, folder: str) -> None:
    """Adapters of earlier releases do not record what they were trained on."""
    names = _names(history)
    AdapterStore(tmp_path / folder).add("spleen", identity_adapter(), {"created": _later(0).isoformat()})
    assert not list(prune(history, RetentionRule(1), adapter_times(tmp_path)))  # All were served within the day before.
    for file in (tmp_path / folder).rglob("record.json"):
        record = json.loads(file.read_text())
        file.write_text(json.dumps({**record, "created": _later(-9).isoformat()}))
    assert [removable for _, _, removable in prune(history, RetentionRule(1), adapter_times(tmp_path))] == [names[:-1]]


def test_versions_from_files_in_the_folder_stay(history: LabelHistory, tmp_path: Path) -> None:
    """A training may have used it before it was a version."""
    (tmp_path / "studies" / "labels" / "final" / "ct.nii.gz").write_text("by hand")
    (tmp_path / "new").write_text("new")
    history.save("ct", "final", tmp_path / "new", ".nii.gz", {})
    list(prune(history, RetentionRule(1), adapter_times(tmp_path)))
    assert [version.info.get("found") for version in history.versions("ct", "final")] == [True, None]


def test_whole_label_can_be_removed(history: LabelHistory, tmp_path: Path) -> None:
    history.remove("ct", "final", _names(history), "on request", served=True)
    assert not _names(history)
    assert len(history.removed("ct", "final")) == 6
    assert not list((tmp_path / "studies").rglob("*label*.nii.gz"))
    assert not list((tmp_path / "studies" / "labels").rglob("*.nii.gz"))
    LabelHistory(tmp_path / "studies").repair()
    assert not json.loads((tmp_path / "studies" / "datastore_v2.json").read_text())["objects"]["ct"]["labels"]
    history.save("ct", "final", tmp_path / "new", ".nii.gz", {})
    assert len(_names(history)) == 1


def test_rest_of_a_removed_version_is_deleted_at_the_next_start(history: LabelHistory, tmp_path: Path) -> None:
    folder = tmp_path / "studies" / "labels-history" / "final" / "ct"
    name = _names(history)[0]
    (folder / name).rename(folder / f".partial-{name}")
    LabelHistory(tmp_path / "studies").repair()
    assert not list(folder.glob(".partial-*"))


@given(
    ages=st.lists(st.integers(0, 500), min_size=1, max_size=12, unique=True),
    used=st.sets(st.integers(0, 11)),
    times=st.lists(st.integers(0, 500), max_size=4),
    keep=st.integers(0, 5),
    days=st.integers(0, 100),
)
def test_rule_never_removes_the_newest_or_used_versions(
    ages: list[int], used: set[int], times: list[int], keep: int, days: int
) -> None:
    saved = sorted(NOW - timedelta(days=age) for age in ages)
    versions = [
        Version(when.strftime("%Y%m%dT%H%M%S.%fZ"), Path("/none/label"), "", {"found": True} if n in used else {})
        for n, when in enumerate(saved)
    ]
    created = [NOW - timedelta(days=age) for age in times]
    removable = _removable(versions, RetentionRule(keep, days), created, NOW)
    assert not {version.name for version in removable} & {version.name for version in versions[-max(keep, 1) :]}
    assert not any(version.info.get("found") for version in removable)
    for time in created:
        served = [version for version in versions if version.saved_at <= time]
        assert not served or served[-1] not in removable
    assert all(versions[versions.index(version) + 1].saved_at <= NOW - timedelta(days=days) for version in removable)
