"""NIfTI files: where ITK, and so every viewer that is built on it, puts their voxels.

A header may hold two geometries (qform and sform) and a unit of length. Which of them counts, ITK decides: nibabel
reads the voxels, ITK the header. Programs that prefer the sform, nibabel among them, may put the same file elsewhere.
"""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from baps.errors import InputError, StorageError
from baps.imaging.volume import Volume
from baps.io.dimensions import three_dimensional
from baps.io.itk_geometry import affine_of, read_information
from baps.io.read_exactly import read_exactly
from baps.utils.atomic_write import atomic_write
from baps.utils.limits import check_size

_VECTORS = (1007, 2003)
"""Intent codes of a vector and of a colour at each voxel (NIFTI_INTENT_VECTOR, NIFTI_INTENT_RGB_VECTOR)."""

_GEOMETRY = {
    "qform": ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    "sform": ("srow_x", "srow_y", "srow_z"),
}
"""The fields of a header that say where the voxels lie, in two ways; each counts if its code is not 0."""

_COMMENT = 6
"""The code of an extension that holds text (NIFTI_ECODE_COMMENT)."""

_NOTES = b"BAPS notes:\n"
_MOST_NOTES = 20

_MOST_EXTENSIONS = 16 << 20
"""Bytes that a packed file may hold before its voxels."""

_LONGEST_HEADER = 540
"""Bytes; that of NIfTI-2."""

_GZIP = b"\x1f\x8b"
_BEGINNINGS = tuple(size.to_bytes(4, order) for size in (348, 540) for order in ("little", "big"))
"""What a file begins with that is not compressed: the size of its header."""


def read_nifti(path: Path, channels: bool = False) -> Volume:
    """Read a NIfTI file (.nii, .nii.gz, or .hdr with .img), of grey values or of colour (RGB24, or bytes with the
    intent of a vector).

    One of two dimensions is one slice, 1 mm thick if the file does not say.

    Args:
        path: the file.
        channels: whether several values a voxel are kept as they are, (I, J, K, C).

    Raises:
        InputError: if it has other than two or three dimensions, has no affine or one that ITK does not open, or holds
            no grey values and no colour.
    """
    image = _open(path)
    affine = _affine(path, image)
    check_size(path.name, image.shape, image.header.get_data_dtype().itemsize)
    scale = float(image.dataobj.slope), float(image.dataobj.inter)
    if scale != (1, 0):
        check_size(path.name, image.shape, np.dtype(np.float32).itemsize)
    notes = _read_notes(image) + _on_geometry(path, image, affine)
    voxels = _stored(image)
    if scale != (1, 0) and voxels.dtype.kind in "iuf":
        voxels = _scaled(voxels, *scale)
    if channels and voxels.dtype.names:
        raise InputError(f"The label {path.name} holds colour where grey values are needed. Save a labelmap.")
    if voxels.dtype.names in (("R", "G", "B"), ("R", "G", "B", "A")):
        return Volume(_channels([voxels[channel] for channel in "RGB"], path.name), affine, notes)
    if voxels.ndim == 5 and voxels.shape[3] == 1:  # The channels of a vector come fifth, after the time.
        voxels = voxels[..., 0, :]
    if channels and voxels.ndim == 4 and voxels.shape[3] > 1 and voxels.dtype.kind in "iuf":
        return Volume(voxels, affine, notes)
    if voxels.dtype == np.uint8 and voxels.shape[-1] == 3 and int(image.header["intent_code"]) in _VECTORS:
        return Volume(_channels([voxels[..., channel] for channel in range(3)], path.name), affine, notes)
    if voxels.dtype.kind == "f" and voxels.dtype != np.float32:
        voxels = voxels.astype(np.float32)
    if voxels.dtype.kind not in "iuf":
        raise InputError(f"{path.name} holds values of type {voxels.dtype}; grey values are needed.")
    return Volume(three_dimensional(voxels, path.name), affine, notes)


def _stored(image: nibabel.Nifti1Pair) -> NDArray[Any]:
    """The voxels as they are in the file; nibabel would hold them twice, or map a file that may change."""
    path, stored = Path(image.file_map["image"].filename), image.dataobj
    with (gzip.open if path.name.lower().endswith(".gz") else open)(path, "rb") as file:
        file.seek(stored.offset)
        return read_exactly(file, stored.shape, stored.dtype, stored.order)


def _scaled(voxels: NDArray[Any], slope: float, intercept: float) -> NDArray[np.float32]:
    """Voxels times slope plus intercept, slice by slice: all at once would take eight bytes a voxel, several times."""
    found = np.empty(voxels.shape, np.float32, order="F")
    for place in range(voxels.shape[-1]):
        found[..., place] = voxels[..., place].astype(np.float64) * slope + intercept
    return found


def read_nifti_notes(path: Path) -> tuple[str, ...]:
    """Read the notes of a volume that ``write_nifti`` wrote, and no voxels; none of another file."""
    return _read_notes(_open(path)) if path.name.lower().endswith((".nii", ".nii.gz")) else ()


def _read_notes(image: nibabel.Nifti1Pair) -> tuple[str, ...]:
    for extension in image.header.extensions:
        content = extension.get_content()
        if extension.get_code() == _COMMENT and isinstance(content, bytes) and content.startswith(_NOTES):
            return tuple(content[len(_NOTES) :].decode(errors="replace").rstrip("\0").splitlines()[:_MOST_NOTES])
    return ()


def _on_geometry(path: Path, image: nibabel.Nifti1Pair, affine: NDArray[np.float64]) -> tuple[str, ...]:
    """Say that other programs put the file elsewhere, if nibabel does: it goes by the sform and knows no units."""
    voxels = np.broadcast_to(np.uint8(0), (*image.shape, 1, 1)[:3])
    if Volume(voxels, affine).same_geometry(Volume(voxels, np.asarray(image.affine))):
        return ()
    codes = [int(image.header[f"{form}_code"]) for form in _GEOMETRY]
    return (
        f"{path.name} lies where ITK and 3D Slicer put it (qform code {codes[0]}, sform code {codes[1]}); programs "
        "that go by the sform alone, or take every unit for millimetres, put it elsewhere.",
    )


def read_nifti_affine(path: Path) -> NDArray[np.float64]:
    """Read the affine of a NIfTI file, and no voxels.

    Raises:
        InputError: as ``read_nifti``.
    """
    return _affine(path, _open(path))


def read_nifti_place(path: Path) -> Volume:
    """Read where the voxels of a NIfTI file lie: a volume whose voxels are all 0 and take no memory.

    Raises:
        InputError: as ``read_nifti``.
    """
    image = _open(path)
    shape = (*image.shape, 1)[:3] if image.ndim == 2 else image.shape[:3]
    return Volume(np.broadcast_to(np.uint8(0), shape), _affine(path, image))


def _open(path: Path) -> nibabel.Nifti1Pair:
    """Open a file that nibabel knows and that holds a NIfTI image."""
    with path.open("rb") as file:
        begin = file.read(4)
    named = path.name.lower().endswith(".gz")
    if begin[:2] == _GZIP and not named:
        raise InputError(f"{path.name} is compressed, but its name does not say so; rename it to end in .nii.gz.")
    if named and begin in _BEGINNINGS:
        raise InputError(f"{path.name} is not compressed, though its name says so; rename it to end in .nii.")
    if named:
        _check_extensions(path)
    image = nibabel.load(path)
    if isinstance(image, nibabel.Cifti2Image):
        raise InputError(
            f"{path.name} is a CIFTI-2 file, which holds values of a surface or a matrix, no volume; export the volume "
            "as NIfTI."
        )
    if isinstance(image, nibabel.AnalyzeImage) and not isinstance(image, nibabel.Nifti1Pair):
        raise InputError(
            f"{path.name} is an Analyze 7.5 file, which does not say where the patient's left is; convert it to NIfTI "
            "with a program that knows how it was made."
        )
    if not isinstance(image, nibabel.Nifti1Pair):
        raise InputError(f"{path.name} is no NIfTI file.")
    voxels = Path(image.file_map["image"].filename)
    if not voxels.exists():
        raise InputError(
            f"{path.name} comes without {voxels.name}, which holds its voxels; put it there, or save as .nii."
        )
    return image


def _check_extensions(path: Path) -> None:
    """Refuse a packed file whose extensions, between header and voxels, unpack to much: nibabel reads them first."""
    with gzip.open(path, "rb") as file:
        begin = file.read(_LONGEST_HEADER)
    for kind in (nibabel.Nifti1Header, nibabel.Nifti2Header):
        if len(begin) >= kind.template_dtype.itemsize and kind.may_contain_header(begin):
            header = kind(begin[: kind.template_dtype.itemsize], check=False)
            if not header["vox_offset"] <= _MOST_EXTENSIONS:  # Nor is it a number.
                raise InputError(
                    f"The voxels of {path.name} begin {header['vox_offset']:g} bytes behind its header (vox_offset); "
                    f"{_MOST_EXTENSIONS} are read. Export it again without extensions."
                )


def _affine(path: Path, image: nibabel.Nifti1Pair) -> NDArray[np.float64]:
    """The affine as ITK reads it. nibabel mends what is odd in a header; ITK gets it as it is in the file."""
    with (gzip.open if path.name.lower().endswith(".gz") else open)(path, "rb") as file:
        header = type(image.header).from_fileobj(file, check=False)
    codes = {form: int(header[f"{form}_code"]) for form in ("qform", "sform")}
    if not any(codes.values()):
        raise InputError(
            f"{path.name} has no affine (its sform and qform codes are 0), so nobody can say where it lies in the "
            "patient. Export it again with its geometry."
        )
    if len(image.shape) == 2:  # As a slice in space, which ITK would take out of it.
        rows = np.stack([header[name] for name in ("srow_x", "srow_y", "srow_z")])
        if codes["sform"] and not rows[:, 2].any():  # Nothing says how thick the slice is.
            rows[:, 2] = _unit_normal(rows)
            header["srow_x"], header["srow_y"], header["srow_z"] = rows
        if codes["sform"]:
            header["pixdim"][3] = np.linalg.norm(rows[:, 2])
    affine = _affine_by_itk(header)
    if affine is None:
        raise InputError(
            f"{path.name} has no geometry that viewers can show: its sform (code {codes['sform']}) is sheared, flat or "
            f"not finite, and its qform (code {codes['qform']}) says nothing else. Resample it to a grid of right "
            "angles."
        )
    return affine


def _affine_by_itk(header: nibabel.Nifti1Header) -> NDArray[np.float64] | None:
    """The affine that ITK reads from a header; none if ITK does not open it, or opens it with a shear left out."""
    bare = nibabel.Nifti1Header()  # ITK does not know NIfTI-2, nor headers of another byte order than is said.
    bare.set_data_dtype(np.uint8)
    bare.set_data_shape((1, 1, 1))
    bare["magic"], bare["vox_offset"] = b"n+1", 352
    forms = [form for form in _GEOMETRY if header[f"{form}_code"]]
    fields = ["xyzt_units", "pixdim", *[f"{form}_code" for form in forms]]
    fields += [field for form in forms for field in _GEOMETRY[form]]
    with np.errstate(all="ignore"):
        for field in fields:
            bare[field] = header[field]
    if not all(np.isfinite(bare[field]).all() for field in fields):
        return None
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "header.nii"
            path.write_bytes(bare.binaryblock + bytes(4))
            information = read_information(path, "NiftiImageIO")
    except RuntimeError:
        return None
    except OSError as error:
        raise StorageError(
            f"No temporary file can be written ({error.strerror}). Make room in the folder that TMPDIR names, or /tmp."
        ) from error
    return None if information.GetMetaData("ITK_sform_corrected") == "YES" else affine_of(information)


def _channels(channels: Sequence[NDArray[Any]], name: str) -> NDArray[Any]:
    """Red, green and blue, (I, J, K) each, as (I, J, K, 3)."""
    return np.stack([three_dimensional(channel, name) for channel in channels], axis=-1)


def _unit_normal(affine: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Of the plane of I and J; zero if they span none."""
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    return normal / (np.linalg.norm(normal) or 1)


def write_nifti(path: Path, volume: Volume) -> None:
    """Write a NIfTI file of grey values, labels or colour (RGB24); it appears under its name only when it is whole.

    Its notes go with it, in an extension of the header. Its sform says where it lies, and so does its qform, unless
    single precision or a shear keeps it from doing so.

    Raises:
        InputError: if its axes are not at right angles, so that viewers could not open the file.
    """
    voxels: NDArray[Any] = volume.voxels
    if volume.colour:
        voxels = np.ascontiguousarray(voxels).view([(channel, np.uint8) for channel in "RGB"])[..., 0]
    image = nibabel.Nifti1Image(voxels, volume.affine)
    image.set_sform(volume.affine, code="scanner")
    image.set_qform(volume.affine, code="scanner")
    if not volume.same_geometry(Volume(volume.voxels, image.get_qform())):
        image.header["qform_code"] = 0
    image.header.set_xyzt_units("mm")
    if volume.notes:
        content = _NOTES + "\n".join(volume.notes).encode()
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension(_COMMENT, content))
    shown = _affine_by_itk(image.header)
    if shown is None or not volume.same_geometry(Volume(volume.voxels, shown)):
        raise InputError(
            f"The axes of {path.name} are not at right angles, which NIfTI viewers do not show; save it as NRRD."
        )
    suffix = ".nii.gz" if path.name.endswith(".gz") else ".nii"
    with atomic_write(path, suffix) as partial:
        nibabel.save(image, partial)
