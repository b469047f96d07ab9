"""Count the images and labels of a site, by organ and patient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from baps.errors import BapsError
from baps.evaluation.folders import read_patient_table
from baps.evaluation.splits import patient_hash
from baps.server.datastores.dicomweb import PacsDatastore
from baps.server.datastores.folder import StudiesDatastore
from baps.server.training_cases import label_versions

if TYPE_CHECKING:
    from monailabel.interfaces.datastore import Datastore

    from baps.site.settings import Settings


@dataclass(frozen=True)
class OrganCount:
    """The confirmed labels of an organ.

    Attributes:
        organ: The organ.
        images: Number of labelled images.
        patients: Number of their patients.
        hashes: Hashes of these patients, as records of trainings have them, as far as the patients are known.
    """

    organ: str
    images: int
    patients: int
    hashes: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ImageCounts:
    """The images and labels of a site.

    Attributes:
        images: Number of images.
        labelled: Number of images with a label that a training can use.
        patients: Number of patients of these.
        organs: Counts of each of the site's organs.
        names: Names of the labelled images of each organ.
        unread: Number of labels in a folder that have not been read yet; they are read little by little.
    """

    images: int
    labelled: int
    patients: int
    organs: tuple[OrganCount, ...]
    names: Mapping[str, tuple[str, ...]]
    unread: int = 0


@dataclass(frozen=True)
class ImageName:
    """A labelled image.

    Attributes:
        image: Name of the image.
        organ: An organ that is labelled on it.
    """

    image: str
    organ: str


@dataclass(frozen=True)
class OutboxCounts:
    """The labels of this server that are not in the PACS.

    Attributes:
        waiting: Number of labels that the PACS has not accepted yet.
        rejected: Number of labels that the PACS has refused.
    """

    waiting: int
    rejected: int


def count_outbox(datastore: Datastore) -> OutboxCounts:
    """Count the labels that are not in the PACS, without a request to it.

    Args:
        datastore: The datastore of the server.

    Returns:
        The counts; zeros without a PACS.
    """
    return OutboxCounts(*(datastore.outbox_counts() if isinstance(datastore, PacsDatastore) else (0, 0)))


def image_index(counts: ImageCounts | None) -> dict[str, ImageName]:
    """Index the labelled images by the hashes that evidence knows them by.

    Args:
        counts: The images of the site, or None if they are not known.

    Returns:
        Images by hash. The adapter for clicks without an organ has judged each organ of an image on its own, see
        ``EvidenceCollector``.
    """
    index: dict[str, ImageName] = {}
    for organ, images in counts.names.items() if counts else ():
        for image in images:
            name = ImageName(image, organ)
            index.setdefault(patient_hash(image), name)
            index[patient_hash(f"{organ} {image}")] = name
    return index


class ImageCounter:
    """Counts images and labels. The patient of an image is read once.

    Args:
        datastore: Returns the datastore of the server.
        site: Settings of the site.
    """

    def __init__(self, datastore: Callable[[], Datastore], site: Settings) -> None:
        self._datastore, self._site = datastore, site
        self._patients: dict[str, str] = {}

    def count(self) -> ImageCounts:
        """Count now. This may query a PACS.

        Returns:
            The counts.

        Raises:
            BapsError: If the PACS does not respond.
        """
        datastore, table = self._datastore(), read_patient_table(self._site.patients)
        versions = label_versions(datastore, self._site.labels)
        images = {image for by_image in versions.values() for image in by_image}
        patients = {image: self._patient(datastore, table, image) for image in images}
        status = datastore.status()
        is_folder = isinstance(datastore, StudiesDatastore)
        unread = status["label_tags"].get("final", 0) - len(datastore.known_final_labels()) if is_folder else 0
        return ImageCounts(
            status["total"],
            len(images),
            len(set(patients.values())),
            tuple(
                OrganCount(
                    organ,
                    len(by_image),
                    len({patients[image] for image in by_image}),
                    frozenset(patient_hash(self._patients[image]) for image in by_image if image in self._patients),
                )
                for organ, by_image in versions.items()
            ),
            {organ: tuple(by_image) for organ, by_image in versions.items()},
            max(unread, 0),
        )

    def known_patient(self, image: str) -> str:
        """Return the patient of an image if it has been read, else "".

        Args:
            image: Name of the image.
        """
        return self._patients.get(image, "")

    def _patient(self, datastore: Datastore, table: Mapping[str, str], image: str) -> str:
        """Return the patient of an image as a training does, see ``labelled_cases``."""
        if image not in self._patients:
            known = None
            if isinstance(datastore, (PacsDatastore, StudiesDatastore)):
                try:
                    known = datastore.patient(image)
                except BapsError:  # Of a series that cannot be read.
                    known = None
            if known is None and isinstance(datastore, PacsDatastore):
                return table.get(image, image)  # It is known once the image is fetched.
            self._patients[image] = known or table.get(image) or image
        return self._patients[image]
