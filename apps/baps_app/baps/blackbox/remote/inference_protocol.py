"""Query one model behind the Open Inference Protocol (v2), over HTTP or gRPC.

Both transports use tritonclient. Its HTTP client is bound to the thread that made it (gevent), and notices that an idle
connection was closed only after it has sent the images. So over HTTP the requests library carries what tritonclient
encodes. A gRPC channel may be used by any thread.

Nothing is sent twice here: the caller decides that, and counts it.
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
"""Environment variable with the token that is sent as ``Authorization: Bearer``."""

_CONNECT_SECONDS = 10.0
LOOPBACK = re.compile(r"localhost|127\.\d+\.\d+\.\d+|::1")
_TEMPORARY_CODES = (429, 502, 503, 504)
"""HTTP codes of a server, or of a proxy before it, that is busy, starting or gone."""
_TEMPORARY_STATUS = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED")
"""The same over gRPC. A server that stops cancels the requests that it has not answered."""
_AUTHENTICATION = ("HTTP 401", "HTTP 403", "UNAUTHENTICATED", "PERMISSION_DENIED")


class UnreachableError(BapsError):
    """The server could not be reached or did not respond in time, which may be temporary."""


@dataclass(frozen=True)
class Address:
    """Address of a model, ``http://host:port/model``; ``https``, ``grpc`` and ``grpcs`` likewise.

    Over HTTP a path may precede the model's name, for a proxy that needs one.

    Attributes:
        scheme: ``http``, ``https``, ``grpc`` or ``grpcs``.
        host: name or IP address of the host.
        port: port, or None for the default one of the scheme.
        prefix: path before the model's name, or "".
        model: name of the model.
    """

    scheme: str
    host: str
    port: int | None
    prefix: str
    model: str

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse an address.

        Args:
            text: the address.

        Returns:
            The parsed address.

        Raises:
            InputError: if the text has another form, or contains a user or a password.
        """
        example = "http://host:8000/model or grpc://host:8001/model (https and grpcs for TLS)"
        try:
            parts = urlsplit(text)
            port, host = parts.port, parts.hostname
        except ValueError as error:
            raise InputError(
                f"{text!r} is not the address of a model ({error}). Give one such as {example}."
            ) from error
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
            raise InputError(f"{text!r} is not the address of a model. Give one such as {example}.")
        return cls(parts.scheme, host, port, prefix, model)

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.scheme in ("https", "grpcs")

    @property
    def netloc(self) -> str:
        """Host and port, as in a URL."""
        host = url_host(self.host)
        return host if self.port is None else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}{self.prefix}/{self.model}"


@dataclass(frozen=True)
class Tensor:
    """Declaration of one input or output of a model.

    Attributes:
        datatype: name of the type in the protocol.
        shape: size of each axis; -1 for any size.
    """

    datatype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.datatype} [{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Description:
    """What a server declares about its model, the same over HTTP and gRPC.

    Attributes:
        name: name of the model.
        versions: versions that the server has.
        platform: platform of the model.
        inputs: declarations of the inputs by name.
        outputs: declarations of the outputs by name.
    """

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


@dataclass(frozen=True)
class Response:
    """One output tensor.

    Attributes:
        tensor: the tensor.
        version: version of the model that made it, or "" if the server does not say.
    """

    tensor: NDArray[Any]
    version: str


class InferenceServer(ABC):
    """One model on a server.

    Every call raises ``UnreachableError`` if it may be worth trying again, and another ``BapsError`` if not: the server
    refused, or its response does not follow the protocol.
    """

    @abstractmethod
    def ready(self) -> bool:
        """Return whether the model is loaded and ready.

        Returns:
            True if it can be queried.
        """

    @abstractmethod
    def describe(self) -> Description:
        """Fetch the model's metadata.

        Returns:
            The metadata.
        """

    @abstractmethod
    def infer(self, inputs: Mapping[str, NDArray[Any]], output: str) -> Response:
        """Send tensors once, and receive one output.

        Args:
            inputs: tensors by name.
            output: name of the output.

        Returns:
            The output.
        """


def connect(address: Address, timeout: float) -> InferenceServer:
    """Prepare a connection, which is reused. Nothing is sent yet.

    Args:
        address: address of the model.
        timeout: seconds that a response may take.

    Returns:
        The connection.

    Raises:
        InputError: if there is a token and it would travel unencrypted to another machine.
        MissingExtraError: if the packages of the extra ``remote`` are not installed.
    """
    token = os.environ.get(TOKEN_VARIABLE, "")
    if token and not address.tls and not LOOPBACK.fullmatch(address.host):
        raise InputError(
            f"{TOKEN_VARIABLE} is set, but {address} is not encrypted: everyone on the way could read the token. Use "
            "https:// or grpcs://, or remove the token from the environment."
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

        self._session.auth = sign  # Even without a token, or requests would send the credentials of ~/.netrc.

    def _request(self, path: str = "", body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Any:
        import requests

        try:
            return self._session.request(
                "GET" if body is None else "POST",
                self._root + path,
                data=body,
                headers=headers,
                timeout=self._timeout,
                allow_redirects=False,  # Images go to the address that the operator gave, and nowhere else.
            )
        except requests.exceptions.SSLError as error:
            raise BapsError(
                f"{self._address} has no certificate that this machine trusts ({_short(str(error))}). Name a file with "
                "its authority's certificate: REQUESTS_CA_BUNDLE=<file>."
            ) from error
        except requests.RequestException as error:
            raise UnreachableError(_unreachable_message(self._address, type(error).__name__)) from error

    def _check(self, answer: Any) -> None:
        if answer.status_code in _TEMPORARY_CODES:
            raise UnreachableError(_unreachable_message(self._address, f"HTTP {answer.status_code}"))
        if answer.status_code != 200:
            raise BapsError(_refused_message(self._address, f"HTTP {answer.status_code}", _error_message(answer)))

    def ready(self) -> bool:
        return bool(self._request("/ready").status_code == 200)

    def describe(self) -> Description:
        answer = self._request()
        self._check(answer)
        with _convert_protocol_errors(self._address):
            reply = answer.json()
            inputs, outputs = (
                {
                    str(tensor["name"]): Tensor(str(tensor["datatype"]), tuple(map(int, tensor["shape"])))
                    for tensor in reply[kind]
                }
                for kind in ("inputs", "outputs")
            )
            versions = tuple(map(str, reply.get("versions") or ()))
            return Description(str(reply["name"]), versions, str(reply.get("platform") or ""), inputs, outputs)

    def infer(self, inputs: Mapping[str, NDArray[Any]], output: str) -> Response:
        import tritonclient.http as http

        encoded = _encoded(http.InferInput, inputs)
        body, length = http.InferenceServerClient.generate_request_body(encoded, [http.InferRequestedOutput(output)])
        headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(length)}
        answer = self._request("/infer", body, headers)
        self._check(answer)
        with _convert_protocol_errors(self._address):
            length = answer.headers.get("Inference-Header-Content-Length")
            result = http.InferenceServerClient.parse_response_body(answer.content, header_length=length)
            version = str(result.get_response().get("model_version") or "")
            return Response(_output(self._address, result.as_numpy(output), output), version)


class _Grpc(InferenceServer):
    def __init__(self, address: Address, timeout: float, token: str) -> None:
        import tritonclient.grpc as grpc

        self._address, self._timeout = address, timeout
        self._headers = {"authorization": f"Bearer {token}"} if token else None
        options = [
            ("grpc.max_send_message_length", -1),  # unlimited; images of SAM's size exceed the default of 4 MB
            ("grpc.max_receive_message_length", -1),
            ("grpc.enable_retries", 0),
            # Reconnect within a second, not in up to two minutes.
            ("grpc.initial_reconnect_backoff_ms", 500),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.use_local_subchannel_pool", 1),  # or a new connection inherits the state of an older one
        ]
        self._client = grpc.InferenceServerClient(address.netloc, ssl=address.tls, channel_args=options)

    @contextmanager
    def _converted_errors(self) -> Iterator[dict[str, Any]]:
        from tritonclient.utils import InferenceServerException

        try:
            yield {"headers": self._headers, "client_timeout": self._timeout}
        except InferenceServerException as error:
            status = str(error.status()).removeprefix("StatusCode.")
            if status in _TEMPORARY_STATUS:
                raise UnreachableError(
                    _unreachable_message(self._address, f"{status}: {_short(error.message())}")
                ) from error
            raise BapsError(_refused_message(self._address, status, _short(error.message()))) from error

    def ready(self) -> bool:
        try:
            with self._converted_errors() as options:
                return bool(self._client.is_model_ready(self._address.model, **options))
        except UnreachableError:
            raise
        except BapsError:  # NOT_FOUND and the like, for which HTTP has a status other than 200
            return False

    def describe(self) -> Description:
        with self._converted_errors() as options:
            reply = self._client.get_model_metadata(self._address.model, **options)
        inputs, outputs = (
            {tensor.name: Tensor(tensor.datatype, tuple(tensor.shape)) for tensor in kind}
            for kind in (reply.inputs, reply.outputs)
        )
        return Description(reply.name, tuple(reply.versions), reply.platform, inputs, outputs)

    def infer(self, inputs: Mapping[str, NDArray[Any]], output: str) -> Response:
        import tritonclient.grpc as grpc

        encoded = _encoded(grpc.InferInput, inputs)
        with self._converted_errors() as options:
            result = self._client.infer(
                self._address.model, encoded, outputs=[grpc.InferRequestedOutput(output)], **options
            )
        with _convert_protocol_errors(self._address):
            tensor = _output(self._address, result.as_numpy(output), output)
            return Response(tensor, str(result.get_response().model_version))


def _encoded(tensor_class: Any, inputs: Mapping[str, NDArray[Any]]) -> list[Any]:
    from tritonclient.utils import np_to_triton_dtype

    tensors = []
    for name, values in inputs.items():
        tensor = tensor_class(name, values.shape, np_to_triton_dtype(values.dtype))
        tensor.set_data_from_numpy(values)
        tensors.append(tensor)
    return tensors


def _output(address: Address, tensor: NDArray[Any] | None, name: str) -> NDArray[Any]:
    if tensor is None:
        raise BapsError(f"The response of {address} has no output {name}. Look at the log of its server.")
    return tensor


@contextmanager
def _convert_protocol_errors(address: Address) -> Iterator[None]:
    """Convert what is raised while a response is parsed to BapsError: the server is at fault."""
    from tritonclient.utils import InferenceServerException

    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, InferenceServerException) as error:
        raise BapsError(
            f"The response of {address} does not follow the Open Inference Protocol, version 2 "
            f"({type(error).__name__}). Check the address, and the log of the server."
        ) from error


def _unreachable_message(address: Address, reason: str) -> str:
    return f"The model at {address} cannot be reached or does not respond in time ({reason})."


def _refused_message(address: Address, status: str, reply: str) -> str:
    advice = (
        f"Set its token in {TOKEN_VARIABLE}."
        if status in _AUTHENTICATION
        else "Check the address and its server's log."
    )
    return f"The model at {address} refused ({status}): {reply.rstrip('.') or 'it gives no reason'}. {advice}"


def _error_message(response: Any) -> str:
    """Return the message of an error response in the protocol's form, or the beginning of its text."""
    try:
        return _short(str(response.json()["error"]))
    except (ValueError, KeyError, TypeError):
        return _short(response.text)


def _short(text: str | None) -> str:
    return " ".join((text or "").split())[:300]
