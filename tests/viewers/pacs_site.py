"""What the tests of the viewers work on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from series import Series


@dataclass(frozen=True)
class Pacs:
    """A server beside a PACS with one series in each orientation."""

    server: str
    orthanc: str
    series: dict[str, Series]
    log: Path
