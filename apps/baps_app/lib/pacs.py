"""Images of a PACS, over DICOMweb."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from dicomweb_client import DICOMwebClient
from dicomweb_client.session_utils import create_session_from_user_pass
from filelock import FileLock
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX, DICOMWebDatastore
from monailabel.datastore.local import DataModel, ImageLabelModel
from pydicom.dataset import Dataset
from requests.adapters import HTTPAdapter

from baps.errors import BapsError, NotFoundError
from baps.formats import read_volume, write_nifti

logger = logging.getLogger(__name__)

_NO_IMAGES = frozenset(
    [
        "SEG",
        "SR",
        "PR",
        "KO",
        "RTSTRUCT",
        "RTPLAN",
        "RTDOSE",
        "RTRECORD",
        "REG",
        "FID",
        "AU",
        "DOC",
        "ECG",
        "HD",
        "EPS",
        "PLAN",
        "M3D",
        "RWV",
        "SMR",
        "TEXTUREMAP",
        "ANN",
    ]
)
"""Modalities of what is no image, or none to click on."""

_SHOWN = ("StudyDate", "StudyTime", "Modality", "RetrieveURL", "PatientID", "StudyInstanceUID")
"""What OHIF shows of an image that Next Sample offers."""

_LISTED_FOR = 5.0
"""Seconds that a list of series is kept: every click asks whether its image is there."""

_TIMEOUT = (5.0, 60.0)
"""Seconds to connect, and between two parts of an answer."""


class _NotForEver(HTTPAdapter):
    """Waits for an answer, but with a limit."""

    def send(self, request: requests.PreparedRequest, **given: Any) -> requests.Response:  # type: ignore[override]
        return super().send(request, **{**given, "timeout": given.get("timeout") or _TIMEOUT})


class PacsDatastore(DICOMWebDatastore):
    """MONAI Label's own, with its faults mended: images of all modalities, nothing half fetched, no stale counts.

    Args:
        client: of the PACS.
        cache: folder for what is fetched; None for the host's own.
    """

    def __init__(self, client: DICOMwebClient, cache: str | None) -> None:
        for scheme in ("http://", "https://"):
            client._session.mount(scheme, _NotForEver())
        client.set_http_retry_params(max_attempts=3, wait_exponential_multiplier=100)  # A user waits.
        self._listed: tuple[float, dict[str, Dataset]] = (-_LISTED_FOR, {})
        self._referenced: dict[str, str | None] = {}
        super().__init__(client=client, search_filter={}, cache_path=cache)

    def _series(self) -> dict[str, Dataset]:
        """All series of the PACS by SeriesInstanceUID."""
        when, found = self._listed
        if time.monotonic() - when > _LISTED_FOR:
            with _pacs_answers():
                answered = [Dataset.from_json(series) for series in self._client.search_for_series(get_remaining=True)]
            found = {str(series.SeriesInstanceUID): series for series in answered}
            self._listed = time.monotonic(), found
        return found

    def list_images(self) -> list[str]:
        """The series that are images."""
        return [uid for uid, series in self._series().items() if series.get("Modality") not in _NO_IMAGES]

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """The series that a DICOM SEG of the PACS belongs to, each once."""
        images = set(self.list_images())
        segmented = (self._image_of(series) for series in self._series().values() if series.get("Modality") == "SEG")
        return sorted({image for image in segmented if image in images})

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """The others."""
        labelled = set(self.get_labeled_images())
        return [image for image in self.list_images() if image not in labelled]

    def _image_of(self, segmentation: Dataset) -> str | None:
        """The series that a SEG refers to; asked once, for it cannot change."""
        uid = str(segmentation.SeriesInstanceUID)
        if uid not in self._referenced:
            with _pacs_answers():
                told = self._client.retrieve_series_metadata(str(segmentation.StudyInstanceUID), uid)
            referenced = Dataset.from_json(told[0]).get("ReferencedSeriesSequence") if told else None
            self._referenced[uid] = str(referenced[0].SeriesInstanceUID) if referenced else None
        return self._referenced[uid]

    def get_image_uri(self, image_id: str) -> str:
        """The series as NIfTI, fetched and converted when it is first asked for; a series does not change.

        Raises:
            NotFoundError: if the PACS has no such image.
            InputError: if the series is no volume.
            BapsError: if the PACS does not answer, or the disk is full.
        """
        folder = Path(self._datastore.image_path())
        target = folder / f"{image_id}.nii.gz"
        if target.exists():
            return str(target)
        series = self._series().get(image_id)
        if series is None:
            raise NotFoundError(f"The PACS has no series {image_id}. Choose one that Next Sample offers.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Beside the target, and renamed when it is whole.
            with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as parts:
                with _pacs_answers():
                    for number, image in enumerate(self._client.iter_series(str(series.StudyInstanceUID), image_id)):
                        image.save_as(Path(parts) / f"{number:06}.dcm", write_like_original=False)
                whole = Path(parts) / "volume.nii.gz"
                write_nifti(whole, read_volume(Path(parts)))
                info: dict[str, Any] = {name: str(series.get(name, "UNK")) for name in _SHOWN}
                info |= {"SeriesInstanceUID": image_id, "ts": int(time.time()), "name": target.name}
                with FileLock(self._lock_file):
                    whole.replace(target)
                    self._datastore.objects[image_id] = ImageLabelModel(image=DataModel(info=info, ext=".nii.gz"))
                    self._update_datastore_file(lock=False)
        except OSError as error:
            raise BapsError(
                f"The series cannot be kept ({error.strerror}). Make room on the disk of the server's cache."
            ) from error
        return str(target)


def open_pacs(address: str) -> PacsDatastore:
    """The datastore of a DICOMweb address. User, password and cache come from MONAI Label's own settings."""
    user, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
    client = DICOMwebClientX(
        url=address,
        session=create_session_from_user_pass(user, password) if user and password else None,
        qido_url_prefix=settings.MONAI_LABEL_QIDO_PREFIX,
        wado_url_prefix=settings.MONAI_LABEL_WADO_PREFIX,
        stow_url_prefix=settings.MONAI_LABEL_STOW_PREFIX,
    )
    cache = settings.MONAI_LABEL_DICOMWEB_CACHE_PATH or settings.MONAI_LABEL_DATASTORE_CACHE_PATH
    return PacsDatastore(client, cache.strip() or None)


@contextmanager
def _pacs_answers() -> Iterator[None]:
    """What goes wrong with the PACS, as a sentence; its address may hold what is nobody's business."""
    try:
        yield
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
