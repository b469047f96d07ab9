"""Find the images that Next Sample may select: all without a label or, in a PACS, as many as are needed."""

from __future__ import annotations

from dataclasses import dataclass

from monailabel.interfaces.datastore import Datastore


@dataclass(frozen=True)
class Candidates:
    """Images without a label.

    Attributes:
        images: Names of the images.
        total_series: Number of series in the PACS if only a part of them was considered, else None.
    """

    images: list[str]
    total_series: int | None = None

    @property
    def scope(self) -> str:
        """The part of the PACS that was considered, as a phrase for a sentence; "" if all images were considered."""
        return "" if self.total_series is None else f"in a part of the {self.total_series} series of the PACS"

    @property
    def note(self) -> str:
        """A sentence for the user, or "" if all images were considered."""
        return f"It is one of {len(self.images)} without a label {self.scope}." if self.scope else ""


def find_candidates(datastore: Datastore, random_start: bool, min_count: int = 1) -> Candidates:
    """Find images of a datastore that have no label and can be used.

    Args:
        datastore: Datastore of the server.
        random_start: Whether to begin at a random page of a PACS rather than at its first one.
        min_count: Minimum number of images, if there are as many.

    Raises:
        BapsError: If the PACS does not respond.
    """
    find_in_pacs = getattr(datastore, "find_candidates", None)
    if find_in_pacs is not None:
        pacs_candidates: Candidates = find_in_pacs(random_start, min_count)
        return pacs_candidates
    return Candidates(list(datastore.get_unlabeled_images()))
