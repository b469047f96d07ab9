"""Import labels of other programs into a folder of studies. They are checked and saved like the labels of viewers."""

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

_MASK_VALUES = {1, 255, 65535}
"""Values of the foreground in binary masks with 1, 8 and 16 bits per pixel."""


@dataclass(frozen=True)
class ImportResult:
    """The result for one file.

    Attributes:
        file: The file.
        image: Name of its image, or "" if there is none.
        organs: Labels that it marks; empty if it was rejected.
        reason: Why it was rejected, or "".
        notes: Sentences on how it was read, and on what became of an earlier label.
    """

    file: Path
    image: str
    organs: tuple[str, ...] = ()
    reason: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImportOptions:
    """Options of an import.

    Attributes:
        labels: Names and values of the site; if empty, the files must name their segments.
        author: Author of the labels, or "".
        confirmed: Whether a person has confirmed the labels. Others are saved with the tag ``original``, and no
            training uses them.
        replace: Whether an image that already has such a label gets a new version of it.
        dry_run: Whether the labels are checked only, and nothing is saved.
    """

    labels: Mapping[str, int]
    author: str = ""
    confirmed: bool = True
    replace: bool = False
    dry_run: bool = False


def import_labels(
    datastore: StudiesDatastore,
    matches: list[LabelMatch],
    options: ImportOptions,
    progress: Callable[[ImportResult], None] = lambda _: None,
) -> list[ImportResult]:
    """Import labels. One that cannot be used does not stop the others.

    Args:
        datastore: Datastore of the folder of studies.
        matches: Files and their images.
        options: Options of the import.
        progress: Called with each result.

    Returns:
        The results, in the order of the matches.
    """
    results = []
    for match in matches:
        try:
            if match.reason:
                raise InputError(match.reason)
            organs, notes = _import(datastore, match, options)
            result = ImportResult(match.file, match.image, organs, notes=notes)
        except BapsError as error:
            result = ImportResult(match.file, match.image, reason=str(error))
        progress(result)
        results.append(result)
    return results


def _import(
    datastore: StudiesDatastore, match: LabelMatch, options: ImportOptions
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Import one label or, in a dry run, check whether that is possible.

    Returns:
        The labels that it marks, and notes.

    Raises:
        BapsError: if it cannot be imported.
    """
    tag = DefaultLabelTag.FINAL.value if options.confirmed else DefaultLabelTag.ORIGINAL.value
    if not options.replace and datastore.get_label_by_image_id(match.image, tag):
        raise InputError(
            f"{match.image} has a label {tag} already. To make this one its newest version, use --replace."
        )
    image, source = read_volume(Path(datastore.get_image_uri(match.image))), datastore.source(match.image)
    label_map = read_label_map(match.file, image, source)
    marked = set(label_map.values())
    if not marked:
        raise InputError(f"{match.file.name} is empty: no voxel is marked.")
    info: dict[str, Any] = {"author": options.author, "confirmed": options.confirmed}
    is_mask = not label_map.names and len(marked) == 1 and marked <= _MASK_VALUES
    if is_mask and len(options.labels) == 1:
        info["label_info"] = [{"name": next(iter(options.labels)), "idx": next(iter(marked))}]
    try:
        values = name_values(read_label_info(info), label_map, options.labels)
    except InputError:
        known = ", ".join(f"{name}={value}" for name, value in options.labels.items()) or "none"
        raise InputError(
            f"{match.file.name} marks the values {sorted(marked)[:20]}, and not all of them have a name; given labels: "
            f"{known}. Name the values as for the server: --labels spleen=1,liver=6."
        ) from None
    notes = (*label_map.notes, *unnamed_values_note(label_map, values))
    if not options.dry_run:
        with _single_file(match.file) as file:
            notes = save_label(datastore, options.labels, match.image, file, tag, info)
    return tuple(name for name, value in values.items() if value in marked), notes


@contextmanager
def _single_file(label: Path) -> Iterator[Path]:
    """Yield the label as one file whose suffix tells its format."""
    dicom_object = find_label_object(label)
    if dicom_object is None:
        yield label
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(shutil.copyfile(dicom_object, Path(folder) / "label.dcm"))
