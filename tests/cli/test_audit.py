from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from baps.adapters.adapter import identity_adapter
from baps.cli import app
from baps.cli.audit_log import add_audit_line
from baps.registry.store import AdapterStore
from baps.site.audit import AuditFile
from baps.site.audit_check import check_audit

_run = CliRunner()


def test_verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BAPS_AUDIT")
    file = tmp_path / "audit.jsonl"
    audit = AuditFile(file)
    audit.check()
    for _ in range(3):
        audit.add({"what": "look"})
    output = _run.invoke(app, ["audit", "verify", "--file", str(file)])
    assert (output.exit_code, "Intact: 3 lines" in output.output) == (0, True)
    chain = json.loads(file.read_text().splitlines()[-1])["chain"]
    assert chain in output.output
    assert _run.invoke(app, ["audit", "verify", "--file", str(file), "--chain", chain]).exit_code == 0
    assert _run.invoke(app, ["audit", "verify", "--file", str(file), "--chain", "0" * 64]).exit_code == 1
    file.write_text(file.read_text().replace("look", "save", 1))
    output = _run.invoke(app, ["audit", "verify", "--adapters", str(tmp_path)])
    assert (output.exit_code, "Line 1 (row 1 of audit.jsonl) was changed." in output.output) == (1, True)


def test_lines_go_to_the_file_of_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAPS_AUDIT", str(tmp_path / "elsewhere" / "audit.jsonl"))
    add_audit_line("restore a label", image="Doe^Jane", images=["a", "b"], version="x")
    text = (tmp_path / "elsewhere" / "audit.jsonl").read_text()
    line = json.loads(text)
    assert (line["what"], line["by"], line["version"]) == ("restore a label", "command", "x")
    assert len(line["image"]) == 32
    assert (line["count"], len(line["images"])) == (2, 2)
    assert "Doe" not in text


def test_warning_if_the_audit_file_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BAPS_AUDIT")
    (tmp_path / "file").touch()
    add_audit_line("restore a label", adapters=str(tmp_path / "file" / "adapters"))
    assert "was not noted in the audit file" in capsys.readouterr().err


def test_every_change_adds_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BAPS_AUDIT")
    users, adapters = str(tmp_path / "users.json"), str(tmp_path / "adapters")
    store, record = AdapterStore(tmp_path / "adapters"), {"adapter": identity_adapter().to_dict(), "verdict": None}
    for _ in range(2):
        store.add("spleen", identity_adapter(), record, "accepted")
    for words in (
        ("users", "add", "anna", "--role", "annotator", "--file", users),
        ("users", "renew", "anna", "--file", users),
        ("users", "remove", "anna", "--file", users),
        ("adapters", "publish", "spleen", "v0001"),
        ("adapters", "publish", "spleen", "v0002"),
        ("adapters", "rollback", "spleen"),
        ("adapters", "withdraw", "spleen"),
    ):
        output = _run.invoke(app, [*words, "--adapters", adapters])
        assert output.exit_code == 0, output.output
    file = tmp_path / "adapters" / "audit.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["what"], line["adapter"] or line["about"]) for line in lines] == [
        ("add a user", "anna"),
        ("renew a user's token", "anna"),
        ("remove a user", "anna"),
        ("publish an adapter", "spleen/v0001"),
        ("publish an adapter", "spleen/v0002"),
        ("roll back an adapter", "spleen/v0001"),
        ("withdraw an adapter", "spleen"),
    ]
    assert {line["by"] for line in lines} == {"command"}
    assert not check_audit(file).breaks
