"""Cases from two folders with equal file names, one of images and one of labels."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from baps.errors import InputError
from baps.evaluation.cases import Case
from baps.imaging.label_map import LabelMap
from baps.io import file_stem, is_dicom_folder, label_stem, list_images, read_label_map, read_patient, read_volume

_WHITES = {1, 255, 65535}
"""What white is in masks of black and white, of 1, 8 and 16 bit."""


@dataclass(frozen=True)
class Folders:
    """What two folders hold.

    Attributes:
        cases: in the order of the file names, then of the label values.
        skipped: names of images and labels that have no partner or cannot be used, with reasons.
        notes: sentences on how labels were read.
    """

    cases: list[Case]
    skipped: dict[str, str]
    notes: tuple[str, ...] = ()


def find_cases(images: Path, labels: Path, value: int | str | None = None, patients: Path | None = None) -> Folders:
    """Match images and labels by name.

    An image is a file of any kind that ``read_volume`` reads, or a folder with a DICOM series. A label is what
    ``read_label_map`` reads; that of a.nii.gz may be called a.seg.nrrd. A patient is the DICOM
    PatientID, else what the table says, else the name.

    Args:
        images, labels: the folders; they may be the same one for NPZ files, which hold both.
        value: of the wanted label, or the name of its segment in files that name them, or None for every label. 1,
            255 and 65535 all mean white in a mask of black and white, one whose only label is one of them; its case has
            the value that is stored.
        patients: a CSV file of two columns, image and patient.

    Raises:
        InputError: if a folder is missing, no names agree, or no label can be used.
    """
    table = read_patient_table(patients)
    images, labels = images.absolute(), labels.absolute()  # "." has no name.
    found, masks = _entries(images), _entries(labels)
    if labels != images:
        masks = _by_image(masks, found)
    if images.name in masks and is_dicom_folder(images):  # The folder is one series, not many images.
        found = {images.name: images}
    common = sorted(found.keys() & masks.keys())
    if not common:
        deep = next(filter(is_dicom_folder, images.rglob("*")), None) if not found else None
        if deep:
            raise InputError(
                f"No image lies directly in {images}, but DICOM further down, in {deep.relative_to(images)}. Each "
                f"series needs a folder of its own directly in {images.name}, named as its label. Move or link it."
            )
        raise InputError(
            f"No image in {images} ({len(found)} found) and no label in {labels} ({len(masks)} found) have the same "
            "name. Name the labels as their images, as in images/a.nii.gz and labels/a.nii.gz."
        )
    skipped = dict.fromkeys(sorted(found.keys() - masks.keys()), "There is no label of this name.")
    skipped |= dict.fromkeys(sorted(masks.keys() - found.keys()), "There is no image of this name.")
    cases: list[Case] = []
    notes: list[str] = []
    for name in common:
        image, mask = found[name], masks[name]
        try:
            if image == mask and image.suffix.lower() != ".npz":
                raise InputError(f"{image.name} and its label are the same file. Give the folder of the labels.")
            label_map = read_label_map(mask, read_volume(image), image)
            meant = _meant(label_map, value)
            patient = read_patient(image) or table.get(name) or name
        except InputError as error:
            skipped[name] = str(error)
            continue
        notes += label_map.notes
        cases += [Case(image, mask, one, patient) for one in meant]
    if not cases:
        raise InputError(f"No label in {labels} can be used. {next(iter(skipped.values()))}")
    return Folders(cases, skipped, tuple(dict.fromkeys(notes)))


def _meant(label_map: LabelMap, value: int | str | None) -> list[int]:
    """The values of a label map that are wanted.

    Raises:
        InputError: if there are none.
    """
    present = {one for one in label_map.values() if one > 0}
    if isinstance(value, str):
        if not label_map.names:
            raise InputError(f"Its label does not name its segments, so {value!r} is unknown. Give the number instead.")
        wanted = {one for one, name in label_map.names.items() if name == value}
        if not wanted & present:
            raise InputError(f"Its label has no segment {value!r}, but {', '.join(label_map.names.values())}.")
        return sorted(wanted & present)
    white = len(present) == 1 and present | {value} <= _WHITES
    meant = present if value is None or white else {value} & present
    if not meant:
        raise InputError(f"Its label has no voxel of value {value}." if value is not None else "Its label is empty.")
    return sorted(meant)


def _by_image(labels: dict[str, Path], images: Mapping[str, Path]) -> dict[str, Path]:
    """Labels by the names of their images: a.seg.nrrd is that of a, unless there is an image a.seg."""
    named: dict[str, Path] = {}
    for name, path in labels.items():
        own = name if name in images else label_stem(path)
        if own in named:
            raise InputError(f"{named[own].name} and {path.name} are labels of the same image. Keep one of them.")
        named[own] = path
    return named


def _entries(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}.")
    entries: dict[str, Path] = {}
    for path in list_images(folder):
        name = file_stem(path)
        if name in entries:
            raise InputError(f"{entries[name].name} and {path.name} in {folder} have the same name. Keep one of them.")
        entries[name] = path
    return entries


def read_patient_table(path: Path | None) -> Mapping[str, str]:
    """Patients by the names of their images, from a CSV file of two columns; empty without a file.

    Raises:
        InputError: if it cannot be read, or a line is not of two cells.
    """
    if path is None:
        return {}
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"The table of patients {path} cannot be read: {error}") from error
    table = {}
    for number, row in enumerate(rows, start=1):
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        if len(cells) != 2 or not all(cells):
            raise InputError(f"Line {number} of {path.name} must have two cells, image and patient, as in a.nii.gz,p1.")
        table[file_stem(Path(cells[0]))] = cells[1]
    return table
