"""Labels of a real PACS are saved as DICOM SEG, read back and used for training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import requests
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from baps.adapters.adapter import identity_adapter
from baps.errors import BapsError, InputError
from baps.evaluation.cases import Case
from baps.imaging.volume import Volume
from baps.inference.volume_segmenter import VolumeSegmenter
from baps.io import read_labels, read_volume, write_nifti
from baps.io.dicom.seg import write_segmentation
from baps.registry.evidence import read_evidence
from baps.registry.store import AdapterStore
from baps.server.datastores.dicomweb import PacsDatastore, open_pacs
from baps.server.evidence import EvidenceCollector, VolumeJudge
from baps.server.labels.save_labels import save_label, save_mask
from baps.server.training_cases import labelled_cases
from baps.site.audit import AuditFile
from baps.site.settings import Settings
from demo import orthanc
from tests.support.flood import FloodBlackBox, emptying_adapter, flood_record
from tests.support.series import Series, write_series

LABELS = {"liver": 1, "spleen": 2}
pytestmark = pytest.mark.skipif(bool(orthanc.missing()), reason=orthanc.missing())


@pytest.fixture
def pacs(empty_orthanc: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Series]:
    """Orthanc with one coronal series, whose axes all differ from those of the sample."""
    from monailabel.config import settings

    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_CACHE_PATH", str(tmp_path / "cache"))
    series = write_series(tmp_path / "dicom", "coronal")
    address = empty_orthanc()
    orthanc.store(address, tmp_path / "dicom")
    return f"{address}/dicom-web", replace(series, labels=np.where(series.labels > 2, 0, series.labels))


def _submit(store: PacsDatastore, series: Series, voxels: NDArray[np.uint8], folder: Path, **info: object) -> None:
    image = read_volume(Path(store.get_image_uri(series.uid)))
    write_nifti(folder / "label.nii.gz", Volume(voxels, image.affine))
    save_label(store, LABELS, series.uid, folder / "label.nii.gz", "final", info)


def _stored(store: PacsDatastore) -> list[dict[str, object]]:
    """Return the series of labels in the PACS."""
    listed: list[dict[str, object]] = store._client.search_for_series(search_filters={"Modality": "SEG"})
    return listed


def _headers(folder: Path) -> list[Dataset]:
    return [pydicom.dcmread(file, stop_before_pixels=True) for file in (folder / "dicom").glob("*.dcm")]


def test_a_submitted_label_counts_at_once(pacs: tuple[str, Series], tmp_path: Path) -> None:
    address, series = pacs
    store = open_pacs(address)
    assert store.status()["completed"] == 0
    _submit(store, series, series.labels, tmp_path)
    assert store.status()["completed"] == 1
    assert (store.get_labeled_images(), store.get_unlabeled_images()) == ([series.uid], [])
    other = open_pacs(address)  # Like the training process.
    cases, skipped = labelled_cases(other, LABELS, {})
    assert skipped == {}
    for name, value in LABELS.items():
        (case,) = cases[name]
        assert case.patient == "phantom-coronal"
        image = read_volume(case.image)
        np.testing.assert_array_equal(read_labels(case.labels, image) == case.value, series.labels == value)
        assert case.annotated_slices == set(np.flatnonzero((series.labels == value).any((0, 1))).tolist())
    labelmap = read_labels(Path(other.get_label_uri(series.uid, "final")), image)
    assert other.get_label_info(series.uid, "final")["label_info"] == [
        {"name": "liver", "idx": 1},
        {"name": "spleen", "idx": 2},
    ]
    np.testing.assert_array_equal(labelmap, series.labels)
    assert [Path(pair["image"]).name for pair in other.datalist()] == [f"{series.uid}.nii.gz"]


def test_a_submitted_label_judges_adapters_and_a_newer_one_replaces_it(
    pacs: tuple[str, Series], tmp_path: Path
) -> None:
    address, series = pacs
    datastore, site = open_pacs(address), Settings(labels=LABELS, adapters=tmp_path / "adapters")
    store, audit = AdapterStore(site.adapters), AuditFile(site.audit_file)
    audit.check()
    record = {"adapter": identity_adapter().to_dict(), "black_box": {"weights_sha256": "model"}}
    version = store.add("spleen", identity_adapter(), record)
    store.publish("spleen", version)
    judged: list[str] = []

    class FakeJudge:
        def __init__(self) -> None:
            self.store = store

        def identity(self) -> tuple[str, ...]:
            return ("model",)

        def score(self, label: str, files: Mapping[str, Path], case: Case, volume: str) -> dict[str, float]:
            judged.append(case.patient)
            return dict.fromkeys(files, 0.1 * len(judged))

    collector = EvidenceCollector(datastore, site, (FakeJudge(),), audit)
    for number in (1, 2):
        _submit(datastore, series, series.labels, tmp_path)
        collector.collect()
        collector.collect()
        stream = read_evidence(store, "spleen").gate.open(version, "model")
        assert judged == ["phantom-coronal"] * number
        assert stream.differences().tolist() == pytest.approx([0.1 * number])
    assert "phantom" not in store.evidence_file("spleen").read_text()


def test_a_submitted_label_judges_the_adapters_of_the_3d_model(pacs: tuple[str, Series], tmp_path: Path) -> None:
    address, series = pacs
    datastore, site = open_pacs(address), Settings(labels=LABELS, adapters=tmp_path / "adapters")
    audit, black_box = AuditFile(site.audit_file), FloodBlackBox()
    audit.check()
    judge = VolumeJudge(
        VolumeSegmenter(lambda: black_box, AdapterStore(site.adapters / "volumes")), site.adapters / "clicks.lock"
    )
    adapter, store = emptying_adapter(), judge.store
    version = store.add("spleen", adapter, flood_record(adapter))
    store.publish("spleen", version)
    collector = EvidenceCollector(datastore, site, (judge,), audit)
    for _ in range(2):
        _submit(datastore, series, series.labels, tmp_path)
        collector.collect()
        collector.collect()
    assert 0 < black_box.images_queried <= 12  # A label that is submitted again is judged again, and counts once.
    stream = read_evidence(store, "spleen").gate.open(version, " ".join(black_box.capabilities.identity))
    assert len(stream) == 1
    assert -1 <= stream.differences()[0] < 0


def test_the_newest_label_of_each_organ_is_used_despite_wrong_clocks(pacs: tuple[str, Series], tmp_path: Path) -> None:
    address, series = pacs
    store = open_pacs(address)
    image = read_volume(Path(store.get_image_uri(series.uid)))
    ahead = datetime.now(timezone.utc) + timedelta(hours=3)
    half = (series.labels == 2) & (np.indices(image.shape)[0] > image.shape[0] // 2)
    masks = {"liver": series.labels == 1, "spleen": half}
    slices = {name: frozenset(np.flatnonzero(mask.any((0, 1))).tolist()) for name, mask in masks.items()}
    store._client.store_instances([write_segmentation(_headers(tmp_path), image, masks, slices, ahead)])
    _submit(store, series, (2 * (series.labels == 2)).astype(np.uint8), tmp_path)
    cases, _ = labelled_cases(open_pacs(address), LABELS, {})
    np.testing.assert_array_equal(read_labels(cases["spleen"][0].labels, image) > 0, series.labels == 2)
    np.testing.assert_array_equal(read_labels(cases["liver"][0].labels, image) > 0, series.labels == 1)


def test_masks_of_a_model_are_saved_slice_by_slice(pacs: tuple[str, Series]) -> None:
    address, series = pacs
    store = open_pacs(address)
    image, spleen = read_volume(Path(store.get_image_uri(series.uid))), series.labels == 2
    first, second = np.flatnonzero(spleen.any((0, 1)))[:2].tolist()
    for number, k in enumerate((first, second, second)):
        new = save_mask(store, LABELS, series.uid, image, "spleen", spleen, [k], "baps")
        assert new == ("Saved as spleen." if number < 2 else "It was saved as spleen before.")
    (case,) = labelled_cases(open_pacs(address), LABELS, {})[0]["spleen"]
    expected = np.zeros(image.shape, bool)
    expected[:, :, [first, second]] = spleen[:, :, [first, second]]
    np.testing.assert_array_equal(read_labels(case.labels, image) > 0, expected)
    assert case.annotated_slices == {first, second}
    assert len(_stored(store)) == 2


def test_unconfirmed_labels_do_not_count(pacs: tuple[str, Series], tmp_path: Path) -> None:
    address, series = pacs
    store = open_pacs(address)
    image, spleen = read_volume(Path(store.get_image_uri(series.uid))), series.labels == 2
    label = write_segmentation(
        _headers(tmp_path), image, {"spleen": spleen}, {"spleen": frozenset({60})}, datetime.now(timezone.utc)
    )
    label.SegmentSequence[0].SegmentAlgorithmType = "AUTOMATIC"
    label.SegmentSequence[0].SegmentAlgorithmName = "another program"
    store._client.store_instances([label])
    assert store.status()["completed"] == 0
    assert labelled_cases(store, LABELS, {})[0]["spleen"] == []


def test_a_segmentation_with_another_geometry_is_skipped(pacs: tuple[str, Series], tmp_path: Path) -> None:
    address, series = pacs
    store = open_pacs(address)
    image = read_volume(Path(store.get_image_uri(series.uid)))
    masks = {"liver": series.labels == 1, "spleen": series.labels == 2, "Segment 1": series.labels == 1}
    slices = {name: frozenset(np.flatnonzero(mask.any((0, 1))).tolist()) for name, mask in masks.items()}
    label = write_segmentation(_headers(tmp_path), image, masks, slices, datetime.now(timezone.utc))
    for frame in label.PerFrameFunctionalGroupsSequence:
        x, y, z = frame.PlanePositionSequence[0].ImagePositionPatient
        frame.PlanePositionSequence[0].ImagePositionPatient = [x + 1.4, y, z]
    store._client.store_instances([label])
    cases, skipped = labelled_cases(store, LABELS, {})
    assert cases == {"liver": [], "spleen": []}
    assert skipped.keys() == {f"{series.uid}, liver", f"{series.uid}, spleen"}
    assert "does not lie on the slices of its series" in skipped[f"{series.uid}, liver"]
    assert not list(tmp_path.rglob(".partial-*"))
    _, skipped = labelled_cases(store, {"heart": 1}, {})
    assert "is a label of this site: heart" in skipped[series.uid]


def test_a_label_without_names_is_refused(pacs: tuple[str, Series], tmp_path: Path) -> None:
    address, series = pacs
    store = open_pacs(address)
    with pytest.raises(InputError, match=r"The values \[1\] of the label have no name"):
        _submit(store, series, series.labels, tmp_path, label_info=[{"name": "spleen", "idx": 2}])
    assert store.status()["completed"] == 0


def test_a_label_that_the_pacs_rejects_is_reported(
    pacs: tuple[str, Series], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, series = pacs
    store = open_pacs(address)

    def broken(*_: object, **__: object) -> None:
        raise requests.ConnectionError("gone")

    with monkeypatch.context() as patched:
        patched.setattr(store._client, "store_instances", broken)
        with pytest.raises(BapsError, match="cannot be reached"):
            _submit(store, series, series.labels, tmp_path)
        assert store.status()["completed"] == 0
    refused = Dataset()
    refused.FailedSOPSequence = [Dataset()]
    with monkeypatch.context() as patched:
        patched.setattr(store._client, "store_instances", lambda _: refused)
        with pytest.raises(BapsError, match="did not take the label"):
            _submit(store, series, series.labels, tmp_path)
    _submit(store, series, series.labels, tmp_path)
    assert store.status()["completed"] == 1


def test_drafts_are_not_sent_to_the_pacs(pacs: tuple[str, Series], tmp_path: Path) -> None:
    address, series = pacs
    store = open_pacs(address)
    _submit(store, series, series.labels, tmp_path, model="baps")  # It is of a model, and nobody confirmed it.
    assert store.status()["completed"] == 0
    draft = store.get_label_uri(series.uid, "original")
    np.testing.assert_array_equal(np.asarray(nibabel.load(draft).dataobj), series.labels)
    assert _stored(store) == []


def test_the_status_is_cached_and_an_export_counts_at_once(
    pacs: tuple[str, Series], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, series = pacs
    store = open_pacs(address)
    store.status()
    assert store.has_image(series.uid)
    with monkeypatch.context() as patched:
        patched.setattr(store._client, "search_for_series", None)
        store.status()
        assert store.has_image(series.uid)
    image, spleen = read_volume(Path(store.get_image_uri(series.uid))), series.labels == 2
    slices = {"spleen": frozenset(np.flatnonzero(spleen.any((0, 1))).tolist())}
    label = write_segmentation(_headers(tmp_path), image, {"spleen": spleen}, slices, datetime.now(timezone.utc))
    label.save_as(tmp_path / "seg.dcm")
    body = (
        b"--part\r\nContent-Type: application/dicom\r\n\r\n" + (tmp_path / "seg.dcm").read_bytes() + b"\r\n--part--\r\n"
    )
    headers = {"content-type": 'multipart/related; type="application/dicom"; boundary=part'}
    assert store.store_objects("wado", "studies", headers, body)[0].status_code == 200
    assert store.status()["completed"] == 1


def _store(
    store: PacsDatastore, folder: Path, image: Volume, masks: dict[str, NDArray[np.bool_]], **changes: str
) -> None:
    """Store a SEG in the PACS as another program would, with changes of its first segment or of itself."""
    slices = dict.fromkeys(masks, frozenset[int]())
    label = write_segmentation(_headers(folder), image, masks, slices, datetime.now(timezone.utc))
    for keyword, value in changes.items():
        setattr(label.SegmentSequence[0] if keyword.startswith("Segment") else label, keyword, value)
    store._client.store_instances([label])
    store.invalidate()


def test_a_newer_unusable_object_does_not_hide_an_older_one(pacs: tuple[str, Series], tmp_path: Path) -> None:
    """It does not prevent saving either."""
    address, series = pacs
    store = open_pacs(address)
    image, spleen = read_volume(Path(store.get_image_uri(series.uid))), series.labels == 2
    _store(store, tmp_path, image, {"spleen": spleen})
    shifted = Volume(image.voxels, image.affine)
    moved = write_segmentation(
        _headers(tmp_path), shifted, {"spleen": spleen}, {"spleen": frozenset()}, datetime.now(timezone.utc)
    )
    for frame in moved.PerFrameFunctionalGroupsSequence:
        x, y, z = frame.PlanePositionSequence[0].ImagePositionPatient
        frame.PlanePositionSequence[0].ImagePositionPatient = [x + 1.4, y, z]
    store._client.store_instances([moved])
    cases, skipped = labelled_cases(open_pacs(address), LABELS, {})
    np.testing.assert_array_equal(read_labels(cases["spleen"][0].labels, image) > 0, spleen)
    assert "An older label is used" in skipped[f"{series.uid}, spleen, newer"]
    k = int(np.flatnonzero(spleen.any((0, 1)))[0])
    less = spleen & (np.indices(spleen.shape)[0] % 2 == 0)
    assert save_mask(store, LABELS, series.uid, image, "spleen", less, [k], "baps") == "Saved as spleen."


def test_one_broken_object_does_not_stop_the_others(pacs: tuple[str, Series], tmp_path: Path) -> None:
    address, series = pacs
    store = open_pacs(address)
    image = read_volume(Path(store.get_image_uri(series.uid)))
    _store(store, tmp_path, image, {"spleen": series.labels == 2})
    _store(store, tmp_path, image, {"liver": series.labels == 1}, SegmentNumber="")
    _store(store, tmp_path, image, {"liver": series.labels == 1}, ContentDate="99991231")
    cases, _ = labelled_cases(open_pacs(address), LABELS, {})
    assert {name: len(segments) for name, segments in cases.items()} == {"liver": 1, "spleen": 1}
    _submit(store, series, series.labels, tmp_path)


def test_slices_are_not_lost_if_the_pacs_lists_labels_late(
    pacs: tuple[str, Series], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, series = pacs
    store = open_pacs(address)
    image, spleen = read_volume(Path(store.get_image_uri(series.uid))), series.labels == 2
    search = store._client.search_for_series

    def late(**arguments: int) -> list[dict[str, object]]:
        return [row for row in search(**arguments) if row["00080060"]["Value"] != ["SEG"]]

    monkeypatch.setattr(store._client, "search_for_series", late)
    first, second = np.flatnonzero(spleen.any((0, 1)))[:2].tolist()
    for k in (first, second):
        save_mask(store, LABELS, series.uid, image, "spleen", spleen, [k], "baps")
    (case,) = labelled_cases(open_pacs(address), LABELS, {})[0]["spleen"]
    assert case.annotated_slices == {first, second}


def test_a_pacs_that_ignores_offsets_is_listed_once(pacs: tuple[str, Series], monkeypatch: pytest.MonkeyPatch) -> None:
    address, series = pacs
    store = open_pacs(address)
    whole = store._client.search_for_series()
    monkeypatch.setattr(store._client, "search_for_series", lambda **_: whole)
    assert store.list_images() == [series.uid]


def test_a_series_with_new_slices_is_fetched_again(pacs: tuple[str, Series], tmp_path: Path) -> None:
    address, _ = pacs
    other = write_series(tmp_path / "later", "axial", patient="later")
    files = sorted((tmp_path / "later").glob("*.dcm"))
    instances = address.removesuffix("/dicom-web") + "/instances"
    for file in files[:10]:
        requests.post(instances, data=file.read_bytes(), timeout=30)
    store = open_pacs(address)
    assert read_volume(Path(store.get_image_uri(other.uid))).shape[2] == 10
    for file in files[10:]:
        requests.post(instances, data=file.read_bytes(), timeout=30)
    store.invalidate()
    assert read_volume(Path(store.get_image_uri(other.uid))).shape[2] == 24
    _submit(store, other, np.where(other.labels > 2, 0, other.labels), tmp_path)
