"""User, password and certificate of a PACS."""

from __future__ import annotations

import http.server
import json
import shutil
import ssl
import subprocess
import threading
from pathlib import Path

import pydicom
import pytest
import requests

from baps.demo.server import running_server
from baps.errors import BapsError, InputError
from baps.server.datastores.dicomweb import open_pacs
from baps.site import doctor
from baps.site.pacs_credentials import ACCOUNT, PacsCredentials, read_pacs_credentials
from demo import orthanc
from tests.support.paths import ROOT

SAMPLE = ROOT / "sample-data" / "dicom" / "ct_01"
SECRET = "open sesame"  # noqa: S105


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from monailabel.config import settings

    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_CACHE_PATH", str(tmp_path / "cache"))


def _file(folder: Path, content: str, mode: int = 0o600) -> Path:
    path = folder / "login.json"
    path.write_text(content)
    path.chmod(mode)
    return path


def test_credentials_are_read_from_a_private_file(tmp_path: Path) -> None:
    login = read_pacs_credentials(_file(tmp_path, json.dumps({"user": "baps", "password": SECRET})))
    assert (login.user, login.password, login.ca) == ("baps", SECRET, None)
    assert SECRET not in repr(login)


def test_without_a_file_the_credentials_come_from_the_environment() -> None:
    message = dict(zip(ACCOUNT, ("baps", SECRET), strict=True))
    assert read_pacs_credentials(None, message).account == (b"baps", SECRET.encode())
    assert read_pacs_credentials(None, {ACCOUNT[0]: "baps"}).account is None


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        ("{}", 0o640, "chmod 600"),
        ("{", 0o600, "cannot be used"),
        ('{"pass": "open sesame"}', 0o600, "pass"),
        ('{"ca": "/nowhere.pem"}', 0o600, "ca"),
    ],
)
def test_an_invalid_file_is_refused_without_quoting_it(tmp_path: Path, content: str, mode: int, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_pacs_credentials(_file(tmp_path, content, mode))
    assert SECRET not in str(caught.value)
    with pytest.raises(InputError, match="No such file"):
        read_pacs_credentials(tmp_path / "other.json")


def test_the_certificate_is_checked_with_the_given_authority(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/dicom+json")
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"https://127.0.0.1:{server.server_port}/dicom-web"
    try:
        assert open_pacs(address, PacsCredentials(ca=certificate)).list_images() == []
        with pytest.raises(BapsError, match="certificate of the PACS cannot be checked"):
            open_pacs(address).list_images()
        login = _file(tmp_path, json.dumps({"ca": str(certificate)}))
        assert doctor.pacs(address, login).message == "reachable, without series"
        assert "ca in the file that BAPS_PACS_CREDENTIALS names" in doctor.pacs(address).remedy
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
@pytest.mark.skipif(bool(orthanc.missing()), reason=orthanc.missing())
def test_the_server_and_forwarded_requests_use_the_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither arguments nor log contain the password, and a viewer's query reaches the PACS."""
    monkeypatch.setenv("MONAI_LABEL_DATASTORE_CACHE_PATH", str(tmp_path / "server-cache"))
    uid = str(pydicom.dcmread(next(SAMPLE.glob("*.dcm"))).SeriesInstanceUID)
    login = _file(tmp_path, json.dumps({"user": "baps", "password": SECRET}))
    with orthanc.running_orthanc(tmp_path, {"baps": SECRET}, reachable=True) as address:
        assert requests.get(f"{address}/dicom-web/studies", timeout=30).status_code == 401
        with pytest.raises(BapsError, match=r"HTTP 401.*user and password"):
            open_pacs(f"{address}/dicom-web").list_images()
        for file in SAMPLE.glob("*.dcm"):
            requests.post(f"{address}/instances", data=file.read_bytes(), auth=("baps", SECRET), timeout=30)
        settings = {"labels": "spleen=2", "adapters": str(tmp_path / "adapters"), "pacs_credentials": str(login)}
        log = tmp_path / "server.log"
        with running_server(f"{address}/dicom-web", log, settings) as (server, process):
            received = requests.get(f"{server}/proxy/dicom/qido/series", {"Modality": "CT"}, timeout=30)
            assert [series["0020000E"]["Value"] for series in received.json()] == [[uid]]
            none = requests.get(f"{server}/proxy/dicom/qido/series", {"Modality": "MR"}, timeout=30)
            assert none.json() == []
            assert requests.get(f"{server}/info/", timeout=60).json()["datastore"]["total"] == 1
            assert SECRET not in " ".join(process.cmdline())
            for method, path in (
                ("POST", "wado/studies/1.2/reject/113001%5EDCM"),
                ("POST", "servers/x/get"),
                ("GET", "servers"),
                ("GET", "wado/studies/..;/system"),
            ):
                refused = requests.request(method, f"{server}/proxy/dicom/{path}", timeout=30)
                assert refused.status_code == 400, path
                assert "is not forwarded" in refused.json()["detail"]
            planted = {"file": ("1.2.3.nii.gz", b"x")}
            added = requests.put(f"{server}/datastore/image?image=1.2.3", files=planted, timeout=30)
            assert (added.status_code, "images of its PACS" in added.json()["detail"]) == (400, True)
        assert SECRET not in log.read_text()
