"""The file of users: its hashes, who changes it, and who reads it meanwhile."""

from __future__ import annotations

import json
import multiprocessing
import re
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from baps.errors import InputError, NotFoundError
from baps.site.roles import Role
from baps.site.users import Users


@pytest.fixture
def users(tmp_path: Path) -> Users:
    return Users(tmp_path / "users.json")


def test_a_token_is_random_and_only_its_hash_is_kept(users: Users) -> None:
    tokens = [users.add(name, Role.ANNOTATOR) for name in ("anna", "bert")]
    assert all(re.fullmatch(r"baps_[\w-]{43}", token) for token in tokens)  # 43 letters of base 64 are 256 bits.
    assert len(set(tokens)) == 2
    content = users.file.read_text()
    assert not any(token in content or token[5:] in content for token in tokens)
    assert users.file.stat().st_mode & 0o777 == 0o600


def test_a_user_is_found_by_the_token_alone(users: Users) -> None:
    anna, theo = users.add("anna", Role.ANNOTATOR), users.add("theo", Role.TRAINER)
    for token, name, role in ((anna, "anna", Role.ANNOTATOR), (theo, "theo", Role.TRAINER)):
        user = users.find(token)
        assert user is not None
        assert (user.name, user.role) == (name, role)
    hashed = json.loads(users.file.read_text())["users"]["anna"]["sha256"]
    for other in ("", anna[:-1], anna + "a", anna.upper(), "anna", hashed, "b\udc80"):
        assert users.find(other) is None


def test_changes_by_another_process_apply_at_once(users: Users) -> None:
    old = users.add("anna", Role.ANNOTATOR)
    reader = Users(users.file)
    assert reader.find(old) is not None
    new = users.renew("anna")
    assert reader.find(old) is None
    assert reader.find(new) is not None
    users.remove("anna")
    assert reader.find(new) is None
    assert reader.all() == {}


def test_a_token_expires(users: Users) -> None:
    token = users.add("anna", Role.ANNOTATOR, days=1)
    user = users.find(token)
    assert user is not None
    assert user.expires == user.created + timedelta(days=1)
    content = json.loads(users.file.read_text())
    content["users"]["anna"]["expires"] = (datetime.now(timezone.utc) - timedelta(seconds=1)).isoformat()
    users.file.write_text(json.dumps(content))
    assert users.find(token) is None


@pytest.mark.parametrize("name", ["", "a b", "a/b", "x" * 65, "a\n", "[red]"])
def test_invalid_names(users: Users, name: str) -> None:
    with pytest.raises(InputError, match="is not a valid user name"):
        users.add(name, Role.ADMIN)
    assert not users.file.exists()


@pytest.mark.parametrize("days", [0, -1, 10**6])
def test_invalid_expiry(users: Users, days: int) -> None:
    with pytest.raises(InputError, match="1 to 36500 days"):
        users.add("anna", Role.ADMIN, days)


def test_repeated_and_unknown_users_are_refused(users: Users) -> None:
    token = users.add("anna", Role.ADMIN)
    with pytest.raises(InputError, match="baps users renew anna"):
        users.add("anna", Role.ANNOTATOR)
    for change in (users.renew, users.remove):
        with pytest.raises(NotFoundError, match="Known ones: anna"):
            change("bert")
    assert users.find(token) is not None


def test_invalid_files_are_refused(users: Users) -> None:
    with pytest.raises(InputError, match="No such file"):
        users.all()
    users.add("anna", Role.ADMIN)
    users.file.chmod(0o640)
    with pytest.raises(InputError, match="chmod 600"):
        users.all()
    users.file.chmod(0o600)
    assert list(users.all()) == ["anna"]
    for content in ("{", "[]", '{"users": {"a": {"role": "chief"}}}'):
        users.file.write_text(content)
        with pytest.raises(InputError, match="not a file of users"):
            users.all()
        with pytest.raises(InputError, match="not a file of users"):
            users.add("bert", Role.ADMIN)
        assert users.file.read_text() == content


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="another --file"):
        Users(tmp_path / "absent" / "users.json").add("anna", Role.ADMIN)


def _add_ten(file: Path, number: int) -> None:
    for each in range(10):
        Users(file).add(f"user-{number}-{each}", Role.ANNOTATOR)


def test_concurrent_changes_are_all_kept(users: Users) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_add_ten, args=(users.file, number)) for number in range(4)]
    for writer in writers:
        writer.start()
    seen = 0
    while any(writer.is_alive() for writer in writers):
        if users.file.exists():
            now = len(users.all())
            assert now >= seen  # Never half a file, nor an older one.
            seen = now
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert len(users.all()) == 40


@pytest.mark.parametrize(("role", "may"), [("annotator", 1), ("trainer", 2), ("admin", 3)])
def test_roles_include_those_before_them(role: str, may: int) -> None:
    assert [Role(role).may(needed) for needed in Role] == [place < may for place in range(3)]


def test_a_role_is_changed_and_the_token_stays_valid(users: Users) -> None:
    token = users.add("anna", Role.ANNOTATOR)
    state = users.all()["anna"].state
    users.change_role("anna", Role.ADMIN)
    user = users.find(token)
    assert user is not None
    assert user.role is Role.ADMIN
    assert user.state != state
    with pytest.raises(NotFoundError, match="There is no user bert"):
        users.change_role("bert", Role.ADMIN)


def test_the_state_of_a_user_changes_with_the_token_and_does_not_tell_it(users: Users) -> None:
    users.add("anna", Role.ANNOTATOR)
    first = users.all()["anna"]
    users.renew("anna")
    second = users.all()["anna"]
    assert first.state != second.state
    assert second.state not in second.sha256
    assert second.sha256[:16] != second.state


@pytest.mark.parametrize("change", ["renew", "remove", "change_role"])
def test_a_check_cancels_a_change(users: Users, change: str) -> None:
    users.add("anna", Role.ANNOTATOR)
    before = users.file.read_text()

    def refuse(known: object) -> None:
        assert list(users.all()) == ["anna"]
        assert known == users.all()
        raise ZeroDivisionError

    arguments = ("anna", Role.ADMIN) if change == "change_role" else ("anna",)
    with pytest.raises(ZeroDivisionError):
        getattr(users, change)(*arguments, check=refuse)
    assert users.file.read_text() == before
