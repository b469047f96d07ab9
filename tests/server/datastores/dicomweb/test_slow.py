"""A PACS that is slow for one image delays only requests for that image."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import requests

from baps.demo.server import running_server
from baps.server.datastores.dicomweb import open_pacs
from baps.site.roles import Role
from baps.site.users import Users
from benchmarks.performance.archive_pacs import Archive, modality, series_uid, serve

_IMAGES = [series_uid(number) for number in range(40) if modality(number) == "CT"]
SLOW, OTHER = _IMAGES[:2]


class _SlowArchive(Archive):
    """A PACS that sends the objects of one series only when the test allows it."""

    def __init__(self) -> None:
        super().__init__(40, max_results=100)
        self.asked_for, self.go_on = threading.Event(), threading.Event()

    def objects(self, uid: str, instance: str = "") -> Any:
        if uid == SLOW:
            self.asked_for.set()
            assert self.go_on.wait(300)
        return super().objects(uid, instance)


@pytest.fixture
def archive() -> Iterator[tuple[_SlowArchive, str]]:
    slow_archive = _SlowArchive()
    server = serve(slow_archive)
    yield slow_archive, f"http://127.0.0.1:{server.server_port}/dicom-web"
    slow_archive.go_on.set()
    server.shutdown()
    server.server_close()


def test_a_slow_image_does_not_delay_other_images(
    archive: tuple[_SlowArchive, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from monailabel.config import settings

    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_CACHE_PATH", str(tmp_path / "cache"))
    pacs, address = archive
    store = open_pacs(address)
    with ThreadPoolExecutor(20) as pool:
        try:
            slow = [pool.submit(store.get_image_uri, SLOW) for _ in range(2)]
            assert pacs.asked_for.wait(60)
            others = [pool.submit(store.get_image_uri, image) for image in _IMAGES[1:9]]
            assert all(Path(one.result(60)).is_file() for one in others)
            assert pool.submit(store.newest_segments, OTHER).result(60) == {}
            assert not any(one.done() for one in slow)
        finally:
            pacs.go_on.set()
        assert {one.result(60) for one in slow} == {str(Path(others[0].result()).with_name(f"{SLOW}.nii.gz"))}


@pytest.mark.server
def test_a_slow_image_does_not_delay_clicks_of_another_user(archive: tuple[_SlowArchive, str], tmp_path: Path) -> None:
    """Meanwhile another user sends 90 requests of all kinds for the slow image."""
    pacs, address = archive
    users = Users(tmp_path / "users.json")
    tokens = {name: users.add(name, Role.ANNOTATOR) for name in ("anna", "bert")}
    settings = {"labels": "ball=1", "adapters": str(tmp_path / "adapters"), "users": str(users.file)}
    own = {"MONAI_LABEL_DICOMWEB_CACHE_PATH": str(tmp_path / "cache")}
    click = {"params": json.dumps({"foreground": [[32, 32, 12]], "label": "ball"})}
    with patch.dict(os.environ, own), running_server(address, tmp_path / "server.log", settings) as (server, _):

        def ask(method: str, path: str, name: str, timeout: float, **sent: Any) -> int:
            bearer = {"Authorization": f"Bearer {tokens[name]}"}
            return requests.request(method, server + path, headers=bearer, timeout=timeout, **sent).status_code

        assert ask("POST", f"/infer/baps?image={OTHER}", "bert", 120, data=click) == 200
        with ThreadPoolExecutor(90) as pool:
            ways = (
                ("GET", f"/datastore/image?image={SLOW}", {}),
                ("POST", f"/infer/baps?image={SLOW}", {"data": click}),
                ("GET", f"/datastore/image/info?image={SLOW}", {}),
                ("GET", f"/datastore/label?label={SLOW}&tag=final", {}),
                ("GET", f"/proxy/dicom/studies/1.2/series/{SLOW}", {}),
            )
            slow = []
            try:
                for number in range(90):
                    method, path, sent = ways[number % len(ways)]
                    slow.append(pool.submit(ask, method, path, "anna", 300, **sent))
                assert pacs.asked_for.wait(60)
                assert (
                    ask("POST", "/auth/token", "bert", 20, data={"username": "bert", "password": tokens["bert"]}) == 200
                )
                for _ in range(3):
                    assert ask("POST", f"/infer/baps?image={OTHER}", "bert", 20, data=click) == 200
                    assert ask("GET", f"/datastore/image?image={OTHER}", "bert", 20) == 200
                    assert ask("GET", "/info/", "bert", 20) == 200
            finally:
                pacs.go_on.set()
            assert {one.result(300) for one in slow} <= {200, 404}
