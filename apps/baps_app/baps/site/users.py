"""Manage the users of the server, each with a role and a token, in a private JSON file.

The file holds hashes of the tokens, never the tokens. A token has 256 random bits, so a single round of SHA-256
suffices: it cannot be guessed. Processes that change the file take turns (a lock beside it) and replace it as a whole,
so that a server that reads it at the same time sees the old or the new file.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

from filelock import FileLock
from pydantic import AwareDatetime, BaseModel, Field, ValidationError

from baps.errors import InputError, NotFoundError
from baps.site.roles import Role
from baps.site.secret_file import read_private
from baps.utils.atomic_write import atomic_write

_NAME = re.compile(r"[\w.@+-]{1,64}")
Check = Callable[[Mapping[str, "User"]], None]
"""A check of the users, by name, just before a change. If it raises an error, nothing is changed."""

_TOKEN = "baps_"  # noqa: S105 (the prefix of all tokens, by which leaked ones are recognised)


@dataclass(frozen=True)
class User:
    """A user of the server.

    Attributes:
        name: Name of the user, also in the audit file.
        role: Role of the user.
        sha256: Hash of the token.
        created: When the token was made.
        expires: When the token expires, or None.
    """

    name: str
    role: Role
    sha256: str
    created: datetime
    expires: datetime | None = None

    @property
    def expired(self) -> bool:
        """Whether the token has expired."""
        return self.expires is not None and self.expires <= datetime.now(timezone.utc)

    @property
    def state(self) -> str:
        """A text that changes with every change of the user, and tells nothing about the token."""
        return hashlib.sha256(json.dumps(["state", _to_dict(self)]).encode()).hexdigest()[:16]


class _Record(BaseModel, extra="forbid"):
    role: Role
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    created: AwareDatetime
    expires: AwareDatetime | None = None


class _Content(BaseModel, extra="forbid"):
    users: dict[str, _Record]


class Users:
    """The users in a file, which is read again when it has changed.

    Args:
        file: The private file. ``add`` makes it if it does not exist.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._reading = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._users: Mapping[str, User] = {}

    def all(self) -> Mapping[str, User]:
        """Read the users.

        Returns:
            Users by name.

        Raises:
            InputError: If the file does not exist, others can read it, or it is not a file of users.
        """
        with self._reading:
            try:
                status = self.file.stat()
                stamp = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
            except OSError:
                stamp = None
            if stamp is None or stamp != self._stamp:
                self._users, self._stamp = self._read(), stamp
            return self._users

    def find(self, token: str) -> User | None:
        """Find the user of a token.

        Every user is compared, in constant time.

        Args:
            token: The token.

        Returns:
            The user, or None if nobody has the token or it has expired.
        """
        token_hash, match = _hash(token), None
        for user in self.all().values():
            if hmac.compare_digest(token_hash, user.sha256) and not user.expired:
                match = user
        return match

    def add(self, name: str, role: Role, days: int | None = None) -> str:
        """Add a user.

        Args:
            name: Name of the user.
            role: Role of the user.
            days: Days until the token expires, or None for never.

        Returns:
            The token, which is stored nowhere.

        Raises:
            InputError: If a user of that name exists, or the name or the days cannot be used.
        """
        if not _NAME.fullmatch(name):
            raise InputError(
                f"{name!r} is not a valid user name: use up to 64 letters, digits and . @ + - _, as in a.smith."
            )
        with self._changing(new=True) as users:
            if name in users:
                raise InputError(f"There is a user {name} already. Give them a new token with baps users renew {name}.")
            users[name], token = _with_new_token(name, role, days)
        return token

    def renew(self, name: str, days: int | None = None, check: Check = lambda _: None) -> str:
        """Give a user a new token. The old one becomes invalid at once.

        Args:
            name: Name of the user.
            days: Days until the new token expires, or None for never.
            check: See ``Check``.

        Returns:
            The new token.

        Raises:
            InputError: If the days cannot be used.
            NotFoundError: If there is no such user.
        """
        with self._changing(check=check) as users:
            users[name], token = _with_new_token(name, self._known(users, name).role, days)
        return token

    def change_role(self, name: str, role: Role, check: Check = lambda _: None) -> None:
        """Give a user another role, from the next request on. The token stays valid.

        Args:
            name: Name of the user.
            role: The new role.
            check: See ``Check``.

        Raises:
            NotFoundError: If there is no such user.
        """
        with self._changing(check=check) as users:
            users[name] = replace(self._known(users, name), role=role)

    def remove(self, name: str, check: Check = lambda _: None) -> None:
        """Remove a user. The token becomes invalid at once.

        Args:
            name: Name of the user.
            check: See ``Check``.

        Raises:
            NotFoundError: If there is no such user.
        """
        with self._changing(check=check) as users:
            del users[self._known(users, name).name]

    @staticmethod
    def _known(users: Mapping[str, User], name: str) -> User:
        if name not in users:
            raise NotFoundError(f"There is no user {name}. Known ones: {', '.join(sorted(users)) or 'none'}.")
        return users[name]

    def _read(self) -> dict[str, User]:
        try:
            content = _Content.model_validate_json(read_private(self.file, "The users"))
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"])) or "the file"
            raise InputError(
                f"{self.file} is not a file of users ({where}). Restore a copy that you trust, or make a new file with "
                "baps users add."
            ) from None
        return {name: User(name, one.role, one.sha256, one.created, one.expires) for name, one in content.users.items()}

    @contextmanager
    def _changing(self, new: bool = False, check: Check = lambda _: None) -> Iterator[dict[str, User]]:
        """Read the users, let the caller change them, and write them back."""
        try:
            self.file.parent.stat()  # The lock would create a missing folder.
            with FileLock(self.file.with_name(f".{self.file.name}.lock"), mode=0o600):
                users = {} if new and not self.file.exists() else self._read()
                check(users)
                yield users
                content = {"users": {name: _to_dict(users[name]) for name in sorted(users)}}
                with atomic_write(self.file, mode=0o600) as partial:
                    partial.write_text(json.dumps(content, indent=2) + "\n")
        except OSError as error:
            raise InputError(
                f"{self.file} cannot be written: {error.strerror}. Give another --file, in a folder that exists."
            ) from error


def _with_new_token(name: str, role: Role, days: int | None) -> tuple[User, str]:
    if days is not None and not 0 < days <= 36_500:
        raise InputError(f"A token expires after 1 to 36500 days, not {days}.")
    token, now = _TOKEN + secrets.token_urlsafe(32), datetime.now(timezone.utc).replace(microsecond=0)
    user = User(name, role, _hash(token), now)
    return (user if days is None else replace(user, expires=now + timedelta(days=days))), token


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def _to_dict(user: User) -> dict[str, str | None]:
    return {
        "role": user.role.value,
        "sha256": user.sha256,
        "created": user.created.isoformat(),
        "expires": user.expires.isoformat() if user.expires else None,
    }
