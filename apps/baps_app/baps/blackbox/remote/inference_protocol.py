"""One model behind the Open Inference Protocol (v2), over HTTP or gRPC: is it there, what is it, ask it.

Both ways speak through tritonclient. Its own HTTP client is bound to the thread that made it (gevent) and finds out
that an idle connection was closed only after it has sent the images; so over HTTP the requests library carries what
tritonclient encodes. A gRPC channel may be used by any thread.

Nothing is sent twice here: whoever asks decides that, and counts it.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from numpy.typing import NDArray

from baps.errors import BapsError, InputError, MissingExtraError
from baps.utils.url_host import url_host

TOKEN_VARIABLE = "BAPS_REMOTE_TOKEN"  # noqa: S105 (the name of a variable)
"""Environment variable of the token that is sent as ``Authorization: Bearer``."""

_CONNECT_SECONDS = 10.0
_LOOPBACK = re.compile(r"localhost|127\.\d+\.\d+\.\d+|::1")
_PASSING = (429, 502, 503, 504)
"""HTTP answers of a server, or of a proxy before it, that is busy, starting or gone."""
_PASSING_STATUS = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED")
"""The same over gRPC; a server that stops cancels what it has not answered."""
_LOGIN = ("HTTP 401", "HTTP 403", "UNAUTHENTICATED", "PERMISSION_DENIED")


class UnreachableError(BapsError):
    """The server could not be asked, or did not answer in time; that may pass."""


@dataclass(frozen=True)
class Address:
    """Where a model is, ``http://host:port/model``; ``https``, ``grpc`` and ``grpcs`` likewise.

    Over HTTP a path may come before the model's name, where a proxy wants one.
    """

    scheme: str
    host: str
    port: int | None
    prefix: str
    model: str

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an address.

        Raises:
            InputError: if it has another form, or holds a user or a password.
        """
        example = "http://host:8000/model or grpc://host:8001/model (https and grpcs for TLS)"
        try:
            parts = urlsplit(text)
            port, host = parts.port, parts.hostname
        except ValueError as error:
            raise InputError(f"{text!r} is no address of a model ({error}). Give one such as {example}.") from error
        if parts.username is not None or parts.password is not None:
            raise InputError(
                "The address of the model holds a user or a password, which others could read. Set a token in the "
                f"environment instead: {TOKEN_VARIABLE}."
            )
        prefix, _, model = parts.path.rstrip("/").rpartition("/")
        grpc = parts.scheme in ("grpc", "grpcs")
        if (
            parts.scheme not in ("http", "https", "grpc", "grpcs")
            or not host
            or not model
            or parts.query
            or parts.fragment
            or (grpc and (prefix or port is None))
        ):
            raise InputError(f"{text!r} is no address of a model. Give one such as {example}.")
        return cls(parts.scheme, host, port, prefix, model)

    @property
    def tls(self) -> bool:
        """Whether what is sent is encrypted."""
        return self.scheme in ("https", "grpcs")

    @property
    def netloc(self) -> str:
        """Host and port as they stand in an address."""
        host = url_host(self.host)
        return host if self.port is None else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}{self.prefix}/{self.model}"


@dataclass(frozen=True)
class Tensor:
    """What a model says of one of its inputs or outputs; -1 in the shape is any size."""

    datatype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.datatype} [{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Description:
    """What a server says of its model, the same over HTTP and gRPC."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


@dataclass(frozen=True)
class Answer:
    """One output tensor, and the version of the model that made it, or "" where the server does not say."""

    tensor: NDArray[Any]
    version: str


class InferenceServer(ABC):
    """One model on a server. Every call raises ``UnreachableError`` where it may be worth to ask again, and another
    ``BapsError`` where it is not: the server refused, or what it said is not of the protocol."""

    @abstractmethod
    def ready(self) -> bool:
        """Whether the model is there and ready."""

    @abstractmethod
    def describe(self) -> Description:
        """The model's metadata."""

    @abstractmethod
    def infer(self, inputs: Mapping[str, NDArray[Any]], output: str) -> Answer:
        """Send tensors once, bring back one output."""


def connect(address: Address, timeout: float) -> InferenceServer:
    """A connection, which is kept; nothing is sent yet.

    Args:
        address: of the model.
        timeout: seconds that an answer may take.

    Raises:
        InputError: if there is a token and it would travel unencrypted to another machine.
        MissingExtraError: if the packages of the extra ``remote`` are not installed.
    """
    token = os.environ.get(TOKEN_VARIABLE, "")
    if token and not address.tls and not _LOOPBACK.fullmatch(address.host):
        raise InputError(
            f"{TOKEN_VARIABLE} is set, but {address} is not encrypted: everybody on the way could read the token. Use "
            "https:// or grpcs://, or take the token out of the environment."
        )
    try:
        return (_Grpc if address.scheme.startswith("grpc") else _Http)(address, timeout, token)
    except ImportError as error:
        raise MissingExtraError("The black box remote", "remote") from error


class _Http(InferenceServer):
    def __init__(self, address: Address, timeout: float, token: str) -> None:
        import requests
        import tritonclient.http  # noqa: F401 (a missing package is reported now, not at the first click)

        self._address, self._timeout = address, (min(timeout, _CONNECT_SECONDS), timeout)
        self._root = f"{address.scheme}://{address.netloc}{address.prefix}/v2/models/{quote(address.model)}"
        self._session = requests.Session()

        def sign(request: Any) -> Any:
            if token:
                request.headers["Authorization"] = f"Bearer {token}"
            return request

        self._session.auth = sign  # Even without a token: else requests would send what ~/.netrc has.

    def _ask(self, path: str = "", body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Any:
        import requests

        try:
            return self._session.request(
                "GET" if body is None else "POST",
                self._root + path,
                data=body,
                headers=headers,
                timeout=self._timeout,
                allow_redirects=False,  # What is sent goes to the address that the operator gave, and nowhere else.
            )
        except requests.exceptions.SSLError as error:
            raise BapsError(
                f"{self._address} has no certificate that this machine trusts ({_short(str(error))}). Name a file with "
                "its authority's certificate: REQUESTS_CA_BUNDLE=<file>."
            ) from error
        except requests.RequestException as error:
            raise UnreachableError(_unreachable(self._address, type(error).__name__)) from error

    def _check(self, answer: Any) -> None:
        if answer.status_code in _PASSING:
            raise UnreachableError(_unreachable(self._address, f"HTTP {answer.status_code}"))
        if answer.status_code != 200:
            raise BapsError(_refused(self._address, f"HTTP {answer.status_code}", _error_of(answer)))

    def ready(self) -> bool:
        return bool(self._ask("/ready").status_code == 200)

    def describe(self) -> Description:
        answer = self._ask()
        self._check(answer)
        with _of_the_protocol(self._address):
            said = answer.json()
            inputs, outputs = (
                {str(one["name"]): Tensor(str(one["datatype"]), tuple(map(int, one["shape"]))) for one in said[kind]}
                for kind in ("inputs", "outputs")
            )
            versions = tuple(map(str, said.get("versions") or ()))
            return Description(str(said["name"]), versions, str(said.get("platform") or ""), inputs, outputs)

    def infer(self, inputs: Mapping[str, NDArray[Any]], output: str) -> Answer:
        import tritonclient.http as http

        encoded = _encoded(http.InferInput, inputs)
        body, length = http.InferenceServerClient.generate_request_body(encoded, [http.InferRequestedOutput(output)])
        headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(length)}
        answer = self._ask("/infer", body, headers)
        self._check(answer)
        with _of_the_protocol(self._address):
            length = answer.headers.get("Inference-Header-Content-Length")
            result = http.InferenceServerClient.parse_response_body(answer.content, header_length=length)
            version = str(result.get_response().get("model_version") or "")
            return Answer(_output(self._address, result.as_numpy(output), output), version)


class _Grpc(InferenceServer):
    def __init__(self, address: Address, timeout: float, token: str) -> None:
        import tritonclient.grpc as grpc

        self._address, self._timeout = address, timeout
        self._headers = {"authorization": f"Bearer {token}"} if token else None
        options = [
            ("grpc.max_send_message_length", -1),  # any; images of SAM's size are over the usual 4 MB
            ("grpc.max_receive_message_length", -1),
            ("grpc.enable_retries", 0),
            # A server that is back is found again in a second, not in up to two minutes.
            ("grpc.initial_reconnect_backoff_ms", 500),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.use_local_subchannel_pool", 1),  # or a new connection inherits what an older one met
        ]
        self._client = grpc.InferenceServerClient(address.netloc, ssl=address.tls, channel_args=options)

    @contextmanager
    def _asking(self) -> Iterator[dict[str, Any]]:
        from tritonclient.utils import InferenceServerException

        try:
            yield {"headers": self._headers, "client_timeout": self._timeout}
        except InferenceServerException as error:
            status = str(error.status()).removeprefix("StatusCode.")
            if status in _PASSING_STATUS:
                raise UnreachableError(_unreachable(self._address, f"{status}: {_short(error.message())}")) from error
            raise BapsError(_refused(self._address, status, _short(error.message()))) from error

    def ready(self) -> bool:
        try:
            with self._asking() as how:
                return bool(self._client.is_model_ready(self._address.model, **how))
        except UnreachableError:
            raise
        except BapsError:  # NOT_FOUND and the like, where HTTP has a status other than 200
            return False

    def describe(self) -> Description:
        with self._asking() as how:
            said = self._client.get_model_metadata(self._address.model, **how)
        inputs, outputs = (
            {one.name: Tensor(one.datatype, tuple(one.shape)) for one in kind} for kind in (said.inputs, said.outputs)
        )
        return Description(said.name, tuple(said.versions), said.platform, inputs, outputs)

    def infer(self, inputs: Mapping[str, NDArray[Any]], output: str) -> Answer:
        import tritonclient.grpc as grpc

        encoded = _encoded(grpc.InferInput, inputs)
        with self._asking() as how:
            result = self._client.infer(
                self._address.model, encoded, outputs=[grpc.InferRequestedOutput(output)], **how
            )
        with _of_the_protocol(self._address):
            tensor = _output(self._address, result.as_numpy(output), output)
            return Answer(tensor, str(result.get_response().model_version))


def _encoded(kind: Any, inputs: Mapping[str, NDArray[Any]]) -> list[Any]:
    from tritonclient.utils import np_to_triton_dtype

    found = []
    for name, values in inputs.items():
        tensor = kind(name, values.shape, np_to_triton_dtype(values.dtype))
        tensor.set_data_from_numpy(values)
        found.append(tensor)
    return found


def _output(address: Address, tensor: NDArray[Any] | None, name: str) -> NDArray[Any]:
    if tensor is None:
        raise BapsError(f"The answer of {address} has no output {name}. Look at the log of its server.")
    return tensor


@contextmanager
def _of_the_protocol(address: Address) -> Iterator[None]:
    """What cannot be read is a fault of the server, told in a sentence."""
    from tritonclient.utils import InferenceServerException

    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, InferenceServerException) as error:
        raise BapsError(
            f"What {address} answered is not of the Open Inference Protocol, version 2 ({type(error).__name__}). Check "
            "the address, and the log of the server."
        ) from error


def _unreachable(address: Address, why: str) -> str:
    return f"The model at {address} cannot be reached or does not answer in time ({why})."


def _refused(address: Address, status: str, said: str) -> str:
    advice = f"Set its token in {TOKEN_VARIABLE}." if status in _LOGIN else "Check the address and its server's log."
    return f"The model at {address} refused ({status}): {said.rstrip('.') or 'it gives no reason'}. {advice}"


def _error_of(answer: Any) -> str:
    """The sentence of an error answer, as the protocol has it, or the first of another one's text."""
    try:
        return _short(str(answer.json()["error"]))
    except (ValueError, KeyError, TypeError):
        return _short(answer.text)


def _short(text: str | None) -> str:
    return " ".join((text or "").split())[:300]
