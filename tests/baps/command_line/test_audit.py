"""``baps audit verify``, and the lines that commands leave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from baps.audit import AuditFile
from baps.command_line import app
from baps.command_line.noting import note

_run = CliRunner()


def test_it_says_whole_or_where_the_chain_breaks(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    audit = AuditFile(file)
    audit.check()
    for _ in range(3):
        audit.add({"what": "look"})
    said = _run.invoke(app, ["audit", "verify", "--file", str(file)])
    assert (said.exit_code, "Whole: 3 lines" in said.output) == (0, True)
    chain = json.loads(file.read_text().splitlines()[-1])["chain"]
    assert chain in said.output
    assert _run.invoke(app, ["audit", "verify", "--file", str(file), "--chain", chain]).exit_code == 0
    assert _run.invoke(app, ["audit", "verify", "--file", str(file), "--chain", "0" * 64]).exit_code == 1
    file.write_text(file.read_text().replace("look", "save", 1))
    said = _run.invoke(app, ["audit", "verify", "--adapters", str(tmp_path)])
    assert (said.exit_code, "Line 1 (row 1 of audit.jsonl) was changed." in said.output) == (1, True)


def test_a_command_leaves_a_line_in_the_file_of_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAPS_AUDIT", str(tmp_path / "elsewhere" / "audit.jsonl"))
    note("restore a label", image="Doe^Jane", version="x")
    text = (tmp_path / "elsewhere" / "audit.jsonl").read_text()
    line = json.loads(text)
    assert (line["what"], line["by"], line["version"]) == ("restore a label", "command", "x")
    assert len(line["image"]) == 32
    assert "Doe" not in text


def test_where_nothing_can_be_noted_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    note("restore a label", adapters=str(tmp_path / "file" / "adapters"))
    assert "was not noted in the audit file" in capsys.readouterr().err
