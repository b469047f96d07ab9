"""Images of a PACS and their labels, over DICOMweb."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import requests
from dicomweb_client import DICOMwebClient
from filelock import FileLock
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX, DICOMWebDatastore
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore
from monailabel.interfaces.datastore import DefaultLabelTag
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from requests.adapters import HTTPAdapter

from baps.errors import BapsError, InputError, NotFoundError
from baps.formats import read_label_map, read_labels, read_patient, read_volume, write_nifti
from baps.formats.dicom_seg import slice_depths, write_segmentation
from baps.label_map import LabelMap
from baps.pacs_login import Login, read_login
from baps.replacing import replacing
from baps.volume import Volume
from lib.label_info import LabelInfo, name_values, read_label_info
from lib.pacs_labels import OrganLabel, StoredSegment, keep_segments, kept_segment, stored_segments
from lib.unsent import Unsent
from lib.whole_list import WholeList

logger = logging.getLogger(__name__)

_NO_IMAGES = frozenset(
    ("SEG", "SR", "PR", "KO", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "REG", "FID", "AU", "DOC", "ECG", "HD", "EPS",
     "PLAN", "M3D", "RWV", "SMR", "TEXTUREMAP", "ANN")
)  # fmt: skip
"""Modalities of what is no image, or none to click on."""

_SHOWN = ("StudyDate", "StudyTime", "Modality", "RetrieveURL", "PatientID", "StudyInstanceUID")
"""What OHIF shows of an image that Next Sample offers."""

_AS_STORED = (("application/dicom", "*"),)
"""Compressed as it is: not every PACS can unpack all kinds, and those that cannot answer with an error."""

_PAGE = 1000
"""Series that are asked for at once."""

_LISTED_FOR = 5.0
"""Seconds that a list of series is kept: every click asks whether its image is there, and how many are labelled."""

_REFUSALS = (400, 409, 413, 415, 422)
"""Answers of HTTP to a label that would be no others if it was sent again."""

_STORED_BEFORE = 0x0111
"""A reason not to store an object: the same one is there, and its answer was lost on the way."""

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


class PacsDatastore(WholeList, DICOMWebDatastore):
    """MONAI Label's own, with its faults mended: images of all modalities, nothing half fetched, no stale counts.

    Args:
        client: of the PACS.
        cache: folder for what is fetched; None for the host's own.
    """

    def __init__(self, client: DICOMwebClient, cache: str | None) -> None:
        client.set_http_retry_params(max_attempts=3, wait_exponential_multiplier=100)  # A user waits.
        self._listed_series: tuple[float, dict[str, Dataset]] = (-_LISTED_FOR, {})
        self._forgotten = 0
        self._refused: dict[str, str] = {}
        self._known: dict[tuple[str, str], list[StoredSegment]] = {}
        self._own: list[StoredSegment] = []
        super().__init__(client=client, search_filter={}, cache_path=cache)
        self._unsent = Unsent(Path(self._datastore_path) / "unsent")
        self.history.repair()

    @cached_property
    def saving(self) -> FileLock:
        """The lock of whoever saves; the list has its own, for fetching must not wait for storing."""
        return FileLock(Path(self._datastore_path) / ".saving.lock")

    def _series(self) -> dict[str, Dataset]:
        """All series of the PACS by SeriesInstanceUID."""
        when, found = self._listed_series
        if time.monotonic() - when > _LISTED_FOR:
            forgotten, found = self._forgotten, {}
            while True:
                with _pacs_answers():
                    told = self._client.search_for_series(limit=_PAGE, offset=len(found))
                    page = {str(one.SeriesInstanceUID): one for one in map(Dataset.from_json, told)}
                if page.keys() <= found.keys():  # The end; or the PACS gives the same page again and again.
                    break
                found |= page
            # Of those without a count nobody knows whether they have grown.
            self._known = {key: kept for key, kept in self._known.items() if key[1]}
            if forgotten == self._forgotten:  # Else something was stored meanwhile.
                self._listed_series = time.monotonic(), found
            self._send_in_passing()
        return found

    def list_images(self) -> list[str]:
        """The series that are images."""
        return _images(self._series())

    def newest_segments(self) -> dict[str, dict[str, list[StoredSegment]]]:
        """By image and label what a person drew or confirmed, the newest first."""
        series = self._series()
        images = set(_images(series))
        found = [segment for one in series.values() if one.get("Modality") == "SEG" for segment in self._described(one)]
        found += [segment for segment in self._own if segment not in found]  # Not every PACS lists at once what it has.
        newest: dict[str, dict[str, list[StoredSegment]]] = {}
        for segment in sorted(found, key=lambda segment: segment.when, reverse=True):
            image = next((uid for uid in segment.images if uid in images), None)
            if segment.confirmed and image:
                newest.setdefault(image, {}).setdefault(segment.name, []).append(segment)
        return newest

    def _described(self, series: Dataset) -> list[StoredSegment]:
        """What a series of SEG objects holds; asked again when it has more of them. A broken one holds nothing."""
        uid, count = str(series.SeriesInstanceUID), _count(series)
        if (uid, count) in self._known:
            return self._known[uid, count]
        found: list[StoredSegment] = []
        with _pacs_answers():
            try:
                told = self._client.retrieve_series_metadata(str(series.StudyInstanceUID), uid)
                found = [one for header in told for one in stored_segments(Dataset.from_json(header))]
            except (requests.ConnectionError, requests.Timeout):
                raise
            except Exception as error:  # Of one object among many: gone meanwhile, or malformed.
                logger.warning("A DICOM SEG series was passed over (%s).", type(error).__name__)
        self._known[uid, count] = found
        return found

    def forget_list(self) -> None:
        """Ask the PACS anew what it has: something was, or may have been, stored there."""
        self._forgotten += 1
        self._listed_series = (-_LISTED_FOR, {})

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """The series with a segment that a person drew or confirmed."""
        return sorted(self.newest_segments())

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """The others, but for those that turned out to be no volume."""
        labelled, series = self.newest_segments(), self._series()
        return [
            image
            for image in _images(series)
            if image not in labelled and self._refused.get(image) != _count(series[image])
        ]

    def organ(self, image_id: str, segments: Sequence[StoredSegment]) -> OrganLabel:
        """The mask of the newest of some segments of one label that can be used; fetched once.

        Raises:
            InputError: if none can be read, or lies where the image does.
            BapsError: if the PACS does not answer, or the disk is full.
        """
        errors: list[InputError] = []
        for segment in segments:
            try:
                found = self._organ(image_id, segment)
                return replace(found, passed_over=tuple(map(str, errors)))
            except InputError as error:
                errors.append(error)
        raise errors[0]

    def _organ(self, image_id: str, segment: StoredSegment) -> OrganLabel:
        image = Path(self.get_image_uri(image_id))
        # An object never changes; its image does while it is still being sent.
        folder = Path(self._datastore_path) / "segments" / f"{segment.instance}-{_count(self._series()[image_id])}"
        try:
            if not folder.exists():
                with _pacs_answers():
                    where = segment.study, segment.series, segment.instance
                    dataset = self._client.retrieve_instance(*where, media_types=_AS_STORED)
                volume = read_volume(image)
                keep_segments(folder, dataset, volume, slice_depths(self._headers(image_id), volume))
        except OSError as error:
            raise _disk_full(error) from error
        return kept_segment(folder, segment.name)

    def _headers(self, image_id: str) -> list[Dataset]:
        """Of all images of a series, without pixels."""
        with _pacs_answers():
            told = self._client.retrieve_series_metadata(str(self._series()[image_id].StudyInstanceUID), image_id)
            return [Dataset.from_json(header) for header in told]

    def label_to_change(self, image_id: str, organ: str, image: Volume) -> tuple[LabelMap, LabelInfo]:
        """The newest label of one organ, (I, J, K), for every SEG holds what was saved with it alone; zeros where none
        can be used.

        Raises:
            BapsError: as ``organ``; or if a label waits to be sent, without which a part of it would be hidden.
        """
        self._send()
        waiting = [segment for file in self._unsent.files() for segment in stored_segments(self._unsent.read(file))]
        if any(image_id in segment.images and segment.name == organ for segment in waiting):
            raise BapsError(
                f"A part of {organ} still waits to be sent to the PACS. Ask who runs the PACS, then try again."
            )
        self.forget_list()
        segments = self.newest_segments().get(image_id, {}).get(organ, [])
        try:
            found = self.organ(image_id, segments) if segments else None
        except InputError as error:  # They stay in the PACS; what is saved now is newer.
            logger.warning("Earlier labels of an image were passed over (%s).", type(error).__name__)
            found = None
        if found is None:
            return LabelMap((np.zeros(image.shape, np.uint8),)), read_label_info({})
        info = {"label_info": [{"name": organ, "idx": 1}], "covers": {organ: sorted(found.slices)}}
        return read_label_map(found.file, image), read_label_info(info)

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any], label_id: str = ""
    ) -> str:
        """Store a final label in the PACS, as one SEG with what is marked; others are kept here.

        Raises:
            InputError: if a value has no name, or no SEG can be made for the image.
            BapsError: if the PACS refuses it; or does not answer, then it is kept and sent later.
        """
        if label_tag != DefaultLabelTag.FINAL.value:
            file = Path(label_filename)
            self.history.save(image_id, label_tag, file, self._to_id(file.name)[1], label_info)
            return image_id
        image = read_volume(Path(self.get_image_uri(image_id)))
        found, info = read_label_map(Path(label_filename), image), read_label_info(label_info)
        values = name_values(info, found, {})
        masks = {name: mask for name, value in values.items() if (mask := found.mask(value)).any()}
        slices = {name: (info.covers or {}).get(name, frozenset()) for name in masks}
        self.forget_list()
        known = self.newest_segments().get(image_id, {})
        earlier = [segment.when for segments in known.values() for segment in segments]
        now = datetime.now().astimezone()
        # A clock that runs ahead, the browser's say, must not hide what is saved now.
        when = max([now, *(made.astimezone() + timedelta(seconds=1) for made in earlier)])
        sources = self._headers(image_id)
        made = write_segmentation(sources, image, masks, slices, when, info.author, bool(info.model))
        self._send(self._unsent.keep(made))
        return image_id

    def _send(self, own: Path | None = None) -> None:
        """Send what is kept to be sent, the oldest first. What the PACS refuses is kept, and not sent again.

        Args:
            own: the file of who asks.

        Raises:
            BapsError: if the PACS does not answer, or refuses that one.
        """
        with self.saving:
            for file in self._unsent.files():
                try:
                    label = self._unsent.read(file)
                except InvalidDicomError:  # Changed by hand, or by a disk that fails.
                    self._unsent.set_aside(file)
                    continue
                try:
                    with _pacs_answers():
                        refused = _refused(self._client.store_instances([label]))
                except BapsError as error:
                    told = getattr(error.__cause__, "response", None)
                    refused = told is not None and told.status_code in _REFUSALS
                    if not refused and (told is None or file == own):
                        raise BapsError(
                            f"{error} The label is kept on this server (in {self._unsent.folder.name} of its cache), "
                            "which sends it when the PACS answers again. You need not submit it again."
                        ) from error
                    if not refused:
                        continue  # It may be this one alone that the PACS stumbles over.
                if refused:
                    self._unsent.set_aside(file)
                    logger.warning("The PACS did not take a label; it is kept in the cache, as *.refused.")
                    if file == own:
                        raise BapsError(
                            "The PACS did not take the label, which is kept on this server alone (as *.refused in "
                            f"{self._unsent.folder.name} of its cache). Ask who runs the PACS why, then submit again."
                        )
                    continue
                self._unsent.remove(file)
                self._own += stored_segments(label)
                self.forget_list()

    def _send_in_passing(self) -> None:
        """Send what is kept, now that the PACS answers; unless somebody is saving, who does so first."""
        if not self._unsent.files():
            return
        try:
            with self.saving.acquire(timeout=0):
                self._send()
        except (BapsError, OSError) as error:  # OSError: also a Timeout of the lock.
            logger.warning("A label still waits to be sent to the PACS (%s).", type(error).__name__)

    def get_label_by_image_id(self, image_id: str, tag: str) -> str:
        """The image's own name where it has a label."""
        if tag != DefaultLabelTag.FINAL.value:
            found: str = super().get_label_by_image_id(image_id, tag)
            return found
        return image_id if image_id in self.newest_segments() else ""

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """A labelmap of the newest segments, whose values ``get_label_info`` names; where organs overlap, one hides the
        other."""
        if label_tag != DefaultLabelTag.FINAL.value:
            uri: str = LocalDatastore.get_label_uri(self, label_id, label_tag)
            return uri
        segments = self.newest_segments().get(label_id)
        if not segments:
            return ""
        image = read_volume(Path(self.get_image_uri(label_id)))
        voxels = np.zeros(image.shape, np.uint8)
        for value, name in enumerate(sorted(segments), start=1):
            try:
                voxels[read_labels(self.organ(label_id, segments[name]).file, image) > 0] = value
            except InputError as error:
                logger.warning("A label of an image was passed over (%s).", type(error).__name__)
        target = Path(self._datastore.label_path(label_tag)) / f"{label_id}.nii.gz"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target, ".nii.gz") as partial:
                write_nifti(partial, Volume(voxels, image.affine))
        except OSError as error:
            raise _disk_full(error) from error
        return str(target)

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """Which value means which label in the labelmap."""
        if label_tag != DefaultLabelTag.FINAL.value:
            info: dict[str, Any] = super().get_label_info(label_id, label_tag)
            return info
        names = sorted(self.newest_segments().get(label_id, {}))
        return {"label_info": [{"name": name, "idx": value} for value, name in enumerate(names, start=1)]}

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Images and their final labels."""
        tag = DefaultLabelTag.FINAL.value
        return [
            {"image": self.get_image_uri(image), "label": self.get_label_uri(image, tag)}
            for image in self.get_labeled_images()
        ]

    def forward(self, method: str, kind: str, path: str, headers: Mapping[str, str], body: bytes) -> requests.Response:
        """A viewer's own request, with the user and the password of the PACS.

        Args:
            method: ``GET`` or ``POST``.
            kind: ``wado``, ``qido`` or ``stow``, whose prefix the address gets, or "".
            path: below the address of the PACS, with its query.
            headers: what it wants, and what it brings.
            body: what it brings.

        Raises:
            BapsError: if the PACS does not answer.
        """
        client = self._client
        prefixes = {"wado": client.wado_url_prefix, "qido": client.qido_url_prefix, "stow": client.stow_url_prefix}
        address = "/".join(part for part in (client.base_url, prefixes.get(kind), path) if part)
        try:
            with _pacs_answers():
                return client._session.request(method, address, headers=dict(headers), data=body, stream=True)
        finally:
            if method == "POST":
                self.forget_list()

    def patient(self, image_id: str) -> str | None:
        """The PatientID of an image that was fetched."""
        found = self.get_image_info(image_id).get("PatientID", "")
        return found if found not in ("", "UNK") else None

    def get_image_uri(self, image_id: str) -> str:
        """The series as NIfTI, fetched and converted when it is first asked for, and again when it has grown.

        Raises:
            NotFoundError: if the PACS has no such image.
            InputError: if the series is no volume.
            BapsError: if the PACS does not answer, or the disk is full.
        """
        folder = Path(self._datastore.image_path())
        target = folder / f"{image_id}.nii.gz"
        series = self._series().get(image_id)
        if series is None:
            raise NotFoundError(f"The PACS has no series {image_id}. Choose one that Next Sample offers.")
        count = _count(series)  # It grows while the series is still being sent.
        if target.exists() and str(self.get_image_info(image_id).get("instances", count)) == count:
            return str(target)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Beside the target, and renamed when it is whole.
            with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as parts:
                fetched, whole = Path(parts) / "The series", Path(parts) / "volume.nii.gz"
                fetched.mkdir()
                with _pacs_answers():
                    images = self._client.iter_series(str(series.StudyInstanceUID), image_id, _AS_STORED)
                    for number, image in enumerate(images):
                        name = f"image {image.get('InstanceNumber', '')}.dcm"  # As viewers and our sentences name it.
                        name = f"{number} {name}" if (fetched / name).exists() else name
                        image.save_as(fetched / name, write_like_original=False)
                try:
                    write_nifti(whole, read_volume(fetched))
                except InputError:
                    self._refused[image_id] = count
                    raise
                info: dict[str, Any] = {name: str(series.get(name, "UNK")) for name in _SHOWN}
                info |= {"SeriesInstanceUID": image_id, "ts": int(time.time()), "name": target.name}
                info["instances"] = count
                info["PatientID"] = read_patient(fetched) or info["PatientID"]  # Not every PACS lists it.
                with FileLock(self._lock_file):
                    whole.replace(target)
                    self._datastore.objects[image_id] = ImageLabelModel(image=DataModel(info=info, ext=".nii.gz"))
                    self._update_datastore_file(lock=False)
        except OSError as error:
            raise _disk_full(error) from error
        return str(target)


def open_pacs(address: str, login: Login | None = None) -> PacsDatastore:
    """The datastore of a DICOMweb address. The cache comes from MONAI Label's own settings."""
    login = login or read_login(None)
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
    cache = settings.MONAI_LABEL_DICOMWEB_CACHE_PATH or settings.MONAI_LABEL_DATASTORE_CACHE_PATH
    return PacsDatastore(client, cache.strip() or None)


def _images(series: Mapping[str, Dataset]) -> list[str]:
    return [uid for uid, one in series.items() if one.get("Modality") not in _NO_IMAGES]


def _count(series: Dataset) -> str:
    """How many objects a series has, or "" where the PACS does not say."""
    return str(series.get("NumberOfSeriesRelatedInstances") or "")


def _refused(reply: Dataset) -> bool:
    """Whether an object was not stored, by the answer to storing it."""
    return any(one.get("FailureReason") != _STORED_BEFORE for one in reply.get("FailedSOPSequence") or [])


def _disk_full(error: OSError) -> BapsError:
    return BapsError(f"What the PACS gave cannot be kept ({error.strerror}). Make room on the disk of the cache.")


@contextmanager
def _pacs_answers() -> Iterator[None]:
    """What goes wrong with the PACS, as a sentence; its address may hold what is nobody's business."""
    try:
        yield
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
