"""OHIF where there is a PACS, and what is said where there is none."""

from __future__ import annotations

import re

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from monailabel.config import settings

from baps.server.routes.ohif import configure_ohif, ohif_file


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    app.get("/ohif/app-config.js")(configure_ohif)
    app.get("/ohif/{path:path}")(ohif_file)
    return TestClient(app, base_url="http://127.0.0.1:8000")


@pytest.mark.parametrize("path", ["", "index.html", "monai-label", "viewer?StudyInstanceUIDs=1.2"])
def test_ohif_page_of_a_folder(client: TestClient, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", "/data/studies")
    reply = client.get(f"/ohif/{path}")
    assert reply.status_code == 200
    assert "OHIF shows the images of a PACS; files are shown by 3D Slicer." in reply.text
    assert "<code>http://127.0.0.1:8000</code>" in reply.text
    assert "<script" not in reply.text
    assert "Orthanc" not in reply.text


def test_ohif_page_of_a_pacs(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", "http://pacs/dicom-web")
    assert "app-config.js" in client.get("/ohif/").text
    assert "app-config.js" in client.get("/ohif/monai-label").text


def test_configuration(client: TestClient) -> None:
    theirs = client.get("/ohif/app-config.js").text.partition("// Added to the configuration")[0]
    assert "Orthanc" not in theirs
    assert re.search(r"dicomUploadEnabled: false", theirs)
    assert re.search(r"supportsReject: false", theirs)
