"""Which versions of labels are removed: never what is served, nor what a training has used."""

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
    """Six versions of a label."""
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
    return [one.name for one in history.versions("ct", "final")]


def _later(days: float) -> datetime:
    return datetime.now(timezone.utc) + timedelta(days=days)


def test_the_newest_stay_and_the_label_that_is_served_is_as_it_was(history: LabelHistory, tmp_path: Path) -> None:
    before = _names(history)
    planned = list(prune(history, RetentionRule(2), adapter_times(tmp_path), dry_run=True))
    assert _names(history) == before
    assert list(prune(history, RetentionRule(2), adapter_times(tmp_path))) == planned == [("ct", "final", before[:4])]
    assert _names(history) == before[4:]
    assert history.served("ct", "final")[0].read_text() == "5"
    assert [(one["version"], one["why"]) for one in history.removed("ct", "final")] == [
        (name, "pruned") for name in before[:4]
    ]
    assert "anna" not in json.dumps(history.removed("ct", "final"))
    with pytest.raises(InputError, match="is the newest, which is served"):
        history.remove("ct", "final", _names(history)[-1:], "no")


def test_both_bounds_must_be_passed(history: LabelHistory, tmp_path: Path) -> None:
    assert not list(prune(history, RetentionRule(1, 30), adapter_times(tmp_path), now=_later(29)))
    assert not list(prune(history, RetentionRule(6, 30), adapter_times(tmp_path), now=_later(31)))
    assert [
        len(gone) for _, _, gone in prune(history, RetentionRule(4, 30), adapter_times(tmp_path), now=_later(31))
    ] == [2]


def test_what_a_training_has_used_stays(history: LabelHistory, tmp_path: Path) -> None:
    first, second = _names(history)[:2]
    history.mark_used([history.version("ct", "final", second).file, tmp_path / "studies" / "labels" / "ct.nii.gz"])
    list(prune(history, RetentionRule(1), adapter_times(tmp_path)))
    assert _names(history)[0] == second
    assert first not in _names(history)


def test_what_was_served_when_an_adapter_was_made_stays(history: LabelHistory, tmp_path: Path) -> None:
    """Adapters of earlier releases do not say what they were trained on."""
    names = _names(history)
    AdapterStore(tmp_path / "organs").add("spleen", identity_adapter(), {"created": _later(0).isoformat()}, "accepted")
    assert not list(prune(history, RetentionRule(1), adapter_times(tmp_path)))  # All were served within a day before.
    for file in (tmp_path / "organs").rglob("record.json"):
        record = json.loads(file.read_text())
        file.write_text(json.dumps({**record, "created": _later(-9).isoformat()}))
    assert [gone for _, _, gone in prune(history, RetentionRule(1), adapter_times(tmp_path))] == [names[:-1]]


def test_what_was_found_in_the_folder_stays(history: LabelHistory, tmp_path: Path) -> None:
    """A training may have used it before it was a version."""
    (tmp_path / "studies" / "labels" / "final" / "ct.nii.gz").write_text("by hand")
    (tmp_path / "new").write_text("new")
    history.save("ct", "final", tmp_path / "new", ".nii.gz", {})
    list(prune(history, RetentionRule(1), adapter_times(tmp_path)))
    assert [one.info.get("found") for one in history.versions("ct", "final")] == [True, None]


def test_a_label_can_be_removed_wholly_and_does_not_come_back(history: LabelHistory, tmp_path: Path) -> None:
    history.remove("ct", "final", _names(history), "on request", served=True)
    assert not _names(history)
    assert len(history.removed("ct", "final")) == 6
    assert not list((tmp_path / "studies").rglob("*label*.nii.gz"))
    assert not list((tmp_path / "studies" / "labels").rglob("*.nii.gz"))
    LabelHistory(tmp_path / "studies").repair()
    assert not json.loads((tmp_path / "studies" / "datastore_v2.json").read_text())["objects"]["ct"]["labels"]
    history.save("ct", "final", tmp_path / "new", ".nii.gz", {})
    assert len(_names(history)) == 1


def test_what_a_kill_leaves_of_a_removed_version_goes_at_the_next_start(history: LabelHistory, tmp_path: Path) -> None:
    place = tmp_path / "studies" / "labels-history" / "final" / "ct"
    name = _names(history)[0]
    (place / name).rename(place / f".partial-{name}")
    LabelHistory(tmp_path / "studies").repair()
    assert not list(place.glob(".partial-*"))


@given(
    ages=st.lists(st.integers(0, 500), min_size=1, max_size=12, unique=True),
    used=st.sets(st.integers(0, 11)),
    times=st.lists(st.integers(0, 500), max_size=4),
    keep=st.integers(0, 5),
    days=st.integers(0, 100),
)
def test_a_rule_never_takes_the_newest_nor_evidence(
    ages: list[int], used: set[int], times: list[int], keep: int, days: int
) -> None:
    saved = sorted(NOW - timedelta(days=age) for age in ages)
    versions = [
        Version(when.strftime("%Y%m%dT%H%M%S.%fZ"), Path("/none/label"), "", {"found": True} if n in used else {})
        for n, when in enumerate(saved)
    ]
    created = [NOW - timedelta(days=age) for age in times]
    gone = _removable(versions, RetentionRule(keep, days), created, NOW)
    assert not {one.name for one in gone} & {one.name for one in versions[-max(keep, 1) :]}
    assert not any(one.info.get("found") for one in gone)
    for time in created:
        served = [one for one in versions if one.saved_at <= time]
        assert not served or served[-1] not in gone
    assert all(versions[versions.index(one) + 1].saved_at <= NOW - timedelta(days=days) for one in gone)
