"""Read and write the labels of an image in any supported format."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
from numpy.typing import NDArray

from baps.errors import InputError
from baps.imaging.label_map import LabelMap, unique_values
from baps.imaging.volume import Volume
from baps.io.dicom.labels import MAX_SEGMENTS, find_label_object, read_label_object
from baps.io.nifti import read_nifti, write_nifti
from baps.io.nrrd import nrrd_header, read_nrrd
from baps.io.pictures import read_array_labels, read_arrays, read_picture, read_picture_labels
from baps.io.reading import check_volume, file_stem, find_reader, read_safely
from baps.utils.atomic_write import atomic_write

_PICTURE_LABELS: dict[Callable[[Path], Volume], Callable[[Path], NDArray[np.generic]]] = {
    read_picture: read_picture_labels,
    read_arrays: read_array_labels,
}
_SEGMENTATION_SUFFIX = ".seg"
"""What 3D Slicer puts before the suffix of a segmentation: a.seg.nrrd."""

_ROUNDING = 1e-3
"""Maximum difference of a value from an integer: a scaled header turns 1 into 1.00001526."""

_DEFAULT_NAME = re.compile(r"Segment_\d+")
"""Names that 3D Slicer gives to segments without a name."""


def label_stem(path: Path) -> str:
    """Return the name of the image that a label file belongs to: "a" for a.nii.gz and for a.seg.nrrd.

    Args:
        path: path of the label file.

    Returns:
        The name.
    """
    return file_stem(path).removesuffix(_SEGMENTATION_SUFFIX)


def read_labels(path: Path, image: Volume, source: Path | None = None) -> NDArray[np.integer[Any]]:
    """Read the labels of an image, which must not overlap.

    Args:
        path: see ``read_label_map``.
        image: see ``read_label_map``.
        source: see ``read_label_map``.

    Returns:
        Integers in the voxel order of the image, (I, J, K).

    Raises:
        InputError: see ``read_label_map``, or if segments overlap.
    """
    labels = read_label_map(path, image, source)
    if len(labels.layers) == 1:
        return labels.layers[0]
    masks = [layer != 0 for layer in labels.layers]
    if any((one & other).any() for n, one in enumerate(masks) for other in masks[:n]):
        raise InputError(
            f"The label {path.name} has overlapping segments. Save it without (3D Slicer: clear Allow overlap in "
            "Masking of the Segment Editor)."
        )
    return np.asarray(np.sum(labels.layers, axis=0, dtype=np.int32))


def read_label_map(path: Path, image: Volume, source: Path | None = None) -> LabelMap:
    """Read the labels of an image: a labelmap, a segmentation of 3D Slicer, a DICOM SEG or an RTSTRUCT.

    Labels with the same geometry whose axes are permuted or flipped are reordered as the image. Labels of a part of the
    image are embedded in it if they lie on its voxels. Labels without a geometry (PNG, TIFF, JPEG, or ``seg`` of an NPZ
    file) fit an image of one slice with the same number of columns and rows.

    Layers of a ``.seg.nrrd`` are kept, and so are the channels of a file that has one per class: if the first channel
    marks exactly what the others do not, it is the background and the others have the values 1, 2, ...; if some voxels
    are marked in no channel, there is no background channel and the first has the value 1. A note says which.

    Args:
        path: path of the file; for a DICOM SEG or RTSTRUCT also of the folder that contains it.
        image: the volume.
        source: file or folder of the image, so that a DICOM object can be checked against its references.

    Returns:
        The label map, in the voxel order of the image.

    Raises:
        InputError: if the labels cannot be read, have another geometry than the image, are not integers, or have more
            than 256 different values, segments or layers; NotFoundError if there is no such file.
    """
    if path.exists() and (label_object := find_label_object(path)):
        return read_safely(partial(read_label_object, image=image, source=source), label_object)
    reader = find_reader(path)
    if reader in _PICTURE_LABELS:
        labels = Volume(read_safely(_PICTURE_LABELS[reader], path), image.affine)
        _check_same_geometry(path.name, labels, image)
        return LabelMap((_to_integers(path.name, labels.voxels),))
    if reader in (read_nifti, read_nrrd):
        labels = check_volume(path.name, read_safely(partial(reader, channels=True), path))
    else:
        labels = check_volume(path.name, read_safely(reader, path))
        _check_grey(path.name, labels)
    labels = _reorder(image, labels)
    if labels.voxels.ndim == 4 and labels.voxels.shape[3] > MAX_SEGMENTS:
        raise InputError(
            f"The label {path.name} has {labels.voxels.shape[3]} layers; {MAX_SEGMENTS} are read. Save a labelmap."
        )
    layers = [labels.voxels] if labels.voxels.ndim == 3 else list(np.moveaxis(labels.voxels, 3, 0))
    segments, cropped = (
        read_safely(partial(_segments, layers=len(layers)), path) if reader is read_nrrd else ([], False)
    )
    channels = [_embed(path.name, Volume(layer, labels.affine), image, cropped) for layer in layers]
    if len(channels) == 1:
        return _numbered(channels, segments, path.name)
    return _numbered(channels, segments, path.name) if segments else _one_hot(channels, path.name)


def write_label_map(stem: Path, labels: LabelMap, image: Volume) -> Path:
    """Write labels as NIfTI, or as ``.seg.nrrd`` if they have layers or NIfTI cannot represent their geometry.

    Args:
        stem: path of the file without its suffix.
        labels: labels in the voxel order of the image.
        image: the volume.

    Returns:
        Path of the file.
    """
    if len(labels.layers) == 1:
        voxels = labels.layers[0]
        narrow = voxels.min() >= 0 and voxels.max() <= 255
        path = stem.with_name(f"{stem.name}.nii.gz")
        try:
            write_nifti(path, Volume(voxels.astype(np.uint8 if narrow else np.int32), image.affine))
        except InputError:  # NIfTI cannot represent a tilted gantry.
            pass
        else:
            return path
    path = stem.with_name(f"{stem.name}{_SEGMENTATION_SUFFIX}.nrrd")
    header: dict[str, Any] = nrrd_header(image, compress=True)
    header["space directions"] = np.vstack([np.full((1, 3), np.nan), header["space directions"]])
    header["kinds"] = ["list", *header["kinds"]]
    header |= {
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_SourceRepresentation": "Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    number = 0
    for layer, voxels in enumerate(labels.layers):
        for value in sorted(unique_values(voxels) - {0}):
            header[f"Segment{number}_ID"] = f"Segment_{number + 1}"
            header[f"Segment{number}_Name"] = labels.names.get(value, f"Segment_{number + 1}")
            header[f"Segment{number}_Layer"], header[f"Segment{number}_LabelValue"] = str(layer), str(value)
            header[f"Segment{number}_Extent"] = " ".join(f"0 {size - 1}" for size in labels.shape)
            number += 1
    dtype = np.result_type(*labels.layers)
    with atomic_write(path, ".nrrd") as partial_path:
        nrrd.write(
            str(partial_path), np.stack([layer.astype(dtype) for layer in labels.layers]), header, compression_level=1
        )
    return path


def _segments(path: Path, layers: int) -> tuple[list[tuple[int, int, str]], bool]:
    """Return layer, value and name of each segment in a ``.seg.nrrd``, and whether it may be a part of its image.

    If there are several layers and a segment has no layer or value, 3D Slicer takes one layer per segment and the value
    1.

    Raises:
        InputError: if there are too many segments.
    """
    header = nrrd.read_header(str(path))
    segments = []
    for number in range(len(header)):
        own = {key: header.get(f"Segment{number}_{key}") for key in ("ID", "Name", "Layer", "LabelValue")}
        if not any(value is not None for value in own.values()):
            break
        if number == MAX_SEGMENTS:
            raise InputError(f"The label {path.name} has more than {MAX_SEGMENTS} segments. Save fewer of them.")
        layer = int(own["Layer"] or 0) if own["Layer"] is not None or layers == 1 else number
        value = int(own["LabelValue"] if own["LabelValue"] is not None else number + 1 if layers == 1 else 1)
        name = str(own["Name"] or "").strip()
        segments.append((layer, value, "" if _DEFAULT_NAME.fullmatch(name) else name))
    return segments, "Segmentation_ReferenceImageExtentOffset" in header


def _embed(name: str, labels: Volume, image: Volume, cropped: bool) -> NDArray[np.integer[Any]]:
    """Embed labels of a part of an image in it, (I, J, K); ``cropped`` tells whether the file may be a part."""
    origin = (np.linalg.inv(image.affine) @ labels.affine)[:3, 3]
    first = np.rint(np.nan_to_num(origin)).astype(int)
    fits = all(a >= 0 and a + size <= extent for a, size, extent in zip(first, labels.shape, image.shape, strict=True))
    part = tuple(slice(a, a + size) for a, size in zip(first, labels.shape, strict=True))
    if not fits or labels.shape == image.shape:
        _check_same_geometry(name, labels, image)
        return _to_integers(name, labels.voxels)
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ first
    _check_same_geometry(name, labels, Volume(np.broadcast_to(np.uint8(0), labels.shape), affine), image.shape)
    cropped_axes = [axis for axis in range(3) if labels.shape[axis] < image.shape[axis]]
    if not first[cropped_axes].any() and not cropped:
        raise InputError(
            f"The label {name} has shape {labels.shape} and does not have the geometry of its image (shape "
            f"{image.shape}): "
            "both begin at the same voxel, and it may be a part of it, or of another resolution with a copied header. "
            "Save the segmentation with the geometry of the image."
        )
    voxels = _to_integers(name, labels.voxels)
    full_labels = np.zeros(image.shape, voxels.dtype)
    full_labels[part] = voxels
    return full_labels


def _check_grey(name: str, labels: Volume) -> None:
    if labels.colour:
        raise InputError(f"The label {name} holds colour where grey values are needed. Save a labelmap.")


def _check_same_geometry(name: str, labels: Volume, image: Volume, shape: tuple[int, int, int] | None = None) -> None:
    if not labels.same_geometry(image):
        raise InputError(
            f"The label {name} has shape {labels.shape} and does not have the geometry of its image (shape "
            f"{shape or image.shape}). Save the segmentation with the geometry of the image."
        )


def _to_integers(name: str, voxels: NDArray[np.generic]) -> NDArray[np.integer[Any]]:
    """Convert values to integers, and refuse too many different ones."""
    if np.issubdtype(voxels.dtype, np.floating):
        rounded = np.rint(voxels)
        if not bool((np.abs(rounded - voxels) <= _ROUNDING).all()):
            raise InputError(f"The label {name} holds fractions. Save a labelmap of whole numbers.")
        voxels = rounded.astype(np.int32)
    if int(voxels.max()) - int(voxels.min()) >= MAX_SEGMENTS:  # Counting the values is slow.
        count = len(np.unique(voxels))
        if count > MAX_SEGMENTS:
            raise InputError(
                f"The label {name} holds {count} different values; that is an image, not a labelmap. Give the "
                "segmentation, one whole number for each object."
            )
    return np.asarray(voxels)  # type: ignore[return-value]


def _numbered(
    layers: Sequence[NDArray[np.integer[Any]]], segments: Sequence[tuple[int, int, str]], name: str
) -> LabelMap:
    """Renumber values that mean several segments, so that a value means one segment in all layers."""
    described = {(layer, value): title for layer, value, title in segments}
    if len(layers) == 1:
        return LabelMap(tuple(layers), {value: title for (_, value), title in described.items() if title})
    present = [(n, value) for n, layer in enumerate(layers) for value in sorted(unique_values(layer) - {0})]
    if nameless := sorted({value for layer, value in present if (layer, value) not in described}):
        raise InputError(f"The label {name} has voxels of the values {nameless}, which no segment has. Save it again.")
    next_free = max((value for _, value in described), default=0) + 1
    numbers: dict[tuple[int, int], int] = {}
    for key in described:
        taken = key[1] in numbers.values()
        numbers[key] = next_free if taken else key[1]
        next_free += taken
    numbered = []
    for n, layer in enumerate(layers):
        changed = {value: numbers[n, value] for at, value in present if at == n and numbers[n, value] != value}
        dtype = np.int32 if any(number > 255 for number in changed.values()) else layer.dtype
        renumbered = layer.astype(dtype) if changed else layer
        for value, number in changed.items():
            renumbered[layer == value] = number
        numbered.append(renumbered)
    names = {number: described[key] for key, number in numbers.items() if described[key]}
    renumbered_any = any(number != value for (_, value), number in numbers.items())
    kept = [layer for layer in numbered if layer.any()] or numbered[:1]
    return LabelMap(tuple(kept), names, renumbered_any)


def _one_hot(channels: Sequence[NDArray[np.integer[Any]]], name: str) -> LabelMap:
    """Number the channels; see ``read_label_map`` for which one is the background."""
    values = set().union(*map(unique_values, channels))
    if len(values - {0}) > 1:
        raise InputError(
            f"The label {name} has {len(channels)} channels of several values ({sorted(values)[:8]}): it holds colour, "
            "time points, or segments without names. Save a labelmap, or one channel of 0 and 1 for each class."
        )
    masks = [channel != 0 for channel in channels]
    others = np.logical_or.reduce(masks[1:])
    if (others | masks[0]).all():
        largest = max(int(mask.sum()) for mask in masks)
        if (others & masks[0]).any() or int(masks[0].sum()) < largest:
            raise InputError(
                f"The label {name} has {len(channels)} channels that mark every voxel between them, and the first is "
                "not what the others leave unmarked: it is unclear which is the background. Save a labelmap."
            )
        note = f"The first channel of {name} was taken as the background, the second as label 1."
        return replace(LabelMap.from_masks(enumerate(masks[1:], start=1)), notes=(note,))
    note = f"The channels of {name} have no background; the first was taken as label 1."
    return replace(LabelMap.from_masks(enumerate(masks, start=1)), notes=(note,))


def _reorder(image: Volume, labels: Volume) -> Volume:
    """Permute and flip the axes of labels to run as nearly as possible along those of the image."""
    to_image = nibabel.orientations.io_orientation(np.linalg.inv(image.affine) @ labels.affine)
    order = nibabel.orientations.inv_ornt_aff(to_image, labels.shape)
    return Volume(nibabel.orientations.apply_orientation(labels.voxels, to_image), labels.affine @ order)
