"""Find the image of a draft among images of every kind, as viewers read them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

from baps.annotations.drafts import Draft, DraftStore
from baps.errors import InputError, NotFoundError
from baps.imaging.fingerprint import Fingerprint
from baps.server.datastores.dicomweb import PacsDatastore
from baps.server.datastores.folder import StudiesDatastore
from baps.server.labels import drafts as module
from baps.server.labels.drafts import DraftImages
from tests.support.small_series import write_small_series

SHAPE = (18, 15, 6)


def voxels(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(-1000, 2000, shape).astype(np.int16)


def mask_of(array: NDArray[Any]) -> NDArray[np.bool_]:
    """Mark the larger values of an image, so that the mask shows where it lies."""
    marked: NDArray[np.bool_] = array > np.median(array)
    return marked


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    folder = tmp_path / "studies"
    folder.mkdir()
    for seed, name in enumerate(("a.nii.gz", "b.nii.gz")):
        nibabel.save(nibabel.Nifti1Image(voxels(seed), np.diag([1.0, 1.5, 2.0, 1.0])), folder / name)
    nibabel.save(nibabel.Nifti1Image(voxels(shape=(4, 5, 6)), np.eye(4)), folder / "small.nii.gz")
    return folder


def images_of(studies: Path) -> DraftImages:
    earlier = time.time() - 60
    for path in [*studies.rglob("*"), studies]:
        os.utime(path, (earlier, earlier))
    datastore = StudiesDatastore(str(studies), auto_reload=False, read_only=False)
    return DraftImages(lambda: datastore)


def draft_on(tmp_path: Path, sent: NDArray[Any]) -> tuple[Draft, NDArray[np.bool_]]:
    store, mask = DraftStore(tmp_path / "drafts", 9, 1 << 20), mask_of(sent)
    name, _ = store.add("spleen", "anna", Fingerprint.of(sent), mask)
    return store.get(name), mask


def test_an_image_is_found_by_its_voxels_in_any_order(studies: Path, tmp_path: Path) -> None:
    images = images_of(studies)
    for seed, name in enumerate("ab"):
        draft, mask = draft_on(tmp_path, voxels(seed).transpose(2, 1, 0)[::-1])
        found = images.find(draft, mask)
        assert found.name == name
        assert np.array_equal(found.mask, mask_of(voxels(seed)))
        assert np.array_equal(images.find(draft, mask, name).mask, found.mask)


def itk_series(folder: Path) -> NDArray[Any]:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    array: NDArray[Any] = sitk.GetArrayFromImage(reader.Execute())
    return array


def itk_file(file: Path) -> NDArray[Any]:
    array: NDArray[Any] = sitk.GetArrayFromImage(sitk.ReadImage(file))
    return array


def write_scaled(file: Path) -> None:
    image = nibabel.Nifti1Image(voxels(7), np.diag([1.0, 1.5, 2.0, 1.0]))
    image.header.set_slope_inter(0.1, -3.7)
    nibabel.save(image, file)


def write_itk(file: Path) -> None:
    image = sitk.GetImageFromArray(voxels(8).transpose(2, 1, 0))
    image.SetDirection((-1, 0, 0, 0, 0, 1, 0, 1, 0))
    sitk.WriteImage(image, file)


@pytest.mark.parametrize(
    ("name", "write", "read"),
    [
        ("series", write_small_series, itk_series),
        ("scaled.nii.gz", write_scaled, itk_file),
        ("tilted.nrrd", write_itk, itk_file),
        ("meta.mha", write_itk, itk_file),
    ],
)
def test_what_simpleitk_reads_is_recognised(
    studies: Path,
    tmp_path: Path,
    name: str,
    write: Callable[[Path], object],
    read: Callable[[Path], NDArray[Any]],
) -> None:
    write(studies / name)
    sent = read(studies / name)
    draft, mask = draft_on(tmp_path, sent)
    found = images_of(studies).find(draft, mask)
    assert found.name == name.partition(".")[0]
    stored = found.volume.voxels
    assert np.array_equal(found.mask, mask_of(np.asarray(stored, np.float32).astype(sent.dtype)))
    # Both see the same point of the patient.
    assert np.isclose(found.volume.voxels[found.mask].astype(float).sum(), sent[mask].astype(float).sum(), rtol=1e-5)


def test_a_search_reads_each_image_of_the_same_size_once(
    studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    original = module.read_volume
    monkeypatch.setattr(module, "read_volume", lambda path: read.append(path.name) or original(path))
    images, (draft, _) = images_of(studies), draft_on(tmp_path, voxels(1))
    for _ in range(2):
        assert images.search(draft) == module.Search(("b",), True)
    assert read == ["a.nii.gz", "b.nii.gz"]
    nibabel.save(nibabel.Nifti1Image(voxels(1), np.eye(4)), studies / "a.nii.gz")
    assert images.search(draft).images == ("a", "b")


def test_a_search_stops_in_time_and_goes_on_later(studies: Path, tmp_path: Path) -> None:
    images, (draft, _) = images_of(studies), draft_on(tmp_path, voxels(1))
    assert images.search(draft, seconds=0) == module.Search((), False)
    assert images.search(draft) == module.Search(("b",), True)
    assert images.search(draft, seconds=0) == module.Search(("b",), True)


def test_an_image_that_cannot_be_read_does_not_stop_the_search_and_is_read_once(
    studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (studies / "a.nii.gz").write_bytes(b"broken")
    images, (draft, mask) = images_of(studies), draft_on(tmp_path, voxels(1))
    assert images.find(draft, mask).name == "b"
    monkeypatch.setattr(module, "read_geometry", lambda path: pytest.fail(path.name))
    assert images.search(draft) == module.Search(("b",), True)


def test_an_unknown_image_or_another_one_is_refused(studies: Path, tmp_path: Path) -> None:
    images, (draft, mask) = images_of(studies), draft_on(tmp_path, voxels(9))
    with pytest.raises(InputError, match="No image on this server has the voxels"):
        images.find(draft, mask)
    with pytest.raises(InputError, match="The image a does not have the voxels"):
        images.find(draft, mask, "a")
    with pytest.raises(NotFoundError, match="There is no image 'c'"):
        images.find(draft, mask, "c")
    with pytest.raises(InputError, match="is not a valid name"):
        images.find(draft, mask, "../a")


class Pacs(PacsDatastore):
    """A PACS with two series of which one is on this machine."""

    def __init__(self, studies: Path) -> None:
        self.studies, self.fetched = studies, list[str]()

    def fetched_images(self) -> dict[str, Path]:
        return {"1.2.3": self.studies / "a.nii.gz"}

    def get_image_uri(self, image_id: str) -> str:
        self.fetched.append(image_id)
        return str(self.studies / {"1.2.3": "a.nii.gz", "1.2.4": "b.nii.gz"}[image_id])


def test_nothing_is_fetched_from_a_pacs_but_what_the_user_names(studies: Path, tmp_path: Path) -> None:
    pacs = Pacs(studies)
    images = DraftImages(lambda: pacs)
    (on_a, mask_a), (on_b, mask_b) = (draft_on(tmp_path, voxels(seed)[::-1]) for seed in (0, 1))
    assert images.find(on_a, mask_a).name == "1.2.3"
    with pytest.raises(InputError, match="If the image is in a PACS, name its series"):
        images.find(on_b, mask_b)
    assert pacs.fetched == ["1.2.3"]
    assert np.array_equal(images.find(on_b, mask_b, "1.2.4").mask, mask_of(voxels(1)))
    assert pacs.fetched == ["1.2.3", "1.2.4"]
