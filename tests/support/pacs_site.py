"""What the tests of the viewers work on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.support.series import Series

CASES = ("ct_02", "ct_03", "ct_04", "ct_05", "ct_06", "ct_07", "ct_08")
"""Sample volumes of further patients."""


@dataclass(frozen=True)
class Pacs:
    """A server beside a PACS.

    Attributes:
        server, orthanc: addresses.
        series: by orientation, by case, ``gap`` with a slice missing, and a ``real`` one where it is there.
        log: of the server.
        cache: of the server.
    """

    server: str
    orthanc: str
    series: dict[str, Series]
    log: Path
    cache: Path
