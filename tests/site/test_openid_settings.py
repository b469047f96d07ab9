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


def test_it_is_read_from_a_private_file_and_the_environment(tmp_path: Path) -> None:
    result = read_openid(_file(tmp_path, {**GOOD, "client_secret": "hush"}), {})
    assert (result.client_secret, result.roles, result.algorithms) == (
        "hush", {"radiologist": Role.ANNOTATOR}, ("RS256", "ES256")
    )  # fmt: skip
    assert "hush" not in repr(result)
    assert read_openid(_file(tmp_path, GOOD), {SECRET: "other"}).client_secret == "other"  # noqa: S105


@pytest.mark.parametrize(
    ("wrong", "message"),
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
def test_errors_name_the_field_and_no_secret(tmp_path: Path, wrong: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_openid(_file(tmp_path, {**GOOD, "client_secret": "hush", **wrong}))
    assert "hush" not in str(caught.value)


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="chmod 600"):
        read_openid(_file(tmp_path, GOOD, 0o644))
