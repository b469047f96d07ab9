"""The pages about labels on a real PACS: states, versions, differences and readers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import requests
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from baps.errors import BapsError, NotFoundError
from baps.imaging.volume import Volume
from baps.io import read_volume, write_nifti
from baps.server.application import create_app
from baps.server.datastores.dicomweb import PacsDatastore, open_pacs
from baps.server.labels.save_labels import save_label
from baps.server.web.label_differences import find_difference
from baps.server.web.label_numbers import LabelNumbers
from baps.server.web.label_table import LabelState, list_labels
from baps.server.web.label_versions import read_version, read_versions
from baps.server.web.readers import Readers
from baps.site.settings import read_settings
from demo import orthanc
from tests.support.client import ADDRESS
from tests.support.series import Series, write_series
from tests.support.web_site import HTML

LABELS = {"liver": 1, "spleen": 2}
pytestmark = pytest.mark.skipif(bool(orthanc.missing()), reason=orthanc.missing())


@pytest.fixture
def pacs(empty_orthanc: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Series]:
    from monailabel.config import settings

    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_CACHE_PATH", str(tmp_path / "cache"))
    series = write_series(tmp_path / "dicom", "coronal")
    series.labels[series.labels > 2] = 0
    address = empty_orthanc()
    orthanc.store(address, tmp_path / "dicom")
    return f"{address}/dicom-web", series


def submit(store: PacsDatastore, series: Series, voxels: NDArray[np.uint8], folder: Path, **info: object) -> None:
    image = read_volume(Path(store.get_image_uri(series.uid)))
    write_nifti(folder / "label.nii.gz", Volume(voxels, image.affine))
    save_label(store, LABELS, series.uid, folder / "label.nii.gz", "final", info)


def part_of(series: Series, slices: int) -> NDArray[np.uint8]:
    """Return the label without the last slices of the spleen."""
    label = series.labels.copy()
    last = np.flatnonzero((label == 2).any((0, 1)))[-slices:]
    part = label[:, :, last]
    part[part == 2] = 0
    label[:, :, last] = part
    return label


def test_versions_differences_and_readers_of_a_pacs(pacs: tuple[str, Series], tmp_path: Path) -> None:
    address, series = pacs
    store = open_pacs(address)
    submit(store, series, series.labels, tmp_path, author="anna")
    submit(store, series, part_of(series, 1), tmp_path, author="boris")
    (row,) = list_labels(store, lambda _: "").rows
    assert (row.image, row.state) == (series.uid, LabelState.CONFIRMED)
    assert {one.organ: one.author for one in row.organs} == {"liver": "boris", "spleen": "boris"}
    versions = read_versions(store, series.uid).versions["spleen"]
    assert [(one.organs[0].author, one.serves, one.is_kept) for one in versions] == [
        ("boris", True, False),
        ("anna", False, False),
    ]
    loaded = [read_version(store, LABELS, series.uid, "final", one.name) for one in versions]
    (change,) = find_difference(loaded[1], loaded[0]).organs
    assert (change.organ, change.added, change.slices) == ("spleen", 0.0, 1)
    assert change.removed > 0
    with pytest.raises(NotFoundError):
        read_version(store, LABELS, series.uid, "final", "1.2.3 spleen")
    with pytest.raises(NotFoundError):
        read_versions(store, "1.2.3")

    class App:
        site = type("Site", (), {"labels": LABELS})

        @staticmethod
        def datastore() -> PacsDatastore:
            return store

    table = Readers(App()).compare()  # type: ignore[arg-type]
    assert {pair.organ: (pair.first, pair.second) for pair in table.pairs} == {
        "liver": ("anna", "boris"),
        "spleen": ("anna", "boris"),
    }
    assert {pair.organ: pair.dice for pair in table.pairs} == {"liver": None, "spleen": pytest.approx(1.0)}


def test_volumes_are_those_of_fetched_labels_and_nothing_is_fetched_for_the_table(
    pacs: tuple[str, Series], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, series = pacs
    store = open_pacs(address)
    submit(store, series, series.labels, tmp_path, author="anna")
    rows = list_labels(store, lambda _: "").rows
    monkeypatch.setattr(store, "_client", None)  # Every request fails.
    numbers = LabelNumbers(lambda: store, LABELS)
    assert numbers.get(rows) == [None]
    numbers.wait(60)
    (known,) = numbers.get(rows)
    assert known is not None
    image = read_volume(tmp_path / "label.nii.gz")
    voxel = abs(np.linalg.det(image.affine[:3, :3])) / 1000
    for organ, value in LABELS.items():
        assert known[organ].millilitres == pytest.approx((series.labels == value).sum() * voxel, rel=1e-3)
        assert known[organ].slices == (series.labels == value).any((0, 1)).sum()


def test_a_volume_is_shown_once_its_label_is_fetched(pacs: tuple[str, Series], tmp_path: Path) -> None:
    address, series = pacs
    store = open_pacs(address)
    submit(store, series, series.labels, tmp_path, author="anna")
    rows = list_labels(store, lambda _: "").rows
    numbers, segments = LabelNumbers(lambda: store, LABELS), Path(store._datastore_path) / "segments"
    segments.rename(tmp_path / "kept")
    numbers.get(rows)
    numbers.wait(60)
    assert numbers.get(rows) == [{}]  # Nothing is fetched for the table.
    (tmp_path / "kept").rename(segments)  # As a viewer or a training does by fetching it.
    numbers.get(rows)
    numbers.wait(60)
    (known,) = numbers.get(rows)
    assert known is not None
    assert set(known) == set(LABELS)


def test_labels_that_wait_that_are_refused_and_that_nobody_confirmed(
    pacs: tuple[str, Series], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pydicom.dataset import Dataset

    address, series = pacs
    store = open_pacs(address)
    submit(store, series, series.labels, tmp_path, author="anna")
    submit(store, series, part_of(series, 100), tmp_path, author="anna", model="bundled")  # Kept here, as original.
    taken = part_of(series, int((series.labels == 2).any((0, 1)).sum()) - 1)
    submit(store, series, taken, tmp_path, author="boris")  # Takes the spleen away, so it is marked.

    def broken(*_: object, **__: object) -> None:
        raise requests.ConnectionError("gone")

    refused = Dataset()
    refused.FailedSOPSequence = [Dataset()]
    for answer in (broken, lambda _: refused):
        with monkeypatch.context() as patched:
            patched.setattr(store._client, "store_instances", answer)
            with pytest.raises(BapsError):
                submit(store, series, part_of(series, 1), tmp_path, author="carla")
    with monkeypatch.context() as patched:
        patched.setattr(store._sender, "try_send_waiting", lambda: None)
        table = list_labels(store, lambda _: "")
    states = {state: count for state, count in table.counts.items() if count}
    assert states[LabelState.CONFIRMED] == 1
    assert states[LabelState.WAITING] == states[LabelState.REFUSED] == 2  # The liver and the spleen.
    unconfirmed = [row for row in table.rows if row.state is LabelState.UNCONFIRMED]
    assert {(row.tag, *(organ.organ for organ in row.organs)) for row in unconfirmed} >= {
        ("final", "spleen"),
    }
    assert any(row.tag == "original" for row in unconfirmed)
    assert not table.knows_images


def test_the_pages_of_a_site_with_a_pacs(pacs: tuple[str, Series], tmp_path: Path) -> None:
    address, series = pacs
    store = open_pacs(address)
    submit(store, series, series.labels, tmp_path, author="anna")
    submit(store, series, part_of(series, 1), tmp_path, author="boris")
    given = {"labels": "spleen=2,liver=1", "adapters": str(tmp_path / "adapters"), "evidence_images_per_label": "0"}
    with TestClient(create_app(read_settings(given), address), ADDRESS, client=("127.0.0.1", 5)) as client:
        state = client.app.state.web  # type: ignore[attr-defined]
        for value in (state.labels, state.readers, state.next_samples):
            assert value.get(wait=60).error == ""
        text = client.get("/web/labels", headers=HTML).text
        assert series.uid in text
        assert "boris" in text
        page = client.get("/web/labels/image", params={"image": series.uid}, headers=HTML)
        assert page.status_code == 200
        assert "Objects in a PACS are never changed" in page.text
        newest = read_versions(store, series.uid).versions["spleen"][0]
        query = {"image": series.uid, "version": newest.name, "against": newest.previous}
        assert "Slice" in client.get("/web/labels/differences", params=query, headers=HTML).text
        form = {"image": series.uid, "tag": "final", "version": newest.previous, "shown": ""}
        reply = client.post("/web/labels/restore", data=form, headers={**HTML, "Origin": ADDRESS})
        assert (reply.status_code, "The PACS keeps the versions" in reply.text) == (400, True)
        for path in ("/web/labels/readers", "/web/labels/next"):
            assert client.get(path, headers=HTML).status_code == 200
