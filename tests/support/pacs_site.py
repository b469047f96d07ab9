"""A server on a PACS, for the tests of the viewers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.support.series import Series

CASES = ("ct_02", "ct_03", "ct_04", "ct_05", "ct_06", "ct_07", "ct_08")
"""Sample volumes of further patients."""


@dataclass(frozen=True)
class Pacs:
    """A server on a PACS.

    Attributes:
        server: address of the server.
        orthanc: address of the PACS.
        series: series by orientation and by case, ``gap`` with a missing slice, and ``real`` if it is available.
        log: log file of the server.
        cache: cache folder of the server.
    """

    server: str
    orthanc: str
    series: dict[str, Series]
    log: Path
    cache: Path
