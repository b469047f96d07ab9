from __future__ import annotations

import json
from pathlib import Path

import pytest

from baps.errors import InputError
from baps.site.openid_settings import SECRET, read_openid
from baps.site.roles import Role

GOOD = {"issuer": "https://login.hospital/realms/main", "client_id": "baps", "roles": {"radiologist": "annotator"}}


def _file(folder: Path, content: object, mode: int = 0o600) -> Path:
    path = folder / "openid.json"
    path.write_text(json.dumps(content))
    path.chmod(mode)
    return path


def test_it_is_read_from_a_private_file_and_the_secret_from_the_environment_too(tmp_path: Path) -> None:
    found = read_openid(_file(tmp_path, {**GOOD, "client_secret": "hush"}), {})
    assert (found.client_secret, found.roles, found.algorithms) == (
        "hush", {"radiologist": Role.ANNOTATOR}, ("RS256", "ES256")
    )  # fmt: skip
    assert "hush" not in repr(found)
    assert read_openid(_file(tmp_path, GOOD), {SECRET: "other"}).client_secret == "other"  # noqa: S105


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"issuer": "http://login.hospital"}, "issuer"),
        ({"issuer": "login.hospital"}, "issuer"),
        ({"algorithms": ["HS256"]}, "algorithms"),
        ({"algorithms": ["none"]}, "algorithms"),
        ({"algorithms": []}, "algorithms"),
        ({"roles": {}}, "roles"),
        ({"roles": {"radiologist": "chief"}}, "roles"),
        ({"client_id": ""}, "client_id"),
        ({"password": "hush"}, "password"),
        ({"ca": "/nowhere.pem"}, "ca"),
    ],
)
def test_what_is_wrong_is_named_and_no_secret_quoted(tmp_path: Path, wrong: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        read_openid(_file(tmp_path, {**GOOD, "client_secret": "hush", **wrong}))
    assert "hush" not in str(caught.value)


def test_a_file_that_is_open_to_others_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="chmod 600"):
        read_openid(_file(tmp_path, GOOD, 0o644))
