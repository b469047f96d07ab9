"""Labels of a real PACS mark the right anatomy with unordered frames, several volumes and tilted slices.

The reference is pydicom: positions of the frames of labels and images are read from their headers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
from monailabel.config import settings
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from baps.errors import InputError
from baps.imaging.volume import Volume
from baps.io import read_volume, write_nifti
from baps.server.datastores.dicomweb import PacsDatastore, open_pacs
from baps.server.labels.save_labels import save_label
from baps.server.training_cases import labelled_cases
from demo import orthanc
from stress.fuzz.displacements import Slice, write_enhanced, write_series

pytestmark = pytest.mark.skipif(bool(orthanc.missing()), reason=orthanc.missing())


@pytest.fixture(scope="module")
def address(empty_orthanc: Callable[[], str]) -> str:
    return empty_orthanc()


@pytest.fixture
def store(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PacsDatastore:
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_CACHE_PATH", str(tmp_path / "cache"))
    return open_pacs(f"{address}/dicom-web")


def _slices(count: int, first: int = 0, tilt: float = 0.0, echo: float = 10.0) -> list[Slice]:
    values = (1 + 30 * first + np.arange(30 * count)).astype(np.int16).reshape(count, 5, 6)
    return [
        Slice(
            values[k], np.array([-20.0 + tilt * k, 5, 3.0 * k]), np.eye(3)[:2], (1.0, 1.0), 1.0, (("EchoTime", echo),)
        )
        for k in range(count)
    ]


def _store(address: str, path: Path) -> str:
    """Store the files of a folder as a series, and return its SeriesInstanceUID."""
    series, study, frame = generate_uid(), generate_uid(), generate_uid()
    for file in path.iterdir():
        image = pydicom.dcmread(file)
        image.SeriesInstanceUID, image.StudyInstanceUID, image.Modality = series, study, "MR"
        image.FrameOfReferenceUID = frame
        image.PatientName, image.PatientBirthDate, image.PatientSex, image.StudyDate = "A^B", "", "O", "20260101"
        image.save_as(file)
    orthanc.store(address, path)
    return str(series)


def _marked_values(label: Dataset, files: Sequence[Path]) -> set[int]:
    """Return the image's values inside a label, by the positions in both headers."""
    values: set[int] = set()
    pixels = np.atleast_3d(label.pixel_array.T).T
    for frame, group in zip(pixels, label.PerFrameFunctionalGroupsSequence, strict=True):
        where = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        for value, position in _image_frames(files):
            if np.allclose(position, where, atol=1e-3):
                values |= set(value[frame > 0].tolist()) if (value[frame > 0] != 0).any() else set()
    return values


def _image_frames(files: Sequence[Path]) -> Iterator[tuple[NDArray[np.int16], NDArray[np.float64]]]:
    for file in files:
        image = pydicom.dcmread(file)
        for number, frame in enumerate(image.pixel_array.reshape(-1, 5, 6)):
            position = image.get("ImagePositionPatient")
            if position is None:
                position = image.PerFrameFunctionalGroupsSequence[number].PlanePositionSequence[0].ImagePositionPatient
            yield frame, np.array(position, float)


def _save(store: PacsDatastore, image_id: str, folder: Path, values: Sequence[int]) -> None:
    """Mark the voxels of some values in the served image, and save the label as a viewer does."""
    volume = read_volume(Path(store.get_image_uri(image_id)))
    mask = np.isin(volume.voxels, values).astype(np.uint8)
    assert mask.sum() == len(values)
    write_nifti(folder / "label.nii.gz", Volume(mask, volume.affine))
    info = {"label_info": [{"name": "spleen", "idx": 1}]}
    save_label(store, {"spleen": 1}, image_id, folder / "label.nii.gz", "final", info)


def _stored(store: PacsDatastore, image_id: str) -> Dataset:
    segment = store.newest_segments(image_id)[image_id]["spleen"][0]
    return store._client.retrieve_instance(segment.study, segment.series, segment.instance)


def _interleaved(path: Path) -> list[Path]:
    slices = _slices(8)
    (path / "a").mkdir()
    write_enhanced(path / "a" / "a.dcm", [slices[k] for k in (0, 2, 4, 6, 1, 3, 5, 7)], np.random.default_rng(0))
    return [path / "a" / "a.dcm"]


def _tilted(path: Path) -> list[Path]:
    write_series(path / "a", _slices(8, tilt=0.9))
    return sorted((path / "a").iterdir())


@pytest.mark.parametrize("make", [_interleaved, _tilted], ids=["interleaved", "tilted"])
def test_a_label_marks_the_right_anatomy(
    address: str, store: PacsDatastore, tmp_path: Path, make: Callable[[Path], list[Path]]
) -> None:
    files = make(tmp_path)
    series = _store(address, files[0].parent)
    values = [3, 9, 40, 101, 102, 200]
    _save(store, series, tmp_path, values)
    assert _marked_values(_stored(store, series), files) == set(values)
    assert series in store.get_labeled_images()
    cases, skipped = labelled_cases(store, {"spleen": 1}, {})
    (case,) = [one for one in cases["spleen"] if series in one.image.name]
    assert not [image for image in skipped if series in image]
    trained = read_volume(case.image).voxels[read_volume(case.labels).voxels > 0]
    assert sorted(trained.tolist()) == values


def test_each_volume_of_an_object_has_its_own_labels(address: str, store: PacsDatastore, tmp_path: Path) -> None:
    mixed = [*_slices(4), *_slices(4, first=4, echo=20.0)]
    (tmp_path / "a").mkdir()
    write_enhanced(tmp_path / "a" / "a.dcm", [mixed[k] for k in (0, 4, 1, 5, 7, 3, 6, 2)], np.random.default_rng(0))
    series = _store(address, tmp_path / "a")
    with pytest.raises(InputError, match="holds 2 volumes, which are images of their own now"):
        store.get_image_uri(series)
    images = [f"{series}-volume1", f"{series}-volume2"]
    assert set(images) <= set(store.list_images())
    assert series not in store.list_images()
    assert [store.has_image(image) for image in (*images, series, f"{series}-volume3")] == [True, True, False, False]
    _save(store, images[1], tmp_path, [121, 150, 200])
    label = _stored(store, images[1])
    assert _marked_values(label, [tmp_path / "a" / "a.dcm"]) >= {121, 150, 200}
    referred = {
        int(source.ReferencedFrameNumber)
        for group in label.PerFrameFunctionalGroupsSequence
        for source in group.DerivationImageSequence[0].SourceImageSequence
    }
    assert referred <= {2, 4, 5, 7}
    for again in (store, open_pacs(f"{address}/dicom-web")):
        labelled = [image for image in again.get_labeled_images() if series in image]
        assert labelled == [images[1]]
        cases, _ = labelled_cases(again, {"spleen": 1}, {})
        (case,) = [one for one in cases["spleen"] if series in one.image.name]
        trained = read_volume(case.image).voxels[read_volume(case.labels).voxels > 0]
        assert sorted(trained.tolist()) == [121, 150, 200]


def test_a_structure_set_belongs_to_its_volume(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_CACHE_PATH", str(tmp_path / "cache"))
    store = open_pacs(f"{address}/dicom-web", label_format="rtstruct")
    mixed = [*_slices(4), *_slices(4, first=4, echo=20.0)]
    (tmp_path / "a").mkdir()
    write_enhanced(tmp_path / "a" / "a.dcm", [mixed[k] for k in (0, 4, 1, 5, 7, 3, 6, 2)], np.random.default_rng(0))
    series = _store(address, tmp_path / "a")
    with pytest.raises(InputError, match="holds 2 volumes"):
        store.get_image_uri(series)
    image = f"{series}-volume2"
    _save(store, image, tmp_path, [121, 150, 200])
    label = _stored(store, image)
    assert label.Modality == "RTSTRUCT"
    referred = {
        int(contour.ContourImageSequence[0].ReferencedFrameNumber)
        for contour in label.ROIContourSequence[0].ContourSequence
    }
    assert referred <= {2, 4, 5, 7}
    again = open_pacs(f"{address}/dicom-web")
    assert [one for one in again.get_labeled_images() if series in one] == [image]
    cases, _ = labelled_cases(again, {"spleen": 1}, {})
    (case,) = [one for one in cases["spleen"] if series in one.image.name]
    trained = read_volume(case.image).voxels[read_volume(case.labels).voxels > 0]
    assert sorted(trained.tolist()) == [121, 150, 200]


def test_a_volume_with_missing_slices_does_not_affect_the_others(
    address: str, store: PacsDatastore, tmp_path: Path
) -> None:
    whole = [_slices(5, first=5 * n, echo=10.0 * n) for n in range(3)]
    write_series(tmp_path / "a", [*whole[0][:2], *whole[0][3:], *whole[1], *whole[2]])
    series = _store(address, tmp_path / "a")
    with pytest.raises(InputError, match="holds 3 volumes"):
        store.get_image_uri(series)
    for again in (store, open_pacs(f"{address}/dicom-web")):
        with pytest.raises(InputError, match="missing slices"):
            again.get_image_uri(f"{series}-volume1")
        candidates = again.find_candidates(random_start=False, min_count=10**6)
        volumes = [image for image in candidates.images if series in image]
        assert volumes == [f"{series}-volume2", f"{series}-volume3"]
    _save(store, f"{series}-volume3", tmp_path, [310, 420])
    labelled = open_pacs(f"{address}/dicom-web").get_labeled_images()
    assert [image for image in labelled if series in image] == [f"{series}-volume3"]
