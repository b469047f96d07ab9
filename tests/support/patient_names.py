"""A server and the names of its patients, for tests of logs and attacks."""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.sites import Site

NAME, PATIENT = "ZEBRA^QUENTIN", "PID-98765"
IMAGE, BROKEN = "QZEBRA_1944", "QZEBRA_1945"
ORIGIN = "https://viewer.hospital"


@dataclass(frozen=True)
class SiteWithPatientNames:
    """A server, and words that must appear in no log.

    Attributes:
        site: the server.
        words: names, ids and UIDs of the patients.
    """

    site: Site
    words: tuple[str, ...]
