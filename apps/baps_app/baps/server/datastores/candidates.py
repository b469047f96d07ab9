"""Images that Next Sample may select: all without a label or, in a PACS, as many as are needed."""

from __future__ import annotations

from dataclasses import dataclass

from monailabel.interfaces.datastore import Datastore


@dataclass(frozen=True)
class Candidates:
    """Images without a label.

    Attributes:
        images: Their names.
        drawn_from: Number of series in the PACS if only a part of them was considered, else None.
    """

    images: list[str]
    drawn_from: int | None = None

    @property
    def where(self) -> str:
        """The part of the PACS that was considered, for a sentence, or ""."""
        return "" if self.drawn_from is None else f"in a part of the {self.drawn_from} series of the PACS"

    @property
    def note(self) -> str:
        """A sentence for the user, or "" if all images were considered."""
        return f"It is one of {len(self.images)} without a label {self.where}." if self.where else ""


def candidates(datastore: Datastore, at_random: bool, least: int = 1) -> Candidates:
    """Return images of a datastore that have no label and can be used.

    Args:
        datastore: Datastore of the server.
        at_random: Whether to begin at a random place of a PACS, rather than at its first series.
        least: Minimum number of images, if there are as many.
    """
    page = getattr(datastore, "candidates", None)
    if page is not None:
        found: Candidates = page(at_random, least)
        return found
    return Candidates(list(datastore.get_unlabeled_images()))
