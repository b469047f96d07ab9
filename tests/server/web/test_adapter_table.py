from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace

import pytest

from baps.registry.evidence import record_choice
from baps.registry.store import AdapterStore
from baps.server.web.adapter_table import CLICKS, DAMAGED, AdapterTable, read_organ
from tests.support.web_site import GAINS, WEIGHTS, add_version

IDENTITY = (WEIGHTS, "canvas")


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path)


def _table(store: AdapterStore, labels: Mapping[str, int]) -> AdapterTable:
    app = SimpleNamespace(
        store=store,
        organ_store=AdapterStore(store.root / "organs"),
        volume_store=AdapterStore(store.root / "volumes"),
        identity=lambda _: IDENTITY,
        site=SimpleNamespace(labels=labels),
    )
    return AdapterTable(app)  # type: ignore[arg-type]


def test_an_organ_has_its_versions_newest_first(store: AdapterStore) -> None:
    first = add_version(store, "spleen", GAINS)
    second = add_version(store, "spleen", {"ct_01": -0.2, "ct_02": -0.1, "ct_03": -0.2})
    adapters = read_organ(store, CLICKS, "spleen", IDENTITY)
    assert [(one.version, one.state, one.serves) for one in adapters.versions] == [
        (second, "rejected", False), (first, "published", True)
    ]  # fmt: skip
    assert (adapters.serves, adapters.published, adapters.previous) == (first, first, "")
    served = adapters.served
    assert served is not None
    assert served.before == 0.4
    assert served.after == pytest.approx(0.4 + sum(GAINS.values()) / len(GAINS))
    assert len(served.patients) == len(GAINS)
    one = served.patients[1]
    assert (one.before, one.after, one.measured) == (0.4, pytest.approx(0.6), "cross-fitted")
    assert one.mean == pytest.approx((0.05 + 0.2) / 2)
    assert "likely" in served.sentence
    assert not served.sentence.startswith("published")


def test_since_is_when_the_version_began_to_serve(store: AdapterStore) -> None:
    version = add_version(store, "spleen", GAINS)
    file = store.evidence_file("spleen")
    record = json.loads(file.read_text())
    times = ["2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00", "2026-01-03T00:00:00+00:00"]
    record["history"] = [
        {"time": time, "version": version, "state": "on trial", "serves": serves, "sentence": "on trial: so"}
        for time, serves in zip(times, (False, True, True), strict=True)
    ]
    file.write_text(json.dumps(record))
    adapters = read_organ(store, CLICKS, "spleen", IDENTITY)
    assert adapters.since == datetime(2026, 1, 2, tzinfo=timezone.utc)


def test_damage_is_said_and_the_others_are_listed(store: AdapterStore) -> None:
    first = add_version(store, "spleen", GAINS)
    second = add_version(store, "spleen", {**GAINS, "ct_09": 0.3})
    store.file("spleen", second).write_bytes(b"broken")
    adapters = read_organ(store, CLICKS, "spleen", IDENTITY)
    states = {one.version: one.state for one in adapters.versions}
    assert states[second] == DAMAGED
    assert states[first] != DAMAGED
    assert adapters.serves == first
    broken = adapters.find(second)
    assert broken is not None
    assert "damaged" in broken.sentence


def test_before_the_model_is_loaded_the_chosen_version_is_shown(store: AdapterStore) -> None:
    version = add_version(store, "spleen", GAINS)
    assert read_organ(store, CLICKS, "spleen", None).serves == version


def test_a_version_for_another_model_does_not_serve(store: AdapterStore) -> None:
    version = add_version(store, "spleen", GAINS)
    adapters = read_organ(store, CLICKS, "spleen", ("f" * 64, "canvas"))
    assert (adapters.serves, adapters.published) == (None, version)
    assert "another model" in adapters.versions[0].sentence


def test_a_table_notices_changes(store: AdapterStore) -> None:
    version = add_version(store, "spleen", GAINS)
    table = _table(store, {"spleen": 1})
    first = table.read(CLICKS, "spleen")
    assert table.read(CLICKS, "spleen") is first
    with record_choice(store, "spleen"):
        store.withdraw("spleen")
    assert table.read(CLICKS, "spleen").serves is None
    with record_choice(store, "spleen"):
        store.publish("spleen", version)
    assert table.read(CLICKS, "spleen").serves == version
    store.file("spleen", version).write_bytes(b"broken")
    assert table.read(CLICKS, "spleen").versions[0].state == DAMAGED


def test_organs_are_those_of_the_site_and_those_that_were_trained(store: AdapterStore) -> None:
    add_version(store, "", GAINS)
    add_version(store, "kidney", GAINS)
    assert _table(store, {"spleen": 1, "liver": 2}).organs(CLICKS) == ["spleen", "liver", "kidney", ""]
