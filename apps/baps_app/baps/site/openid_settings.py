"""The OpenID provider whose users may use the server: from a private file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, FilePath, ValidationError, field_validator

from baps.errors import InputError
from baps.site.roles import Role
from baps.site.secret_file import read_private

SECRET = "BAPS_OPENID_SECRET"  # noqa: S105
"""Variable of the client's secret, for those who keep it out of the file."""


class OpenIdSettings(BaseModel):
    """An OpenID provider, and which of its users are who here.

    Attributes:
        issuer: its address, as it stands in its tokens.
        client_id, client_secret: ours; a public client has no secret.
        audience: of the access tokens that are meant for us; empty: the client.
        roles_claim: what of a token names roles; dots lead inwards (``realm_access.roles``).
        roles: our role by the provider's name of it; users with none of them are refused.
        name_claim: what of a token names the user; without it ``sub`` does.
        algorithms: of signatures that count.
        ca: certificate of its authority, or None for the usual ones.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

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
    """Whether what is sent to an address, and comes from it, cannot be read or changed on its way."""
    parts = urlsplit(address)
    near = parts.hostname in ("127.0.0.1", "::1", "localhost")
    return bool(parts.hostname) and (parts.scheme == "https" or (parts.scheme == "http" and near))


def read_openid(file: Path, environment: Mapping[str, str] = os.environ) -> OpenIdSettings:
    """The provider that a private JSON file describes.

    Raises:
        InputError: if it cannot be read, holds something else, or others may read it.
    """
    try:
        found = OpenIdSettings.model_validate_json(read_private(file, "The OpenID provider"))
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "the file"
        raise InputError(
            f"The OpenID provider in {file} cannot be used ({where}). It is a JSON object such as "
            '{"issuer": "https://login.hospital/realms/main", "client_id": "baps", "client_secret": "...", '
            '"roles_claim": "realm_access.roles", "roles": {"radiologist": "annotator", "ml-team": "trainer"}}; the '
            "roles are annotator, trainer and admin, and the address begins with https."
        ) from None
    secret = environment.get(SECRET, "")
    return found.model_copy(update={"client_secret": secret}) if secret else found
