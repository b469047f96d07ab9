"""The DICOMweb client: who we are to the PACS, how long it is waited for, and what goes wrong as a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX
from requests.adapters import HTTPAdapter

from baps.errors import BapsError
from baps.pacs_login import Login

AS_STORED = (("application/dicom", "*"),)
"""Compressed as it is: not every PACS can unpack all kinds, and those that cannot answer with an error."""

_TIMEOUT = (5.0, 60.0)
"""Seconds to connect, and between two parts of an answer."""


class _Transport(HTTPAdapter):
    """Waits for an answer, but with a limit; a certificate authority of our own goes before the environment's."""

    def __init__(self, ca: Path | None = None) -> None:
        super().__init__()
        self._ca = ca

    def send(self, request: requests.PreparedRequest, **given: Any) -> requests.Response:  # type: ignore[override]
        given["timeout"] = given.get("timeout") or _TIMEOUT
        if self._ca:
            given["verify"] = str(self._ca)
        return super().send(request, **given)


class _Client(DICOMwebClientX):
    """Sends a label in one piece: in several, the PACS could not tell a part from the whole, and another attempt would
    send nothing."""

    def _http_post(self, url: str, data: bytes, headers: dict[str, str]) -> requests.Response:
        response = self._session.post(url, data=data, headers=headers)
        response.raise_for_status()
        return response


def connect(address: str, login: Login) -> DICOMwebClientX:
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
def pacs_answers() -> Iterator[None]:
    """Turn what goes wrong with the PACS into a sentence; its address may hold what is nobody's business."""
    try:
        yield
    except BapsError:  # Some are ValueErrors, and none of them is of the PACS.
        raise
    except requests.exceptions.SSLError as error:
        raise BapsError(
            "The certificate of the PACS cannot be checked. Name its authority's as ca in the login of the PACS."
        ) from error
    except requests.ConnectionError as error:
        raise BapsError("The PACS cannot be reached. Is it running, and is its address right?") from error
    except requests.Timeout as error:
        raise BapsError(f"The PACS did not answer within {_TIMEOUT[1]:.0f} seconds. Try again.") from error
    except requests.HTTPError as error:
        code = error.response.status_code if error.response is not None else "no code"
        remedy = " Check its user and password." if code in (401, 403) else ""
        raise BapsError(f"The PACS refused the request (HTTP {code}).{remedy}") from error
    except (requests.RequestException, ValueError) as error:
        raise BapsError(f"The PACS gave half an answer ({type(error).__name__}). Try again.") from error
