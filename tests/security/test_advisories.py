"""The list of accepted advisories is complete, is about pinned versions, and names existing tests."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from deploy import advisories
from deploy.advisories import (
    PIP_AUDIT,
    ROOT,
    Advisory,
    UnreachableError,
    not_reviewed,
    query_database,
    read_pins,
    read_reviewed,
)

LISTED = read_reviewed()


def _pip_audit(folder: Path, answer: str) -> Path:
    """Write a program that prints an answer like pip-audit."""
    program = folder / "pip-audit"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\n")
    program.chmod(0o755)
    return program


def _dependency(name: str, version: str, *ids: str) -> dict[str, object]:
    return {
        "name": name,
        "version": version,
        "vulns": [{"id": ids[0], "aliases": list(ids[1:]), "fix_versions": ["99"]}] if ids else [],
    }


CANARY = _dependency("diskcache", "5.6.3", "GHSA-w8v5-vhqr-4h9v", "CVE-2025-69872")


@pytest.mark.parametrize("advisory", LISTED, ids=lambda advisory: advisory.id)
def test_each_advisory_is_about_a_pinned_version_and_names_existing_tests(
    advisory: advisories.ReviewedAdvisory,
) -> None:
    assert read_pins()[advisory.package] == advisory.version, (
        f"{advisory.package} was updated: look at {advisory.id} again."
    )
    assert advisory.what
    assert advisory.why
    assert advisory.tests
    for test in advisory.tests:
        file, _, name = test.partition("::")
        functions = (node for node in ast.walk(ast.parse((ROOT / file).read_text())))
        assert any(isinstance(node, ast.FunctionDef) and node.name == name for node in functions), test


def test_every_pin_is_exact() -> None:
    assert len(read_pins()) > 200
    assert all(version and not set(version) & set("<>=~*") for version in read_pins().values())


def test_advisories_that_were_not_reviewed_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = json.dumps(
        {"dependencies": [CANARY, _dependency("Torch", "2.14.1", "PYSEC-1", "CVE-1"), _dependency("six", "1")]}
    )
    program = _pip_audit(tmp_path, answer)
    result = query_database({"torch": "2.14.1"}, program)
    assert result[1] == Advisory("torch", "2.14.1", frozenset({"PYSEC-1", "CVE-1"}), ("99",))
    assert not_reviewed(result, LISTED) == result[1:]
    monkeypatch.setattr(advisories, "query_database", lambda packages: query_database(packages, program))
    assert advisories.main() == 1
    assert "torch 2.14.1: CVE-1, PYSEC-1; fixed in 99" in capsys.readouterr().out


def test_advisory_on_another_version_is_not_reviewed() -> None:
    advisory = LISTED[0]
    newer = Advisory(advisory.package, f"{advisory.version}.1", frozenset({advisory.id}), ())
    assert not_reviewed([newer], LISTED) == [newer]
    assert not not_reviewed(
        [Advisory(advisory.package, advisory.version, frozenset({"GHSA-x", advisory.id}), ())], LISTED
    )


@pytest.mark.parametrize("answer", ["", '{"dependencies": [{"name": "diskcache", "skip_reason": "not found"}]}'])
def test_unreachable_database_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: str
) -> None:
    program = _pip_audit(tmp_path, answer)
    monkeypatch.setattr(advisories, "query_database", lambda packages: query_database(packages, program))
    assert advisories.main() == 2
    assert "cannot be reached from here" in capsys.readouterr().out


def test_all_advisories_are_reviewed() -> None:
    if not PIP_AUDIT.exists():
        pytest.skip("pip-audit is not installed: make advisories installs it")
    try:
        result = query_database(read_pins())
    except UnreachableError as error:
        pytest.skip(f"the database of advisories cannot be reached: {error}")
    assert not not_reviewed(result, LISTED)
