"""Define the settings of a 3D black box on another machine. This module imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from baps.blackbox.remote.inference_protocol import LOOPBACK
from baps.errors import InputError

TOKEN_VARIABLE = "BAPS_VOLUME_REMOTE_TOKEN"  # noqa: S105 (the name of a variable)
"""Environment variable with the API key of an nninteractive-server."""

_EXAMPLE = "http://host:1527 (https for TLS)"


@dataclass(frozen=True)
class VolumeRemoteSettings:
    """Settings of an nninteractive-server.

    Attributes:
        address: ``http://host:1527``, or ``https``, with a path where a proxy needs one.
        token: Its API key, or "" if it has none.
        timeout: Seconds to wait for an answer.
        retry_seconds: Seconds to retry when the server is gone or has no free session.
        autozoom: Whether the server may zoom out until the object fits. It refines such answers in parts that it
            chooses at random, so they differ a little each time. Without it, the same prompts give the same answer, and
            an object is cut at the model's patch.

    Raises:
        InputError: on a value that cannot be used, or a key that would travel unencrypted to another machine.
    """

    address: str
    token: str = field(default="", repr=False)
    timeout: float = 60
    retry_seconds: float = 120
    autozoom: bool = True

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.address)
            host, _ = parts.hostname, parts.port
        except ValueError as error:
            raise InputError(
                f"{self.address!r} is not the address of an nninteractive-server ({error}). Give one such as "
                f"{_EXAMPLE}."
            ) from error
        if parts.username is not None or parts.password is not None:
            raise InputError(
                "The address of the nninteractive-server holds a user or a password, which others could read. Put its "
                f"API key into a private file (volume_remote_token_file) or the environment ({TOKEN_VARIABLE})."
            )
        if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
            raise InputError(
                f"{self.address!r} is not the address of an nninteractive-server. Give one such as {_EXAMPLE}."
            )
        if self.token and parts.scheme == "http" and not LOOPBACK.fullmatch(host):
            raise InputError(
                f"There is an API key, but {self.address} is not encrypted: everyone on the way could read the key. "
                "Use https://, or remove the key."
            )
        if not (self.token.isascii() and self.token.isprintable()) or " " in self.token:
            raise InputError(
                "The API key of the nninteractive-server may hold letters, digits and punctuation only. Put nothing "
                "else into its file."
            )
        if not 0 < self.timeout < float("inf") or not 0 <= self.retry_seconds < float("inf"):
            raise InputError(
                f"remote_timeout must be more than 0 seconds and remote_retry_seconds 0 or more, not {self.timeout:g} "
                f"and {self.retry_seconds:g}."
            )
