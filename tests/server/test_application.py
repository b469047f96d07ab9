"""Applications in this process: each has its own settings, users, datastore and audit file."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from baps.errors import InputError
from baps.server.app import BapsApp
from baps.server.application import create_app
from baps.server.middleware.security_headers import ALWAYS
from baps.server.monai_label import settings_as_conf
from baps.site.roles import Role
from baps.site.settings import Settings, read_settings
from baps.site.users import Users
from tests.support.client import ADDRESS, site_client, threaded_site


def _images(client: TestClient, **headers: str) -> list[str]:
    reply = client.get("/datastore/?output=all", headers=headers)
    assert reply.status_code == 200, reply.text
    return sorted(reply.json()["objects"])


def test_two_applications_in_one_process(tmp_path: Path) -> None:
    users = Users(tmp_path / "users.json")
    token = users.add("anna", Role.ANNOTATOR)
    with (
        site_client(tmp_path / "one", cases=1) as one,
        site_client(tmp_path / "two", cases=2, settings={"users": str(users.file), "labels": "heart"}) as two,
    ):
        signed_in = {"Authorization": f"Bearer {token}"}
        for _ in range(2):
            assert _images(one) == ["ct_01"]
            assert one.get("/info/").json()["labels"] == ["spleen", "liver"]
            assert two.get("/info/").status_code == 401
            assert _images(two, **signed_in) == ["ct_01", "ct_02"]
            assert two.get("/info/", headers=signed_in).json()["labels"] == ["heart"]
    first, second = ((tmp_path / name / "adapters" / "audit.jsonl").read_text() for name in ("one", "two"))
    assert {json.loads(line)["user"] for line in first.splitlines()} == {""}
    assert {json.loads(line)["user"] for line in second.splitlines()} == {"anna"}


def test_an_application_cleans_up(tmp_path: Path) -> None:
    before = dict(os.environ)
    for number in range(2):
        with site_client(tmp_path, cases=1, settings={"most_volume_mb": 100 + number}) as client:
            assert _images(client) == ["ct_01"]
    assert dict(os.environ) == before


def test_errors_of_the_framework_have_the_headers_of_all_responses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: BapsApp) -> None:
        raise ZeroDivisionError

    with site_client(tmp_path) as client:
        monkeypatch.setattr(BapsApp, "info", broken)
        with pytest.raises(ZeroDivisionError):
            client.get("/info/")
        quiet = TestClient(client.app, ADDRESS, raise_server_exceptions=False, client=("127.0.0.1", 1))
        reply = quiet.get("/info/")
        assert reply.status_code == 500
        assert {name: reply.headers.get(name) for name in ALWAYS} == dict(ALWAYS)


def test_invalid_settings_are_refused_when_the_application_is_created(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no black box named 'none'"):
        create_app(Settings(black_box="none"), tmp_path)


def test_importing_the_module_creates_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAPS_CONFIG", "/nothing/there.json")
    monkeypatch.delitem(sys.modules, "baps.server.asgi", raising=False)
    module = importlib.import_module("baps.server.asgi")
    with pytest.raises(SystemExit, match="settings file /nothing/there.json cannot be read"):
        module.app  # noqa: B018 (creates it)


def test_an_application_is_served_at_an_address(tmp_path: Path) -> None:
    with threaded_site(tmp_path, cases=2) as site:
        assert site.client.info()["labels"] == ["spleen", "liver"]
        assert site.client.next_sample("first", {})["id"] == "ct_01"


def test_trainings_get_the_settings_of_their_application(tmp_path: Path) -> None:
    given = Settings(labels={"a, b": 3, "spleen": 2}, adapters=tmp_path, max_volume_mb=7, cors_origins=("https://a.b",))
    conf = json.loads(json.dumps(settings_as_conf(given)))
    assert read_settings(conf, {"BAPS_USERS": "/else/users.json", "BAPS_CACHE_MB": "1"}) == given
