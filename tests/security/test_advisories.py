"""The list of known advisories that stay: about what is pinned, with tests that are there, and whole."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from deploy import advisories
from deploy.advisories import PIP_AUDIT, ROOT, Found, UnreachableError, ask, pins, reviewed, unseen

LISTED = reviewed()


def _pip_audit(folder: Path, answer: str) -> Path:
    """A program that answers as pip-audit does."""
    program = folder / "pip-audit"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\n")
    program.chmod(0o755)
    return program


def _known(name: str, version: str, *ids: str) -> dict[str, object]:
    return {
        "name": name,
        "version": version,
        "vulns": [{"id": ids[0], "aliases": list(ids[1:]), "fix_versions": ["99"]}] if ids else [],
    }


CANARY = _known("diskcache", "5.6.3", "GHSA-w8v5-vhqr-4h9v", "CVE-2025-69872")


@pytest.mark.parametrize("one", LISTED, ids=lambda one: one.id)
def test_each_line_is_about_what_is_pinned_and_names_tests_that_are_there(one: advisories.Reviewed) -> None:
    assert pins()[one.package] == one.version, f"{one.package} was updated: look at {one.id} again."
    assert one.what
    assert one.why
    assert one.tests
    for test in one.tests:
        file, _, name = test.partition("::")
        functions = (node for node in ast.walk(ast.parse((ROOT / file).read_text())))
        assert any(isinstance(node, ast.FunctionDef) and node.name == name for node in functions), test


def test_every_pin_is_exact() -> None:
    assert len(pins()) > 200
    assert all(version and not set(version) & set("<>=~*") for version in pins().values())


def test_what_nobody_has_looked_at_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = json.dumps({"dependencies": [CANARY, _known("Torch", "2.14.1", "PYSEC-1", "CVE-1"), _known("six", "1")]})
    program = _pip_audit(tmp_path, answer)
    result = ask({"torch": "2.14.1"}, program)
    assert result[1] == Found("torch", "2.14.1", frozenset({"PYSEC-1", "CVE-1"}), ("99",))
    assert unseen(result, LISTED) == result[1:]
    monkeypatch.setattr(advisories, "ask", lambda packages: ask(packages, program))
    assert advisories.main() == 1
    assert "torch 2.14.1: CVE-1, PYSEC-1; fixed in 99" in capsys.readouterr().out


def test_an_advisory_on_another_version_was_not_looked_at() -> None:
    one = LISTED[0]
    newer = Found(one.package, f"{one.version}.1", frozenset({one.id}), ())
    assert unseen([newer], LISTED) == [newer]
    assert not unseen([Found(one.package, one.version, frozenset({"GHSA-x", one.id}), ())], LISTED)


@pytest.mark.parametrize("answer", ["", '{"dependencies": [{"name": "diskcache", "skip_reason": "not found"}]}'])
def test_a_database_that_is_out_of_reach_is_not_taken_for_a_clean_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: str
) -> None:
    program = _pip_audit(tmp_path, answer)
    monkeypatch.setattr(advisories, "ask", lambda packages: ask(packages, program))
    assert advisories.main() == 2
    assert "cannot be reached from here" in capsys.readouterr().out


def test_no_advisory_is_unlisted() -> None:
    if not PIP_AUDIT.exists():
        pytest.skip("pip-audit is not installed: make advisories installs it")
    try:
        result = ask(pins())
    except UnreachableError as error:
        pytest.skip(f"the database of advisories cannot be reached: {error}")
    assert not unseen(result, LISTED)
