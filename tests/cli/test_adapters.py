from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from baps.adapters.adapter import identity_adapter
from baps.adapters.adapter_file import read_adapter, write_adapter
from baps.adapters.volumes.adapter import VolumeAdapter
from baps.adapters.volumes.adapter_file import read_volume_adapter
from baps.cli import app
from baps.errors import InputError, NotFoundError
from baps.registry.evidence import change_evidence
from baps.registry.store import SHARED, AdapterStore
from tests.support.flood import flood_record


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AdapterStore:
    """Return a store with two versions for the spleen, the first of them served, and an unchecked shared adapter."""
    monkeypatch.setenv("BAPS_ADAPTERS", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    made = AdapterStore(tmp_path)
    verdict = {"before": 0.5, "after": 0.625, "gain": 0.125}
    record = {"adapter": identity_adapter().to_dict(), "black_box": {"weights_sha256": "a"}, "black_box_images": 3987}
    for label, evidence, status in (
        ("spleen", verdict, "accepted"),
        ("spleen", verdict, "rejected"),
        ("", None, "unverified"),
    ):
        made.add(label, identity_adapter(), {**record, "verdict": evidence}, status)
    made.publish("spleen", "v0001")
    return made


def _run(*words: str) -> str:
    result = CliRunner().invoke(app, ["adapters", *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def _rows(output: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in output.splitlines() if line[:1] == "│"]


def test_list(store: AdapterStore) -> None:
    """Versions of earlier releases have no evidence, and keep the status that they were stored with."""
    assert _rows(_run("list")) == [
        ["shared", "v0001", "", "unverified", "", "", "", "", "3987"],
        ["spleen", "v0001", "yes", "accepted", "", "", "0.500", "0.625", "3987"],
        ["spleen", "v0002", "", "rejected", "", "", "0.500", "0.625", "3987"],
    ]


GAINS = {f"{number:016x}": 0.1 + 0.02 * number for number in range(8)}


def _judge(store: AdapterStore) -> str:
    """Add a version with evidence, and let the gate decide."""
    record = {
        "adapter": identity_adapter().to_dict(),
        "black_box": {"weights_sha256": "a"},
        "verdict": None,
        "scores": {"differences": GAINS},
    }
    version = store.add("spleen", identity_adapter(), record)
    with change_evidence(store, "spleen", ("a",)) as evidence:
        evidence.open(store, "spleen", version, "a").add_volume("f" * 16, "volume", "label", -0.06)
    return version


def test_list_has_the_evidence(store: AdapterStore) -> None:
    version = _judge(store)
    rows = {tuple(row[:2]): row for row in _rows(_run("list"))}
    served, state, patients, gain = rows["spleen", version][2:6]
    assert (served, state, patients) == ("yes", "published", "9")
    assert gain.startswith("+.1")
    assert rows["spleen", "v0001"][2:4] == ["", "candidate"]


def test_evidence(store: AdapterStore, tmp_path: Path) -> None:
    assert "There is no evidence for adapters of spleen yet" in _run("evidence", "spleen")
    version, plot = _judge(store), tmp_path / "evidence.png"
    output = _run("evidence", "spleen", "--plot", str(plot))
    assert f"{version} (served): published: 9 patients, likely +.1" in output
    assert "1 of 9 lost more than .05 (worst -.06)" in output
    rows = _rows(output)
    assert rows[0][:3] == [f"{0:016x}", "cross-fitted", "+0.100"]
    assert rows[8][:3] == ["f" * 16, "after training", "-0.060"]
    assert {row[1] for row in rows[9:]} == {"v0001", version}
    with Image.open(plot) as picture:
        assert picture.width > 500


def test_a_plot_that_cannot_be_written(store: AdapterStore, tmp_path: Path) -> None:
    _judge(store)
    for file in (tmp_path / "missing" / "evidence.png", tmp_path / "evidence.odd"):
        with pytest.raises(InputError, match="cannot be written"):
            _run("evidence", "spleen", "--plot", str(file))


def test_list_adapters_of_the_organ_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their records have no number of images."""
    monkeypatch.setenv("COLUMNS", "200")
    AdapterStore(tmp_path).add("liver", identity_adapter(), {"verdict": None}, "unverified")
    assert "liver" in _run("list", "--adapters", str(tmp_path))


def test_show(store: AdapterStore) -> None:
    assert json.loads(_run("show", "spleen", "v0002")) == store.record("spleen", "v0002")
    assert json.loads(_run("show", "shared", "v0001")) == store.record(SHARED, "v0001")


def test_publish_and_withdraw(store: AdapterStore) -> None:
    _run("publish", "spleen", "v0002")
    _run("publish", "shared", "v0001")
    assert (store.published("spleen"), store.published(SHARED)) == ("v0002", "v0001")
    _run("withdraw", "spleen")
    assert (store.published("spleen"), store.published(SHARED)) == (None, "v0001")


def _write_adapter(file: Path, **more: object) -> Path:
    made_for = {"name": "bundled", "weights_sha256": "a"}
    adapter = replace(identity_adapter(), zoom=0.5)
    write_adapter(file, adapter, {"black_box": made_for, "adapter": adapter.to_dict(), **more})
    return file


def test_evidence_of_a_file_proves_nothing_here(store: AdapterStore, tmp_path: Path, audit: Path) -> None:
    file = _write_adapter(tmp_path / "spleen.adapter", scores={"differences": GAINS})
    output = _run("add", str(file), "spleen", "--publish")
    assert "spleen is now served by v0003" in output
    assert "no patient has judged it yet" in _run("evidence", "spleen")


def test_what_harms_is_said_when_a_person_serves_it(store: AdapterStore) -> None:
    version = _judge(store)
    for number in range(12):
        with change_evidence(store, "spleen", ("a",)) as evidence:
            evidence.gate.open(version, "a").add_volume(f"{number:015x}e", "volume", "label", -0.3)
    assert store.published("spleen") is None
    output = _run("publish", "spleen", version)
    assert f"spleen is now served by {version}" in output
    assert "likely -." in output
    assert f"{version} (served)" in _run("evidence", "spleen")
    _run("withdraw", "spleen")
    assert f"{version} (served)" not in _run("evidence", "spleen")


def test_add_a_file(store: AdapterStore, tmp_path: Path, audit: Path) -> None:
    file = _write_adapter(tmp_path / "spleen.adapter", status="accepted", label="another", parent="v0009")
    output = _run("add", str(file), "spleen")
    assert "spleen v0003 was trained for bundled with weights a..." in output
    assert "run baps adapters publish spleen v0003" in output
    assert store.published("spleen") == "v0001"
    stored = store.load("spleen", "v0003")
    assert stored.adapter.zoom == 0.5
    assert [stored.record[key] for key in ("label", "status", "parent")] == ["spleen", "accepted", "v0001"]
    assert "v0003" in _run("list")
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert [(line["what"], line["adapter"]) for line in lines] == [("add an adapter", "spleen/v0003")]


def test_add_and_publish(store: AdapterStore, tmp_path: Path, audit: Path) -> None:
    output = _run("add", str(_write_adapter(tmp_path / "file")), "shared", "--publish")
    assert "shared is now served by v0002, no longer by the unadapted model." in output
    assert store.record(SHARED, "v0002")["status"] == "unverified"
    assert store.served("liver", "a") == (SHARED, "v0002")
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert [line["what"] for line in lines] == ["add an adapter", "publish an adapter"]


def test_add_refuses_what_cannot_be_served(store: AdapterStore, tmp_path: Path, audit: Path) -> None:
    file = _write_adapter(tmp_path / "file")
    broken, organ, nameless = tmp_path / "broken", tmp_path / "organ", tmp_path / "nameless"
    broken.write_bytes(file.read_bytes()[:-9])
    write_adapter(organ, identity_adapter(), {"adapter": {"method": "spatial", "organ": "spleen"}})
    _write_adapter(nameless, black_box=None)
    for words, message in (
        ((str(broken), "spleen"), "is not an adapter of this project, or it is broken"),
        ((str(organ), "spleen"), "is not an adapter of this project, or it is broken"),
        ((str(nameless), "spleen"), "does not name the model"),
        ((str(tmp_path / "absent"), "spleen"), "There is no adapter file"),
        ((str(file), "x" * 101), "at most 100 printable characters"),
        ((str(file), "spleen", "--adapters", str(tmp_path / "organs")), "for adapters of the organ model"),
    ):
        with pytest.raises(InputError, match=message):
            _run("add", *words)
    assert store.versions("spleen") == ["v0001", "v0002"]
    assert not (tmp_path / "organs").exists()
    assert not audit.exists()


@pytest.mark.parametrize("words", [("publish", "[/x]", "v0001"), ("withdraw", "[/x]"), ("list",)])
def test_brackets_in_a_label_are_not_markup(store: AdapterStore, words: tuple[str, ...]) -> None:
    store.add("[/x]", identity_adapter(), store.record("spleen", "v0001"), "accepted")
    assert "[/x]" in _run(*words)


def test_another_folder(store: AdapterStore, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        _run("publish", "spleen", "v0001", "--adapters", str(tmp_path / "other"))


def test_rollback_skips_a_rejected_version(store: AdapterStore) -> None:
    third = store.add("spleen", identity_adapter(), {}, "accepted")
    store.publish("spleen", third)
    assert "v0001" in _run("rollback", "spleen")
    assert store.published("spleen") == "v0001"


def test_rollback_of_the_first_version_serves_the_unadapted_model(store: AdapterStore) -> None:
    assert "the unadapted model" in _run("rollback", "spleen")
    assert store.published("spleen") is None


def test_rollback_needs_a_served_version(store: AdapterStore) -> None:
    with pytest.raises(NotFoundError, match="shared is served by the unadapted model, .*no version was ever published"):
        _run("rollback", "shared")
    assert store.published(SHARED) is None


def test_second_rollback_names_the_remedy(store: AdapterStore) -> None:
    assert "no longer by v0001" in _run("rollback", "spleen")
    with pytest.raises(NotFoundError) as refused:
        _run("rollback", "spleen")
    assert str(refused.value) == (
        "spleen is served by the unadapted model, and nothing was served before that: version v0001 was rolled back. "
        "To serve a version, run baps adapters publish spleen VERSION (v0001, v0002)."
    )
    assert store.published("spleen") is None


@pytest.mark.parametrize(
    "words", [("rollback", "x"), ("withdraw", "x"), ("publish", "x", "v0001"), ("show", "x", "v0001")]
)
def test_label_without_adapters(store: AdapterStore, words: tuple[str, ...]) -> None:
    with pytest.raises(NotFoundError, match="There is no adapter of x. There are adapters of: shared, spleen."):
        _run(*words)


def test_unknown_version_lists_the_known_ones(store: AdapterStore) -> None:
    with pytest.raises(NotFoundError, match="no version 'v0009' .* There are v0001, v0002."):
        _run("publish", "spleen", "v0009")


def test_commands_that_change_nothing(store: AdapterStore) -> None:
    assert "spleen is served by v0001, as before." in _run("publish", "spleen", "v0001")
    assert "spleen is now served by the unadapted model, no longer by v0001." in _run("withdraw", "spleen")
    assert "spleen is served by the unadapted model, as before." in _run("withdraw", "spleen")


def test_list_of_an_empty_store(tmp_path: Path) -> None:
    assert "There are no adapters in" in _run("list", "--adapters", str(tmp_path))


def test_a_damaged_version_does_not_hide_the_others(store: AdapterStore, tmp_path: Path) -> None:
    (tmp_path / "label-spleen" / "v0001" / "record.json").write_text("{")
    assert "damaged" in _run("list")
    assert "rejected" in _run("list")


def test_adapters_of_the_3d_model_are_a_store_of_their_own(store: AdapterStore, tmp_path: Path, audit: Path) -> None:
    volumes, adapter, file = tmp_path / "volumes", VolumeAdapter(90.0), tmp_path / "spleen volume.adapter"
    write_adapter(file, adapter, flood_record(adapter, verdict={"before": 0.5, "after": 0.625}, black_box_images=377))
    folder = ("--adapters", str(volumes))
    output = _run("add", str(file), "spleen", *folder)
    assert "spleen v0001 was trained for flood with weights ffffffffffff..." in output
    assert f"To serve it, run baps adapters publish spleen v0001 --adapters {volumes}." in output
    assert read_volume_adapter(AdapterStore(volumes).file("spleen", "v0001"))[0].width == 90
    assert "spleen is now served by v0001" in _run("publish", "spleen", "v0001", *folder)
    assert _rows(_run("list", *folder)) == [["spleen", "v0001", "yes", "candidate", "0", "", "0.500", "0.625", "377"]]
    assert json.loads(_run("show", "spleen", "v0001", *folder))["adapter"]["width"] == 90
    assert "no patient has judged it yet" in _run("evidence", "spleen", *folder)
    assert "now served by the unadapted model" in _run("rollback", "spleen", *folder)
    _run("publish", "spleen", "v0001", *folder)
    assert "now served by the unadapted model" in _run("withdraw", "spleen", *folder)
    assert store.published("spleen") == "v0001"  # That of clicks on slices.
    lines = [json.loads(line)["what"] for line in audit.read_text().splitlines()]
    assert lines[:2] == ["add an adapter", "publish an adapter"]


def test_a_file_is_added_to_the_store_of_its_kind(store: AdapterStore, tmp_path: Path) -> None:
    adapter, clicks, volume = VolumeAdapter(90.0), _write_adapter(tmp_path / "clicks"), tmp_path / "volume"
    write_adapter(volume, adapter, flood_record(adapter))
    folder = tmp_path / "volumes"
    with pytest.raises(InputError, match=f"adapter of a 3D black box. Give --adapters {folder}"):
        _run("add", str(volume), "spleen")
    with pytest.raises(InputError, match="is for adapters of the 3D black box, and .* is none"):
        _run("add", str(clicks), "spleen", "--adapters", str(folder))
    with pytest.raises(InputError, match="for adapters of the organ model"):
        _run("add", str(volume), "spleen", "--adapters", str(tmp_path / "organs"))
    with pytest.raises(InputError, match="is the adapter of a 3D black box, which segments whole volumes"):
        read_adapter(volume)  # As baps segment does.
    with pytest.raises(InputError, match="is not the adapter of a 3D black box"):
        read_volume_adapter(clicks)
    assert not folder.exists()
    assert store.versions("spleen") == ["v0001", "v0002"]


@pytest.mark.parametrize("folder", ["organs", "volumes"])
def test_changes_below_the_folder_of_adapters_are_in_the_servers_audit_file(
    store: AdapterStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.delenv("BAPS_AUDIT")
    below = AdapterStore(tmp_path / folder)
    below.add("spleen", identity_adapter(), store.record("spleen", "v0001"))
    _run("publish", "spleen", "v0001")
    _run("publish", "spleen", "v0001", "--adapters", str(below.root))
    lines = (tmp_path / "audit.jsonl").read_text().splitlines()
    assert [json.loads(line)["what"] for line in lines] == ["publish an adapter"] * 2
    assert not (below.root / "audit.jsonl").exists()
