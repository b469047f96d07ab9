"""What the tests of attacks work on."""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.sites import Site

NAME, PATIENT = "ZEBRA^QUENTIN", "PID-98765"
IMAGE, BROKEN = "QZEBRA_1944", "QZEBRA_1945"
ORIGIN = "https://viewer.hospital"


@dataclass(frozen=True)
class Known:
    """The server and the words that must appear nowhere.

    Attributes:
        site: as the other tests have it.
        words: of the patients: names, ids, and UIDs.
    """

    site: Site
    words: tuple[str, ...]
