"""Images that Next Sample may offer: all without a label or, of an archive, as many as are needed."""

from __future__ import annotations

from dataclasses import dataclass

from monailabel.interfaces.datastore import Datastore


@dataclass(frozen=True)
class Candidates:
    """Images without a label.

    Attributes:
        images: their names.
        drawn_from: how many series the datastore has, where only a part of them was looked at; else None.
    """

    images: list[str]
    drawn_from: int | None = None

    @property
    def where(self) -> str:
        """What was looked at, for a sentence: "", or a part of the PACS."""
        return "" if self.drawn_from is None else f"in a part of the {self.drawn_from} series of the PACS"

    @property
    def note(self) -> str:
        """A sentence for who asked, or "" where all images were looked at."""
        return f"It is one of {len(self.images)} without a label {self.where}." if self.where else ""


def candidates(datastore: Datastore, at_random: bool, least: int = 1) -> Candidates:
    """Return images of a datastore that have no label and can be used.

    Args:
        datastore: of the server.
        at_random: begin at any place of an archive, rather than at its first series.
        least: how many are wanted, if there are as many.
    """
    page = getattr(datastore, "candidates", None)
    if page is not None:
        found: Candidates = page(at_random, least)
        return found
    return Candidates(list(datastore.get_unlabeled_images()))
