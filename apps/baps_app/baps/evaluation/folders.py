"""Find cases in two folders with equal file names, one of images and one of labels."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from baps.errors import InputError
from baps.evaluation.cases import Case
from baps.imaging.label_map import LabelMap
from baps.io import file_stem, is_dicom_folder, label_stem, list_images, read_label_map, read_patient, read_volume

_WHITE_VALUES = {1, 255, 65535}
"""Values of white in black-and-white masks of 1, 8 and 16 bits."""


@dataclass(frozen=True)
class Folders:
    """The contents of two folders.

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

    An image is any file that ``read_volume`` reads, or a folder with a DICOM series. A label is what ``read_label_map``
    reads; the label of a.nii.gz may be named a.seg.nrrd. The patient is the DICOM PatientID, else the entry of the
    table, else the name.

    Args:
        images: folder of the images.
        labels: folder of the labels; it may be the same one for NPZ files, which hold both.
        value: value of the label, or the name of its segment in files with names, or None for every label. 1, 255 and
            65535 all mean white in a black-and-white mask, one whose only label is one of them; its case has the value
            that is stored.
        patients: a CSV file of two columns, image and patient, or None.

    Returns:
        The cases, and what was skipped.

    Raises:
        InputError: if a folder is missing, no names agree, or no label can be used.
    """
    return _match(images, labels, patients, lambda label_map: ([("", n) for n in _select_values(label_map, value)], {}))


def find_organ_cases(
    images: Path, labels: Path, organs: Mapping[str, int | str], patients: Path | None = None
) -> Folders:
    """Match images and labels by name as ``find_cases``, for several organs; each file is read once.

    Args:
        images: folder of the images.
        labels: folder of the labels.
        organs: value of each organ in the labels, or the name of its segment; if there are none, each segment that a
            label names is an organ.
        patients: a CSV file of two columns, image and patient, or None.

    Returns:
        The cases, all organs of an image one after the other, and what was skipped.

    Raises:
        InputError: if a folder is missing, no names agree, or no label can be used.
    """

    def select(label_map: LabelMap) -> tuple[list[tuple[str, int]], dict[str, str]]:
        if not organs:
            named = [(label_map.names[n], n) for n in _select_values(label_map, None) if n in label_map.names]
            if not named:
                raise InputError("Its label does not name its segments. Name each organ and give its number.")
            return named, {}
        selected, reasons = [], {}
        for organ, value in organs.items():
            try:
                selected += [(organ, n) for n in _select_values(label_map, value)]
            except InputError as error:
                if len(organs) == 1:
                    raise
                reasons[organ] = str(error)
        return selected, reasons

    return _match(images, labels, patients, select)


def _match(
    images: Path,
    labels: Path,
    patients: Path | None,
    select: Callable[[LabelMap], tuple[list[tuple[str, int]], dict[str, str]]],
) -> Folders:
    """Match images and labels by name; ``select`` returns organs with their values, and reasons for missing organs."""
    table = read_patient_table(patients)
    images, labels = images.absolute(), labels.absolute()  # "." has no name.
    image_paths, label_paths = _entries(images), _entries(labels)
    if labels != images:
        label_paths = _by_image_name(label_paths, image_paths)
    if images.name in label_paths and is_dicom_folder(images):  # The folder is one series, not many images.
        image_paths = {images.name: images}
    common = sorted(image_paths.keys() & label_paths.keys())
    if not common:
        nested = next(filter(is_dicom_folder, images.rglob("*")), None) if not image_paths else None
        if nested:
            raise InputError(
                f"No image lies directly in {images}, but there is DICOM in {nested.relative_to(images)}. Each series "
                f"needs a folder of its own directly in {images.name}, with the name of its label. Move or link it."
            )
        raise InputError(
            f"No image in {images} ({len(image_paths)} found) and no label in {labels} ({len(label_paths)} found) have "
            "the same name. Name the labels as their images, as in images/a.nii.gz and labels/a.nii.gz."
        )
    skipped = dict.fromkeys(sorted(image_paths.keys() - label_paths.keys()), "There is no label of this name.")
    skipped |= dict.fromkeys(sorted(label_paths.keys() - image_paths.keys()), "There is no image of this name.")
    cases: list[Case] = []
    notes: list[str] = []
    for name in common:
        image, mask = image_paths[name], label_paths[name]
        try:
            if image == mask and image.suffix.lower() != ".npz":
                raise InputError(f"{image.name} and its label are the same file. Give the folder of the labels.")
            label_map = read_label_map(mask, read_volume(image), image)
            selected, reasons = select(label_map)
            patient = read_patient(image) or table.get(name) or name
        except InputError as error:
            skipped[name] = str(error)
            continue
        notes += label_map.notes
        cases += [Case(image, mask, value, patient, organ=organ) for organ, value in selected]
        skipped |= {f"{name}, {organ}": reason for organ, reason in reasons.items()}
    if not cases:
        raise InputError(f"No label in {labels} can be used. {next(iter(skipped.values()))}")
    return Folders(cases, skipped, tuple(dict.fromkeys(notes)))


def _select_values(label_map: LabelMap, value: int | str | None) -> list[int]:
    """Select the values of a label map.

    Raises:
        InputError: if there are none.
    """
    present = {number for number in label_map.values() if number > 0}
    if isinstance(value, str):
        if not label_map.names:
            raise InputError(f"Its label does not name its segments, so {value!r} is unknown. Give the number instead.")
        selected = {number for number, name in label_map.names.items() if name == value}
        if not selected & present:
            raise InputError(f"Its label has no segment {value!r}, but {', '.join(label_map.names.values())}.")
        return sorted(selected & present)
    white = len(present) == 1 and present | {value} <= _WHITE_VALUES
    values = present if value is None or white else {value} & present
    if not values:
        raise InputError(f"Its label has no voxel of value {value}." if value is not None else "Its label is empty.")
    return sorted(values)


def _by_image_name(labels: dict[str, Path], images: Mapping[str, Path]) -> dict[str, Path]:
    """Key labels by the names of their images: a.seg.nrrd belongs to a, unless there is an image a.seg.

    Raises:
        InputError: if two labels belong to the same image.
    """
    named: dict[str, Path] = {}
    for name, path in labels.items():
        image_name = name if name in images else label_stem(path)
        if image_name in named:
            raise InputError(
                f"{named[image_name].name} and {path.name} are labels of the same image. Keep one of them."
            )
        named[image_name] = path
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
    """Read a CSV file of two columns, image and patient.

    Args:
        path: the file, or None.

    Returns:
        Patients by the name of their image; empty without a file.

    Raises:
        InputError: if it cannot be read, or a line does not have two cells.
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
