"""DICOMweb client: credentials of the PACS, limits on its responses, and its errors as messages for users."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from requests.adapters import HTTPAdapter

from baps.errors import BapsError
from baps.io.dicom.pixels import read_dataset
from baps.site.pacs_credentials import PacsCredentials
from baps.utils.limits import max_volume_bytes

_ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax=*'
"""Objects are fetched as they are stored: not every PACS can decompress all transfer syntaxes, and some then fail."""

_TIMEOUT = (5.0, 60.0)
"""Seconds to connect, and between two parts of a response."""

_MAX_JSON_BYTES = 512 << 20
"""Maximum size of a response with a list or metadata. The metadata of 10,000 objects take a tenth of it."""

_MAX_IMAGES_FACTOR = 2
"""Maximum size of a response with images, as a multiple of the largest volume: small images have large headers."""

_MIN_BYTES_PER_SECOND, _GRACE_SECONDS = 1024, 60.0
"""Minimum average rate of a response, which is checked after the seconds of grace."""


class _Transport(HTTPAdapter):
    """Limits the time and the size of responses.

    Args:
        ca: Certificate authority of the PACS, which takes precedence over those of the environment; None for those.
    """

    def __init__(self, ca: Path | None = None) -> None:
        super().__init__()
        self._ca = ca

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:  # type: ignore[override]
        """Send a request.

        Raises:
            BapsError: if the PACS redirects to another host.
        """
        options["timeout"] = options.get("timeout") or _TIMEOUT
        if self._ca:
            options["verify"] = str(self._ca)
        response = super().send(request, **options)
        address = str(request.url)
        if response.is_redirect and _host(urljoin(address, response.headers["location"])) != _host(address):
            raise BapsError(
                "The PACS redirects requests to another host, which this server does not follow. Give the address of "
                "that host."
            )
        has_images = "multipart" in response.headers.get("content-type", "")
        max_bytes = _MAX_IMAGES_FACTOR * max_volume_bytes() if has_images else _MAX_JSON_BYTES
        response.raw.stream = _limit_stream(response.raw.stream, max_bytes)
        return response


def _host(address: str) -> str | None:
    return urlsplit(address).hostname


def _limit_stream(stream: Callable[..., Iterator[bytes]], max_bytes: int) -> Callable[..., Iterator[bytes]]:
    """Return the stream of a response that raises a BapsError when the response is too large or too slow."""

    def limited(*arguments: Any, **options: Any) -> Iterator[bytes]:
        received, started = 0, time.monotonic()
        for part in stream(*arguments, **options):
            received += len(part)
            seconds = time.monotonic() - started
            if received > max_bytes:
                raise BapsError(f"The PACS sent more than {max_bytes >> 20:,} MB in one response. It was cancelled.")
            if seconds > _GRACE_SECONDS and received < _MIN_BYTES_PER_SECOND * seconds:
                raise BapsError("The PACS sends its response too slowly. It was cancelled; try again.")
            yield part

    return limited


class _Client(DICOMwebClientX):
    """Sends a label in one piece, and limits the size to which compressed objects may inflate.

    If a label was sent in several pieces and one was lost, the PACS could not tell a part from the whole, and a retry
    would send nothing.
    """

    def _http_get_multipart_application_dicom(
        self, url: str, media_types: object = None, params: dict[str, Any] | None = None, stream: bool = False
    ) -> Iterator[Dataset]:
        """Yield the objects of a response. The library's method inflates deflated objects to any size."""
        response = self._http_get(url, params, {"Accept": _ACCEPT}, stream)
        if response.headers.get("content-type", "").startswith("application/dicom"):  # Some PACS send a single object.
            return iter([read_dataset(BytesIO(response.content), pixels=True)])
        parts = self._decode_multipart_message(response, stream)
        return (read_dataset(BytesIO(part), pixels=True) for part in parts)

    def _http_post(self, url: str, data: bytes, headers: dict[str, str]) -> requests.Response:
        response = self._session.post(url, data=data, headers=headers)
        response.raise_for_status()
        return response


def connect(address: str, credentials: PacsCredentials) -> DICOMwebClientX:
    """Create the client of a DICOMweb address, with the prefixes of MONAI Label's settings.

    Args:
        address: Address of the PACS.
        credentials: User and password, and certificate authority.
    """
    session = requests.Session()
    session.auth = credentials.account
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Transport(credentials.ca))
    client = _Client(
        url=address,
        session=session,
        qido_url_prefix=settings.MONAI_LABEL_QIDO_PREFIX,
        wado_url_prefix=settings.MONAI_LABEL_WADO_PREFIX,
        stow_url_prefix=settings.MONAI_LABEL_STOW_PREFIX,
    )
    client.set_http_retry_params(max_attempts=3, wait_exponential_multiplier=100)  # Short, because a user waits.
    return client


def status_code(error: BaseException | None) -> int | None:
    """Return the HTTP status with which a request failed.

    Args:
        error: Error of the request, or a BapsError that it caused.

    Returns:
        The status, or None if there was no response.
    """
    response = getattr(
        error if isinstance(error, requests.RequestException) else error and error.__cause__, "response", None
    )
    return None if response is None else int(response.status_code)


@contextmanager
def convert_pacs_errors() -> Iterator[None]:
    """Convert errors of requests to the PACS to a BapsError. The message never contains addresses, which may be secret.

    Raises:
        BapsError: if a request fails.
    """
    try:
        yield
    except BapsError:  # Some are ValueErrors, which are handled below.
        raise
    except requests.exceptions.SSLError as error:
        raise BapsError(
            "The certificate of the PACS cannot be checked. Name its authority's as ca in the file of pacs_credentials."
        ) from error
    except requests.ConnectionError as error:
        raise BapsError("The PACS cannot be reached. Is it running, and is its address right?") from error
    except requests.Timeout as error:
        raise BapsError(f"The PACS did not answer within {_TIMEOUT[1]:.0f} seconds. Try again.") from error
    except requests.HTTPError as error:
        code = error.response.status_code if error.response is not None else "no code"
        remedy = " Check its user and password." if code in (401, 403) else ""
        raise BapsError(f"The PACS refused the request (HTTP {code}).{remedy}") from error
    except (requests.RequestException, ValueError, InvalidDicomError) as error:
        raise BapsError(f"The PACS sent an incomplete response ({type(error).__name__}). Try again.") from error
