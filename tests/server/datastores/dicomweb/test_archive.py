"""A PACS with many series: it is queried only for what a request needs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from copy import deepcopy
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from numpy.typing import NDArray

from baps.errors import BapsError, InputError, NotFoundError
from baps.imaging.volume import Volume
from baps.io import read_labels, read_volume, write_nifti
from baps.io.dicom.rtstruct import write_structures
from baps.io.dicom.seg import write_segmentation
from baps.server.datastores.dicomweb import PacsDatastore, open_pacs
from baps.server.datastores.dicomweb.series import FRESH_SECONDS
from baps.server.labels.save_labels import save_label
from baps.server.strategies.first import First
from baps.server.strategies.random import RandomStrategy
from baps.server.training_cases import labelled_cases
from benchmarks.performance import archive_pacs
from benchmarks.performance.archive_pacs import (
    IMAGE_SIZE,
    SLICES,
    Archive,
    make_image,
    modality,
    series_uid,
    serve,
    study_uid,
)

SERIES = 1000
LABELS = {"ball": 1}


class _Pacs:
    """A running stand-in for a PACS, and its address."""

    def __init__(self, archive: Archive) -> None:
        self.archive, self.server = archive, serve(archive)
        self.address = f"http://127.0.0.1:{self.server.server_port}/dicom-web"

    @property
    def requests(self) -> dict[str, int]:
        """Return the number of requests of each kind since the last call."""
        counts = dict(self.archive.request_counts)
        self.archive.request_counts.clear()
        return counts

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def pacs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Pacs]:
    from monailabel.config import settings

    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_CACHE_PATH", str(tmp_path / "cache"))
    running = _Pacs(Archive(SERIES, max_results=100))
    yield running
    running.close()


def _ball(radius: int = 12) -> NDArray[np.bool_]:
    i, j, k = np.indices((IMAGE_SIZE, IMAGE_SIZE, SLICES))
    return np.asarray((i - 32) ** 2 + (j - 32) ** 2 + ((k - 12) * 1.5) ** 2 < radius**2)


def _submit(store: PacsDatastore, number: int, folder: Path, mask: NDArray[np.bool_] | None = None) -> None:
    image = read_volume(Path(store.get_image_uri(series_uid(number))))
    write_nifti(folder / "label.nii.gz", Volume((_ball() if mask is None else mask).astype(np.uint8), image.affine))
    info = {"label_info": [{"name": "ball", "idx": 1}]}
    save_label(store, LABELS, series_uid(number), folder / "label.nii.gz", "final", info)


def _seg(number: int, mask: NDArray[np.bool_]) -> Any:
    """Return a label as another program would create it."""
    sources = [make_image(number, k) for k in range(SLICES)]
    affine = np.diag([-2.0, -2.0, 3.0, 1.0])
    affine[:2, 3] = 64.0
    image = Volume(np.zeros(mask.shape, np.int16), affine)
    return write_segmentation(sources, image, {"ball": mask}, {"ball": frozenset()}, datetime.now(timezone.utc))


def _post(store: PacsDatastore, label: Any, folder: Path) -> tuple[requests.Response, list[str]]:
    """Store a label through the server, as OHIF does."""
    label.save_as(folder / "seg.dcm", write_like_original=False)
    content = (folder / "seg.dcm").read_bytes()
    body = b"--part\r\nContent-Type: application/dicom\r\n\r\n" + content + b"\r\n--part--\r\n"
    headers = {"content-type": 'multipart/related; type="application/dicom"; boundary=part'}
    return store.store_objects("", "studies", headers, body)


def test_a_known_series_is_cached(pacs: _Pacs, monkeypatch: pytest.MonkeyPatch) -> None:
    store, uid = open_pacs(pacs.address), series_uid(700)
    store.get_image_uri(uid)
    assert pacs.requests == {"search": 1, "objects": 1}
    for _ in range(20):
        assert store.has_image(uid)
        store.get_image_uri(uid)
    assert pacs.requests == {}
    monkeypatch.setattr("baps.server.datastores.dicomweb.series.FRESH_SECONDS", -1.0)
    store.get_image_uri(uid)
    assert pacs.requests == {"search": 1}


def test_series_are_counted_without_listing_them(pacs: _Pacs) -> None:
    store = open_pacs(pacs.address)
    assert store.status() == {"total": SERIES, "completed": 0, "label_tags": {}}
    requests_sent = pacs.requests
    assert requests_sent["search"] < 25
    assert store.status()["total"] == SERIES
    assert pacs.requests == {}


@pytest.mark.parametrize("series", [1, 49, 50, 199, 200, 201])
def test_any_number_of_series_is_counted_and_listed_completely(pacs: _Pacs, series: int) -> None:
    pacs.archive.series = series
    store = open_pacs(pacs.address)
    images = [series_uid(n) for n in range(series) if modality(n) in ("CT", "MR")]
    assert store.list_images() == images
    assert store.status()["total"] in (len(images), series)


def test_new_labels_are_counted(pacs: _Pacs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = [n for n in range(100) if modality(n) == "CT"][:6]
    for number in numbers[:5]:
        label = _seg(number, _ball())
        pacs.archive.stored[label.SOPInstanceUID] = label
    store = open_pacs(pacs.address)
    assert store.get_labeled_images() == sorted(map(series_uid, numbers[:5]))
    assert pacs.requests["metadata"] == 5
    label = _seg(numbers[5], _ball())
    pacs.archive.stored[label.SOPInstanceUID] = label
    store.invalidate()
    assert len(store.get_labeled_images()) == 6
    assert pacs.requests == {"search": 3, "metadata": 1}
    again = open_pacs(pacs.address)  # The register survives a restart.
    assert len(again.get_labeled_images()) == 6
    assert pacs.requests == {"search": 2}
    del pacs.archive.stored[label.SOPInstanceUID]
    again.invalidate()
    assert series_uid(numbers[5]) not in again.get_labeled_images()


def test_a_broken_register_is_created_again(pacs: _Pacs, tmp_path: Path) -> None:
    store = open_pacs(pacs.address)
    _submit(store, 0, tmp_path)
    (file,) = (tmp_path / "cache").rglob("labels.sqlite")
    file.write_bytes(b"junk" * 4096)
    assert open_pacs(pacs.address).get_labeled_images() == [series_uid(0)]


def test_next_sample_considers_one_page_and_reports_it(pacs: _Pacs) -> None:
    store = open_pacs(pacs.address)
    store.status()
    pacs.requests  # noqa: B018
    drawn = set()
    for _ in range(12):
        sample = RandomStrategy()({"strategy": "random"}, store)
        assert sample is not None
        assert f"a part of the {SERIES} series" in sample["reason"]
        drawn.add(int(sample["id"].rpartition(".")[2]) // 100)
    assert len(drawn) > 3  # Not only from the first page.
    assert pacs.requests["search"] <= 12 * 3
    images = store.find_candidates(True).images
    assert all(modality(int(image.rpartition(".")[2]) - 1) in ("CT", "MR") for image in images)
    assert First()({}, store)["id"] == series_uid(0)  # type: ignore[index]


def test_next_sample_skips_labelled_and_unusable_images(pacs: _Pacs, monkeypatch: pytest.MonkeyPatch) -> None:
    pacs.archive.series = 3  # Two images and a report.
    label = _seg(0, _ball())
    pacs.archive.stored[label.SOPInstanceUID] = label
    store = open_pacs(pacs.address)
    assert {RandomStrategy()({"strategy": "random"}, store)["id"] for _ in range(5)} == {series_uid(1)}  # type: ignore[index]
    pacs.archive.series = 5
    whole = archive_pacs.make_image

    def torn(number: int, k: int) -> Any:
        image = deepcopy(whole(number, k))  # The stand-in caches its images.
        if number == 3:
            image.ImagePositionPatient = [0.0, 0.0, 0.0]
        return image

    monkeypatch.setattr(archive_pacs, "make_image", torn)
    store = open_pacs(pacs.address)
    for _ in range(8):
        assert First()({}, store)["id"] in (series_uid(1), series_uid(4))  # type: ignore[index]
        assert RandomStrategy()({"strategy": "random"}, store)["id"] != series_uid(3)  # type: ignore[index]
    assert store.json()["unusable"].keys() <= {series_uid(3)}
    with pytest.raises(InputError, match="doubled slices"):
        store.get_image_uri(series_uid(3))
    assert pacs.requests["objects"] <= 4  # It is fetched once, and then known as unusable.
    assert store.status()["unusable"] == 1


def test_next_sample_reports_why_no_image_can_be_used(pacs: _Pacs, monkeypatch: pytest.MonkeyPatch) -> None:
    pacs.archive.series = 2
    store = open_pacs(pacs.address)

    def broken(_: str) -> str:
        raise InputError("The slices are doubled.")

    monkeypatch.setattr(store, "get_image_uri", broken)
    with pytest.raises(InputError, match="None of 2 images.*doubled"):
        RandomStrategy()({"strategy": "random"}, store)


def test_a_whole_slide_image_is_refused(pacs: _Pacs) -> None:
    store, slide = open_pacs(pacs.address), next(n for n in range(10) if modality(n) == "SM")
    assert not store.has_image(series_uid(slide))
    with pytest.raises(InputError, match="whole-slide image"):
        store.get_image_uri(series_uid(slide))
    with pytest.raises(NotFoundError, match="no series"):
        store.get_image_uri("1.2.3")
    with pytest.raises(NotFoundError, match="no series"):
        store.get_image_uri("../../etc/passwd")
    assert "objects" not in pacs.requests


def test_the_query_applies_to_lists_and_to_single_images(pacs: _Pacs) -> None:
    store = open_pacs(f"{pacs.address}?Modality=MR&StudyDate=20220101-20221231")
    images = store.list_images()
    assert images
    numbers = [int(image.rpartition(".")[2]) - 1 for image in images]
    assert all(modality(number) == "MR" and 2020 + number % 7 == 2022 for number in numbers)
    assert store.has_image(images[0])
    with pytest.raises(NotFoundError):
        store.get_image_uri(series_uid(0))


def test_the_worklist_applies_to_images_and_labels(pacs: _Pacs, tmp_path: Path) -> None:
    file = tmp_path / "worklist.txt"
    file.write_text(f"{study_uid(8)}\n{study_uid(400)}\n")
    store = open_pacs(pacs.address, worklist=file)
    images = [series_uid(n) for n in (8, 9, 11, 400, 401, 403) if modality(n) in ("CT", "MR")]
    assert sorted(store.list_images()) == sorted(images)
    assert store.status()["total"] == len(images)
    assert RandomStrategy()({"strategy": "random"}, store)["id"] in images  # type: ignore[index]
    with pytest.raises(NotFoundError):
        store.get_image_uri(series_uid(0))
    for number in (0, 8):
        label = _seg(number, _ball())
        pacs.archive.stored[label.SOPInstanceUID] = label
    store.invalidate()
    assert store.get_labeled_images() == [series_uid(8)]
    file.write_text(f"{study_uid(0)}\n")
    os.utime(file, ns=(1, 1))
    store.invalidate()
    assert store.get_labeled_images() == [series_uid(0)]
    assert store.has_image(series_uid(0))
    assert not store.has_image(series_uid(8))


def test_a_label_that_the_pacs_changes_is_not_reported_as_saved(pacs: _Pacs, tmp_path: Path) -> None:
    store = open_pacs(pacs.address)
    store_labels = pacs.archive.store

    def flipping(kind: str, body: bytes) -> Any:
        labels = store_labels(kind, body)
        for label in labels:
            label.PixelData = bytes(label.PixelData)[::-1]
        return labels

    pacs.archive.store = flipping  # type: ignore[method-assign]
    with pytest.raises(BapsError, match=r"does not read back as it was sent.*\*\.rejected") as caught:
        _submit(store, 0, tmp_path, _ball() & (np.indices((IMAGE_SIZE, IMAGE_SIZE, SLICES))[0] > 30))
    assert not isinstance(caught.value, InputError)
    assert [file.suffix for file in (tmp_path / "cache").rglob("unsent/*")] == [".rejected"]
    store.invalidate()
    assert store.status()["completed"] == 0
    assert store.get_labeled_images() == []


def test_a_label_that_the_pacs_stores_under_another_patient_is_not_reported_as_saved(
    pacs: _Pacs, tmp_path: Path
) -> None:
    store = open_pacs(pacs.address)
    store_labels = pacs.archive.store

    def coercing(kind: str, body: bytes) -> Any:
        labels = store_labels(kind, body)
        for label in labels:
            label.PatientID = "another"
        return labels

    pacs.archive.store = coercing  # type: ignore[method-assign]
    with pytest.raises(BapsError, match="another PatientID"):
        _submit(store, 0, tmp_path)
    assert store.get_labeled_images() == []


def test_a_label_that_cannot_be_read_back_is_kept_until_it_is_verified(
    pacs: _Pacs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baps.server.datastores.dicomweb.fetching._RETRY_SECONDS", (0.0,))
    store = open_pacs(pacs.address)
    store.get_image_uri(series_uid(0))
    with monkeypatch.context() as patched:
        patched.setattr(
            pacs.archive,
            "objects",
            lambda uid, instance="": [] if instance else archive_pacs.Archive.objects(pacs.archive, uid),
        )
        with pytest.raises(BapsError, match=r"did not give it back to be checked.*need not submit it again"):
            _submit(store, 0, tmp_path)
        assert len(list((tmp_path / "cache").rglob("unsent/*.dcm"))) == 1
        assert len(pacs.archive.stored) == 1
    store.invalidate()
    store.get_labeled_images()  # A query for labels sends and checks it again.
    assert store.get_labeled_images() == [series_uid(0)]
    assert len(pacs.archive.stored) == 1
    assert not list((tmp_path / "cache").rglob("unsent/*"))


def test_an_unreadable_export_does_not_count(pacs: _Pacs, tmp_path: Path) -> None:
    store = open_pacs(pacs.address)
    moved = _seg(0, _ball())
    for frame in moved.PerFrameFunctionalGroupsSequence:
        x, y, z = frame.PlanePositionSequence[0].ImagePositionPatient
        frame.PlanePositionSequence[0].ImagePositionPatient = [x + 0.7, y, z]
    response, notes = _post(store, moved, tmp_path)
    assert response.status_code == 200
    assert "does not count" in notes[0]
    assert "does not lie on the slices" in notes[0]
    assert store.get_labeled_images() == []
    assert open_pacs(pacs.address).get_labeled_images() == []  # The reason is registered.
    assert _post(store, _seg(0, _ball()), tmp_path)[1] == []
    assert store.get_labeled_images() == [series_uid(0)]
    cases, skipped = labelled_cases(store, LABELS, {})
    assert len(cases["ball"]) == 1
    assert not skipped
    np.testing.assert_array_equal(
        read_labels(cases["ball"][0].labels, read_volume(cases["ball"][0].image)) > 0, _ball()
    )


def _structures(number: int, mask: NDArray[np.bool_]) -> Any:
    sources = [make_image(number, k) for k in range(SLICES)]
    affine = np.diag([-2.0, -2.0, 3.0, 1.0])
    affine[:2, 3] = 64.0
    image = Volume(np.zeros(mask.shape, np.int16), affine)
    return write_structures(sources, image, {"ball": mask}, datetime.now(timezone.utc))


def test_a_structure_set_counts_if_the_metadata_lack_its_contours(pacs: _Pacs, monkeypatch: pytest.MonkeyPatch) -> None:
    label, read_header = _structures(0, _ball()), archive_pacs._header
    pacs.archive.stored[label.SOPInstanceUID] = label

    def bare(image: Any) -> Any:
        return {tag: value for tag, value in read_header(image).items() if tag != "30060039"}  # ROIContourSequence

    monkeypatch.setattr(archive_pacs, "_header", bare)
    store = open_pacs(pacs.address)
    assert store.get_labeled_images() == [series_uid(0)]
    requests_sent = pacs.requests
    assert (requests_sent["metadata"], requests_sent["objects"]) == (1, 1)
    store.invalidate()
    assert store.get_labeled_images() == [series_uid(0)]
    assert pacs.requests == {"search": 2}


def test_an_exported_structure_set_is_read_back(pacs: _Pacs, tmp_path: Path) -> None:
    store, moved = open_pacs(pacs.address), _structures(0, _ball())
    for contour in moved.ROIContourSequence[0].ContourSequence:
        contour.ContourData = [float(value) + 0.9 for value in contour.ContourData]
    response, notes = _post(store, moved, tmp_path)
    assert response.status_code == 200
    assert "does not count" in notes[0]
    assert "off the nearest slice" in notes[0]
    assert store.get_labeled_images() == []
    assert _post(store, _structures(0, _ball()), tmp_path)[1] == []
    assert store.get_labeled_images() == [series_uid(0)]


def test_both_formats_are_sent_later_if_the_pacs_is_offline(
    pacs: _Pacs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_pacs(pacs.address, label_format="both")
    store.get_image_uri(series_uid(0))
    with monkeypatch.context() as patched:
        patched.setattr(store._client, "store_instances", _unreachable)
        with pytest.raises(BapsError, match="need not submit it again"):
            _submit(store, 0, tmp_path)
    assert len(list((tmp_path / "cache").rglob("unsent/*.dcm"))) == 2
    assert not pacs.archive.stored
    store.invalidate()
    store.get_labeled_images()  # A query for labels sends them.
    assert sorted(str(label.Modality) for label in pacs.archive.stored.values()) == ["RTSTRUCT", "SEG"]
    assert store.get_labeled_images() == [series_uid(0)]


def _unreachable(_: Any) -> Any:
    raise requests.ConnectionError


def test_an_unreadable_label_stops_counting_when_it_is_read(pacs: _Pacs, tmp_path: Path) -> None:
    label = _seg(0, _ball())
    label.PixelData = b"\x00"
    pacs.archive.stored[label.SOPInstanceUID] = label
    store = open_pacs(pacs.address)
    assert store.get_labeled_images() == [series_uid(0)]  # Its header alone is read.
    with pytest.raises(InputError, match="cannot be read"):
        store.get_label_uri(series_uid(0), "final")
    assert store.get_labeled_images() == []
    pacs.requests  # noqa: B018
    with pytest.raises(InputError, match="cannot be read"):
        store.get_label_uri(series_uid(0), "final")
    assert "objects" not in pacs.requests
    assert FRESH_SECONDS > 5
