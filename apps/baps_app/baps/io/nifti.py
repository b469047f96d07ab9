"""Read and write NIfTI files with the geometry of ITK, and so of every viewer built on it.

A header may hold two geometries (qform and sform) and a unit of length. ITK decides which of them is used: nibabel
reads the voxels, and ITK reads the header. Programs that prefer the sform, nibabel among them, may place the same file
elsewhere.
"""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from baps.errors import InputError, StorageError
from baps.imaging.volume import Volume
from baps.io.array_reading import read_array
from baps.io.dimensions import slice_normal, stack_colour, to_three_dimensions
from baps.io.itk_geometry import ras_affine, read_image_information
from baps.utils.atomic_write import atomic_write
from baps.utils.limits import check_size

_COLOUR_INTENTS = (1007, 2003)
"""Intent codes of a vector and of a colour at each voxel (NIFTI_INTENT_VECTOR, NIFTI_INTENT_RGB_VECTOR)."""

_GEOMETRY = {
    "qform": ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    "sform": ("srow_x", "srow_y", "srow_z"),
}
"""Header fields of the two geometries; each is used if its code is not 0."""

_COMMENT = 6
"""Code of an extension that holds text (NIFTI_ECODE_COMMENT)."""

_NOTES_PREFIX = b"BAPS notes:\n"
_MAX_NOTES = 20

_MAX_EXTENSION_BYTES = 16 << 20
"""Maximum size of what a compressed file holds before its voxels."""

_MAX_HEADER_BYTES = 540
"""Size of a NIfTI-2 header."""

_GZIP = b"\x1f\x8b"
_MAGIC = tuple(size.to_bytes(4, order) for size in (348, 540) for order in ("little", "big"))
"""First bytes of a file that is not compressed: the size of its header."""


def read_nifti(path: Path, channels: bool = False) -> Volume:
    """Read a NIfTI file (.nii, .nii.gz, or .hdr with .img) of grey values or of colour.

    Colour is RGB24, or 8 bits with the intent of a vector. An image of two dimensions is one slice, 1 mm thick if the
    file does not say.

    Args:
        path: path of the file.
        channels: whether to keep several values per voxel, (I, J, K, C).

    Returns:
        The volume.

    Raises:
        InputError: if the file has other than two or three dimensions, has no affine or one that ITK does not open, or
            holds neither grey values nor colour.
    """
    image = _open(path)
    affine = _affine(path, image)
    check_size(path.name, image.shape, image.header.get_data_dtype().itemsize)
    scale = float(image.dataobj.slope), float(image.dataobj.inter)
    if scale != (1, 0):
        check_size(path.name, image.shape, np.dtype(np.float32).itemsize)
    notes = _read_notes(image) + _geometry_notes(path, image, affine)
    voxels = _stored_values(image)
    if scale != (1, 0) and voxels.dtype.kind in "iuf":
        voxels = _scaled(voxels, *scale)
    if channels and voxels.dtype.names:
        raise InputError(f"The label {path.name} holds colour where grey values are needed. Save a labelmap.")
    if voxels.dtype.names in (("R", "G", "B"), ("R", "G", "B", "A")):
        return Volume(stack_colour((voxels[channel] for channel in "RGB"), path.name), affine, notes)
    if voxels.ndim == 5 and voxels.shape[3] == 1:  # The channels of a vector are the fifth dimension, after time.
        voxels = voxels[..., 0, :]
    if channels and voxels.ndim == 4 and voxels.shape[3] > 1 and voxels.dtype.kind in "iuf":
        return Volume(voxels, affine, notes)
    if voxels.dtype == np.uint8 and voxels.shape[-1] == 3 and int(image.header["intent_code"]) in _COLOUR_INTENTS:
        return Volume(stack_colour(np.moveaxis(voxels, -1, 0), path.name), affine, notes)
    if voxels.dtype.kind == "f" and voxels.dtype != np.float32:
        voxels = voxels.astype(np.float32)
    if voxels.dtype.kind not in "iuf":
        raise InputError(f"{path.name} holds values of type {voxels.dtype}; grey values are needed.")
    return Volume(to_three_dimensions(voxels, path.name), affine, notes)


def _stored_values(image: nibabel.Nifti1Pair) -> NDArray[Any]:
    """Read the stored voxels; nibabel would hold them twice, or map a file that may change."""
    path, stored = Path(image.file_map["image"].filename), image.dataobj
    with (gzip.open if path.name.lower().endswith(".gz") else open)(path, "rb") as file:
        file.seek(stored.offset)
        return read_array(file, stored.shape, stored.dtype, stored.order)


def _scaled(voxels: NDArray[Any], slope: float, intercept: float) -> NDArray[np.float32]:
    """Apply slope and intercept slice by slice, because doing it at once takes several times eight bytes per voxel."""
    scaled = np.empty(voxels.shape, np.float32, order="F")
    for index in range(voxels.shape[-1]):
        scaled[..., index] = voxels[..., index].astype(np.float64) * slope + intercept
    return scaled


def read_nifti_notes(path: Path) -> tuple[str, ...]:
    """Read the notes of a volume that ``write_nifti`` wrote, without voxels.

    Args:
        path: path of the file.

    Returns:
        The notes; none for another file.
    """
    return _read_notes(_open(path)) if path.name.lower().endswith((".nii", ".nii.gz")) else ()


def _read_notes(image: nibabel.Nifti1Pair) -> tuple[str, ...]:
    for extension in image.header.extensions:
        content = extension.get_content()
        if extension.get_code() == _COMMENT and isinstance(content, bytes) and content.startswith(_NOTES_PREFIX):
            return tuple(content[len(_NOTES_PREFIX) :].decode(errors="replace").rstrip("\0").splitlines()[:_MAX_NOTES])
    return ()


def _geometry_notes(path: Path, image: nibabel.Nifti1Pair, affine: NDArray[np.float64]) -> tuple[str, ...]:
    """Return a note if nibabel, which uses the sform and ignores units, places the file elsewhere."""
    voxels = np.broadcast_to(np.uint8(0), (*image.shape, 1, 1)[:3])
    if Volume(voxels, affine).same_geometry(Volume(voxels, np.asarray(image.affine))):
        return ()
    codes = [int(image.header[f"{form}_code"]) for form in _GEOMETRY]
    return (
        f"{path.name} has the geometry that ITK and 3D Slicer read (qform code {codes[0]}, sform code {codes[1]}); "
        "programs that use only the sform, or take every unit for millimetres, place it elsewhere.",
    )


def read_nifti_affine(path: Path) -> NDArray[np.float64]:
    """Read the affine of a NIfTI file, without voxels.

    Args:
        path: path of the file.

    Returns:
        Voxel index to patient position in mm (RAS), (4, 4).

    Raises:
        InputError: see ``read_nifti``.
    """
    return _affine(path, _open(path))


def read_nifti_geometry(path: Path) -> Volume:
    """Read the geometry of a NIfTI file, without voxels.

    Args:
        path: path of the file.

    Returns:
        A volume whose voxels are all 0 and take no memory.

    Raises:
        InputError: see ``read_nifti``.
    """
    image = _open(path)
    shape = (*image.shape, 1)[:3] if image.ndim == 2 else image.shape[:3]
    return Volume(np.broadcast_to(np.uint8(0), shape), _affine(path, image))


def _open(path: Path) -> nibabel.Nifti1Pair:
    """Open a NIfTI file, and refuse the other formats that nibabel knows."""
    with path.open("rb") as file:
        magic = file.read(4)
    named_gzip = path.name.lower().endswith(".gz")
    if magic[:2] == _GZIP and not named_gzip:
        raise InputError(f"{path.name} is compressed, but its name does not say so; rename it to end in .nii.gz.")
    if named_gzip and magic in _MAGIC:
        raise InputError(f"{path.name} is not compressed, though its name says so; rename it to end in .nii.")
    if named_gzip:
        _check_extensions(path)
    image = nibabel.load(path)
    if isinstance(image, nibabel.Cifti2Image):
        raise InputError(
            f"{path.name} is a CIFTI-2 file, which holds values of a surface or a matrix, not a volume; export the "
            "volume as NIfTI."
        )
    if isinstance(image, nibabel.AnalyzeImage) and not isinstance(image, nibabel.Nifti1Pair):
        raise InputError(
            f"{path.name} is an Analyze 7.5 file, which does not say where the patient's left is; convert it to NIfTI "
            "with a program that knows how it was made."
        )
    if not isinstance(image, nibabel.Nifti1Pair):
        raise InputError(f"{path.name} is not a NIfTI file.")
    voxels = Path(image.file_map["image"].filename)
    if not voxels.exists():
        raise InputError(
            f"{path.name} comes without {voxels.name}, which holds its voxels; put it there, or save as .nii."
        )
    return image


def _check_extensions(path: Path) -> None:
    """Refuse a compressed file with large extensions between header and voxels, because nibabel reads them first."""
    with gzip.open(path, "rb") as file:
        header_bytes = file.read(_MAX_HEADER_BYTES)
    for header_class in (nibabel.Nifti1Header, nibabel.Nifti2Header):
        if len(header_bytes) >= header_class.template_dtype.itemsize and header_class.may_contain_header(header_bytes):
            header = header_class(header_bytes[: header_class.template_dtype.itemsize], check=False)
            if not header["vox_offset"] <= _MAX_EXTENSION_BYTES:  # NaN is refused too.
                raise InputError(
                    f"The voxels of {path.name} begin {header['vox_offset']:g} bytes after its header (vox_offset); "
                    f"{_MAX_EXTENSION_BYTES} are supported. Export it again without extensions."
                )


def _affine(path: Path, image: nibabel.Nifti1Pair) -> NDArray[np.float64]:
    """Return the affine as ITK reads it. nibabel repairs odd headers; ITK gets the header as it is in the file."""
    with (gzip.open if path.name.lower().endswith(".gz") else open)(path, "rb") as file:
        header = type(image.header).from_fileobj(file, check=False)
    codes = {form: int(header[f"{form}_code"]) for form in ("qform", "sform")}
    if not any(codes.values()):
        raise InputError(
            f"{path.name} has no affine (its sform and qform codes are 0), so its position in the "
            "patient is unknown. Export it again with its geometry."
        )
    if len(image.shape) == 2:  # Treat it as a slice in space; ITK would drop its position.
        rows = np.stack([header[name] for name in ("srow_x", "srow_y", "srow_z")])
        if codes["sform"] and not rows[:, 2].any():  # The thickness of the slice is not stored.
            rows[:, 2] = slice_normal(rows[:, 0], rows[:, 1])
            header["srow_x"], header["srow_y"], header["srow_z"] = rows
        if codes["sform"]:
            header["pixdim"][3] = np.linalg.norm(rows[:, 2])
    affine = _itk_affine(header)
    if affine is None:
        raise InputError(
            f"{path.name} has no geometry that viewers can show: its sform (code {codes['sform']}) is sheared, flat or "
            f"not finite, and its qform (code {codes['qform']}) is no alternative. Resample it to a grid of right "
            "angles."
        )
    return affine


def _itk_affine(header: nibabel.Nifti1Header) -> NDArray[np.float64] | None:
    """Return the affine that ITK reads from a header, or None if ITK does not open it or drops a shear."""
    minimal = nibabel.Nifti1Header()  # ITK cannot read NIfTI-2, nor headers in a different byte order than declared.
    minimal.set_data_dtype(np.uint8)
    minimal.set_data_shape((1, 1, 1))
    minimal["magic"], minimal["vox_offset"] = b"n+1", 352
    codes_set = [form for form in _GEOMETRY if header[f"{form}_code"]]
    fields = ["xyzt_units", "pixdim", *[f"{form}_code" for form in codes_set]]
    fields += [field for form in codes_set for field in _GEOMETRY[form]]
    with np.errstate(all="ignore"):
        for field in fields:
            minimal[field] = header[field]
    if not all(np.isfinite(minimal[field]).all() for field in fields):
        return None
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "header.nii"
            path.write_bytes(minimal.binaryblock + bytes(4))
            information = read_image_information(path, "NiftiImageIO")
    except RuntimeError:
        return None
    except OSError as error:
        raise StorageError(
            f"A temporary file cannot be written ({error.strerror}). Make room in the folder that TMPDIR "
            "names, or /tmp."
        ) from error
    return None if information.GetMetaData("ITK_sform_corrected") == "YES" else ras_affine(information)


def write_nifti(path: Path, volume: Volume) -> None:
    """Write a NIfTI file of grey values, labels or colour (RGB24). It replaces an older file when it is complete.

    The notes are stored in an extension of the header. The sform holds the geometry, and so does the qform, unless
    single precision or a shear prevents it.

    Args:
        path: path of the file.
        volume: the volume.

    Raises:
        InputError: if the axes are not at right angles, so that viewers could not open the file.
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
        content = _NOTES_PREFIX + "\n".join(volume.notes).encode()
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension(_COMMENT, content))
    itk_affine = _itk_affine(image.header)
    if itk_affine is None or not volume.same_geometry(Volume(volume.voxels, itk_affine)):
        raise InputError(
            f"The axes of {path.name} are not at right angles, which NIfTI viewers cannot show; save it as NRRD."
        )
    suffix = ".nii.gz" if path.name.endswith(".gz") else ".nii"
    with atomic_write(path, suffix) as partial:
        nibabel.save(image, partial)
