"""Find labels beside the images of a folder, under the names that other programs give them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from baps.io import file_stem, images_folder, label_stem, list_images

TAG_FOLDERS = ("final", "draft", "original")
"""Folders in ``labels`` whose files the server uses."""

LABEL_FOLDERS = ("labels", "labelsTr", "labelsTs", "label", "masks", "mask", "segmentations", "segmentation")
"""Folders in which other programs, such as nnU-Net, keep labels."""

_LABEL_SUFFIX = re.compile(r"[-_. ](labels?|labelmap|label[-_]?map|seg|segmentations?|masks?|gt)$", re.IGNORECASE)
"""Suffixes that other programs append to the name of the image, such as a-label in 3D Slicer."""

_CHANNEL_SUFFIX = "_0000"
"""Suffix that nnU-Net appends to the name of an image: a_0000.nii.gz has the label a.nii.gz."""


@dataclass(frozen=True)
class LabelMatch:
    """A file that may be a label.

    Attributes:
        file: the file, or the folder of a DICOM object.
        image: name of its image, or "" if there is none.
        reason: why it cannot be imported, or "".
    """

    file: Path
    image: str
    reason: str = ""


def match_labels(files: Iterable[Path], images: Collection[str]) -> list[LabelMatch]:
    """Find the images of labels by their names.

    A label has the name of its image, or the name that 3D Slicer, nnU-Net and others give it: ``a.seg.nrrd``,
    ``a-label.nrrd`` and ``a_mask.png`` belong to ``a``, and ``a.nii.gz`` belongs to ``a_0000`` if there is no ``a``.

    Args:
        files: files of labels.
        images: names of the images.

    Returns:
        A match for each file.
    """
    pairs = [(file, _image_of(file, images)) for file in files]
    by_image: dict[str, list[str]] = {}
    for file, image in pairs:
        by_image.setdefault(image, []).append(file.name)
    matches = []
    for file, image in pairs:
        others = [name for name in by_image[image] if name != file.name]
        if not image:
            matches.append(LabelMatch(file, "", "There is no image of this name."))
        elif others:
            matches.append(LabelMatch(file, image, f"{others[0]} is a label of the same image. Keep one of them."))
        else:
            matches.append(LabelMatch(file, image))
    return matches


def _image_of(file: Path, images: Collection[str]) -> str:
    names = [file_stem(file), label_stem(file)]
    names += [_LABEL_SUFFIX.sub("", name) for name in names]
    names += [f"{name}{_CHANNEL_SUFFIX}" for name in names]
    return next((name for name in names if name in images), "")


def unused_labels(studies: Path, skip_named_folders: bool = False) -> list[str]:
    """Find files that look like labels of images without labels.

    Args:
        studies: the folder of studies.
        skip_named_folders: skip folders in ``labels`` whose names may contain patients' names.

    Returns:
        Sentences that name the files, and the command that imports them.
    """
    images = [file_stem(path) for path in list_images(images_folder(studies))]
    final = studies / "labels" / "final"
    labelled = {match.image for match in match_labels(_files(final), images)}
    messages = []
    for folder in _folders(studies, skip_named_folders):
        files = _files(folder)
        matches = match_labels(files, images)
        new = [match for match in matches if match.image and match.image not in labelled]
        command = f"baps labels import {quote(str(folder))} {quote(str(studies))} --dry-run"
        if new:
            messages.append(f"{len(new)} files in {folder} look like labels; they are not used. Import them: {command}")
        elif files and not any(match.image for match in matches):
            messages.append(
                f"{len(files)} files in {folder} look like labels, but none is named as an image; they are not used. "
                f"Name them as their images, then: {command}"
            )
    return messages


def _folders(studies: Path, skip_named_folders: bool) -> list[Path]:
    """List folders that may hold unused labels: in the studies, and beside a folder of images."""
    images = images_folder(studies)
    parents = {studies, images.parent} if images != studies else {studies}
    if studies.name.lower().startswith("image"):
        parents.add(studies.absolute().parent)
    labels_folder = studies / "labels"
    pairs = [parent / name for parent in sorted(parents) for name in LABEL_FOLDERS]
    pairs += (
        sorted(path for path in labels_folder.iterdir() if path.name not in TAG_FOLDERS)
        if labels_folder.is_dir() and not skip_named_folders
        else []
    )
    return [folder for folder in pairs if folder.is_dir() and folder != images]


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in list_images(folder) if path.name not in TAG_FOLDERS]
