from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner, Result

from baps.cli import app
from baps.site import doctor
from baps.site.doctor import Finding, Status

FINDINGS = {
    "fine": Finding(Status.OK, "all of it"),
    "odd": Finding(Status.WARNING, "[/x] is no markup", "look"),
    "broken": Finding(Status.FAILED, "in two", "glue"),
}


@pytest.fixture
def arguments(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Replace ``examine``, which returns FINDINGS; return the arguments that it gets."""
    seen: list[object] = []

    def examine(*words: object) -> dict[str, Finding]:
        seen.extend(words)
        return dict(FINDINGS)

    monkeypatch.setattr(doctor, "examine", examine)
    monkeypatch.setenv("COLUMNS", "120")
    return seen


def _doctor(*words: str) -> Result:
    return CliRunner().invoke(app, ["doctor", *words], catch_exceptions=False)


def test_table(arguments: list[object]) -> None:
    result = _doctor()
    assert result.exit_code == 1
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.output.splitlines() if "│" in line]
    assert rows == [[name, finding.status.value, finding.message, finding.remedy] for name, finding in FINDINGS.items()]


def test_json(arguments: list[object]) -> None:
    result = _doctor("--json")
    assert result.exit_code == 1
    output = json.loads(result.stdout)
    assert output[2] == {"check": "broken", "status": "FAILED", "message": "in two", "remedy": "glue"}
    assert [one["check"] for one in output] == list(FINDINGS)


def test_a_warning_is_not_a_failure(arguments: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(FINDINGS, "broken")
    assert _doctor().exit_code == 0


def test_options_reach_the_checks(arguments: list[object]) -> None:
    words = ("--labels", "spleen", "--black-box", "sam", "--weights", "w.pth", "--weights-sha256", "ab")
    more = ("--device", "cpu", "--remote", "http://h/m", "--adapters", "a", "--cache-mb", "8", "--config", "c.json")
    more += ("--users", "u.json", "--openid", "o.json")
    _doctor("/data", *words, *more, "--host", "0.0.0.0", "--port", "8123")  # noqa: S104
    settings = {
        "labels": "spleen",
        "black_box": "sam",
        "weights": "w.pth",
        "weights_sha256": "ab",
        "device": "cpu",
        "remote": "http://h/m",
        "adapters": "a",
        "cache_mb": "8",
        "users": "u.json",
        "openid": "o.json",
        "config": "c.json",
    }
    assert arguments == [settings, "/data", "0.0.0.0", 8123]  # noqa: S104
