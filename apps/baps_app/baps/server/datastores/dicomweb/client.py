"""The DICOMweb client: who we are to the PACS, how long it is waited for, and what goes wrong as a sentence."""

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

_ACCEPTED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
"""Compressed as it is: not every PACS can unpack all kinds, and those that cannot answer with an error."""

_TIMEOUT = (5.0, 60.0)
"""Seconds to connect, and between two parts of an answer."""

_MOST_JSON = 512 << 20
"""Bytes of an answer that lists or describes. The metadata of 10,000 objects have a tenth of it."""

_HEADERS_SHARE = 2
"""How many times the size of the largest volume an answer with images may have: a little image has a large header."""

_LEAST_RATE, _PATIENCE = 1024, 60.0
"""Bytes per second that an answer must bring on average, after so many seconds."""


class _Transport(HTTPAdapter):
    """Limits the time and the size of an answer; a certificate authority of our own goes before the environment's."""

    def __init__(self, ca: Path | None = None) -> None:
        super().__init__()
        self._ca = ca

    def send(self, request: requests.PreparedRequest, **given: Any) -> requests.Response:  # type: ignore[override]
        given["timeout"] = given.get("timeout") or _TIMEOUT
        if self._ca:
            given["verify"] = str(self._ca)
        answer = super().send(request, **given)
        address = str(request.url)
        if answer.is_redirect and _host(urljoin(address, answer.headers["location"])) != _host(address):
            raise BapsError(
                "The PACS sends requests on to another host, which is not asked. Give the address of that one."
            )
        brings_images = "multipart" in answer.headers.get("content-type", "")
        most = _HEADERS_SHARE * max_volume_bytes() if brings_images else _MOST_JSON
        answer.raw.stream = _bounded(answer.raw.stream, most)
        return answer


def _host(address: str) -> str | None:
    return urlsplit(address).hostname


def _bounded(stream: Callable[..., Iterator[bytes]], most: int) -> Callable[..., Iterator[bytes]]:
    """Return the stream of an answer that ends with an error where the answer is too large or too slow."""

    def bounded(*given: Any, **options: Any) -> Iterator[bytes]:
        received, begun = 0, time.monotonic()
        for part in stream(*given, **options):
            received += len(part)
            seconds = time.monotonic() - begun
            if received > most:
                raise BapsError(f"The PACS sent more than {most >> 20:,} MB in one answer; it was broken off.")
            if seconds > _PATIENCE and received < _LEAST_RATE * seconds:
                raise BapsError("The PACS sends its answer too slowly; it was broken off. Try again.")
            yield part

    return bounded


class _Client(DICOMwebClientX):
    """Sends a label in one piece, and bounds what objects inflate to.

    In several pieces, the PACS could not tell a part from the whole, and another attempt would send nothing.
    """

    def _http_get_multipart_application_dicom(
        self, url: str, media_types: object = None, params: dict[str, Any] | None = None, stream: bool = False
    ) -> Iterator[Dataset]:
        """As the library's, which inflates deflated objects to any size; compressed images come as they are stored."""
        answer = self._http_get(url, params, {"Accept": _ACCEPTED}, stream)
        if answer.headers.get("content-type", "").startswith("application/dicom"):  # Some send one by itself.
            return iter([read_dataset(BytesIO(answer.content), pixels=True)])
        parts = self._decode_multipart_message(answer, stream)
        return (read_dataset(BytesIO(part), pixels=True) for part in parts)

    def _http_post(self, url: str, data: bytes, headers: dict[str, str]) -> requests.Response:
        response = self._session.post(url, data=data, headers=headers)
        response.raise_for_status()
        return response


def connect(address: str, login: PacsCredentials) -> DICOMwebClientX:
    """Make the client of a DICOMweb address, with the prefixes of MONAI Label's own settings."""
    session = requests.Session()
    session.auth = login.account
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Transport(login.ca))
    client = _Client(
        url=address,
        session=session,
        qido_url_prefix=settings.MONAI_LABEL_QIDO_PREFIX,
        wado_url_prefix=settings.MONAI_LABEL_WADO_PREFIX,
        stow_url_prefix=settings.MONAI_LABEL_STOW_PREFIX,
    )
    client.set_http_retry_params(max_attempts=3, wait_exponential_multiplier=100)  # A user waits.
    return client


def status_code(error: BaseException | None) -> int | None:
    """Return the HTTP status that a request failed with, also of the cause of a BapsError; None if it had no answer."""
    answer = getattr(
        error if isinstance(error, requests.RequestException) else error and error.__cause__, "response", None
    )
    return None if answer is None else int(answer.status_code)


@contextmanager
def convert_pacs_errors() -> Iterator[None]:
    """Turn what goes wrong with the PACS into a sentence; its address may hold what is nobody's business."""
    try:
        yield
    except BapsError:  # Some are ValueErrors, and none of them is of the PACS.
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
        raise BapsError(f"The PACS gave half an answer ({type(error).__name__}). Try again.") from error
