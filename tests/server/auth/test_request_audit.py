from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from baps.server.access_policy import find_policy
from baps.server.auth.request_audit import Audit
from baps.server.request_context import Principal, RequestContext
from baps.site.audit import AuditFile
from baps.site.audit_check import check_audit
from baps.site.roles import Role

ANNA = Principal("anna", Role.ANNOTATOR, "token")


class _Clock:
    """A clock that the test sets, in seconds."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def _audit(folder: Path, clock: _Clock | None = None) -> Audit:
    audit = Audit(AuditFile(folder / "audit.jsonl"), clock or _Clock())
    audit.file.check()
    return audit


def _context(image: str = "Doe^Jane") -> RequestContext:
    return RequestContext(find_policy("POST", "/infer/baps"), ANNA, image, "spleen/v0002")


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]


def test_a_line_names_the_user_and_not_the_patient(tmp_path: Path) -> None:
    _audit(tmp_path).record(_context(), 200)
    text = (tmp_path / "audit.jsonl").read_text()
    line = json.loads(text)
    assert re.fullmatch(r"[0-9a-f]{32}", line.pop("image"))
    assert line.pop("time").endswith("+00:00")
    assert len(line.pop("chain")) == 64
    assert line == {
        "user": "anna", "role": "annotator", "by": "token", "what": "segment", "adapter": "spleen/v0002", "status": 200,
        "n": 1,
    }  # fmt: skip
    assert "Doe" not in text


def test_concurrent_writers_do_not_corrupt_the_file(tmp_path: Path) -> None:
    audits = [_audit(tmp_path) for _ in range(8)]
    threads = [threading.Thread(target=lambda a=a: [a.record(_context(), 200) for _ in range(100)]) for a in audits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = _lines(tmp_path)
    assert len(lines) == 800
    assert len({line["image"] for line in lines}) == 1  # All of them created one key.
    assert not check_audit(tmp_path / "audit.jsonl").breaks


def test_user_names_cannot_break_lines(tmp_path: Path) -> None:
    context = RequestContext(None, Principal('x"}\n{"user": "root\u2028', Role.ADMIN, "openid"))
    _audit(tmp_path).record(context, 403)
    (line,) = _lines(tmp_path)
    assert line["user"].startswith('x"}\n')
    assert not check_audit(tmp_path / "audit.jsonl").breaks


def test_requests_of_unknown_users_are_counted(tmp_path: Path) -> None:
    clock = _Clock()
    audit = _audit(tmp_path, clock)
    out = RequestContext(find_policy("POST", "/logout"))
    for _ in range(300):
        audit.record(out, 303)
    for path in ("/nothing", "/infer/baps", "/info/"):
        audit.record(RequestContext(find_policy("GET", path)), 401)
    result = [(line["what"], line.get("count")) for line in _lines(tmp_path)]
    assert result == [("sign out", None), ("ask without leave", None)]
    clock.now = 61
    audit.record(_context(), 200)
    assert [(line["what"], line.get("count")) for line in _lines(tmp_path)][2:] == [
        ("sign out", 299),
        ("ask without leave", 2),
        ("segment", None),
    ]
    for _ in range(5):
        audit.record(out, 303)
    audit.close()
    assert (_lines(tmp_path)[-1]["what"], _lines(tmp_path)[-1]["count"]) == ("sign out", 5)
    audit.close()
    assert len(_lines(tmp_path)) == 6


def test_frame_requests_get_one_line_per_user_and_series_in_ten_minutes(tmp_path: Path) -> None:
    clock = _Clock()
    audit = _audit(tmp_path, clock)
    policy = find_policy("GET", "/proxy/dicom/studies/1.2/series/1.2.3/instances/1.2.3.4/frames/1")
    for principal in (ANNA, Principal("bert", Role.TRAINER, "token")):
        for series in ("1.2.3", "1.2.4"):
            for status in (200, 206, 404):
                audit.record(RequestContext(policy, principal, series), status)
    assert len(_lines(tmp_path)) == 2 * 2 * 2  # A refused request has a line of its own.
    clock.now = 601
    audit.record(RequestContext(policy, ANNA, "1.2.3"), 200)
    assert len(_lines(tmp_path)) == 9


def test_refused_requests_of_a_user_get_one_line_in_ten_minutes(tmp_path: Path) -> None:
    audit = _audit(tmp_path)
    for _ in range(50):
        audit.record(RequestContext(None, ANNA), 403)
        audit.record(RequestContext(find_policy("POST", "/train/baps"), ANNA), 403)
    assert [line["what"] for line in _lines(tmp_path)] == ["what is not served", "start a training"]


def test_many_images_are_split_over_several_lines(tmp_path: Path) -> None:
    context = _context("")
    context.images = [f"image {number}" for number in range(1200)]
    audit = _audit(tmp_path)
    audit.record(context, 200)
    lines = _lines(tmp_path)
    assert [len(line["images"]) for line in lines] == [500, 500, 200]
    assert {line["count"] for line in lines} == {1200}
    assert lines[0]["images"][0] == audit.file.hashed("image 0")


def test_further_actions_get_lines_of_their_own(tmp_path: Path) -> None:
    context = _context()
    context.further_actions.append("save a label")
    _audit(tmp_path).record(context, 200)
    assert [line["what"] for line in _lines(tmp_path)] == ["segment", "save a label"]


@pytest.mark.parametrize(
    ("method", "path", "query", "audited"),
    [
        ("GET", "/datastore/", "", False),
        ("GET", "/datastore/", "output=stats", False),
        ("GET", "/datastore/", "output=all", True),
        ("GET", "/datastore/", "output=%61ll", True),
        ("GET", "/datastore/", "output=stats&output=train", True),
        ("GET", "/datastore/dataset", "", True),
        ("GET", "/datastore/label/info", "label=x&tag=final", True),
        ("HEAD", "/datastore/image", "image=x", True),
        ("GET", "/session/x", "", False),
        ("GET", "/session/x", "image=false", False),
        ("GET", "/session/x", "image=true", True),
        ("GET", "/session/x", "image=On", True),
        ("GET", "/proxy/dicom/studies/1.2", "", True),
        ("GET", "/proxy/dicom/qido/studies", "PatientID=1", True),
        ("GET", "/train/", "", False),
    ],
)
def test_requests_that_read_patient_data_are_audited(method: str, path: str, query: str, audited: bool) -> None:
    policy = find_policy(method, path, query)
    assert policy is not None
    assert policy.audited == audited


def test_the_hash_of_an_image_can_be_computed_as_the_guide_describes(tmp_path: Path) -> None:
    audit = _audit(tmp_path)
    hashed = audit.file.hashed("CT 1")
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    key = (tmp_path / "audit.jsonl.key").read_text()
    command = [openssl, "dgst", "-sha256", "-mac", "HMAC", "-macopt", f"hexkey:{key}"]
    result = subprocess.run(command, input=b"CT 1", capture_output=True, check=True).stdout.decode()
    assert result.split()[-1].startswith(hashed)


def test_all_audit_files_are_sent_oldest_first(tmp_path: Path) -> None:
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    audit = Audit(AuditFile(tmp_path / "audit.jsonl", max_mb=1))
    audit.file.check()
    for number in range(4):
        audit.file.add({"what": "x" * (1 << 19), "number": number})
    app = FastAPI()
    app.add_api_route("/audit", audit.read, response_model=None)
    sent = TestClient(app).get("/audit")
    assert [json.loads(line)["n"] for line in sent.text.splitlines()] == [1, 2, 3, 4]
    assert int(sent.headers["Content-Length"]) == len(sent.content)
