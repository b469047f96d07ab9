"""Images of a real PACS, and of a faulty one."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pydicom
import pytest
import requests
from pydicom.encaps import encapsulate
from pydicom.uid import UID, UltrasoundMultiFrameImageStorage, VLWholeSlideMicroscopyImageStorage, generate_uid

from baps.demo.server import running_server
from baps.errors import BapsError, InputError, NotFoundError
from baps.imaging.volume import Volume
from baps.io import read_labels, read_volume, write_nifti
from baps.io.dicom.pixels import write_dataset
from baps.server.datastores.dicomweb import open_pacs
from baps.server.labels.save_labels import save_label
from baps.server.training_cases import labelled_cases
from demo import orthanc
from tests.support.paths import ROOT

SAMPLE = ROOT / "sample-data" / "dicom" / "ct_01"
FILES = sorted(SAMPLE.glob("*.dcm"))
HTJ2K = ROOT.parent / "shared" / "cases" / "dicom_htj2k" / "a.dcm"
needs_orthanc = pytest.mark.skipif(bool(orthanc.missing()), reason=orthanc.missing())


def _copy(folder: Path, modality: str, skip: tuple[int, ...] = (), sop_class: str = "") -> str:
    """Return the sample series with other UIDs."""
    series, study = generate_uid(), generate_uid()
    folder.mkdir(parents=True)
    for number, file in enumerate(FILES):
        if number in skip:
            continue
        image = pydicom.dcmread(file)
        image.SeriesInstanceUID, image.StudyInstanceUID, image.Modality = series, study, modality
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        if sop_class:
            image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = sop_class
        image.save_as(folder / f"{number:03}.dcm")
    return str(series)


@pytest.fixture(scope="module")
def pacs(empty_orthanc: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, str]]:
    """Orthanc with images of two modalities, one with missing slices, and a report; its series by their content."""
    folder = tmp_path_factory.mktemp("pacs")
    series = {
        "CT": str(pydicom.dcmread(FILES[0]).SeriesInstanceUID),
        "MR": _copy(folder / "mr", "MR"),
        "gap": _copy(folder / "gap", "CT", skip=(7, 8)),
        "SR": _copy(folder / "sr", "SR"),
    }
    address = empty_orthanc()
    orthanc.store(address, SAMPLE)
    orthanc.store(address, folder)
    return f"{address}/dicom-web", series


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from monailabel.config import settings

    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_CACHE_PATH", str(tmp_path / "cache"))
    return tmp_path / "cache"


@needs_orthanc
def test_images_of_all_modalities_are_listed(pacs: tuple[str, dict[str, str]], cache: Path) -> None:
    address, series = pacs
    store = open_pacs(address)
    assert set(store.list_images()) == {series["CT"], series["MR"], series["gap"]}
    assert set(store.get_unlabeled_images()) == set(store.list_images())
    assert store.get_labeled_images() == []


@needs_orthanc
def test_a_fetched_series_is_the_volume_of_its_files(pacs: tuple[str, dict[str, str]], cache: Path) -> None:
    address, series = pacs
    store = open_pacs(address)
    for name in ("CT", "MR"):
        fetched, expected = read_volume(Path(store.get_image_uri(series[name]))), read_volume(SAMPLE)
        np.testing.assert_array_equal(fetched.voxels, expected.voxels)
        assert fetched.same_geometry(expected)
        info = store.get_image_info(series[name])
        assert (info["Modality"], info["PatientID"], info["SeriesInstanceUID"]) == (name, "SAMPLE-CT-01", series[name])


@needs_orthanc
def test_a_series_is_fetched_once(
    pacs: tuple[str, dict[str, str]], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, series = pacs
    store = open_pacs(address)
    first = store.get_image_uri(series["CT"])
    monkeypatch.setattr(store._client, "iter_series", None)
    assert store.get_image_uri(series["CT"]) == first


@needs_orthanc
def test_a_series_with_missing_slices_is_refused_without_leftovers(
    pacs: tuple[str, dict[str, str]], cache: Path
) -> None:
    address, series = pacs
    store = open_pacs(address)
    with pytest.raises(InputError, match="slice"):
        store.get_image_uri(series["gap"])
    assert not list(cache.rglob("*.nii.gz"))
    assert not list(cache.rglob("*.dcm"))


@needs_orthanc
def test_an_interrupted_fetch_leaves_no_files(
    pacs: tuple[str, dict[str, str]], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, series = pacs
    store = open_pacs(address)
    iterate = store._client.iter_series

    def half(*arguments: str) -> Iterator[pydicom.Dataset]:
        for number, image in enumerate(iterate(*arguments)):
            if number == 5:
                raise requests.exceptions.ChunkedEncodingError("cut off")
            yield image

    with monkeypatch.context() as patched:
        patched.setattr(store._client, "iter_series", half)
        with pytest.raises(BapsError, match="incomplete response"):
            store.get_image_uri(series["CT"])
    assert not list(cache.rglob("*.nii.gz"))
    assert read_volume(Path(store.get_image_uri(series["CT"]))).shape == (128, 128, 24)


@needs_orthanc
def test_an_unknown_image_is_refused(pacs: tuple[str, dict[str, str]], cache: Path) -> None:
    with pytest.raises(NotFoundError, match="no series 1.2.3"):
        open_pacs(pacs[0]).get_image_uri("1.2.3")


@needs_orthanc
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("jpeg xl", r"transfer syntax is JPEG XL Lossless \(1.2.840.10008.1.2.4.110\)"),
        ("slide", "is a whole-slide image"),
    ],
)
def test_undecodable_and_unusable_images_are_skipped_with_a_reason(
    pacs: tuple[str, dict[str, str]], cache: Path, tmp_path: Path, kind: str, reason: str
) -> None:
    address, _ = pacs
    uid = _copy(tmp_path / "bad", "CT")
    first, *others = sorted((tmp_path / "bad").glob("*.dcm"))
    for file in others:
        file.unlink()
    image = pydicom.dcmread(first)
    if kind == "slide":
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = VLWholeSlideMicroscopyImageStorage
    else:
        image.PixelData = encapsulate([b"\xff\x0a" + bytes(98)])
        image["PixelData"].is_undefined_length = True
        image.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.110")
    write_dataset(first, image)
    orthanc.store(address.removesuffix("/dicom-web"), tmp_path / "bad")
    store = open_pacs(address)
    with pytest.raises(InputError, match=reason):
        store.get_image_uri(uid)
    assert uid not in store.get_unlabeled_images()
    assert store.get_unlabeled_images()


@needs_orthanc
@pytest.mark.skipif(not HTJ2K.exists(), reason="needs the cases beside the repository (shared/cases)")
def test_high_throughput_jpeg_2000_is_decoded(pacs: tuple[str, dict[str, str]], cache: Path) -> None:
    address, _ = pacs
    orthanc.store(address.removesuffix("/dicom-web"), HTJ2K.parent)
    uid = str(pydicom.dcmread(HTJ2K, stop_before_pixels=True).SeriesInstanceUID)
    expected = read_volume(HTJ2K)
    decoded = read_volume(Path(open_pacs(address).get_image_uri(uid)))
    assert np.array_equal(decoded.voxels, expected.voxels)
    assert decoded.same_geometry(expected)


def _bad(kind: str, folder: Path) -> str:
    """Write a series that is not a volume, or an ambiguous one, and return its SeriesInstanceUID."""
    uid = _copy(folder, "CT")
    files = sorted(folder.glob("*.dcm"))
    for number, file in enumerate(files):
        image = pydicom.dcmread(file)
        if kind == "tilted":
            x, y, z = image.ImagePositionPatient
            image.ImagePositionPatient = [x, y + number, z]
        if kind == "doubled" and number == 5:
            image.save_as(file)
            image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            image.save_as(folder / "again.dcm")
            continue
        if kind == "of two spacings" and number > 12:
            x, y, z = image.ImagePositionPatient
            image.ImagePositionPatient = [x, y, z + 3 * (number - 12)]
        if kind in ("in colour", "of several frames"):
            if number:
                file.unlink()
                continue
            frames, shape = (24, (24, 128, 128)) if kind == "of several frames" else (1, (128, 128, 3))
            levels = np.full(shape, 90, np.uint8)
            image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 8, 8, 7, 0
            image.PixelData = levels.tobytes()
            if kind == "in colour":
                image.SamplesPerPixel, image.PhotometricInterpretation, image.PlanarConfiguration = 3, "RGB", 0
            else:
                image.NumberOfFrames = frames
                image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = UltrasoundMultiFrameImageStorage
                del image.ImagePositionPatient, image.ImageOrientationPatient
        image.save_as(file)
    return uid


@needs_orthanc
@pytest.mark.parametrize(
    ("kind", "message"),
    [("doubled", r"doubled slices.*image 6.dcm"), ("of two spacings", r"The series has.*image 14.dcm")],
)
def test_an_unusable_series_is_refused_and_no_longer_offered(
    pacs: tuple[str, dict[str, str]], cache: Path, tmp_path: Path, kind: str, message: str
) -> None:
    address, _ = pacs
    uid = _bad(kind, tmp_path / "bad")
    orthanc.store(address.removesuffix("/dicom-web"), tmp_path / "bad")
    store = open_pacs(address)
    assert uid in store.get_unlabeled_images()
    with pytest.raises(InputError, match=message):
        store.get_image_uri(uid)
    assert uid not in store.get_unlabeled_images()
    assert not list(cache.rglob("*.nii.gz"))


@needs_orthanc
@pytest.mark.parametrize(("kind", "shape"), [("in colour", (128, 128, 1)), ("of several frames", (128, 128, 24))])
def test_colour_and_multi_frame_images_can_be_segmented(
    pacs: tuple[str, dict[str, str]], cache: Path, tmp_path: Path, kind: str, shape: tuple[int, int, int]
) -> None:
    address, _ = pacs
    uid = _bad(kind, tmp_path / "bad")
    orthanc.store(address.removesuffix("/dicom-web"), tmp_path / "bad")
    volume = read_volume(Path(open_pacs(address).get_image_uri(uid)))
    assert (volume.shape, volume.colour) == (shape, kind == "in colour")


@needs_orthanc
def test_a_tilted_gantry_keeps_the_positions_of_slices_and_labels(
    pacs: tuple[str, dict[str, str]], cache: Path, tmp_path: Path
) -> None:
    address, _ = pacs
    uid = _bad("tilted", tmp_path / "bad")
    orthanc.store(address.removesuffix("/dicom-web"), tmp_path / "bad")
    store = open_pacs(address)
    volume = read_volume(Path(store.get_image_uri(uid)))
    stored = read_volume(SAMPLE).voxels
    for k in range(24):  # The stack is straightened by 1 mm per slice.
        j = int(k / 2.8 + 0.5)
        np.testing.assert_array_equal(volume.voxels[:, j : j + 128, k], stored[:, :, k])
    np.testing.assert_allclose(volume.affine[:3, 2], [0, 0, 6], atol=1e-4)
    mask = volume.voxels > 100
    write_nifti(tmp_path / "label.nii.gz", Volume(mask.astype(np.uint8), volume.affine))
    named = {"label_info": [{"name": "bone", "idx": 1}]}
    save_label(store, {"bone": 1}, uid, tmp_path / "label.nii.gz", "final", named)
    (case,) = labelled_cases(open_pacs(address), {"bone": 1}, {})[0]["bone"]
    np.testing.assert_array_equal(read_labels(case.labels, volume) > 0, mask)


@contextmanager
def _answering(code: int, body: bytes = b"") -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.send_header("Content-Type", "application/dicom+json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/dicom-web"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("code", "body", "message"),
    [
        (401, b"", r"HTTP 401.*user and password"),
        (500, b"", r"HTTP 500"),
        (200, b"<html>", "incomplete response"),
    ],
)
def test_refusals_and_invalid_responses_are_reported(cache: Path, code: int, body: bytes, message: str) -> None:
    with _answering(code, body) as address, pytest.raises(BapsError, match=message) as caught:
        open_pacs(address).list_images()
    assert not isinstance(caught.value, InputError)  # The status is 503, because the request was valid.
    assert "127.0.0.1" not in str(caught.value)


def test_an_offline_pacs_is_reported(cache: Path) -> None:
    with _answering(200) as address:
        pass
    with pytest.raises(BapsError, match="cannot be reached"):
        open_pacs(address).list_images()


def test_a_slow_pacs_is_reported(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baps.server.datastores.dicomweb.client._TIMEOUT", (1.0, 0.3))
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        with pytest.raises(BapsError, match="did not answer"):
            open_pacs(f"http://127.0.0.1:{deaf.getsockname()[1]}/dicom-web").list_images()


@pytest.mark.slow
@needs_orthanc
def test_the_server_keeps_running_if_the_pacs_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONAI_LABEL_DATASTORE_CACHE_PATH", str(tmp_path / "cache"))
    click = {"params": '{"foreground": [[60, 60, 12]]}'}
    uid = str(pydicom.dcmread(FILES[0]).SeriesInstanceUID)
    settings = {"labels": "spleen=2", "adapters": str(tmp_path / "adapters")}
    with ExitStack() as running:
        with orthanc.running_orthanc(tmp_path, reachable=True) as address:
            orthanc.store(address, SAMPLE)
            log = tmp_path / "server.log"
            server, _ = running.enter_context(running_server(f"{address}/dicom-web", log, settings))
            paths = f"{server}/infer/zero_shot?image={uid}&output=image"
            assert requests.post(paths, data=click, timeout=60).status_code == 200
            assert requests.get(f"{server}/info/", timeout=60).json()["datastore"]["total"] == 1
            assert list((tmp_path / "cache").rglob("*.nii.gz"))
        deadline = time.monotonic() + 120  # The list of images is cached for some seconds.
        while (reply := requests.post(paths, data=click, timeout=120)).status_code == 200:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert reply.status_code == 503
        assert "cannot be reached" in reply.json()["detail"]
        assert "SAMPLE-CT-01" not in log.read_text()
