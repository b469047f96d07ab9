"""Datastore of a PACS: images are fetched when they are needed, and labels are stored as DICOM objects."""

from __future__ import annotations

import copy
import logging
import random
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import requests
from dicomweb_client import DICOMwebClient
from filelock import FileLock
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore
from monailabel.interfaces.datastore import DefaultLabelTag
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset

from baps.annotations.disputes import differs_too_much
from baps.annotations.label_info import LabelInfo, name_values, read_label_info
from baps.errors import BapsError, InputError, NotFoundError, StorageError
from baps.imaging.label_map import LabelMap, Overlaps
from baps.imaging.volume import Volume
from baps.io import (
    SeveralVolumesError,
    read_each_volume,
    read_label_map,
    read_labels,
    read_patient,
    read_volume,
    volume_id,
    write_nifti,
)
from baps.io.dicom.rtstruct import write_structures
from baps.io.dicom.seg import Segment, stack_references, write_segmentation
from baps.server.datastores.candidates import Candidates
from baps.server.datastores.conversions import SeveralImagesError, volume_number
from baps.server.datastores.dicomweb.client import connect, convert_pacs_errors, status_code
from baps.server.datastores.dicomweb.disputed import author_of, mark_disputed
from baps.server.datastores.dicomweb.fetching import fetch_headers, fetch_object, fetch_series, not_a_volume
from baps.server.datastores.dicomweb.label_index import LabelIndex
from baps.server.datastores.dicomweb.multipart import join_objects, split_objects
from baps.server.datastores.dicomweb.read_back import check_same_masks, check_same_owner
from baps.server.datastores.dicomweb.register import LabelRegister
from baps.server.datastores.dicomweb.sending import LabelSender
from baps.server.datastores.dicomweb.series import NON_IMAGE_MODALITIES, Series, SeriesList, series_of
from baps.server.datastores.dicomweb.stored_segments import (
    MODALITIES,
    OrganLabel,
    SlicePositions,
    StoredSegment,
    label_references,
    labelled_series,
    read_label,
    read_segment,
    stored_segments,
    write_segments,
)
from baps.server.datastores.dicomweb.stow_check import check_belongs, check_new_series, read_object, sign, to_bytes
from baps.server.datastores.index import AtomicIndex
from baps.site.pacs_credentials import PacsCredentials, read_pacs_credentials
from baps.site.pacs_studies import PacsStudies, Worklist, json_values, read_pacs_studies
from baps.utils.atomic_write import atomic_write
from baps.utils.keyed_locks import KeyedLocks

logger = logging.getLogger(__name__)

_FIRST_COUNT_SECONDS = 10.0
"""Time for which a request waits until the images and labels are counted for the first time."""

_MAX_VERIFIED_AT_ONCE = 5
"""Number of labels that were not read back yet and are read when the PACS is queried for labels."""

_RETRY_SECONDS = 600.0
"""Time after which an unusable image is tried again if the PACS does not send the number of its objects."""

_MAX_POSITIONS = 256
"""Number of images whose slice positions are cached."""

_CONVERSION_VERSION = 2
"""Version of the converted geometry. Images of another version are fetched again."""

_MAX_UNUSABLE = 1000
"""Number of images that are remembered as unusable."""


class PacsDatastore(AtomicIndex, DICOMWebDatastore):
    """MONAI Label's datastore of a PACS, with fixes: images of all modalities, atomic fetching, and current counts.

    For each request, the PACS is queried for what the request needs. No list of all series is kept.

    Args:
        client: Client of the PACS.
        cache: Folder for fetched images, or None for the default of MONAI Label.
        studies: Query that selects the series that are served, or None for all.
        worklist: Studies that are served, or None for all.
        label_format: Format in which final labels are stored: ``seg``, ``rtstruct`` or ``both``.
    """

    def __init__(
        self,
        client: DICOMwebClient,
        cache: str | None,
        studies: PacsStudies | None = None,
        worklist: Worklist | None = None,
        label_format: str = "seg",
    ) -> None:
        self._label_format = label_format
        studies = studies or PacsStudies(client.base_url)
        self._series_list = SeriesList(client, studies, worklist)
        self._unusable: dict[str, tuple[str, str, float]] = {}
        self._series_locks = KeyedLocks()
        self._positions: dict[tuple[str, str], SlicePositions] = {}
        self._count_thread: threading.Thread | None = None
        self._count_error: BapsError | None = None
        super().__init__(client=client, search_filter={}, cache_path=cache)
        # MONAI Label watches the cache for changes, but only this server changes it. Each watch takes one of the 128
        # inotify instances of a user of Linux.
        if self._observer.is_alive():
            self._observer.stop()
            self._observer.join()
        register = LabelRegister(Path(self._datastore_path) / "labels.sqlite", repr(sorted(studies.filters.items())))
        self._label_index = LabelIndex(client, studies, self._series_list, register, self._find_labelled_image)
        self._sender = LabelSender(Path(self._datastore_path) / "unsent", client, self._read_back)
        self.history.repair()

    # The lists of images and labels.

    def has_image(self, image_id: str) -> bool:
        """Return whether the PACS has an image and it is served. The PACS is queried for its series only.

        Args:
            image_id: Name of the image.

        Raises:
            BapsError: if the PACS does not respond.
        """
        series = self._series_list.find(series_of(image_id))
        volumes = self._volume_ids(series_of(image_id))
        return series is not None and series.is_image and (image_id in volumes if volumes else image_id == series.uid)

    def list_images(self) -> list[str]:
        """Return the names of all images. They are requested page by page; requests of viewers do not use this.

        Raises:
            BapsError: if the PACS does not respond.
        """
        uids = dict.fromkeys(series.uid for page in self._series_list.pages() for series in page if series.is_image)
        return [image for uid in uids for image in self._image_ids(uid)]

    def _volume_ids(self, uid: str) -> list[str]:
        """Return the names of the volumes of a series if it is known to hold several."""
        known, volumes = self._datastore.objects, list[str]()
        while volume_id(uid, len(volumes) + 1) in known:
            volumes.append(volume_id(uid, len(volumes) + 1))
        return volumes

    def _image_exists(self, image_id: str, extension: str) -> bool:
        # A volume that cannot be used has no file, and keeps its number.
        return volume_number(image_id) is not None or super()._image_exists(image_id, extension)

    def _image_ids(self, uid: str) -> list[str]:
        """Return the names of the images of a series."""
        return self._volume_ids(uid) or [uid]

    def _usable_images(self, series: Series) -> list[str]:
        """Return the images of a series, except those that are known to be unusable."""
        return [image for image in self._image_ids(series.uid) if not self._is_unusable(series, image)]

    def find_candidates(self, random_start: bool, min_count: int = 1) -> Candidates:
        """Find images without a label that can be used, from as few pages of the PACS as possible.

        Args:
            random_start: Whether to begin at a random series rather than at the first one.
            min_count: Minimum number of images, if there are as many.

        Raises:
            BapsError: if the PACS does not respond.
        """
        self._refresh()
        total = self._series_list.total()
        start_count = self._series_list.start_count()
        is_complete = self._series_list.is_one_page
        is_random = random_start and bool(start_count) and not is_complete
        start = random.randrange(start_count) if is_random else 0  # noqa: S311 (no secret)
        candidates: dict[str, None] = {}
        for page in self._series_list.pages(start):
            images = [image for series in page if series.is_image for image in self._usable_images(series)]
            labelled = self._label_index.register.labelled_among(images)
            candidates |= dict.fromkeys(image for image in images if image not in labelled)
            if len(candidates) >= min_count and not is_complete:
                break
        return Candidates(list(candidates), None if is_complete else total)

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the images with a segment that a person drew or confirmed and that is not known to be unreadable.

        Args:
            label_tag: Ignored; the tag is always ``final``.
            labels: Ignored.

        Raises:
            BapsError: if the PACS does not respond.
        """
        self._refresh()
        return self._label_index.labelled()

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return all other images, except those that are known to be unusable. They are requested page by page.

        Args:
            label_tag: Ignored; the tag is always ``final``.
            labels: Ignored.

        Raises:
            BapsError: if the PACS does not respond.
        """
        labelled = set(self.get_labeled_images())
        return [
            image
            for page in self._series_list.pages()
            for series in page
            if series.is_image
            for image in self._usable_images(series)
            if image not in labelled
        ]

    def newest_segments(self, image_id: str | None = None) -> dict[str, dict[str, list[StoredSegment]]]:
        """Return the segments that a person drew or confirmed, by image and label, the newest first.

        Args:
            image_id: Name of one image, so that only its study is queried; or None for all images.

        Raises:
            BapsError: if the PACS does not respond.
        """
        if image_id is None:
            self._refresh()
        elif (series := self._series_list.find(series_of(image_id))) and not self._label_index.is_fresh:
            self._label_index.refresh_study(series.study)
        return self._label_index.newest(image_id)

    def invalidate(self) -> None:
        """Query the PACS again when its content is next needed: something was, or may have been, stored there."""
        self._series_list.invalidate()
        self._label_index.invalidate()

    def status(self) -> dict[str, Any]:
        """Return the number of images and of labelled images when they were last counted.

        Every click needs them. Only the first request waits for the PACS; see ``SeriesList.total``.

        Raises:
            BapsError: if the PACS does not respond to the first request.
        """
        is_current = self._label_index.is_fresh and self._series_list.last_total is not None
        if not is_current:
            thread = self._count_in_background()
            if self._series_list.last_total is None or not self._label_index.was_refreshed:
                thread.join(_FIRST_COUNT_SECONDS)
                if self._count_error:
                    raise self._count_error
        tags: dict[str, int] = {}
        for entry in list(self._datastore.objects.values()):
            for tag in entry.labels:
                tags[tag] = tags.get(tag, 0) + 1
        completed, total = self._label_index.count(), self._series_list.last_total or 0
        status = {"total": max(total, completed), "completed": completed, "label_tags": tags}
        return status | ({"unusable": len(self._unusable)} if self._unusable else {})

    def outbox_counts(self) -> tuple[int, int]:
        """Return the number of labels that wait for the PACS, and of those that it has refused."""
        return self._sender.counts()

    def label_listing(self, image_id: str | None = None) -> list[tuple[str, StoredSegment, str]]:
        """List the segments in the PACS whose image is served, see ``LabelRegister.listing``.

        Args:
            image_id: Name of one image, to list what is known of it without a request to the PACS; or None for all.

        Raises:
            BapsError: if the PACS does not respond.
        """
        if image_id is None:
            self._refresh()
        listed = self._series_list.is_listed
        return [row for row in self._label_index.register.listing(image_id) if listed(row[1].study)]

    def outbox_listing(self) -> list[tuple[StoredSegment, bool]]:
        """List the segments of the labels that wait for the PACS, and of those that it has refused.

        Returns:
            Segments, each with whether it was refused. Files that cannot be read are left out.
        """
        return self._sender.listing()

    def fetched_label(self, segment: StoredSegment) -> OrganLabel | None:
        """Return a segment that was fetched from the PACS earlier, without a request to it.

        Args:
            segment: The segment.

        Returns:
            The label, or None if it is not on this machine.
        """
        folders = sorted((Path(self._datastore_path) / "segments").glob(f"{segment.instance}-*"))
        for folder in reversed(folders):
            with suppress(InputError, OSError):
                return read_segment(folder, segment.name)
        return None

    def fetched_instances(self) -> frozenset[str]:
        """Return the SOPInstanceUIDs of the segmentations that were fetched earlier, without a request to the PACS."""
        return frozenset(path.name.partition("-")[0] for path in (Path(self._datastore_path) / "segments").glob("*-*"))

    def is_fetched(self, image_id: str) -> bool:
        """Return whether an image is on this machine, without a request to the PACS.

        Args:
            image_id: Name of the image.
        """
        return image_id in self._datastore.objects and Path(self._datastore.image_path(), f"{image_id}.nii.gz").exists()

    def fetched_images(self) -> dict[str, Path]:
        """Return the files of the images that are on this machine, by name, without a request to the PACS."""
        folder = Path(self._datastore.image_path())
        files = {image: folder / f"{image}.nii.gz" for image in list(self._datastore.objects)}
        return {image: file for image, file in files.items() if file.exists()}

    def json(self) -> Any:
        """Return the index of fetched images, with the reasons for those that cannot be used."""
        index: dict[str, Any] = super().json()
        return index | {"unusable": {image: reason for image, (_, reason, _) in self._unusable.items()}}

    def _count_in_background(self) -> threading.Thread:
        """Start a thread that counts images and labels, unless it is running."""
        if self._count_thread is None or not self._count_thread.is_alive():
            self._count_thread = threading.Thread(target=self._count, name="count-labels", daemon=True)
            self._count_thread.start()
        return self._count_thread

    def _refresh(self) -> None:
        """Query the PACS for labels unless the index is fresh, and send the labels that wait if the PACS responds.

        Raises:
            BapsError: if the PACS does not respond.
        """
        if not self._label_index.is_fresh:
            self._label_index.refresh()
            self._sender.try_send_waiting()

    def _count(self) -> None:
        try:
            self._refresh()
            self._series_list.total()
            self._count_error = None
        except BapsError as error:
            logger.warning("The labels of the PACS could not be counted (%s).", error)
            self._count_error = error
            return
        self._verify_stored_labels()

    def _verify_stored_labels(self) -> None:
        """Read some of the labels that were stored through this server and not read back yet."""
        for image_id, segment in self._label_index.register.unverified(_MAX_VERIFIED_AT_ONCE):
            try:
                self._read_segment(image_id, segment)
            except BapsError as error:
                logger.warning("A label of the PACS cannot be read and does not count (%s).", type(error).__name__)

    # Images.

    def get_image_uri(self, image_id: str) -> str:
        """Return the path of an image as NIfTI. It is fetched when it is first needed, and when it has more slices.

        Args:
            image_id: Name of the image.

        Raises:
            NotFoundError: if the PACS has no such image, or it is not served.
            SeveralImagesError: if the series holds several volumes; they are images of their own from then on.
            InputError: if the series is not a volume.
            BapsError: if the PACS does not respond, or the disk is full.
        """
        series = self._find_image_series(image_id)
        folder = Path(self._datastore.image_path())
        target = folder / f"{image_id}.nii.gz"
        # The series gets more slices while the scanner is sending it.
        if self._is_fetched(series, target):
            return str(target)
        if image_id == series.uid and (volumes := self._volume_ids(series.uid)):
            titles = [str(self.get_image_info(volume).get("volume", "")) for volume in volumes]
            raise SeveralImagesError(image_id, titles)
        if self._is_unusable(series, image_id):
            raise InputError(self._unusable[image_id][1])
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._series_locks.holding(series.uid):
                if not self._is_fetched(series, target):  # Another thread may have fetched it meanwhile.
                    self._fetch(series, folder, target)
        except InputError as error:
            if not self._volume_ids(series.uid):
                self._add_unusable(image_id, series, error)
            raise
        except OSError as error:
            raise _disk_full(error) from error
        return str(target)

    def _find_image_series(self, image_id: str) -> Series:
        """Return the series of an image.

        Raises:
            NotFoundError: if the PACS has no such series, or it is not served.
            InputError: if it does not hold images.
            BapsError: if the PACS does not respond.
        """
        series = self._series_list.find(series_of(image_id))
        if series is None:
            raise NotFoundError(f"The PACS has no series {image_id}. Choose one that Next Sample offers.")
        if series.modality == "SM":
            raise not_a_volume("a whole-slide image (Modality SM)")
        if not series.is_image:
            raise not_a_volume(f"of Modality {series.modality}")
        return series

    def _is_fetched(self, series: Series, target: Path) -> bool:
        info = self.get_image_info(target.name.removesuffix(".nii.gz"))
        same_count = str(info.get("instances", series.count)) == series.count
        return target.exists() and same_count and info.get("converted") == _CONVERSION_VERSION

    def _add_unusable(self, image_id: str, series: Series, error: InputError) -> None:
        while len(self._unusable) >= _MAX_UNUSABLE:
            self._unusable.pop(next(iter(self._unusable)))
        self._unusable[image_id] = series.count, str(error), time.monotonic()

    def _is_unusable(self, series: Series, image_id: str) -> bool:
        count, _, since = self._unusable.get(image_id, (None, "", 0.0))
        # Without a count, the series may have more slices now.
        return count == series.count and (count != "" or time.monotonic() - since < _RETRY_SECONDS)

    def _fetch(self, series: Series, folder: Path, target: Path) -> None:
        """Fetch a series and convert its volumes.

        Args:
            series: The series.
            folder: Folder of the images.
            target: NIfTI file of the requested image.

        Raises:
            SeveralImagesError: if the series was requested and holds several volumes.
            InputError: if the requested image is not a volume.
            BapsError: if the PACS does not respond.
            OSError: if the disk is full.
        """
        # On the same file system as the target, so that it can be renamed.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as parts:
            fetched, converted = Path(parts) / "The series", Path(parts) / "volume.nii.gz"
            fetched.mkdir()
            fetch_series(self._client, series, fetched)
            info: dict[str, Any] = dict(series.displayed)
            info |= {"SeriesInstanceUID": series.uid, "instances": series.count, "converted": _CONVERSION_VERSION}
            info["PatientID"] = read_patient(fetched) or info["PatientID"]  # Not every PACS lists it.
            try:
                volume = read_volume(fetched)
            except SeveralVolumesError as error:
                titles = error.titles
            else:
                write_nifti(converted, volume)
                self._publish_image(series.uid, converted, info)
                return
            errors: dict[Path, InputError] = {}
            for number, (title, result) in enumerate(read_each_volume(fetched), start=1):
                image_id = volume_id(series.uid, number)
                if isinstance(result, InputError):
                    errors[folder / f"{image_id}.nii.gz"] = result
                    self._add_unusable(image_id, series, result)
                else:
                    self._unusable.pop(image_id, None)
                    write_nifti(converted, result)
                self._publish_image(image_id, converted, {**info, "volume": title})
        if target in errors:
            raise errors[target]
        if not target.exists():
            raise SeveralImagesError(series.uid, titles)

    def _publish_image(self, image_id: str, converted: Path, info: Mapping[str, Any]) -> None:
        """Move a converted volume to its place, and add it to the index.

        A volume that cannot be used has no converted file. It is added too, so that all volumes keep their numbers.
        """
        target = converted.parents[1] / f"{image_id}.nii.gz"
        entry = DataModel(info={**info, "ts": int(time.time()), "name": target.name}, ext=".nii.gz")
        with FileLock(self._lock_file):
            if converted.exists():
                converted.replace(target)
            else:
                target.unlink(missing_ok=True)
            self._datastore.objects[image_id] = ImageLabelModel(image=entry)
            self._update_datastore_file(lock=False)

    def patient(self, image_id: str) -> str | None:
        """Return the PatientID of a fetched image, or None.

        Args:
            image_id: Name of the image.
        """
        patient = self.get_image_info(image_id).get("PatientID", "")
        return patient if patient not in ("", "UNK") else None

    def _fetch_headers(self, image_id: str) -> list[Dataset]:
        """Fetch the headers of all objects of a series, without pixels."""
        series = self._find_image_series(image_id)
        return fetch_headers(self._client, series.study, series.uid, self.patient(image_id))

    def _slice_positions(
        self, image_id: str, image: Volume, headers: Sequence[Dataset] | None = None
    ) -> SlicePositions:
        """Return the positions of the slices of an image. Its headers are fetched once."""
        key = image_id, self._image_state(image_id)
        if key not in self._positions:
            while len(self._positions) >= _MAX_POSITIONS:
                self._positions.pop(next(iter(self._positions)), None)
            headers = headers or self._fetch_headers(image_id)
            self._positions[key] = SlicePositions.from_headers(headers, image, volume_number(image_id))
        return self._positions[key]

    def _image_state(self, image_id: str) -> str:
        """Return a text that changes when the series of an image gets more slices."""
        return self._find_image_series(image_id).count or "all"

    # Labels.

    def organ(self, image_id: str, segments: Sequence[StoredSegment]) -> OrganLabel:
        """Return the newest segment that can be used. Each is fetched once.

        Args:
            image_id: Name of the image.
            segments: Segments of one label, the newest first.

        Raises:
            InputError: if none of them can be read, or has the geometry of the image.
            BapsError: if the PACS does not respond, or the disk is full.
        """
        errors: list[InputError] = []
        for segment in segments:
            try:
                label = self._read_segment(image_id, segment)
                return replace(label, newer_errors=tuple(map(str, errors)))
            except InputError as error:
                errors.append(error)
        raise errors[0]

    def _read_segment(
        self,
        image_id: str,
        segment: StoredSegment,
        stored: Dataset | None = None,
        notes: list[str] | None = None,
    ) -> OrganLabel:
        """Return a segment. If it cannot be read, record that: it is then ignored and not fetched again.

        Args:
            image_id: Name of the image.
            segment: The segment.
            stored: Object of the segment if it was fetched already.
            notes: List to which sentences on how it was read are appended.

        Raises:
            InputError: if it cannot be read.
            BapsError: if the PACS does not respond, or the disk is full.
        """
        image = Path(self.get_image_uri(image_id))
        # The object never changes, but its image gets more slices while the scanner is sending it.
        image_state = self._image_state(image_id)
        folder = Path(self._datastore_path) / "segments" / f"{segment.instance}-{image_state}"
        register = self._label_index.register
        if stored is None and (reason := register.reason(segment, image_state)):
            raise InputError(reason)
        try:
            if stored is not None:
                shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                label = stored or fetch_object(self._client, segment.study, segment.series, segment.instance)
                volume = read_volume(image)
                write_segments(folder, label, volume, self._slice_positions(image_id, volume), notes)
            organ_label = read_segment(folder, segment.name)
        except OSError as error:
            raise _disk_full(error) from error
        except InputError as error:
            register.set_read(segment, image_state, str(error))
            raise
        register.set_read(segment, image_state)
        return organ_label

    def label_to_edit(self, image_id: str, organ: str, image: Volume) -> tuple[LabelMap, LabelInfo]:
        """Return the newest label of one organ, (I, J, K), or an empty label map if none can be used.

        Each SEG holds the organs that were saved together, so other organs are not affected.

        Args:
            image_id: Name of the image.
            organ: Name of the organ.
            image: The volume.

        Raises:
            BapsError: as ``organ``; or if a label of the organ is still to be sent, so that a part of it is missing.
        """
        self._sender.send()
        if self._sender.has_waiting(series_of(image_id), organ):
            raise BapsError(
                f"A part of {organ} still waits to be sent to the PACS. Ask who runs the PACS, then try again."
            )
        self._label_index.refresh_study(self._find_image_series(image_id).study)
        segments = self._label_index.newest(image_id).get(image_id, {}).get(organ, [])
        try:
            label = self.organ(image_id, segments) if segments else None
        except InputError as error:  # They stay in the PACS, but the label that is saved now is newer.
            logger.warning("Earlier labels of an image cannot be read and were skipped (%s).", type(error).__name__)
            label = None
        if label is None:
            return LabelMap((np.zeros(image.shape, np.uint8),)), read_label_info({})
        info = {"label_info": [{"name": organ, "idx": 1}], "annotated_slices": {organ: sorted(label.slices)}}
        return read_label_map(label.file, image), read_label_info(info)

    def save_label(
        self,
        image_id: str,
        label_filename: str,
        label_tag: str,
        label_info: dict[str, Any],
        label_id: str = "",
    ) -> str:
        """Store a label, see ``store_label``.

        Args:
            image_id: Name of the image.
            label_filename: Path of the label.
            label_tag: Tag of the label.
            label_info: Information about the label.
            label_id: Ignored.

        Returns:
            The name of the label, which is that of its image.
        """
        self.store_label(image_id, Path(label_filename), label_tag, label_info)
        return image_id

    def store_label(
        self, image_id: str, file: Path, label_tag: str, label_info: dict[str, Any], confirms: bool = False
    ) -> list[str]:
        """Store a final label in the PACS, as a SEG, an RTSTRUCT or both. Labels with other tags are kept here.

        The label is read back before it is reported as saved: from the outbox before it is sent, and from the PACS
        afterwards. An organ that it takes away from another annotator is marked, see
        ``baps.server.datastores.dicomweb.disputed``.

        Args:
            image_id: Name of the image.
            file: The label.
            label_tag: ``final``, or another tag.
            label_info: Information about the label, see ``read_label_info``.
            confirms: Whether the user may take organs away from other annotators.

        Returns:
            Sentences for the user.

        Raises:
            InputError: if a value has no name, or the label cannot be stored as a DICOM object.
            BapsError: if the PACS rejects it or returns another label; or does not respond: then it is kept and sent
                later.
        """
        if label_tag != DefaultLabelTag.FINAL.value:
            self.history.save(image_id, label_tag, file, self._to_id(file.name)[1], label_info)
            return []
        image = read_volume(Path(self.get_image_uri(image_id)))
        label_map, info = read_label_map(file, image), read_label_info(label_info)
        values = name_values(info, label_map, {})
        masks = {name: mask for name, value in values.items() if (mask := label_map.mask(value)).any()}
        slices = {name: (info.annotated_slices or {}).get(name, frozenset()) for name in masks}
        self._label_index.refresh_study(self._find_image_series(image_id).study)
        existing = self._label_index.newest(image_id).get(image_id, {})
        times = [segment.when for segments in existing.values() for segment in segments]
        now = datetime.now().astimezone()
        # A label with a time in the future, for example from a browser whose clock is fast, must not hide this one.
        when = max([now, *(time.astimezone() + timedelta(seconds=1) for time in times)])
        headers = self._fetch_headers(image_id)
        number = volume_number(image_id)
        by_model, objects = bool(info.model), list[Dataset]()
        if self._label_format in ("rtstruct", "both"):
            # A little older than the SEG, which is preferred: it also stores the annotated slices without the organ.
            before = when - timedelta(milliseconds=1)
            objects.append(write_structures(headers, image, masks, before, info.author, by_model, number))
        if self._label_format in ("seg", "both"):
            objects.append(write_segmentation(headers, image, masks, slices, when, info.author, by_model, number))
        positions = self._slice_positions(image_id, image, headers)
        segments = [Segment(name, mask, slices[name]) for name, mask in masks.items()]
        disputes = {} if confirms else self._find_disputes(image_id, image, segments, info.author)
        for label in objects:
            mark_disputed(label, disputes)
        self._sender.send(self._sender.add(objects, lambda label: check_same_masks(label, masks, image, positions)))
        return list(disputes.values())

    def _find_disputes(self, image_id: str, image: Volume, segments: Iterable[Segment], author: str) -> dict[str, str]:
        """Find the organs that differ too much from the newest version of another annotator.

        Args:
            image_id: Name of the image.
            image: The volume.
            segments: Segments that are about to be stored.
            author: Author of the segments.

        Returns:
            A sentence for the user, by organ.
        """
        existing, disputes = self._label_index.newest(image_id).get(image_id, {}), dict[str, str]()
        for segment in segments:
            others = [stored for stored in existing.get(segment.name, []) if stored.author != author]
            for stored in others:
                try:
                    old = self._read_segment(image_id, stored)
                except InputError:  # An older one may be readable.
                    continue
                old_map = LabelMap(((read_labels(old.file, image) > 0).view(np.uint8),))
                new_map = LabelMap((segment.mask.view(np.uint8),))
                new_slices = segment.slices | set(np.flatnonzero(segment.mask.any((0, 1))).tolist())
                if differs_too_much(Overlaps.count(old_map, new_map, [(1, 1)]), 0, old.slices, new_slices):
                    disputes[segment.name] = (
                        f"This takes {segment.name} away from the version of {stored.author or 'an unnamed annotator'}."
                        f" Trainings use the earlier {segment.name} until a trainer saves the label."
                    )
                break
        return disputes

    def _read_back(self, label: Dataset) -> None:
        """Fetch a label that the PACS has accepted, compare it, and record that it counts.

        Raises:
            InputError: if the PACS returns another label.
            BapsError: if the PACS does not respond.
        """
        segments = stored_segments(label)
        if not segments:
            raise InputError("Its header does not say what it belongs to (ReferencedSeriesSequence).")
        first, register = segments[0], self._label_index.register
        image_id = self._find_labelled_image(first.images[0], lambda: label)
        register.add(segments, counts=False)
        register.set_image(first.instance, image_id)
        stored = fetch_object(self._client, first.study, first.series, first.instance, just_stored=True)
        image = read_volume(Path(self.get_image_uri(image_id)))
        try:
            check_same_owner(label, stored)
            self._read_segment(image_id, first, stored)
            masks = {
                segment.name: read_labels(self._read_segment(image_id, segment).file, image) > 0 for segment in segments
            }
            check_same_masks(label, masks, image, self._slice_positions(image_id, image))
        except InputError as error:
            for segment in segments:
                register.set_read(segment, self._image_state(image_id), str(error))
            raise

    def label_to_rtstruct(self, image_id: str, notes: list[str] | None = None) -> FileDataset:
        """Convert the newest readable segments of an image to an RTSTRUCT.

        Args:
            image_id: Name of the image.
            notes: List to which sentences on labels that were skipped are appended.

        Raises:
            NotFoundError: if there is no such image, or it has no label.
            InputError: if no label can be read, or the headers lack what an RTSTRUCT needs.
            BapsError: if the PACS does not respond, or the disk is full.
        """
        image = read_volume(Path(self.get_image_uri(image_id)))
        masks, errors = dict[str, NDArray[np.bool_]](), list[InputError]()
        for name, segments in sorted(self.newest_segments(image_id).get(image_id, {}).items()):
            try:
                mask = read_labels(self.organ(image_id, segments).file, image) > 0
            except InputError as error:
                errors.append(error)
                continue
            if mask.any():
                masks[name] = mask
        if errors and not masks:
            raise errors[0]
        if not masks:
            raise NotFoundError(f"There is no label of {image_id} that marks anything. Save one first.")
        if notes is not None:
            notes += [f"A label was skipped. {error}" for error in errors]
        now = datetime.now().astimezone()
        headers, number = self._fetch_headers(image_id), volume_number(image_id)
        return write_structures(headers, image, masks, now, by_model=None, number=number)

    def _find_labelled_image(self, uid: str, fetch_label: Callable[[], Dataset]) -> str:
        """Return the image of a label object: a series, or the volume of it to whose frames the label refers most.

        Args:
            uid: SeriesInstanceUID of the image.
            fetch_label: Fetches the label object.
        """
        volumes = self._volume_ids(uid)
        if not volumes:
            return uid
        headers, references = self._fetch_headers(uid), label_references(fetch_label())
        counts = [0] * len(volumes)
        for index, image_id in enumerate(volumes):
            with suppress(InputError):  # A volume that cannot be used has no label.
                image = read_volume(Path(self.get_image_uri(image_id)))
                counts[index] = len(references & stack_references(headers, image, index + 1))
        return volumes[int(np.argmax(counts))] if any(counts) else uid

    def get_label_by_image_id(self, image_id: str, tag: str) -> str:
        """Return the name of an image's label, which is that of the image; "" if it has none.

        Args:
            image_id: Name of the image.
            tag: Tag of the label.
        """
        if tag != DefaultLabelTag.FINAL.value:
            label_id: str = super().get_label_by_image_id(image_id, tag)
            return label_id
        return image_id if image_id in self.newest_segments(image_id) else ""

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """Return the path of a label map of the newest segments. ``get_label_info`` has the names of its values.

        If organs overlap, one hides the other.

        Args:
            label_id: Name of the label.
            label_tag: Tag of the label.
            image_id: Ignored.

        Raises:
            InputError: if no segment can be read.
            BapsError: if the PACS does not respond, or the disk is full.
        """
        if label_tag != DefaultLabelTag.FINAL.value:
            uri: str = LocalDatastore.get_label_uri(self, label_id, label_tag)
            return uri
        segments = self.newest_segments(label_id).get(label_id)
        if not segments:
            return ""
        image = read_volume(Path(self.get_image_uri(label_id)))
        voxels = np.zeros(image.shape, np.min_scalar_type(len(segments)))  # Structure sets may hold hundreds.
        errors: list[InputError] = []
        for value, name in enumerate(sorted(segments), start=1):
            try:
                voxels[read_labels(self.organ(label_id, segments[name]).file, image) > 0] = value
            except InputError as error:
                errors.append(error)
                logger.warning("A label of an image cannot be read and was skipped (%s).", type(error).__name__)
        if len(errors) == len(segments):
            raise errors[0]
        target = Path(self._datastore.label_path(label_tag)) / f"{label_id}.nii.gz"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(target, ".nii.gz") as partial:
                write_nifti(partial, Volume(voxels, image.affine))
        except OSError as error:
            raise _disk_full(error) from error
        return str(target)

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        """Return information about a label: for a final label, the names of the values of its label map.

        Args:
            label_id: Name of the label.
            label_tag: Tag of the label.
        """
        if label_tag != DefaultLabelTag.FINAL.value:
            info: dict[str, Any] = super().get_label_info(label_id, label_tag)
            return info
        names = sorted(self.newest_segments(label_id).get(label_id, {}))
        return {"label_info": [{"name": name, "idx": value} for value, name in enumerate(names, start=1)]}

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Return the paths of the labelled images and their final labels.

        Args:
            full_path: Ignored; the paths are always absolute.
        """
        tag = DefaultLabelTag.FINAL.value
        pairs = []
        for image in self.get_labeled_images():
            with suppress(InputError):  # A label that counted may turn out to be unreadable.
                pairs.append({"image": self.get_image_uri(image), "label": self.get_label_uri(image, tag)})
        return pairs

    # Requests of viewers to the PACS.

    def forward(
        self, method: str, kind: str, path: str, headers: Mapping[str, str], body: bytes | None
    ) -> requests.Response:
        """Forward a request of a viewer to the PACS, with the PACS's user and password.

        Args:
            method: ``GET`` or ``POST``.
            kind: ``wado``, ``qido`` or ``stow``, whose prefix is added to the address, or "".
            path: Path below the address of the PACS, with the query.
            headers: Headers of the request.
            body: Body of the request, or None.

        Returns:
            The response, whose content is not read yet.

        Raises:
            BapsError: if the PACS does not respond.
        """
        client = self._client
        prefixes = {"wado": client.wado_url_prefix, "qido": client.qido_url_prefix, "stow": client.stow_url_prefix}
        address = "/".join(part for part in (client.base_url, prefixes.get(kind), path) if part)
        with convert_pacs_errors():
            return client._session.request(
                method, address, headers=dict(headers), data=body, stream=True, allow_redirects=False
            )

    def store_objects(
        self,
        kind: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes,
        user: str = "",
        confirms: bool = False,
        on_images: Callable[[Sequence[str]], object] = lambda _: None,
    ) -> tuple[requests.Response, list[str]]:
        """Check the objects that a viewer exports, make the user their author, and store them.

        A label is read back afterwards. If it cannot be read, it does not count, and a note says so.

        Args:
            kind: As for ``forward``.
            path: As for ``forward``.
            headers: As for ``forward``.
            body: Body of the request.
            user: Name of the user, or "" if no login is needed.
            confirms: Whether the user may change labels of other annotators, see ``baps.annotations.disputes``.
            on_images: Called with the SeriesInstanceUIDs of the labelled images before anything is stored.

        Returns:
            The response of the PACS, and sentences for the user.

        Raises:
            InputError: if one of the objects may not be stored; then nothing is stored.
            BapsError: if the PACS does not respond.
        """
        labels = [read_object(content) for content in split_objects(headers.get("content-type", ""), body)]
        images = [labelled_series(label) or (str(label.get("SeriesInstanceUID", "")),) for label in labels]
        on_images(list(dict.fromkeys(uid for uids in images for uid in uids)))
        self._check_export(labels, path.partition("?")[0].strip("/").removeprefix("studies").strip("/"))
        notes: list[str] = []
        for label in labels:
            sign(label, user, confirms, datetime.now().astimezone())
            notes += self._mark_export_disputes(label, confirms)
        boundary = secrets.token_hex(16)
        store_headers = {name: value for name, value in headers.items() if name != "content-type"}
        store_headers["content-type"] = f'multipart/related; type="application/dicom"; boundary={boundary}'
        content = join_objects([to_bytes(label) for label in labels], boundary)
        try:
            response = self.forward("POST", kind, path, store_headers, content)
        finally:
            self.invalidate()
        if response.ok:
            for label in labels:
                notes += self._read_back_export(label)
        return response, list(dict.fromkeys(notes))

    def _check_export(self, labels: Sequence[Dataset], study: str) -> None:
        """Refuse objects that belong to no study that is served, or exist already.

        Args:
            labels: The objects.
            study: StudyInstanceUID in the address of the request, or "".

        Raises:
            InputError: if one of the objects may not be stored.
            BapsError: if the PACS does not respond.
        """
        instances = [str(label.SOPInstanceUID) for label in labels]
        if len(set(instances)) < len(instances):
            raise InputError("Two objects have the same SOPInstanceUID. Nothing was stored.")
        for uid in {str(label.StudyInstanceUID) for label in labels}:
            self._check_study([label for label in labels if uid == label.StudyInstanceUID], uid, study)
        for label in labels:
            self._check_is_new(label)

    def _check_study(self, labels: Sequence[Dataset], uid: str, requested: str) -> None:
        """Refuse objects of one study if it is not served or they do not belong to it.

        Args:
            labels: The objects.
            uid: StudyInstanceUID of the objects.
            requested: StudyInstanceUID in the address of the request, or "".

        Raises:
            InputError: if one of the objects may not be stored.
            BapsError: if the PACS does not respond.
        """
        studies, listed = list[dict[str, Any]](), list[dict[str, Any]]()
        try:
            with convert_pacs_errors():
                studies = self._client.search_for_studies(search_filters={"StudyInstanceUID": uid})
                listed = self._client.search_for_series(study_instance_uid=uid) if studies else []
        except BapsError as error:
            if status_code(error) != 404:  # The response of some servers for an unknown study.
                raise
        matches = [study for study in studies if json_values(study, "StudyInstanceUID") == [uid]]
        series = {value for match in listed for value in json_values(match, "SeriesInstanceUID")}
        images = {
            series_uid
            for series_uid in series
            if (known := self._series_list.find(series_uid)) and known.study == uid and known.is_image
        }
        if not matches or not images or uid != (requested or uid):
            raise InputError("The object belongs to a study that is not served here. Nothing was stored.")
        others = {uid for uid in series if uid not in images and self._holds_no_images(listed, uid)}
        for label in labels:
            check_belongs(label, matches[0], others, images)

    def _check_is_new(self, label: Dataset) -> None:
        """Refuse an object that exists already, or whose series holds other objects.

        Raises:
            InputError: if it may not be stored.
            BapsError: if the PACS does not respond.
        """
        with convert_pacs_errors():
            series = self._client.search_for_series(search_filters={"SeriesInstanceUID": label.SeriesInstanceUID})
        instances = self._search_instances(label)
        for match in series:
            if json_values(match, "SeriesInstanceUID") == [label.SeriesInstanceUID]:
                check_new_series(label, json_values(match, "StudyInstanceUID"), json_values(match, "Modality"))
        if any(json_values(match, "SOPInstanceUID") == [label.SOPInstanceUID] for match in instances):
            raise InputError("There is an object of this SOPInstanceUID already, which stays. Nothing was stored.")

    def _search_instances(self, label: Dataset) -> list[dict[str, Any]]:
        """Search for objects with the UID of a label: in all studies or, if the PACS refuses that, in the label's."""
        filters, instances = {"SOPInstanceUID": label.SOPInstanceUID}, list[dict[str, Any]]()
        try:
            with convert_pacs_errors():
                instances = self._client.search_for_instances(search_filters=filters)
        except BapsError as error:
            if status_code(error) is None:
                raise
            with convert_pacs_errors():
                instances = self._client.search_for_instances(label.StudyInstanceUID, search_filters=filters)
        return instances

    @staticmethod
    def _holds_no_images(listed: Sequence[Mapping[str, Any]], uid: str) -> bool:
        """Return whether a series holds labels, reports and the like, to which other objects may refer."""
        modalities = [json_values(row, "Modality") for row in listed if json_values(row, "SeriesInstanceUID") == [uid]]
        return all(modality and modality[0] in NON_IMAGE_MODALITIES for modality in modalities)

    def _mark_export_disputes(self, label: Dataset, confirms: bool) -> list[str]:
        """Mark the organs that an exported label takes away from another annotator.

        If the label cannot be read, all its organs are marked. It does not count then; ``_read_back_export`` says so.

        Returns:
            Sentences for the user.
        """
        if label.get("Modality") not in MODALITIES:
            return []
        mark_disputed(label, ())
        segments = stored_segments(label)
        if confirms or not segments:
            return []
        try:
            images = [uid for uid in segments[0].images if (match := self._series_list.find(uid)) and match.is_image]
            image_id = self._find_labelled_image(images[0], lambda: label)
            image = read_volume(Path(self.get_image_uri(image_id)))
            self._label_index.refresh_study(str(label.StudyInstanceUID))
            existing = self._label_index.newest(image_id).get(image_id, {})
            if not existing.keys() & {segment.name for segment in segments}:
                return []
            new = list(read_label(copy.deepcopy(label), image, self._slice_positions(image_id, image), {}))
        except (InputError, IndexError):
            mark_disputed(label, [segment.name for segment in segments])
            return []
        disputes = self._find_disputes(image_id, image, new, author_of(label))
        mark_disputed(label, disputes)
        return list(disputes.values())

    def _read_back_export(self, label: Dataset) -> list[str]:
        """Read a label that a viewer stored.

        Returns:
            Sentences on how it was read, or why it cannot be read.
        """
        if label.get("Modality") not in MODALITIES:
            return []
        notes: list[str] = []
        segments = stored_segments(label)
        register = self._label_index.register
        try:
            if not segments:
                raise InputError("Its header does not say what it is a label of.")
            register.add(segments, counts=False)
            self._label_index.find_images()
            image_id = register.image_of(segments[0].instance)
            if not image_id:
                raise InputError("The PACS has no image that it refers to.")
            errors = list[str]()
            for segment in segments:
                try:
                    self._read_segment(image_id, segment, notes=notes)
                except InputError as error:
                    errors.append(str(error))
            if errors:
                raise InputError(" ".join(dict.fromkeys(errors)))
        except BapsError as error:
            notes.append(
                f"The PACS stored the label, but it does not count and is not trained on until it can be read. {error}"
            )
        return notes


def open_pacs(
    address: str, credentials: PacsCredentials | None = None, worklist: Path | None = None, label_format: str = "seg"
) -> PacsDatastore:
    """Open the datastore of a DICOMweb address. Its cache is in the folder of MONAI Label's settings.

    Args:
        address: Address of the PACS, which may have a query, see ``read_pacs_studies``.
        credentials: Credentials for the PACS, or None for those of the environment.
        worklist: File with the studies that are served, or None for all.
        label_format: See ``PacsDatastore``.

    Raises:
        InputError: if the query cannot be used.
        BapsError: if the worklist cannot be read.
    """
    studies = read_pacs_studies(address)
    served = Worklist(worklist) if worklist else None
    if served:
        served.studies()
    cache = settings.MONAI_LABEL_DICOMWEB_CACHE_PATH or settings.MONAI_LABEL_DATASTORE_CACHE_PATH
    client = connect(studies.address, credentials or read_pacs_credentials(None))
    return PacsDatastore(client, cache.strip() or None, studies, served, label_format)


def _disk_full(error: OSError) -> StorageError:
    return StorageError(
        f"The data from the PACS cannot be stored ({error.strerror}). Make room on the disk of the cache."
    )
