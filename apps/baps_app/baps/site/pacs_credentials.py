"""Read credentials for a PACS from a private file or the environment, never from arguments, which others can read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, Field, FilePath, ValidationError

from baps.errors import InputError
from baps.site.secret_file import read_private

ACCOUNT = ("MONAI_LABEL_DICOMWEB_USERNAME", "MONAI_LABEL_DICOMWEB_PASSWORD")
"""Environment variables of the user and the password."""


class PacsCredentials(BaseModel, extra="forbid"):
    """The account for a PACS, and how its certificate is checked.

    Attributes:
        user: Name of the account, or "" where the PACS needs none.
        password: Password of the account, or "".
        ca: File with the certificate of the PACS's authority, or None for the usual ones.
    """

    user: str = ""
    password: str = Field("", repr=False)
    ca: FilePath | None = None

    @property
    def account(self) -> tuple[bytes, bytes] | None:
        """User and password for HTTP, or None unless both are given."""
        return (self.user.encode(), self.password.encode()) if self.user and self.password else None


def read_pacs_credentials(file: Path | None, environment: Mapping[str, str] = os.environ) -> PacsCredentials:
    """Read the credentials from a private JSON file, or from the variables of MONAI Label if there is no file.

    Args:
        file: The private file, or None.
        environment: Variables, used without a file.

    Returns:
        The credentials, which are empty if there are none.

    Raises:
        InputError: If the file cannot be read, does not hold credentials, or others can read it.
    """
    if file is None:
        user, password = (environment.get(name, "") for name in ACCOUNT)
        return PacsCredentials(user=user, password=password)
    try:
        return PacsCredentials.model_validate_json(read_private(file, "The PACS credentials"))
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "the file"
        raise InputError(
            f'The PACS credentials in {file} cannot be used ({where}). Write a JSON object such as {{"user": "baps", '
            '"password": "...", "ca": "/etc/ssl/hospital.pem"}; each of its entries may be omitted.'
        ) from None
