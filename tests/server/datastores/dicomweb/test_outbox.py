"""A PACS that drops the connection: labels are kept, and sent once."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import requests
from pydicom.dataset import Dataset

from baps.errors import BapsError
from baps.imaging.volume import Volume
from baps.io import read_labels, read_volume, write_nifti
from baps.server.datastores.dicomweb import PacsDatastore, open_pacs
from baps.server.labels.save_labels import save_label, save_mask
from baps.server.training_cases import labelled_cases
from demo import orthanc
from tests.support.series import Series, write_series

LABELS = {"liver": 1, "spleen": 2}
pytestmark = pytest.mark.skipif(bool(orthanc.missing()), reason=orthanc.missing())


@dataclass
class Connection:
    """A connection to a PACS that can be cut while an object is stored.

    Attributes:
        pacs: Address of the PACS.
        address: Address of this end.
        cut: ``request`` forwards half of the request, ``reply`` all of it but no response; "" cuts nothing.
        cuts: Number of times that it was cut.
    """

    pacs: str
    cut: str = ""
    cuts: int = 0
    _listening: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}/dicom-web"

    def run(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            parts = urlsplit(self.pacs)
            far = socket.create_connection((str(parts.hostname), int(parts.port or 0)))
            cut = threading.Event()
            threading.Thread(target=self._pass, args=(near, far, cut, True), daemon=True).start()
            threading.Thread(target=self._pass, args=(far, near, cut, False), daemon=True).start()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _pass(self, source: socket.socket, target: socket.socket, cut: threading.Event, upstream: bool) -> None:
        with suppress(OSError):
            while data := source.recv(4096):
                if upstream and data.startswith(b"POST") and self.cut:
                    cut.set()
                if cut.is_set() and (not upstream or self.cut == "request"):
                    self.cuts += 1
                    if upstream:
                        target.sendall(data[: len(data) // 2])
                    break
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def connection(
    empty_orthanc: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Connection, Series]]:
    """A connection to Orthanc with one series."""
    from monailabel.config import settings

    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_CACHE_PATH", str(tmp_path / "cache"))
    series = write_series(tmp_path / "dicom", "axial")
    address = empty_orthanc()
    orthanc.store(address, tmp_path / "dicom")
    connection = Connection(address)
    threading.Thread(target=connection.run, daemon=True).start()
    yield connection, replace(series, labels=np.where(series.labels > 2, 0, series.labels))
    connection.close()


def _submit(store: PacsDatastore, series: Series, organ: str, folder: Path) -> None:
    image = read_volume(Path(store.get_image_uri(series.uid)))
    voxels = np.where(series.labels == LABELS[organ], LABELS[organ], 0).astype(np.uint8)
    write_nifti(folder / "label.nii.gz", Volume(voxels, image.affine))
    save_label(store, LABELS, series.uid, folder / "label.nii.gz", "final", {"author": "anna"})


def _labels(connection: Connection) -> list[str]:
    """Return the labels of the PACS, queried directly."""
    filters = {"Level": "Instance", "Query": {"Modality": "SEG"}}
    labels: list[str] = requests.post(f"{connection.pacs}/tools/find", json=filters, timeout=30).json()
    return labels


@pytest.mark.parametrize(("cut", "arrived"), [("request", 0), ("reply", 1)])
def test_a_label_is_sent_once_despite_a_lost_connection(
    connection: tuple[Connection, Series], tmp_path: Path, cut: str, arrived: int
) -> None:
    connection, series = connection
    store = open_pacs(connection.address)
    _submit(store, series, "liver", tmp_path)
    connection.cut = cut
    with pytest.raises(BapsError, match=r"PACS.*is kept on this server.*need not submit it again"):
        _submit(store, series, "spleen", tmp_path)
    assert connection.cuts > 0
    (waiting,) = (tmp_path / "cache").rglob("unsent/*.dcm")
    assert (waiting.stat().st_mode & 0o777, waiting.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert len(_labels(connection)) == 1 + arrived
    connection.cut = ""
    again = open_pacs(connection.address)  # As after a restart: the first query for labels sends it.
    again.status()
    assert not list(waiting.parent.iterdir())
    assert len(_labels(connection)) == 2
    cases, skipped = labelled_cases(open_pacs(connection.address), LABELS, {})
    assert skipped == {}
    for name, value in LABELS.items():
        image = read_volume(cases[name][0].image)
        np.testing.assert_array_equal(read_labels(cases[name][0].labels, image) > 0, series.labels == value)


def test_an_unsent_label_is_sent_before_slices_are_added(connection: tuple[Connection, Series], tmp_path: Path) -> None:
    connection, series = connection
    store = open_pacs(connection.address)
    image, spleen = read_volume(Path(store.get_image_uri(series.uid))), series.labels == 2
    first, second = np.flatnonzero(spleen.any((0, 1)))[:2].tolist()
    connection.cut = "request"
    with pytest.raises(BapsError, match="is kept on this server"):
        save_mask(store, LABELS, series.uid, image, "spleen", spleen, [first], "baps")
    with pytest.raises(BapsError, match="is kept on this server"):
        save_mask(store, LABELS, series.uid, image, "spleen", spleen, [second], "baps")
    connection.cut = ""
    save_mask(store, LABELS, series.uid, image, "spleen", spleen, [second], "baps")
    (case,) = labelled_cases(open_pacs(connection.address), LABELS, {})[0]["spleen"]
    assert case.annotated_slices == {first, second}
    assert len(_labels(connection)) == 2


def test_a_rejected_label_is_kept_and_does_not_delay_others(
    connection: tuple[Connection, Series], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, series = connection
    store = open_pacs(connection.address)
    refused, reason = Dataset(), Dataset()
    reason.FailureReason = 0xA900
    refused.FailedSOPSequence = [reason]
    with monkeypatch.context() as patched:
        patched.setattr(store._client, "store_instances", lambda _: refused)
        with pytest.raises(BapsError, match=r"did not take the label.*as \*.rejected"):
            _submit(store, series, "spleen", tmp_path)
    send = store._client.store_instances
    reason.FailureReason = 0x0111  # The PACS has it already: the response to the first request was lost.
    with monkeypatch.context() as patched:
        patched.setattr(store._client, "store_instances", lambda labels: (send(labels), refused)[1])
        _submit(store, series, "spleen", tmp_path)
    _submit(store, series, "liver", tmp_path)
    assert [file.suffix for file in (tmp_path / "cache").rglob("unsent/*")] == [".rejected"]
    assert len(_labels(connection)) == 2


def test_a_label_that_causes_a_server_error_does_not_delay_others(
    connection: tuple[Connection, Series], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, series = connection
    store = open_pacs(connection.address)
    send, stumbling = store._client.store_instances, requests.Response()
    stumbling.status_code = 500

    def stumble(labels: list[Dataset]) -> Dataset:
        if labels[0].SegmentSequence[0].SegmentLabel == "spleen":
            raise requests.HTTPError(response=stumbling)
        return send(labels)

    with monkeypatch.context() as patched:
        patched.setattr(store._client, "store_instances", stumble)
        with pytest.raises(BapsError, match=r"HTTP 500.*is kept on this server"):
            _submit(store, series, "spleen", tmp_path)
        _submit(store, series, "liver", tmp_path)
        assert len(_labels(connection)) == 1
        image = read_volume(Path(store.get_image_uri(series.uid)))
        with pytest.raises(BapsError, match="A part of spleen still waits"):
            save_mask(store, LABELS, series.uid, image, "spleen", series.labels == 2, [3], "baps")
    store.invalidate()
    assert set(store.newest_segments()[series.uid]) == set(LABELS)
    assert len(_labels(connection)) == 2
