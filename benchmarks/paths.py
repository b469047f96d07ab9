"""Where benchmarks store runs and results, and the pages that show them."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
RUNS = ROOT / "benchmarks" / "runs"
PAGES = ROOT / "docs" / "results"
PICTURES = ROOT / "docs" / "pictures"
README = ROOT / "README.md"
SAMPLE_DATA = ROOT / "sample-data"
