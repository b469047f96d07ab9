"""Logs and files of the server name no patient, after a session with valid and invalid requests."""

from __future__ import annotations

import json
import logging
import stat
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import requests

from baps.server.log_redaction import RedactingFilter
from baps.utils.redaction import redact_identifiers, shorten_paths
from tests.support.paths import ROOT
from tests.support.patient_names import BROKEN, IMAGE, SiteWithPatientNames
from tests.support.sites import spleen_click

pytestmark = pytest.mark.slow


def _run_session(site_with_names: SiteWithPatientNames, folder: Path) -> list[int]:
    """Send the requests of a user, with mistakes; return the statuses."""
    click = json.dumps({"foreground": [spleen_click("ct_01")]})
    image = nibabel.load(ROOT / "sample-data" / "ct" / "images" / "ct_01.nii.gz")
    labels, empty, junk = folder / f"{IMAGE}.nii.gz", folder / f"{IMAGE}-empty.nii.gz", folder / f"{IMAGE}.nrrd"
    reference = nibabel.load(ROOT / "sample-data" / "ct" / "labels" / "ct_01.nii.gz")
    nibabel.save(reference, labels)
    nibabel.save(nibabel.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), empty)
    junk.write_bytes(b"NRRD0004\ntype: what\n\n")

    def ask(method: str, path: str, **given: object) -> requests.Response:
        return requests.request(method, site_with_names.site.address + path, timeout=120, **given)  # type: ignore[arg-type]

    def sent(file: Path, field: str) -> dict[str, tuple[str, bytes]]:
        return {field: (file.name, file.read_bytes())}

    replies = [
        ask("GET", "/info/"),
        ask("POST", "/activelearning/first", json={}),
        ask("POST", "/activelearning/disagreement", json={}),
        ask("POST", f"/infer/baps?image={IMAGE}", data={"params": click}),
        ask("POST", f"/infer/baps?image={IMAGE}", data={"params": '{"foreground": [[999, 0, 0]]}'}),
        ask("POST", f"/infer/baps?image={BROKEN}", data={"params": click}),
        ask("POST", f"/infer/baps?image={IMAGE}_absent", data={"params": click}),
        ask("POST", f"/infer/organs?image={IMAGE}", data={"params": "{}"}),
        ask("PUT", f"/datastore/label?image={IMAGE}", files=sent(empty, "label")),
        ask("PUT", f"/datastore/label?image={IMAGE}", files=sent(junk, "label")),
        ask("PUT", f"/datastore/label?image={IMAGE}", files=sent(labels, "label")),
        ask("PUT", f"/datastore/image?image={IMAGE}", files=sent(labels, "file")),
        ask("GET", f"/datastore/label?label={IMAGE}&tag=final"),
        ask("GET", f"/datastore/image?image={IMAGE}_absent"),
        ask("GET", f"/web/labels/image?image={IMAGE}"),
        ask("GET", f"/web/labels/image?image={IMAGE}_absent"),
        ask("GET", f"/web/labels/differences?image={IMAGE}&version={IMAGE}"),
        ask("GET", f"/web/labels?q={IMAGE}"),
        ask("GET", f"/web/people/audit?image_name={IMAGE}"),
        ask("GET", f"/datastore/label?label={IMAGE}_absent&tag=final"),
        ask("PUT", "/session/", files=sent(labels, "files")),
        ask("GET", f"/session/{IMAGE}"),
        ask("POST", "/train/baps", json={"max_images": 300, "label": "spleen"}),
    ]
    while ask("GET", "/train/?check_if_running=true").status_code == 200:
        time.sleep(1)
    replies.append(ask("GET", "/train/"))
    return [reply.status_code for reply in replies]


def test_logs_and_files_name_no_patient(site_with_names: SiteWithPatientNames, tmp_path: Path) -> None:
    statuses = _run_session(site_with_names, tmp_path)
    assert {200, 400, 404} <= set(statuses)
    audit = site_with_names.site.adapters / "audit.jsonl"
    written = {file: file.read_text(errors="replace") for file in (site_with_names.site.log, audit)}
    assert "Uvicorn running" in written[site_with_names.site.log]
    for file, text in written.items():
        for word in (*site_with_names.words, IMAGE, BROKEN):
            lines = [line for line in text.splitlines() if word.lower() in line.lower()]
            assert not lines, (file.name, word, lines[:3])
    lines = [json.loads(line) for line in written[audit].splitlines()]
    assert {"segment", "save a label", "next sample", "add an image", "start a training"} <= {x["what"] for x in lines}
    of_image = {line["image"] for line in lines if line["what"] == "save a label"}
    assert len(of_image) == 1
    assert stat.S_IMODE(audit.stat().st_mode) == 0o600


def _record(name: str, level: int, words: str, error: bool = False) -> logging.LogRecord:
    try:
        raise ValueError("/data/Doe^Jane/1.dcm")
    except ValueError:
        info = sys.exc_info() if error else None
        return logging.LogRecord(name, level, __file__, 7, words, (), info)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["monailabel.endpoints.infer", "dicomweb_client.web", "py.warnings", "root"])
def test_messages_of_other_libraries_are_omitted(name: str) -> None:
    quiet = RedactingFilter()
    assert not quiet.filter(_record(name, logging.INFO, "Doe^Jane"))
    record = _record(name, logging.ERROR, "Doe^Jane", error=True)
    assert quiet.filter(record)
    message = logging.Formatter().format(record)
    assert "Doe" not in message
    assert "ValueError (text removed)" in message
    assert "test_logs.py" in message


def test_own_messages_are_kept_without_paths_and_uids() -> None:
    record = _record(
        "baps.registry.store", logging.WARNING, "The adapter /data/a/b.safetensors of 1.2.840.113619.2.55 is broken."
    )
    assert RedactingFilter().filter(record)
    assert record.getMessage() == "The adapter <path> of <uid> is broken."


def test_access_log_has_only_the_kind_of_request() -> None:
    record = logging.LogRecord(
        "uvicorn.access", logging.INFO, "", 1, '%s - "%s %s HTTP/%s" %d',
        ("127.0.0.1:1", "GET", "/datastore/image?image=Doe", "1.1", 200), None,
    )  # fmt: skip
    assert RedactingFilter().filter(record)
    assert record.getMessage() == '127.0.0.1:1 - "GET /datastore HTTP/1.1" 200'


def test_messages_for_users_have_file_names_but_no_paths() -> None:
    assert shorten_paths("The file /data/labels/a.nii.gz is broken.") == "The file a.nii.gz is broken."
    address = "Give one such as http://host:8000/sam/model or grpc://host:8001/sam."
    assert shorten_paths(address) == address
    assert redact_identifiers("version 1.5.2 of 3") == "version 1.5.2 of 3"
