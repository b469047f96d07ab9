"""Test files of other packages are read as SimpleITK reads them, or refused with the right reason."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
import skimage

from baps.errors import InputError
from baps.imaging.volume import Volume
from baps.io import IMAGE_SUFFIXES, opens_in_viewers, read_volume, write_nifti
from baps.io.itk_geometry import ras_affine

_NOT_DICOM = tuple(suffix for suffix in IMAGE_SUFFIXES if suffix != ".dcm")
_MONAI_LABEL = find_spec("monailabel")  # The core does not need this package.
_FOLDERS = (
    Path(nibabel.__file__).parent / "tests" / "data",
    Path(skimage.__file__).parent / "data",
    *map(Path, _MONAI_LABEL.submodule_search_locations or () if _MONAI_LABEL else ()),
)

REFUSED = {
    "analyze.hdr": "is an Analyze 7.5 file, which does not say where the patient's left is",
    "example4d.nii.gz": r"has 4 dimensions \(shape \(128, 96, 24, 2\)\)",
    "example_nifti2.nii.gz": r"has 4 dimensions \(shape \(32, 20, 12, 2\)\)",
    "functional.nii": r"has 4 dimensions \(shape \(17, 21, 3, 20\)\)",
    "motorcycle_disp.npz": "has no array img",
    "multipage.tif": "holds 2 pages, and does not say that they are a stack",
    "multipage_rgb.tif": "holds 2 pages, and does not say that they are a stack",
    "nifti1.hdr": r"comes without nifti1\.img",
    "nifti2.hdr": r"comes without nifti2\.img",
    "resampled_anat_moved.nii": "holds 153 voxels that are NaN",
    "row_major.dconn.nii": "is a CIFTI-2 file",
}
"""Expected message for each file that is refused; each was checked by hand."""

_OTHER_KINDS = (".mnc", ".mgz", ".par", ".rec", ".head", ".brik", ".v", ".trk", ".tck")


def _files() -> Iterator[Path]:
    for folder in _FOLDERS:
        yield from sorted(path for path in folder.rglob("*") if path.name.lower().endswith(_NOT_DICOM))


@pytest.mark.parametrize("path", _files(), ids=lambda path: path.name)
def test_file_is_read_like_itk_or_refused(tmp_path: Path, path: Path) -> None:
    if path.name in REFUSED:
        with pytest.raises(InputError, match=f"^{path.name} {REFUSED[path.name]}"):
            read_volume(path)
        return
    volume = read_volume(path)
    itk_image = SimpleITK.ReadImage(str(path))
    voxels = SimpleITK.GetArrayFromImage(itk_image)
    if itk_image.GetDimension() == 2:
        voxels = voxels[None]
    if path.suffix == ".png" and voxels.dtype == np.uint16 and voxels.ndim == 4:
        voxels = (voxels >> 8).astype(np.uint8)  # Colour has 8 bits only.
    if path.suffix == ".jpg":  # Decoders differ in colour interpolation.
        assert (np.abs(volume.voxels.astype(int) - voxels.swapaxes(0, 2).reshape(volume.voxels.shape)) > 20).mean() == 0
    elif volume.colour:
        np.testing.assert_array_equal(volume.voxels, voxels[..., :3].swapaxes(0, 2))
    elif itk_image.GetNumberOfComponentsPerPixel() > 1:  # Colour pictures whose pixels are all grey.
        np.testing.assert_array_equal(volume.voxels, voxels[..., 0].T)
    else:
        np.testing.assert_allclose(volume.voxels, voxels.T, rtol=1e-6)
    if opens_in_viewers(path):
        np.testing.assert_allclose(volume.affine, ras_affine(itk_image), atol=1e-6)
    write_nifti(tmp_path / "converted.nii.gz", volume)
    converted = SimpleITK.ReadImage(str(tmp_path / "converted.nii.gz"))
    assert volume.same_geometry(Volume(volume.voxels, ras_affine(converted)))


@pytest.mark.parametrize("suffix", _OTHER_KINDS)
def test_unsupported_files_are_refused_with_the_reason(suffix: str) -> None:
    results = [path for path in _FOLDERS[0].iterdir() if path.suffix.lower() == suffix]
    for path in results:
        with pytest.raises(InputError, match="has a format that is not supported. Give NIfTI, NRRD, "):
            read_volume(path)
