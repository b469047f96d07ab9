from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from baps.blackbox.loading import BUNDLED_WEIGHTS
from baps.blackbox.weights import KNOWN_SHA256
from baps.errors import BapsError, InputError
from baps.site import doctor
from baps.site.doctor import Status, examine
from baps.site.roles import Role
from baps.site.settings import Settings
from baps.site.users import Users
from tests.support.faulty_nninteractive import faulty_nninteractive
from tests.support.faulty_server import FaultyServer
from tests.support.paths import ROOT

FAILED, OK, WARNING = Status.FAILED, Status.OK, Status.WARNING

Answer = tuple[int, str, bytes]


class FakePacs:
    """A DICOMweb root at ``/dicom-web`` that answers the search for series as it is told; keeps what it was asked."""

    def __init__(self) -> None:
        self.answer: Answer = (200, "application/dicom+json", b"[]")
        self.queries: list[tuple[str, str]] = []
        pacs = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                pacs.queries.append((self.path, self.headers.get("Authorization", "")))
                code, kind, content = pacs.answer if self.path.startswith("/dicom-web/") else (404, "text/html", b"")
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}/dicom-web"


@pytest.fixture
def fake_pacs(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakePacs]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in (*doctor.ACCOUNT, "MONAI_LABEL_QIDO_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    made = FakePacs()
    thread = Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def _series(*modalities: str) -> bytes:
    return json.dumps([{"00080060": {"vr": "CS", "Value": [name]}} for name in modalities]).encode()


def test_modalities_of_a_pacs(fake_pacs: FakePacs) -> None:
    fake_pacs.answer = (200, "application/dicom+json", _series("CT", "MR", "CT"))
    finding = doctor.pacs(fake_pacs.url + "/")
    assert finding.status is OK
    assert finding.message == "2 modalities in the first 3 series: 2 CT, 1 MR"
    [(path, account)] = fake_pacs.queries
    assert path.startswith("/dicom-web/series?limit=")
    assert account == ""


def test_a_pacs_that_ignores_the_query_is_a_warning(fake_pacs: FakePacs, tmp_path: Path) -> None:
    fake_pacs.answer = (200, "application/dicom+json", _series("CT", "MR", "CT"))
    (tmp_path / "worklist").write_text("1.2.3\n1.2.4\n")
    findings = doctor.pacs(f"{fake_pacs.url}/?Modality=CT", None, tmp_path / "worklist")
    assert fake_pacs.queries[0][0] == "/dicom-web/series?limit=100&Modality=CT"
    assert findings.status is WARNING
    assert "1 do not match STUDIES" in findings.message
    assert "worklist has 2 studies" in findings.message
    fake_pacs.answer = (200, "application/dicom+json", _series("CT", "CT"))
    assert doctor.pacs(f"{fake_pacs.url}?Modality=CT").status is OK
    with pytest.raises(InputError, match="'Modalty'"):
        doctor.pacs(f"{fake_pacs.url}?Modalty=CT")


def test_account_from_the_environment(fake_pacs: FakePacs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONAI_LABEL_DICOMWEB_USERNAME", "reader")
    monkeypatch.setenv("MONAI_LABEL_DICOMWEB_PASSWORD", "geheim")
    monkeypatch.setenv("MONAI_LABEL_QIDO_PREFIX", "qido")
    fake_pacs.answer = (401, "text/plain", b"")
    finding = doctor.pacs(fake_pacs.url)
    assert "geheim" not in repr(finding)
    [(path, account)] = fake_pacs.queries
    assert path.startswith("/dicom-web/qido/series?")
    assert base64.b64decode(account.removeprefix("Basic ")) == b"reader:geheim"


@pytest.mark.parametrize(
    ("answer", "status", "message", "remedy"),
    [
        ((401, "text/plain", b""), FAILED, "401", "MONAI_LABEL_DICOMWEB_USERNAME"),
        ((403, "text/plain", b""), FAILED, "403", "MONAI_LABEL_DICOMWEB_PASSWORD"),
        ((404, "text/plain", b""), FAILED, "404", "/dicom-web"),
        ((500, "text/plain", b""), FAILED, "500", "log"),
        ((200, "text/html", b"<html>Log in</html>"), FAILED, "text/html", "/dicom-web"),
        ((200, "application/json", b'{"error": "no"}'), FAILED, "not a DICOMweb", "/dicom-web"),
        ((200, "application/json", b"null"), FAILED, "not a DICOMweb", "/dicom-web"),
        ((200, "application/json", b'[{"00080060": {"Value": []}}]'), FAILED, "not a DICOMweb", "/dicom-web"),
        ((200, "application/dicom+json", b"[]"), WARNING, "without series", "Send"),
        ((204, "application/dicom+json", b""), WARNING, "without series", "Send"),
        ((200, "application/dicom+json", b"[{}]"), OK, "1 none", ""),
    ],
)
def test_other_responses_of_a_pacs(
    fake_pacs: FakePacs, answer: Answer, status: Status, message: str, remedy: str
) -> None:
    fake_pacs.answer = answer
    findings = doctor.pacs(fake_pacs.url)
    assert (findings.status, message in findings.message, remedy in findings.remedy) == (status, True, True), findings


def test_a_pacs_at_another_root(fake_pacs: FakePacs) -> None:
    findings = doctor.pacs(f"http://127.0.0.1:{fake_pacs.port}")
    assert findings.status is FAILED
    assert "/dicom-web" in findings.remedy


def test_an_unreachable_pacs(fake_pacs: FakePacs) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        findings = doctor.pacs(f"http://127.0.0.1:{nobody.getsockname()[1]}/dicom-web")
    assert findings.status is FAILED
    assert findings.message.startswith("not reachable")
    assert "refused" in findings.message


def test_a_pacs_without_tls(fake_pacs: FakePacs) -> None:
    findings = doctor.pacs(fake_pacs.url.replace("http:", "https:"))
    assert findings.status is FAILED
    assert findings.message.startswith("TLS error")
    assert "BAPS_PACS_CREDENTIALS" in findings.remedy


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl to make a certificate")
def test_a_pacs_with_an_unknown_certificate(fake_pacs: FakePacs, tmp_path: Path) -> None:
    words = "req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=127.0.0.1 -keyout key.pem -out certificate.pem"
    subprocess.run(["openssl", *words.split()], cwd=tmp_path, check=True, capture_output=True)  # noqa: S607
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")
    fake_pacs.server.socket = context.wrap_socket(fake_pacs.server.socket, server_side=True)
    findings = doctor.pacs(fake_pacs.url.replace("http:", "https:"))
    assert findings.status is FAILED
    assert "TLS error" in findings.message
    assert "certificate" in findings.message


def test_a_password_in_the_address_is_refused() -> None:
    with pytest.raises(InputError, match="environment"):
        doctor.pacs("https://reader:geheim@pacs/dicom-web")


def test_the_images_of_a_folder_are_counted(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz", "c.NRRD", "d.png", "readme.txt"):
        (tmp_path / name).touch()
    (tmp_path / "labels" / "final").mkdir(parents=True)
    (tmp_path / "labels" / "final" / "a.nii.gz").touch()
    series = tmp_path / "series"
    series.mkdir()
    (series / "IM0001").write_bytes(bytes(128) + b"DICM")
    finding = doctor.folder(str(tmp_path))
    assert finding.status is OK
    assert sorted(finding.message.split(", ")) == ["1 .nrrd", "1 .png", "1 DICOM series", "2 .nii.gz"]


def test_a_folder_with_images_in_a_subfolder(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    assert doctor.folder(str(tmp_path)).status is WARNING
    (tmp_path / "images" / "a.nii").touch()
    assert doctor.folder(str(tmp_path)).message == "1 .nii"


def test_unused_labels_are_a_warning(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "labels"):
        place.mkdir(exist_ok=True)
        (place / "a.nii.gz").touch()
    finding = doctor.folder(str(tmp_path))
    assert finding.status is Status.WARNING
    assert finding.message == f"1 .nii.gz; 1 files in {tmp_path}/labels look like labels, and are not used"
    assert finding.remedy == f"Import them: baps labels import {tmp_path}/labels {tmp_path} --dry-run"


def test_unusable_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="no folder"):
        doctor.folder(str(tmp_path / "file"))
    monkeypatch.setattr(
        "os.access", lambda _, mode: not mode & os.R_OK
    )  # Root may do all: the system's answer is played.
    findings = doctor.folder(str(tmp_path))
    assert findings.status is FAILED
    assert "chown" in findings.remedy


def test_a_folder_that_cannot_be_written_to_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.nii").touch()
    monkeypatch.setattr("os.access", lambda _, mode: not mode & os.W_OK)
    findings = doctor.folder(str(tmp_path))
    assert findings.status is WARNING
    assert findings.message == (
        "1 .nii; the folder cannot be written to: clicks work, but labels and images are not saved"
    )
    assert "Mount it with write permission" in findings.remedy


@pytest.mark.parametrize("images", [".", "images"])
def test_series_in_nested_folders_are_not_served(tmp_path: Path, images: str) -> None:
    for place in ("served", "patient/study/one", "patient/study/two", ".converted/no", "served/below"):
        (tmp_path / images / place).mkdir(parents=True)
        (tmp_path / images / place / "IM0001").write_bytes(bytes(128) + b"DICM")
    findings = doctor.folder(str(tmp_path))
    assert findings.status is WARNING
    assert findings.message == "1 DICOM series; 2 DICOM series in nested folders, which are not served"
    assert f"one series from each folder directly in {tmp_path / images}. Move the folder of each" in findings.remedy
    assert f"baps convert SERIES_FOLDER {tmp_path / images}" in findings.remedy


def test_image_files_in_nested_folders_are_not_served(tmp_path: Path) -> None:
    for place in (
        "a/1.nii.gz",
        "a/b/2.nrrd",
        "a/.hidden/3.nii.gz",
        "a/._4.nii.gz",
        "labels/final/5.nii.gz",
        "a/readme",
    ):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    findings = doctor.folder(str(tmp_path))
    assert findings.status is WARNING
    assert findings.message.startswith("no images; 2 image files in nested folders, which are not served")
    assert f"Move the image files directly into {tmp_path}." in findings.remedy


def test_dicom_files_outside_the_folder_of_a_series(tmp_path: Path) -> None:
    (tmp_path / "IM0001").write_bytes(bytes(128) + b"DICM")
    findings = doctor.folder(str(tmp_path))
    assert findings.status is WARNING
    assert "DICOM files that are not in the folder of a series" in findings.message
    assert "Move the files of each series into a folder of its own" in findings.remedy


def test_an_empty_folder(tmp_path: Path) -> None:
    finding = doctor.folder(str(tmp_path))
    assert (finding.status, finding.message) == (WARNING, "no images")
    assert finding.remedy == (
        f"Put images directly into {tmp_path}: NIfTI or NRRD files, or one folder per DICOM series."
    )


@pytest.mark.parametrize(
    ("version", "status"),
    [((3, 9), FAILED), ((3, 10), OK), ((3, 12), OK), ((3, 13), FAILED), ((4, 11), FAILED)],
)
def test_python(version: tuple[int, int], status: Status) -> None:
    finding = doctor.python_version(version)
    assert finding.status is status
    assert bool(finding.remedy) == (status is FAILED)


def test_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.package("pydicom", 3).status is OK
    assert "numpy<1" in doctor.package("numpy", 1).remedy
    assert doctor.package("no-such-package", 1).message == "not installed"


def test_torch_and_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.torch_pair().status is OK

    def nms(*_: object) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("torchvision.ops.nms", nms)
    findings = doctor.torch_pair()
    assert findings.status is FAILED
    assert "nms" in findings.message
    assert "torchvision" in findings.remedy


@pytest.mark.slow
def test_monai_label_imports() -> None:
    assert doctor.monai_label().status is OK


def test_a_monai_label_that_does_not_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "monailabel").mkdir()
    (tmp_path / "monailabel" / "__init__.py").write_text("import pydicom._storage_sopclass_uids_gone")
    monkeypatch.setattr(doctor, "server_environment", lambda: {**os.environ, "PYTHONPATH": str(tmp_path)})
    findings = doctor.monai_label()
    assert findings.status is FAILED
    assert "_storage_sopclass_uids_gone" in findings.message
    assert "constraints.txt" in findings.remedy


def test_dcmqi_is_needed_for_a_pacs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.dcmqi("http://pacs").status is OK
    monkeypatch.setattr(doctor, "server_environment", lambda: {"PATH": "/nowhere"})
    assert doctor.dcmqi("http://pacs").status is FAILED
    assert doctor.dcmqi("/data").status is WARNING


def test_a_busy_port_fails() -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        with pytest.raises(InputError, match=f"{port}.*--port"):
            doctor.port_free("127.0.0.1", port)
    assert doctor.port_free("127.0.0.1", port).status is OK
    if socket.has_ipv6:
        assert doctor.port_free("::1", port).message == f"{port} of [::1] is free"


EVERY_ADDRESS = "0.0.0.0"  # noqa: S104


def _openid(folder: Path, issuer: str = "https://login.hospital") -> Path:
    file = folder / "openid.json"
    file.write_text(json.dumps({"issuer": issuer, "client_id": "baps", "roles": {"radiologist": "annotator"}}))
    file.chmod(0o600)
    return file


def test_without_users_only_this_machine_may_connect(tmp_path: Path) -> None:
    findings = doctor.access(Settings(), "127.0.0.1")
    assert (findings.status, "this machine only" in findings.message) == (OK, True)
    with pytest.raises(InputError, match="let anyone in.*baps users add"):
        doctor.access(Settings(), EVERY_ADDRESS)
    with pytest.raises(InputError, match=r"cors_origins=\*"):
        doctor.access(Settings(cors_origins=("*",)), "127.0.0.1")


def test_a_server_with_users_is_closed(tmp_path: Path) -> None:
    users = Users(tmp_path / "users.json")
    users.add("anna", Role.ANNOTATOR)
    finding = doctor.access(Settings(users=users.file), EVERY_ADDRESS)
    assert (finding.status, finding.message) == (OK, f"open only to 1 users of {users.file}")
    both = doctor.access(Settings(users=users.file, openid=_openid(tmp_path)), EVERY_ADDRESS)
    assert "and users to whom https://login.hospital gives a role" in both.message
    users.remove("anna")
    nobody = doctor.access(Settings(users=users.file), EVERY_ADDRESS)
    assert (nobody.status, "closed to everyone" in nobody.message) == (WARNING, True)
    assert "baps users add" in nobody.remedy


def test_unusable_users(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        doctor.access(Settings(users=tmp_path / "absent.json"), "127.0.0.1")
    users = Users(tmp_path / "users.json")
    users.add("anna", Role.ADMIN)
    users.file.chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        doctor.access(Settings(users=users.file), "127.0.0.1")
    with pytest.raises(InputError, match="issuer"):
        doctor.access(Settings(openid=_openid(tmp_path, "http://login.hospital")), "127.0.0.1")


def test_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=4 << 30, total=8 << 30))
    assert doctor.memory(1024).status is OK
    findings = doctor.memory(1025)
    assert findings.status is WARNING
    assert "4.0 GB of 8.0 GB" in findings.message
    assert "--cache-mb (1025)" in findings.remedy


@pytest.mark.parametrize(
    ("name", "gpus", "status"),
    [
        ("auto", 0, OK),
        ("cpu", 0, OK),
        ("cuda", 0, FAILED),
        ("cuda:0", 0, FAILED),
        ("auto", 2, OK),
        ("cuda", 2, OK),
        ("cuda:1", 2, OK),
        ("cuda:2", 2, FAILED),
        ("tpu", 2, FAILED),
        ("cuda:0,cuda:1", 2, OK),
        ("cuda:0,cuda:2", 2, FAILED),
        ("cpu,cpu", 0, OK),
        ("cpu,tpu", 2, FAILED),
    ],
)
def test_devices(monkeypatch: pytest.MonkeyPatch, name: str, gpus: int, status: Status) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda number: f"GPU {number}")
    findings = doctor.device(name)
    assert findings.status is status
    assert ("GPU 1" in findings.message) == (gpus > 1)


def test_the_model() -> None:
    findings = doctor.model(Settings(device="cpu"))
    assert findings.status is OK
    assert "bundled" in findings.message


def test_a_replica_that_fails_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    sentence = "Replica 2 on cpu of the model bundled was killed by signal 9."
    monkeypatch.setattr("baps.blackbox.BlackBox.removed_replicas", (sentence,))
    findings = doctor.model(Settings(device="cpu"))
    assert (findings.status, sentence in findings.message) == (WARNING, True)
    assert "setting device" in findings.remedy


def test_weights_of_another_hash(tmp_path: Path) -> None:
    for path in (BUNDLED_WEIGHTS, BUNDLED_WEIGHTS.with_suffix(".json")):
        shutil.copy(path, tmp_path)
    site = Settings(weights=tmp_path / BUNDLED_WEIGHTS.name, device="cpu")
    with pytest.raises(InputError, match="SHA-256"):
        doctor.model(site.model_copy(update={"weights_sha256": "0" * 64}))
    assert doctor.model(site).status is OK


def test_a_model_that_understands_boxes_only(
    monkeypatch: pytest.MonkeyPatch, new_black_box: Callable[..., object]
) -> None:
    black_box = new_black_box()
    capabilities = black_box.capabilities  # type: ignore[attr-defined]
    black_box._capabilities = type(capabilities)(**{**vars(capabilities), "clicks": False})  # type: ignore[attr-defined]
    monkeypatch.setattr("baps.blackbox.load_black_box", lambda *_: black_box)
    assert doctor.model(Settings(black_box="sam", weights=Path("medsam.pth"), device="cpu")).status is OK
    [(images, [prompt])] = black_box.queries  # type: ignore[attr-defined]
    assert prompt.box is not None
    assert images.shape == (1, 32, 32, 3)
    assert not np.any(images)


@pytest.mark.parametrize(
    ("preprocessing", "sha256", "status"),
    [
        ("sam", "b" * 64, WARNING),
        ("sam", KNOWN_SHA256["sam_vit_b_01ec64.pth"], OK),
        ("medsam", "b" * 64, OK),
        ("canvas", "b" * 64, OK),
    ],
)
def test_unpublished_sam_may_be_medsam(
    monkeypatch: pytest.MonkeyPatch,
    new_black_box: Callable[..., object],
    preprocessing: str,
    sha256: str,
    status: Status,
) -> None:
    """The tensors of MedSAM do not tell it from SAM, and its file may have any name."""
    black_box = new_black_box(preprocessing=preprocessing)
    black_box._capabilities = replace(black_box.capabilities, weights_sha256=sha256)  # type: ignore[attr-defined]
    monkeypatch.setattr("baps.blackbox.load_black_box", lambda *_: black_box)
    finding = doctor.model(Settings(black_box="sam", weights=Path("model.pth"), device="cpu"))
    assert finding.status is status
    assert ("set black_box=medsam" in finding.remedy) == (status is WARNING)


def test_remote_models(faulty: FaultyServer) -> None:
    site = Settings(black_box="remote", remote=faulty.address)
    assert "faulty" in doctor.model(site).message
    assert faulty.image_counts == [1]
    with pytest.raises(BapsError, match="cannot be reached"):
        doctor.model(site.model_copy(update={"remote": f"http://127.0.0.1:{_free()}/faulty"}))


def test_the_3d_model() -> None:
    with faulty_nninteractive() as server:
        server.capabilities["license"] = "CC BY-NC-SA 4.0"
        site = Settings(volume_black_box="nninteractive", volume_remote=server.address)
        finding = doctor.volume_model(site)
        assert server.leases == set()
    assert finding.status is WARNING
    assert (
        "understands a click or a box or a box in one slice or a scribble or a lasso, and masks to correct"
        in finding.message
    )
    assert "CC BY-NC-SA 4.0: they are for non-commercial use only." in finding.remedy
    with pytest.raises(BapsError, match="cannot be reached"):
        doctor.volume_model(site)


def test_the_folder_of_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.adapters(tmp_path).status is OK
    assert doctor.adapters(tmp_path / "a" / "b").status is OK
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "adapters"):
        findings = doctor.adapters(place)
        assert findings.status is FAILED
        assert "--adapters" in findings.remedy
    monkeypatch.setattr("os.access", lambda *_: False)
    assert doctor.adapters(tmp_path).status is FAILED


def test_disk_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    small = tmp_path / "small"
    small.mkdir()
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(0, 0, (1 << 30) - (Path(path) == small)))
    assert doctor.disk([tmp_path, tmp_path / "absent"]).status is OK
    findings = doctor.disk([tmp_path, small])
    assert findings.status is WARNING
    assert str(small) in findings.message


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """Leaves out the check that takes seconds; settings that can be used."""
    monkeypatch.setattr(doctor, "monai_label", lambda: doctor.Finding(OK, "left out"))
    return {"adapters": str(tmp_path / "adapters"), "device": "cpu"}


def test_all_checks(quick: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "a.nii").touch()
    findings = examine(quick, str(tmp_path), port=_free())
    assert {"Python", "MONAI Label", "studies", "settings", "model", "adapters", "disk", "port"} <= set(findings)
    assert [name for name, finding in findings.items() if finding.status is FAILED] == []
    assert not {"studies", "PACS"} & set(examine(quick, port=_free()))
    assert not (tmp_path / "adapters").exists()


def test_all_failures_are_reported(quick: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unforeseen(*_: object) -> doctor.Finding:
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr(doctor, "dcmqi", unforeseen)
    (tmp_path / "file").touch()
    given = {"adapters": str(tmp_path / "file"), "weights_sha256": "0" * 64, "device": "cuda:99"}
    with socket.create_server(("127.0.0.1", 0)) as busy:
        findings = examine(given, str(tmp_path / "absent"), port=busy.getsockname()[1])
    failed = {name for name, finding in findings.items() if finding.status is FAILED}
    assert findings["users"].status is OK
    assert failed == {"dcmqi", "studies", "port", "adapters", "model", "device"}
    assert findings["dcmqi"].message == "ZeroDivisionError: by nought"
    assert all(findings[name].remedy or findings[name].message.endswith(".") for name in failed)


def test_settings_that_cannot_be_read(quick: dict[str, str]) -> None:
    findings = examine({**quick, "black_bix": "sam"}, port=_free())
    assert findings["settings"].status is FAILED
    assert "black_bix" in findings["settings"].message
    assert "model" not in findings


def test_missing_weights(quick: dict[str, str]) -> None:
    findings = examine({**quick, "black_box": "sam"}, port=_free())
    assert findings["settings"].status is OK
    assert "needs weights" in findings["model"].message


def test_a_3d_model_is_checked_where_there_is_one(quick: dict[str, str]) -> None:
    assert "3D model" not in examine(quick)
    findings = examine({**quick, "volume_black_box": "nninteractive"})
    assert findings["3D model"].status is FAILED
    assert "needs an address" in findings["3D model"].message


def test_missing_users(quick: dict[str, str]) -> None:
    findings = examine({**quick, "users": "/nowhere/users.json"}, port=_free())
    assert (findings["settings"].status, findings["users"].status) == (OK, FAILED)


def test_the_pacs_is_checked(quick: dict[str, str], fake_pacs: FakePacs) -> None:
    fake_pacs.answer = (200, "application/dicom+json", _series("CT"))
    findings = examine(quick, fake_pacs.url, port=_free())
    assert findings["PACS"].status is OK
    assert "studies" not in findings


@pytest.mark.slow
def test_baps_does_not_import_monai_label() -> None:
    program = "import sys; from baps.site.doctor import examine; examine({}); print('monailabel' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


def _free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_organ_model_says_its_licence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = SimpleNamespace(name="totalsegmentator", network=SimpleNamespace(classes=("liver",)), sha256="a" * 64)
    model.notice = "It is free."
    given = []
    monkeypatch.setattr("baps.fseft.models.load_organ_model", lambda *values: given.append(values) or model)
    site = Settings(organ_model=model.name, organ_weights=tmp_path, organ_weights_sha256=model.sha256, device="cpu")
    finding = doctor.organ_model(site)
    assert given == [(model.name, tmp_path, model.sha256, "cpu")]
    assert finding.status is OK
    assert f"totalsegmentator, 1 organs, SHA-256 {model.sha256}, loaded in" in finding.message
    assert finding.message.endswith("s. It is free")


def test_an_organ_model_is_checked_if_it_is_not_the_bundled_one(quick: dict[str, str], tmp_path: Path) -> None:
    assert "organ model" not in examine(quick)
    found = examine({**quick, "organ_model": "totalsegmentator", "organ_weights": str(tmp_path)})["organ model"]
    assert found.status is FAILED
    assert "totalseg_download_weights -t total_fast" in found.message
