"""The response to a HEAD request has the headers of the response to GET."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pydicom
import pytest
import requests

from baps.demo.server import running_server
from demo import orthanc
from tests.support.paths import ROOT
from tests.support.sites import SAMPLES, Site

SAMPLE = ROOT / "sample-data" / "dicom" / "ct_01"
HEADERS = ("Content-Length", "Content-Type", "ETag", "Last-Modified", "Content-Disposition")


def check(address: str) -> bytes:
    """Compare HEAD with GET; the file."""
    head = requests.head(address, timeout=60)
    assert (head.status_code, head.content) == (200, b"")
    result = requests.get(address, timeout=60)
    assert {name: head.headers[name] for name in HEADERS} == {name: result.headers[name] for name in HEADERS}
    assert int(head.headers["Content-Length"]) == len(result.content) > 0
    return result.content


def test_of_a_folder(own_server: Site) -> None:
    image = f"{own_server.address}/datastore/image?image=ct_01"
    content = check(image)
    assert content == (own_server.studies / "ct_01.nii.gz").read_bytes()
    for algorithm, of in (("SHA256", hashlib.sha256), ("MD5", hashlib.md5), ("", hashlib.sha256)):
        digest = of(content).hexdigest()
        named = f"{algorithm}:{digest}" if algorithm else digest
        assert requests.head(f"{image}&check_sum={named}", timeout=60).status_code == 200
        assert requests.head(f"{image}&check_sum={named[:-1]}x", timeout=60).status_code == 404
    label = f"{own_server.address}/datastore/label?tag=final"
    assert requests.head(f"{label}&image=ct_01", timeout=60).status_code == 404
    own_server.client.save_label("ct_01", str(SAMPLES / "labels" / "ct_01.nii.gz"))
    assert check(f"{label}&label=ct_01")
    assert requests.head(f"{label}&image=ct_01", timeout=60).headers["Content-Length"]  # As MONAI Label names it.
    assert requests.head(f"{own_server.address}/datastore/image?image=none", timeout=60).status_code == 404


@pytest.mark.slow
@pytest.mark.skipif(bool(orthanc.missing()), reason=orthanc.missing())
def test_of_a_series_that_the_server_has_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONAI_LABEL_DATASTORE_CACHE_PATH", str(tmp_path / "cache"))
    uid = pydicom.dcmread(next(SAMPLE.glob("*.dcm"))).SeriesInstanceUID
    settings = {"labels": "spleen=2,liver=1", "adapters": str(tmp_path / "adapters")}
    with orthanc.running_orthanc(tmp_path, reachable=True) as pacs:
        orthanc.store(pacs, SAMPLE)
        with running_server(f"{pacs}/dicom-web", tmp_path / "server.log", settings) as (address, _):
            assert not list((tmp_path / "cache").rglob("*.nii.gz"))
            assert check(f"{address}/datastore/image?image={uid}")
