from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def audit(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make commands write to this audit file, not to that of the checkout."""
    file = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    monkeypatch.setenv("BAPS_AUDIT", str(file))
    return file
