from __future__ import annotations

from pathlib import Path

import pytest

from stress.load.floods import flood


@pytest.mark.slow
def test_flood_is_counted_and_other_user_is_served(tmp_path: Path) -> None:
    figures = flood(tmp_path / "site", 0, 0.3, ("nothing", "half-sent headers", "bodies to nowhere"))
    assert figures["floods"] == 2
    headers, bodies = figures["by_name"]["half-sent headers"], figures["by_name"]["bodies to nowhere"]
    assert headers["requests"] == 330
    assert headers["answers"].get("408", 0) > 50
    assert bodies["answers"].get("404", 0) > 0
    refused = [fault for row in figures["by_name"].values() for fault in row["faults"] if "clicks took" not in fault]
    assert refused == []
    assert all(row["clicks"] > 0 and row["server_peak_mb"] > 100 for row in figures["by_name"].values())
