"""The pages about labels and people show the names that DICOM headers and providers have as text, and log none."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

from baps.server.request_context import Principal
from baps.site.roles import Role
from tests.support.paths import ROOT
from tests.support.sites import sample_labels
from tests.support.web_site import WebSite, send, web_site

IMAGE = "QZEBRA_1944"
PATIENT = "<img src=x onerror=a()>PID-98765"
NAME = "ZEBRA^QUENTIN<svg onload=a()>"
PAGES = (
    "/web/labels",
    "/web/labels/rows",
    f"/web/labels/image?image={IMAGE}",
    f"/web/labels/confirm?action=restore&image={IMAGE}",
    f"/web/labels/confirm?action=confirm&image={IMAGE}&organ=spleen",
    "/web/labels/readers",
    "/web/labels/next",
    "/web/people",
    f"/web/people/audit?image_name={IMAGE}",
    "/web/people/usage",
)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[WebSite]:
    with web_site(tmp_path, trained=False) as site:
        folder = tmp_path / "studies" / IMAGE
        folder.mkdir()
        for file in (ROOT / "sample-data" / "dicom" / "ct_01").iterdir():
            dataset = pydicom.dcmread(file)
            dataset.PatientName, dataset.PatientID = NAME, PATIENT
            dataset.save_as(folder / file.name)
        earlier = time.time() - 60
        for path in (*folder.iterdir(), folder):
            os.utime(path, (earlier, earlier))
        yield site


def test_names_in_dicom_headers_are_text_and_are_in_no_log(
    site: WebSite, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG, "baps")
    datastore = site.state.app.datastore()
    datastore._reconcile_datastore()  # type: ignore[attr-defined]
    _save(site, tmp_path)
    site.state.counts.expire()
    site.state.counts.get(wait=60)  # Reads the patients.
    site.state.labels.expire()
    site.state.labels.get(wait=60)
    site.state.readers.get(wait=60)
    site.state.next_samples.get(wait=60)
    admin = site.browser("root")
    shown = ""
    for path in PAGES:
        reply = admin.get(path)
        assert reply.status_code in (200, 404), path
        assert "<img src=x" not in reply.text, path
        assert "<svg onload" not in reply.text, path
        shown += reply.text
    assert "&lt;img src=x onerror=a()&gt;PID-98765" in shown  # The table has the patient.
    versions = site.state.app.datastore().history.version_names(IMAGE, "final")  # type: ignore[attr-defined]
    query = {"image": IMAGE, "version": versions[-1], "against": versions[0]}
    assert admin.get("/web/labels/differences", params=query).status_code == 200
    form = {"image": IMAGE, "version": versions[0], "shown": versions[-1]}
    assert send(admin, "/web/labels/restore", **form).status_code == 303
    assert send(admin, "/web/labels/restore", **form).status_code == 409
    site.state.numbers.wait(60)
    audit = (site.folder / "adapters" / "audit.jsonl").read_text()
    for words in (IMAGE, "PID-98765", "ZEBRA", "onload"):
        assert words not in caplog.text
        assert words not in audit


def _save(site: WebSite, folder: Path) -> None:
    """Save the label of the DICOM series twice, in the geometry of the volume that viewers get."""
    import nibabel

    from baps.io import read_volume

    volume = read_volume(Path(site.state.app.datastore().get_image_uri(IMAGE)))
    label = sample_labels("ct_01")
    label[label > 2] = 0
    assert label.shape == volume.shape
    nibabel.save(nibabel.Nifti1Image(label, volume.affine), folder / "label.nii.gz")
    for author in ("anna", "theo"):
        reply = site.client.put(
            "/datastore/label",
            params={"image": IMAGE},
            files={"label": ("label.nii.gz", (folder / "label.nii.gz").read_bytes())},
            headers={"Authorization": f"Bearer {site.tokens[author]}"},
        )
        assert reply.status_code == 200, reply.text


def test_the_name_that_a_provider_gives_is_text(site: WebSite) -> None:
    evil = "<script>alert(1)</script>"
    site.state.authenticator.begin_session(Principal(evil, Role.TRAINER, "openid"))
    text = site.browser("root").get("/web/people").text
    assert "&lt;script&gt;alert(1)" in text
    assert "<script>alert" not in text


def test_a_link_of_another_page_presses_no_button(site: WebSite) -> None:
    admin = site.browser("root")
    for path in ("/web/people/remove", "/web/people/add", "/web/people/end-session", "/web/labels/restore"):
        assert admin.get(f"{path}?name=anna&told=self").status_code in (404, 405)
    assert "anna" in (site.folder / "users.json").read_text()
