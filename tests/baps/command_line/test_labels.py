from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from baps.command_line import app
from baps.errors import InputError, NotFoundError
from baps.label_history import LabelHistory


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image with two versions of its label, and a draft."""
    monkeypatch.setenv("COLUMNS", "200")
    listed = {"objects": {"ct_01": {"image": {}, "labels": {}}}}
    (tmp_path / "datastore_v2.json").write_text(json.dumps(listed))
    for number, tag in enumerate(("final", "final", "draft")):
        file = tmp_path / "new"
        file.write_text(f"label {number}")
        info = {"author": "ben", "authors": {"liver": "anna", "spleen": "ben"}, "covers": {"liver": [3, 4]}}
        LabelHistory(tmp_path).save("ct_01", tag, file, ".nii.gz", {**info, "model": "sam" if number else ""})
    return tmp_path


def _run(*words: str) -> str:
    result = CliRunner().invoke(app, ["labels", *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def _names(studies: Path, tag: str = "final") -> list[str]:
    return [version.name for version in LabelHistory(studies).versions("ct_01", tag)]


def test_list(studies: Path) -> None:
    rows = [[cell.strip() for cell in row.split("│")[1:-1]] for row in _run("list", str(studies)).splitlines()]
    first, second = _names(studies)
    assert [row for row in rows if row] == [
        ["ct_01", "draft", *_names(studies, "draft"), "yes", "ben, anna", "liver 2", "made by sam"],
        ["ct_01", "final", first, "", "ben, anna", "liver 2", ""],
        ["ct_01", "final", second, "yes", "ben, anna", "liver 2", "made by sam"],
    ]
    assert first not in _run("list", str(studies), "--image", "ct_02")


def test_a_damaged_version_is_listed_among_the_others(studies: Path) -> None:
    first, second = _names(studies)
    (studies / "labels-history" / "final" / "ct_01" / first / "version.json").write_text("{")
    rows = _run("list", str(studies)).splitlines()
    assert [("damaged" in row) for row in rows if first in row or second in row] == [True, False]


def test_a_version_can_be_copied_from_a_narrow_terminal(studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert all(name in _run("list", str(studies)) for name in _names(studies))


def test_show(studies: Path) -> None:
    said = json.loads(_run("show", str(studies), "ct_01", _names(studies)[0]))
    assert (said["author"], Path(said["file"]).read_text()) == ("ben", "label 0")


def test_restore(studies: Path) -> None:
    first, second = _names(studies)
    assert f"that of {first} again" in _run("restore", str(studies), "ct_01", first)
    assert (studies / "labels" / "final" / "ct_01.nii.gz").read_text() == "label 0"
    assert _names(studies)[:2] == [first, second]
    assert len(_names(studies)) == 3
    assert f"that of {first} again" in _run("list", str(studies))


def test_what_is_not_there(studies: Path) -> None:
    with pytest.raises(NotFoundError, match="no version 20200101"):
        _run("restore", str(studies), "ct_01", "20200101T000000.000000Z")
    with pytest.raises(InputError, match="There is no folder http:/pacs"):
        _run("list", "http://pacs")
