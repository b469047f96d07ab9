"""Who we are to a PACS: from a private file or the environment, never from arguments."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, FilePath, ValidationError

from baps.errors import InputError
from baps.site.secret_file import read_private

ACCOUNT = ("MONAI_LABEL_DICOMWEB_USERNAME", "MONAI_LABEL_DICOMWEB_PASSWORD")
"""Variables of the user and the password."""


class Login(BaseModel):
    """Who we are to the PACS, and how its certificate is checked.

    Attributes:
        user, password: or "" where it asks for none.
        ca: file with the certificate of its authority, or None for the usual ones.
    """

    model_config = ConfigDict(extra="forbid")

    user: str = ""
    password: str = Field("", repr=False)
    ca: FilePath | None = None

    @property
    def account(self) -> tuple[bytes, bytes] | None:
        """User and password for HTTP, or None where they are not both there."""
        return (self.user.encode(), self.password.encode()) if self.user and self.password else None


def read_login(file: Path | None, environment: Mapping[str, str] = os.environ) -> Login:
    """The login from a private JSON file; without one, from the variables that MONAI Label itself takes it from.

    Raises:
        InputError: if it cannot be read, holds something else, or others may read it.
    """
    if file is None:
        user, password = (environment.get(name, "") for name in ACCOUNT)
        return Login(user=user, password=password)
    try:
        return Login.model_validate_json(read_private(file, "The login of the PACS"))
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "the file"
        raise InputError(
            f'The login of the PACS in {file} cannot be used ({where}). It is a JSON object such as {{"user": "baps", '
            '"password": "...", "ca": "/etc/ssl/hospital.pem"}, each of which may be left out.'
        ) from None
