from __future__ import annotations

import pytest
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse, Response
from fastapi.testclient import TestClient

from baps.server.routes.without_paths import task_for_viewer, without_folders


def test_responses_have_no_paths() -> None:
    app = FastAPI()

    @app.get("/session/{name}")
    @without_folders
    def session(name: str, image: bool = False) -> dict[str, object]:
        """A session."""
        result = [
            {"path": f"/srv/baps/{name}/", "image": f"/srv/baps/my study/{name}.nii.gz", "whole": image, "n": 1.5}
        ]
        return {
            "found": result,
            "none": None,
            "said": "Cannot read /srv/baps/x/004.dcm: cut off.",
            "kind": "image/jpeg",
        }

    reply = TestClient(app).get("/session/a?image=true")
    result = [{"path": "a", "image": "a.nii.gz", "whole": True, "n": 1.5}]
    assert reply.json() == {
        "found": result,
        "none": None,
        "said": "Cannot read 004.dcm: cut off.",
        "kind": "image/jpeg",
    }


def test_files_are_not_changed() -> None:
    def route() -> Response:
        return PlainTextResponse("/srv/baps/a")

    assert without_folders(route)().body == b"/srv/baps/a"


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (["Initializing App from: /srv/baps; studies: /data/my studies", "spleen: 0.81"], ["spleen: 0.81"]),
        (["Reading 1.2.826.0.1.3680043.8.498.1"], ["Reading <uid>"]),
        (["/srv/baps"], [""]),  # 3D Slicer shows the last line, and there must be one.
        ([], [""]),
    ],
)
def test_trainings_have_no_paths(lines: list[str], text: list[str]) -> None:
    task = {"id": "1", "status": "RUNNING", "details": lines}
    assert task_for_viewer(task) == {"id": "1", "status": "RUNNING", "details": text}
    assert task_for_viewer({"id": "1"}) == {"id": "1"}
    assert task_for_viewer(None) is None
