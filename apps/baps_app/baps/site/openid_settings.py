"""Read the OpenID provider whose users may sign in, from a private file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, FilePath, ValidationError, field_validator

from baps.errors import InputError
from baps.site.roles import Role
from baps.site.secret_file import read_private

SECRET = "BAPS_OPENID_SECRET"  # noqa: S105
"""Variable of the client's secret, which replaces that in the file."""


class OpenIdSettings(BaseModel, extra="forbid", frozen=True):  # type: ignore[misc]  # mypy takes it for a dataclass.
    """An OpenID provider, and the roles of its users.

    Attributes:
        issuer: Address of the provider, as in its tokens.
        client_id: Name of this server at the provider.
        client_secret: Secret of this server, or "" for a public client.
        audience: Audience of the access tokens for this server. Empty: the client.
        roles_claim: Claim of a token that lists roles. Dots separate levels (``realm_access.roles``).
        roles: Roles by the provider's names for them. Users who have none of them are rejected.
        name_claim: Claim of a token that names the user. A token without it is named by ``sub``.
        algorithms: Accepted signature algorithms.
        ca: File with the certificate of the provider's authority, or None for the usual ones.
    """

    issuer: str
    client_id: str = Field(min_length=1)
    client_secret: str = Field("", repr=False)
    audience: str = ""
    roles_claim: str = Field("roles", min_length=1)
    roles: dict[str, Role] = Field(min_length=1)
    name_claim: str = "preferred_username"
    algorithms: tuple[Literal["RS256", "ES256"], ...] = Field(("RS256", "ES256"), min_length=1)
    ca: FilePath | None = None

    @field_validator("issuer")
    @classmethod
    def _safe(cls, issuer: str) -> str:
        if not is_safe(issuer):
            raise ValueError("The address must begin with https.")
        return issuer


def is_safe(address: str) -> bool:
    """Return whether the connection to an address is protected.

    Args:
        address: The address. It needs https, unless it is on this machine.

    Returns:
        Whether nobody can read or change requests and responses.
    """
    parts = urlsplit(address)
    is_local = parts.hostname in ("127.0.0.1", "::1", "localhost")
    return bool(parts.hostname) and (parts.scheme == "https" or (parts.scheme == "http" and is_local))


def read_openid(file: Path, environment: Mapping[str, str] = os.environ) -> OpenIdSettings:
    """Read the provider from a private JSON file.

    Args:
        file: The private file.
        environment: Variables; ``BAPS_OPENID_SECRET`` replaces the secret in the file.

    Returns:
        The provider.

    Raises:
        InputError: If the file cannot be read, does not describe a provider, or others can read it.
    """
    try:
        provider = OpenIdSettings.model_validate_json(read_private(file, "The OpenID provider"))
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "the file"
        raise InputError(
            f"The OpenID provider in {file} cannot be used ({where}). It is a JSON object such as "
            '{"issuer": "https://login.hospital/realms/main", "client_id": "baps", "client_secret": "...", '
            '"roles_claim": "realm_access.roles", "roles": {"radiologist": "annotator", "ml-team": "trainer"}}; the '
            "roles are annotator, trainer and admin, and the address begins with https."
        ) from None
    secret = environment.get(SECRET, "")
    return provider.model_copy(update={"client_secret": secret}) if secret else provider
