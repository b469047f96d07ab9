"""Define the settings of a model on another machine."""

from __future__ import annotations

from dataclasses import dataclass

from baps.blackbox.remote.inference_protocol import Address
from baps.errors import InputError

_PROMPTS = ("clicks,boxes", "clicks", "boxes")
_MAX_CONNECTIONS = 64


@dataclass(frozen=True)
class RemoteSettings:
    """Settings of a model on another machine.

    Attributes:
        address: ``http://host:port/model``, or ``https``, ``grpc`` or ``grpcs``.
        image_size: Side of its square images, in pixels, where the model's metadata leaves it open.
        batch_size: Images per request.
        prompts: Prompts that the model understands: ``clicks,boxes``, ``clicks`` or ``boxes``. Its metadata does not
            say.
        timeout: Seconds to wait for an answer.
        retry_seconds: Seconds to retry when the server is gone.
        connections: Requests at once, each over its own connection, for a server that has several instances.

    Raises:
        InputError: on a value that cannot be used.
    """

    address: str
    image_size: int = 1024
    batch_size: int = 8
    prompts: str = "clicks,boxes"
    timeout: float = 60
    retry_seconds: float = 120
    connections: int = 1

    def __post_init__(self) -> None:
        Address.parse(self.address)
        if self.image_size < 1 or self.batch_size < 1:
            raise InputError(
                f"remote_image_size and remote_batch_size must be 1 or more, not {self.image_size} "
                f"and {self.batch_size}."
            )
        if not 1 <= self.connections <= _MAX_CONNECTIONS:
            raise InputError(f"remote_connections must be from 1 to {_MAX_CONNECTIONS}, not {self.connections}.")
        if not 0 < self.timeout < float("inf") or not 0 <= self.retry_seconds < float("inf"):
            raise InputError(
                f"remote_timeout must be more than 0 seconds and remote_retry_seconds 0 or more, not {self.timeout:g} "
                f"and {self.retry_seconds:g}."
            )
        if self.prompts not in _PROMPTS:
            raise InputError(f"remote_prompts must be one of {'; '.join(_PROMPTS)}, not {self.prompts!r}.")
