"""Labels that lie beside the images of a folder, under the names that other programs give them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from baps.io import file_stem, images_folder, label_stem, list_images

USED = ("final", "draft", "original")
"""Folders in ``labels`` whose files the server knows."""

LABEL_FOLDERS = ("labels", "labelsTr", "labelsTs", "label", "masks", "mask", "segmentations", "segmentation")
"""Folders that other programs keep labels in; nnU-Net's among them."""

_AFTER = re.compile(r"[-_. ](labels?|labelmap|label[-_]?map|seg|segmentations?|masks?|gt)$", re.IGNORECASE)
"""What other programs put behind the name of the image: 3D Slicer a-label."""

_FIRST_CHANNEL = "_0000"
"""What nnU-Net puts behind the name of an image: a_0000.nii.gz has the label a.nii.gz."""


@dataclass(frozen=True)
class Match:
    """A file that may be a label.

    Attributes:
        file: it, or the folder of a DICOM object.
        image: the name of its image, or "" where there is none.
        why_not: why it cannot be imported, or "".
    """

    file: Path
    image: str
    why_not: str = ""


def match_labels(files: Iterable[Path], images: Collection[str]) -> list[Match]:
    """Find the images of labels by their names.

    A label is called as its image; or as 3D Slicer, nnU-Net and others call it: ``a.seg.nrrd``, ``a-label.nrrd`` and
    ``a_mask.png`` belong to ``a``, and ``a.nii.gz`` to ``a_0000`` where there is no ``a``.

    Args:
        files: labels.
        images: names of the images.
    """
    found = [(file, _image_of(file, images)) for file in files]
    by_image: dict[str, list[str]] = {}
    for file, image in found:
        by_image.setdefault(image, []).append(file.name)
    matches = []
    for file, image in found:
        others = [name for name in by_image[image] if name != file.name]
        if not image:
            matches.append(Match(file, "", "There is no image of this name."))
        elif others:
            matches.append(Match(file, image, f"{others[0]} is a label of the same image. Keep one of them."))
        else:
            matches.append(Match(file, image))
    return matches


def _image_of(file: Path, images: Collection[str]) -> str:
    names = [file_stem(file), label_stem(file)]
    names += [_AFTER.sub("", name) for name in names]
    names += [f"{name}{_FIRST_CHANNEL}" for name in names]
    return next((name for name in names if name in images), "")


def unused_labels(studies: Path, discreet: bool = False) -> list[str]:
    """Say which files look like labels of the images of a folder that have none, and how to have them used.

    Args:
        studies: the folder.
        discreet: pass over folders in ``labels`` whose names may be those of patients.
    """
    images = [file_stem(path) for path in list_images(images_folder(studies))]
    final = studies / "labels" / "final"
    labelled = {match.image for match in match_labels(_files(final), images)}
    said = []
    for folder in _folders(studies, discreet):
        files = _files(folder)
        matches = match_labels(files, images)
        new = [match for match in matches if match.image and match.image not in labelled]
        command = f"baps labels import {quote(str(folder))} {quote(str(studies))} --dry-run"
        if new:
            said.append(f"{len(new)} files in {folder} look like labels; they are not used. Import them: {command}")
        elif files and not any(match.image for match in matches):
            said.append(
                f"{len(files)} files in {folder} look like labels, but none is named as an image; they are not used. "
                f"Name them as their images, then: {command}"
            )
    return said


def _folders(studies: Path, discreet: bool) -> list[Path]:
    """Folders that may hold labels which are not used: in the studies, and beside a folder of images."""
    images = images_folder(studies)
    places = {studies, images.parent} if images != studies else {studies}
    if studies.name.lower().startswith("image"):
        places.add(studies.absolute().parent)
    own = studies / "labels"
    found = [place / name for place in sorted(places) for name in LABEL_FOLDERS]
    found += sorted(one for one in own.iterdir() if one.name not in USED) if own.is_dir() and not discreet else []
    return [folder for folder in found if folder.is_dir() and folder != images]


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in list_images(folder) if path.name not in USED]
