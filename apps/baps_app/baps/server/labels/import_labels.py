"""Labels of other programs become labels of a folder of studies: read, checked and kept as those of viewers."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import DefaultLabelTag

from baps.annotations.label_files import LabelMatch
from baps.annotations.label_info import name_values, read_label_info, unnamed_values_note
from baps.errors import BapsError, InputError
from baps.io import read_label_map, read_volume
from baps.io.dicom.labels import find_label_object
from baps.server.datastores.folder import StudiesDatastore
from baps.server.labels.save_labels import save_label

_WHITES = {1, 255, 65535}
"""What white is in masks of black and white, of 1, 8 and 16 bit."""


@dataclass(frozen=True)
class Imported:
    """What became of a file.

    Attributes:
        file: it.
        image: the name of its image, or "".
        organs: that it marks; empty where it was refused.
        why_not: why it was refused, or "".
        notes: on how it was read, and on what became of an earlier label.
    """

    file: Path
    image: str
    organs: tuple[str, ...] = ()
    why_not: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Import:
    """How labels are imported.

    Attributes:
        labels: of the site; empty where nobody has said them, so that files must name their segments.
        author: who drew them, or "".
        confirmed: whether a person stands by them; the others are kept as ``original``, and no training takes them.
        replace: whether an image that has such a label gets a new version of it.
        dry_run: whether nothing is saved.
    """

    labels: Mapping[str, int]
    author: str = ""
    confirmed: bool = True
    replace: bool = False
    dry_run: bool = False


def import_labels(
    datastore: StudiesDatastore,
    matches: list[LabelMatch],
    how: Import,
    told: Callable[[Imported], None] = lambda _: None,
) -> list[Imported]:
    """Import labels; one that cannot be used does not stop the others.

    Args:
        datastore: of the studies.
        matches: files and their images.
        how: see there.
        told: called with each result.
    """
    done = []
    for match in matches:
        try:
            if match.reason:
                raise InputError(match.reason)
            organs, notes = _import(datastore, match, how)
            one = Imported(match.file, match.image, organs, notes=notes)
        except BapsError as error:
            one = Imported(match.file, match.image, why_not=str(error))
        told(one)
        done.append(one)
    return done


def _import(datastore: StudiesDatastore, match: LabelMatch, how: Import) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Import one label, or find out whether that is possible.

    Returns:
        The organs that it marks, and notes.
    """
    tag = DefaultLabelTag.FINAL.value if how.confirmed else DefaultLabelTag.ORIGINAL.value
    if not how.replace and datastore.get_label_by_image_id(match.image, tag):
        raise InputError(
            f"{match.image} has a label {tag} already. To make this one its newest version, say --replace."
        )
    image, source = read_volume(Path(datastore.get_image_uri(match.image))), datastore.source(match.image)
    found = read_label_map(match.file, image, source)
    marked = set(found.values())
    if not marked:
        raise InputError(f"{match.file.name} is empty: no voxel is marked.")
    info: dict[str, Any] = {"author": how.author, "confirmed": how.confirmed}
    if len(how.labels) == 1 and not found.names and marked <= _WHITES and len(marked) == 1:  # Black and white.
        info["label_info"] = [{"name": next(iter(how.labels)), "idx": next(iter(marked))}]
    try:
        values = name_values(read_label_info(info), found, how.labels)
    except InputError:
        known = ", ".join(f"{name}={value}" for name, value in how.labels.items()) or "none"
        raise InputError(
            f"{match.file.name} marks the values {sorted(marked)[:20]} and does not name all of them; labels that were "
            f"given: {known}. Say what the values mean, as the server is told: --labels spleen=1,liver=6."
        ) from None
    notes = (*found.notes, *unnamed_values_note(found, values))
    if not how.dry_run:
        with _file(match.file) as file:
            notes = save_label(datastore, how.labels, match.image, file, tag, info)
    return tuple(name for name, value in values.items() if value in marked), notes


@contextmanager
def _file(label: Path) -> Iterator[Path]:
    """The label as one file whose name ends in its kind."""
    found = find_label_object(label)
    if found is None:
        yield label
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(shutil.copyfile(found, Path(folder) / "label.dcm"))
