"""The datastore of a PACS: images that are fetched when they are asked for, labels that are stored as DICOM objects."""

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
    Slices,
    StoredSegment,
    label_references,
    labelled_series,
    read_label,
    read_segment,
    stored_segments,
    write_segments,
)
from baps.server.datastores.dicomweb.stow_check import check_belongs, check_new_series, read_object, sign, written
from baps.server.datastores.index import AtomicIndex
from baps.site.pacs_credentials import PacsCredentials, read_pacs_credentials
from baps.site.pacs_studies import PacsStudies, Worklist, json_values, read_pacs_studies
from baps.utils.atomic_write import atomic_write
from baps.utils.keyed_locks import KeyedLocks

logger = logging.getLogger(__name__)

_FIRST_LOOK = 10.0
"""Seconds that the first answer to how many labels there are is waited for."""

_TRIED_AT_ONCE = 5
"""Labels that were not read back yet and are tried when the PACS is asked for labels."""

_TRIED_AGAIN = 600.0
"""Seconds after which an image is tried again of which the PACS does not say whether it has grown."""

_MOST_SLICES = 256
"""Images whose slices' places are remembered."""

_CONVERTED = 2
"""A version of where voxels are put: what another one converted is fetched again."""

_MOST_UNUSABLE = 1000
"""Images that are told of as unusable."""


class PacsDatastore(AtomicIndex, DICOMWebDatastore):
    """MONAI Label's own, with fixes: images of all modalities, nothing half fetched, no stale counts.

    The PACS is asked for what a request is about. No list of all series is kept.

    Args:
        client: of the PACS.
        cache: folder for what is fetched; None for the host's own.
        studies: which of its series are served; all without it.
        worklist: the studies that are served, or None for all.
        label_format: of the final labels that are stored there: ``seg``, ``rtstruct`` or ``both``.
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
        self._list = SeriesList(client, studies, worklist)
        self._unusable: dict[str, tuple[str, str, float]] = {}
        self._fetching = KeyedLocks()
        self._known_slices: dict[tuple[str, str], Slices] = {}
        self._looking: threading.Thread | None = None
        self._look_failed: BapsError | None = None
        super().__init__(client=client, search_filter={}, cache_path=cache)
        # The host watches the cache for files that come or go, which only this server changes. A watch takes one of the
        # 128 that a user of Linux has.
        if self._observer.is_alive():
            self._observer.stop()
            self._observer.join()
        register = LabelRegister(Path(self._datastore_path) / "labels.sqlite", repr(sorted(studies.filters.items())))
        self._labels = LabelIndex(client, studies, self._list, register, self._image_of_label)
        self._sender = LabelSender(Path(self._datastore_path) / "unsent", client, self._read_back)
        self.history.repair()

    # What there is.

    def has_image(self, image_id: str) -> bool:
        """Return whether the PACS has an image that is served; the PACS is asked for this one series."""
        found = self._list.find(series_of(image_id))
        volumes = self._volumes(series_of(image_id))
        return found is not None and found.is_image and (image_id in volumes if volumes else image_id == found.uid)

    def list_images(self) -> list[str]:
        """Return the series that are images: all of them, page by page. Requests of viewers do without."""
        series = dict.fromkeys(one.uid for page in self._list.pages() for one in page if one.is_image)
        return [image for uid in series for image in self._images(uid)]

    def _volumes(self, uid: str) -> list[str]:
        """The images that a series turned out to be, if they are several."""
        known, found = self._datastore.objects, list[str]()
        while volume_id(uid, len(found) + 1) in known:
            found.append(volume_id(uid, len(found) + 1))
        return found

    def _image_exists(self, image_id: str, extension: str) -> bool:
        # One that cannot be used has no file, and keeps its number.
        return volume_number(image_id) is not None or super()._image_exists(image_id, extension)

    def _images(self, uid: str) -> list[str]:
        """The images of a series, as far as is known."""
        return self._volumes(uid) or [uid]

    def _usable_images(self, series: Series) -> list[str]:
        """The images of a series but for those that turned out to be no volume."""
        return [image for image in self._images(series.uid) if not self._is_unusable(series, image)]

    def candidates(self, at_random: bool, least: int = 1) -> Candidates:
        """Return images without a label that can be used, from as few pages of the PACS as will do.

        Args:
            at_random: begin at a page anywhere, rather than at the first.
            least: how many are wanted, if there are as many.
        """
        self._refresh()
        total = self._list.total()
        places = self._list.places()
        whole = self._list.is_one_page
        start = random.randrange(places) if at_random and places and not whole else 0  # noqa: S311 (no secret)
        found: dict[str, None] = {}
        for page in self._list.pages(start):
            images = [image for one in page if one.is_image for image in self._usable_images(one)]
            labelled = self._labels.register.labelled_among(images)
            found |= dict.fromkeys(image for image in images if image not in labelled)
            if len(found) >= least and not whole:
                break
        return Candidates(list(found), None if whole else total)

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the series with a segment that a person drew or confirmed, and that can be read as far as is known."""
        self._refresh()
        return self._labels.labelled()

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the others, but for those that turned out to be no volume: all of them, page by page."""
        labelled = set(self.get_labeled_images())
        return [
            image
            for page in self._list.pages()
            for one in page
            if one.is_image
            for image in self._usable_images(one)
            if image not in labelled
        ]

    def newest_segments(self, image_id: str | None = None) -> dict[str, dict[str, list[StoredSegment]]]:
        """Return by image and label what a person drew or confirmed, the newest first.

        Args:
            image_id: only of this image; its study alone is asked for.
        """
        if image_id is None:
            self._refresh()
        elif (series := self._list.find(series_of(image_id))) and not self._labels.is_fresh:
            self._labels.refresh_study(series.study)
        return self._labels.newest(image_id)

    def invalidate(self) -> None:
        """Ask the PACS anew what it has: something was, or may have been, stored there."""
        self._list.forget()
        self._labels.forget()

    def status(self) -> dict[str, Any]:
        """Return how many images there are and how many have labels, as they were last counted.

        Every click asks for it: nobody waits for the PACS but who asks first. See ``SeriesList.total``.
        """
        known = self._labels.is_fresh and self._list.counted is not None
        if not known:
            looking = self._look_again()
            if self._list.counted is None or not self._labels.was_refreshed:
                looking.join(_FIRST_LOOK)
                if self._look_failed:
                    raise self._look_failed
        tags: dict[str, int] = {}
        for known_image in list(self._datastore.objects.values()):
            for tag in known_image.labels:
                tags[tag] = tags.get(tag, 0) + 1
        completed, total = self._labels.count(), self._list.counted or 0
        status = {"total": max(total, completed), "completed": completed, "label_tags": tags}
        return status | ({"unusable": len(self._unusable)} if self._unusable else {})

    def json(self) -> Any:
        """Return what was fetched from the PACS and, by image, why some cannot be used."""
        fetched: dict[str, Any] = super().json()
        return fetched | {"unusable": {image: reason for image, (_, reason, _) in self._unusable.items()}}

    def _look_again(self) -> threading.Thread:
        """Count in a thread, one at a time."""
        if self._looking is None or not self._looking.is_alive():
            self._looking = threading.Thread(target=self._look, name="count-labels", daemon=True)
            self._looking.start()
        return self._looking

    def _refresh(self) -> None:
        """Ask the PACS for labels, unless it was asked a short while ago; and send what waits, now that it answers."""
        if not self._labels.is_fresh:
            self._labels.refresh()
            self._sender.send_in_passing()

    def _look(self) -> None:
        try:
            self._refresh()
            self._list.total()
            self._look_failed = None
        except BapsError as error:
            logger.warning("The labels of the PACS could not be counted (%s).", error)
            self._look_failed = error
            return
        self._read_awaiting()

    def _read_awaiting(self) -> None:
        """Try a few of the labels that were stored and not read back yet."""
        for image_id, segment in self._labels.register.awaiting(_TRIED_AT_ONCE):
            try:
                self._organ(image_id, segment)
            except BapsError as error:
                logger.warning("A label of the PACS does not count, for it cannot be read (%s).", type(error).__name__)

    # Images.

    def get_image_uri(self, image_id: str) -> str:
        """Return the series as NIfTI, fetched and converted when it is first asked for, and again when it has grown.

        Raises:
            NotFoundError: if the PACS has no such image, or it is not served.
            InputError: if the series is no volume.
            BapsError: if the PACS does not answer, or the disk is full.
        """
        series = self._found(image_id)
        folder = Path(self._datastore.image_path())
        target = folder / f"{image_id}.nii.gz"
        # It grows while the series is still being sent.
        if self._is_fetched(series, target):
            return str(target)
        if image_id == series.uid and (volumes := self._volumes(series.uid)):
            raise SeveralImagesError(image_id, [str(self.get_image_info(one).get("volume", "")) for one in volumes])
        if self._is_unusable(series, image_id):
            raise InputError(self._unusable[image_id][1])
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._fetching.holding(series.uid):
                if not self._is_fetched(series, target):  # By another thread meanwhile.
                    self._fetch(series, folder, target)
        except InputError as error:
            if not self._volumes(series.uid):
                self._note_unusable(image_id, series, error)
            raise
        except OSError as error:
            raise _disk_full(error) from error
        return str(target)

    def _found(self, image_id: str) -> Series:
        series = self._list.find(series_of(image_id))
        if series is None:
            raise NotFoundError(f"The PACS has no series {image_id}. Choose one that Next Sample offers.")
        if series.modality == "SM":
            raise not_a_volume("a whole-slide image (Modality SM)")
        if not series.is_image:
            raise not_a_volume(f"of Modality {series.modality}")
        return series

    def _is_fetched(self, series: Series, target: Path) -> bool:
        info = self.get_image_info(target.name.removesuffix(".nii.gz"))
        same = str(info.get("instances", series.count)) == series.count and info.get("converted") == _CONVERTED
        return target.exists() and same

    def _note_unusable(self, image_id: str, series: Series, error: InputError) -> None:
        while len(self._unusable) >= _MOST_UNUSABLE:
            self._unusable.pop(next(iter(self._unusable)))
        self._unusable[image_id] = series.count, str(error), time.monotonic()

    def _is_unusable(self, series: Series, image_id: str) -> bool:
        count, _, when = self._unusable.get(image_id, (None, "", 0.0))
        # Of a series without a count nobody knows whether it has grown.
        return count == series.count and (count != "" or time.monotonic() - when < _TRIED_AGAIN)

    def _fetch(self, series: Series, folder: Path, target: Path) -> None:
        # Beside the target, and renamed when it is whole.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as parts:
            fetched, whole = Path(parts) / "The series", Path(parts) / "volume.nii.gz"
            fetched.mkdir()
            fetch_series(self._client, series, fetched)
            info: dict[str, Any] = dict(series.shown)
            info |= {"SeriesInstanceUID": series.uid, "instances": series.count, "converted": _CONVERTED}
            info["PatientID"] = read_patient(fetched) or info["PatientID"]  # Not every PACS lists it.
            try:
                volume = read_volume(fetched)
            except SeveralVolumesError as error:
                titles = error.titles
            else:
                write_nifti(whole, volume)
                self._keep_image(series.uid, whole, info)
                return
            refused: dict[Path, InputError] = {}
            for number, (title, found) in enumerate(read_each_volume(fetched), start=1):
                image_id = volume_id(series.uid, number)
                if isinstance(found, InputError):
                    refused[folder / f"{image_id}.nii.gz"] = found
                    self._note_unusable(image_id, series, found)
                else:
                    self._unusable.pop(image_id, None)
                    write_nifti(whole, found)
                self._keep_image(image_id, whole, {**info, "volume": title})
        if target in refused:
            raise refused[target]
        if not target.exists():
            raise SeveralImagesError(series.uid, titles)

    def _keep_image(self, image_id: str, whole: Path, info: Mapping[str, Any]) -> None:
        """Give a converted volume its name, and list it; also one that cannot be used: all keep their numbers."""
        target = whole.parents[1] / f"{image_id}.nii.gz"
        listed = DataModel(info={**info, "ts": int(time.time()), "name": target.name}, ext=".nii.gz")
        with FileLock(self._lock_file):
            if whole.exists():
                whole.replace(target)
            else:
                target.unlink(missing_ok=True)
            self._datastore.objects[image_id] = ImageLabelModel(image=listed)
            self._update_datastore_file(lock=False)

    def patient(self, image_id: str) -> str | None:
        """Return the PatientID of an image that was fetched."""
        found = self.get_image_info(image_id).get("PatientID", "")
        return found if found not in ("", "UNK") else None

    def _headers(self, image_id: str) -> list[Dataset]:
        """Of all images of a series, without pixels."""
        series = self._found(image_id)
        return fetch_headers(self._client, series.study, series.uid, self.patient(image_id))

    def _slices(self, image_id: str, image: Volume, headers: Sequence[Dataset] | None = None) -> Slices:
        """Where the slices of an image lie; its headers are asked for once."""
        key = image_id, self._reader(image_id)
        if key not in self._known_slices:
            while len(self._known_slices) >= _MOST_SLICES:
                self._known_slices.pop(next(iter(self._known_slices)), None)
            self._known_slices[key] = Slices.of(headers or self._headers(image_id), image, volume_number(image_id))
        return self._known_slices[key]

    def _reader(self, image_id: str) -> str:
        """What labels of an image are read with: an image that has grown is another one."""
        return self._found(image_id).count or "all"

    # Labels.

    def organ(self, image_id: str, segments: Sequence[StoredSegment]) -> OrganLabel:
        """Return the mask of the newest of some segments of one label that can be used; fetched once.

        Raises:
            InputError: if none can be read, or lies where the image does.
            BapsError: if the PACS does not answer, or the disk is full.
        """
        errors: list[InputError] = []
        for segment in segments:
            try:
                found = self._organ(image_id, segment)
                return replace(found, newer_errors=tuple(map(str, errors)))
            except InputError as error:
                errors.append(error)
        raise errors[0]

    def _organ(
        self,
        image_id: str,
        segment: StoredSegment,
        stored: Dataset | None = None,
        notes: list[str] | None = None,
    ) -> OrganLabel:
        """One segment. What cannot be read is remembered: it does not count, and is not fetched again."""
        image = Path(self.get_image_uri(image_id))
        # An object never changes; its image does while it is still being sent.
        reader = self._reader(image_id)
        folder = Path(self._datastore_path) / "segments" / f"{segment.instance}-{reader}"
        if stored is None and (reason := self._labels.register.reason(segment, reader)):
            raise InputError(reason)
        try:
            if stored is not None:
                shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                dataset = stored or fetch_object(self._client, segment.study, segment.series, segment.instance)
                volume = read_volume(image)
                write_segments(folder, dataset, volume, self._slices(image_id, volume), notes)
            found = read_segment(folder, segment.name)
        except OSError as error:
            raise _disk_full(error) from error
        except InputError as error:
            self._labels.register.note(segment, reader, str(error))
            raise
        self._labels.register.note(segment, reader)
        return found

    def label_to_edit(self, image_id: str, organ: str, image: Volume) -> tuple[LabelMap, LabelInfo]:
        """Return the newest label of one organ, (I, J, K), or zeros where none can be used.

        Every SEG holds what was saved with it alone.

        Raises:
            BapsError: as ``organ``; or if a label waits to be sent, without which a part of it would be hidden.
        """
        self._sender.send()
        if self._sender.holds(series_of(image_id), organ):
            raise BapsError(
                f"A part of {organ} still waits to be sent to the PACS. Ask who runs the PACS, then try again."
            )
        self._labels.refresh_study(self._found(image_id).study)
        segments = self._labels.newest(image_id).get(image_id, {}).get(organ, [])
        try:
            found = self.organ(image_id, segments) if segments else None
        except InputError as error:  # They stay in the PACS; what is saved now is newer.
            logger.warning("Earlier labels of an image were passed over (%s).", type(error).__name__)
            found = None
        if found is None:
            return LabelMap((np.zeros(image.shape, np.uint8),)), read_label_info({})
        info = {"label_info": [{"name": organ, "idx": 1}], "annotated_slices": {organ: sorted(found.slices)}}
        return read_label_map(found.file, image), read_label_info(info)

    def save_label(
        self,
        image_id: str,
        label_filename: str,
        label_tag: str,
        label_info: dict[str, Any],
        label_id: str = "",
    ) -> str:
        """Store a label, see ``store_label``.

        Returns:
            The name of the label, which is that of its image.
        """
        self.store_label(image_id, Path(label_filename), label_tag, label_info)
        return image_id

    def store_label(
        self, image_id: str, file: Path, label_tag: str, label_info: dict[str, Any], confirms: bool = False
    ) -> list[str]:
        """Store a final label in the PACS, as one SEG or RTSTRUCT with what is marked, or both; others are kept here.

        It is read back before it is called saved: by our reader before it is sent, and from the PACS afterwards. An
        organ that it takes away from another annotator is marked, see ``baps.server.datastores.dicomweb.disputed``.

        Args:
            image_id: Name of the image.
            file: The label.
            label_tag: ``final``, or another tag.
            label_info: What is known of the label, see ``read_label_info``.
            confirms: Whether who saves may take organs away from other annotators.

        Returns:
            Sentences for who saves it.

        Raises:
            InputError: if a value has no name, or no such object can be made for the image.
            BapsError: if the PACS refuses it or gives something else back; or does not answer, then it is kept and sent
                later.
        """
        if label_tag != DefaultLabelTag.FINAL.value:
            self.history.save(image_id, label_tag, file, self._to_id(file.name)[1], label_info)
            return []
        image = read_volume(Path(self.get_image_uri(image_id)))
        found, info = read_label_map(file, image), read_label_info(label_info)
        values = name_values(info, found, {})
        masks = {name: mask for name, value in values.items() if (mask := found.mask(value)).any()}
        slices = {name: (info.annotated_slices or {}).get(name, frozenset()) for name in masks}
        self._labels.refresh_study(self._found(image_id).study)
        known = self._labels.newest(image_id).get(image_id, {})
        earlier = [segment.when for segments in known.values() for segment in segments]
        now = datetime.now().astimezone()
        # A clock that runs ahead, the browser's say, must not hide what is saved now.
        when = max([now, *(made.astimezone() + timedelta(seconds=1) for made in earlier)])
        sources = self._headers(image_id)
        number = volume_number(image_id)
        by_model, made = bool(info.model), list[Dataset]()
        if self._label_format in ("rtstruct", "both"):
            # A little older than the SEG, which holds more: also on which slices nothing is marked.
            before = when - timedelta(milliseconds=1)
            made.append(write_structures(sources, image, masks, before, info.author, by_model, number))
        if self._label_format in ("seg", "both"):
            made.append(write_segmentation(sources, image, masks, slices, when, info.author, by_model, number))
        places = self._slices(image_id, image, sources)
        segments = [Segment(name, mask, slices[name]) for name, mask in masks.items()]
        disputed = {} if confirms else self._taken_away(image_id, image, segments, info.author)
        for label in made:
            mark_disputed(label, disputed)
        self._sender.send(self._sender.keep(made, lambda label: check_same_masks(label, masks, image, places)))
        return list(disputed.values())

    def _taken_away(self, image_id: str, image: Volume, segments: Iterable[Segment], author: str) -> dict[str, str]:
        """Return the organs that share too little with what another annotator drew, each with a sentence.

        Args:
            image_id, image: that they belong to.
            segments: that are about to be stored.
            author: who stores them.
        """
        known, found = self._labels.newest(image_id).get(image_id, {}), dict[str, str]()
        for segment in segments:
            others = [one for one in known.get(segment.name, []) if one.author != author]
            for one in others:
                try:
                    before = self._organ(image_id, one)
                except InputError:  # One that cannot be read hides no good one.
                    continue
                mask = LabelMap(((read_labels(before.file, image) > 0).view(np.uint8),))
                ours = segment.slices | set(np.flatnonzero(segment.mask.any((0, 1))).tolist())
                new = LabelMap((segment.mask.view(np.uint8),))
                if differs_too_much(Overlaps.count(mask, new, [(1, 1)]), 0, before.slices, ours):
                    found[segment.name] = (
                        f"This takes {segment.name} away from the version of {one.author or 'an unnamed annotator'}. "
                        f"Trainings use the earlier {segment.name} until a trainer saves the label."
                    )
                break
        return found

    def _judge_export(self, label: Dataset, confirms: bool) -> list[str]:
        """Mark what a label that a viewer stores takes away from another annotator.

        One that cannot be read is stored as it is, and does not count until it can be: ``_check_export`` says so.

        Returns:
            Sentences for who stores it.
        """
        if label.get("Modality") not in MODALITIES:
            return []
        mark_disputed(label, ())
        segments = stored_segments(label)
        if confirms or not segments:
            return []
        try:
            images = [one for one in segments[0].images if (known := self._list.find(one)) and known.is_image]
            image_id = self._image_of_label(images[0], lambda: label)
            image = read_volume(Path(self.get_image_uri(image_id)))
            self._labels.refresh_study(str(label.StudyInstanceUID))
            if not self._labels.newest(image_id).get(image_id, {}).keys() & {one.name for one in segments}:
                return []
            read = list(read_label(copy.deepcopy(label), image, self._slices(image_id, image), {}))
        except (InputError, IndexError):
            mark_disputed(label, [one.name for one in segments])
            return []
        disputed = self._taken_away(image_id, image, read, author_of(label))
        mark_disputed(label, disputed)
        return list(disputed.values())

    def _read_back(self, label: Dataset) -> None:
        """Fetch what the PACS has of a label that it took, and note that it counts.

        Raises:
            InputError: if it is not the same voxel by voxel.
            BapsError: if the PACS does not answer.
        """
        segments = stored_segments(label)
        if not segments:
            raise InputError("Its header does not say what it belongs to (ReferencedSeriesSequence).")
        first = segments[0]
        image_id = self._image_of_label(first.images[0], lambda: label)
        self._labels.register.add(segments, counts=False)
        self._labels.register.set_image(first.instance, image_id)
        stored = fetch_object(self._client, first.study, first.series, first.instance, stored_now=True)
        image = read_volume(Path(self.get_image_uri(image_id)))
        try:
            check_same_owner(label, stored)
            self._organ(image_id, first, stored)
            masks = {one.name: read_labels(self._organ(image_id, one).file, image) > 0 for one in segments}
            check_same_masks(label, masks, image, self._slices(image_id, image))
        except InputError as error:
            for segment in segments:
                self._labels.register.note(segment, self._reader(image_id), str(error))
            raise

    def label_to_rtstruct(self, image_id: str, notes: list[str] | None = None) -> FileDataset:
        """Make an RTSTRUCT of the newest segments of an image that can be read.

        Args:
            image_id: Name of the image.
            notes: Gets sentences on the labels that were left out.

        Raises:
            NotFoundError: if there is no such image, or it has no label.
            InputError: if no label can be read, or the headers lack what an RTSTRUCT needs.
            BapsError: if the PACS does not answer, or the disk is full.
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
            notes += [f"A label was left out. {skipped}" for skipped in errors]
        now = datetime.now().astimezone()
        return write_structures(
            self._headers(image_id), image, masks, now, by_model=None, number=volume_number(image_id)
        )

    def _image_of_label(self, uid: str, fetch_label: Callable[[], Dataset]) -> str:
        """The image that a label object belongs to: a series, or the volume of it whose frames the label refers to."""
        volumes = self._volumes(uid)
        if not volumes:
            return uid
        headers, referred = self._headers(uid), label_references(fetch_label())
        held = [0] * len(volumes)
        for place, image in enumerate(volumes):
            with suppress(InputError):  # A volume that cannot be used has no label.
                volume = read_volume(Path(self.get_image_uri(image)))
                held[place] = len(referred & stack_references(headers, volume, place + 1))
        return volumes[int(np.argmax(held))] if any(held) else uid

    def get_label_by_image_id(self, image_id: str, tag: str) -> str:
        """Return the image's own name where it has a label."""
        if tag != DefaultLabelTag.FINAL.value:
            found: str = super().get_label_by_image_id(image_id, tag)
            return found
        return image_id if image_id in self.newest_segments(image_id) else ""

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """Return a labelmap of the newest segments, whose values ``get_label_info`` names; where organs overlap, one
        hides the other."""
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
                logger.warning("A label of an image was passed over (%s).", type(error).__name__)
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
        """Return which value means which label in the labelmap."""
        if label_tag != DefaultLabelTag.FINAL.value:
            info: dict[str, Any] = super().get_label_info(label_id, label_tag)
            return info
        names = sorted(self.newest_segments(label_id).get(label_id, {}))
        return {"label_info": [{"name": name, "idx": value} for value, name in enumerate(names, start=1)]}

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Return images and their final labels."""
        tag = DefaultLabelTag.FINAL.value
        found = []
        for image in self.get_labeled_images():
            with suppress(InputError):  # A label that cannot be read after all.
                found.append({"image": self.get_image_uri(image), "label": self.get_label_uri(image, tag)})
        return found

    # What viewers ask of the PACS themselves.

    def forward(
        self, method: str, kind: str, path: str, headers: Mapping[str, str], body: bytes | None
    ) -> requests.Response:
        """Pass on a viewer's own request, with the user and the password of the PACS.

        Args:
            method: ``GET`` or ``POST``.
            kind: ``wado``, ``qido`` or ``stow``, whose prefix the address gets, or "".
            path: below the address of the PACS, with its query.
            headers: what it wants, and what it brings.
            body: what it brings, a file, or None.

        Raises:
            BapsError: if the PACS does not answer.
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
        tell: Callable[[Sequence[str]], object] = lambda _: None,
    ) -> tuple[requests.Response, list[str]]:
        """Check what a viewer exports, sign it with the name of the user, and store it.

        A label that is stored so is read back. One that cannot be read does not count, which a note says.

        Args:
            kind, path, headers, body: as for ``forward``.
            user: who exports it, or "" where nobody has to sign in.
            confirms: whether their word on the work of others counts, see ``baps.annotations.disputes``.
            tell: is given the series that the objects are about, before anything is stored.

        Returns:
            The response of the PACS, and sentences for the user.

        Raises:
            InputError: if something of it may not be stored; nothing is stored then.
            BapsError: if the PACS does not answer.
        """
        labels = [read_object(content) for content in split_objects(headers.get("content-type", ""), body)]
        about = [labelled_series(label) or (str(label.get("SeriesInstanceUID", "")),) for label in labels]
        tell(list(dict.fromkeys(uid for series in about for uid in series)))
        self._check_stored(labels, path.partition("?")[0].strip("/").removeprefix("studies").strip("/"))
        notes: list[str] = []
        for label in labels:
            sign(label, user, confirms, datetime.now().astimezone())
            notes += self._judge_export(label, confirms)
        boundary = secrets.token_hex(16)
        kept = {name: value for name, value in headers.items() if name != "content-type"}
        kept["content-type"] = f'multipart/related; type="application/dicom"; boundary={boundary}'
        try:
            answer = self.forward("POST", kind, path, kept, join_objects([written(one) for one in labels], boundary))
        finally:
            self.invalidate()
        if answer.ok:
            for label in labels:
                notes += self._check_export(label)
        return answer, list(dict.fromkeys(notes))

    def _check_stored(self, labels: Sequence[Dataset], study: str) -> None:
        """Refuse objects that do not belong into a study that is served, or that are there.

        Args:
            labels: the objects.
            study: that the address names, or "".

        Raises:
            InputError: if there is one.
        """
        instances, client = [str(label.SOPInstanceUID) for label in labels], self._client
        if len(set(instances)) < len(instances):
            raise InputError("Two objects have the same SOPInstanceUID. Nothing was stored.")
        for uid in {str(label.StudyInstanceUID) for label in labels}:
            found, listed = list[dict[str, Any]](), list[dict[str, Any]]()
            try:
                with convert_pacs_errors():
                    found = client.search_for_studies(search_filters={"StudyInstanceUID": uid})
                    listed = client.search_for_series(study_instance_uid=uid) if found else []
            except BapsError as error:
                if status_code(error) != 404:  # Of a study that it does not have.
                    raise
            told = [one for one in found if json_values(one, "StudyInstanceUID") == [uid]]
            series = {value for one in listed for value in json_values(one, "SeriesInstanceUID")}
            images = {
                one for one in series if (known := self._list.find(one)) and known.study == uid and known.is_image
            }
            if not told or not images or uid != (study or uid):
                raise InputError("The object belongs to a study that is not served here. Nothing was stored.")
            others = {one for one in series if one not in images and self._is_no_image(listed, one)}
            for label in labels:
                if label.StudyInstanceUID == uid:
                    check_belongs(label, told[0], others, images)
        for label in labels:
            with convert_pacs_errors():
                series_found = client.search_for_series(search_filters={"SeriesInstanceUID": label.SeriesInstanceUID})
            there = self._instances(label)
            same = [one for one in series_found if json_values(one, "SeriesInstanceUID") == [label.SeriesInstanceUID]]
            for one in same:
                check_new_series(label, json_values(one, "StudyInstanceUID"), json_values(one, "Modality"))
            if any(json_values(one, "SOPInstanceUID") == [label.SOPInstanceUID] for one in there):
                raise InputError("There is an object of this SOPInstanceUID already, which stays. Nothing was stored.")

    def _instances(self, label: Dataset) -> list[dict[str, Any]]:
        """What the PACS answers of objects with the UID of one; in its study alone, if it looks no further."""
        wanted, answer = {"SOPInstanceUID": label.SOPInstanceUID}, list[dict[str, Any]]()
        try:
            with convert_pacs_errors():
                answer = self._client.search_for_instances(search_filters=wanted)
        except BapsError as error:
            if status_code(error) is None:
                raise
            with convert_pacs_errors():
                answer = self._client.search_for_instances(label.StudyInstanceUID, search_filters=wanted)
        return answer

    @staticmethod
    def _is_no_image(listed: Sequence[Mapping[str, Any]], uid: str) -> bool:
        """Whether a series holds labels, reports and the like, to which others may refer."""
        kinds = [json_values(one, "Modality") for one in listed if json_values(one, "SeriesInstanceUID") == [uid]]
        return all(kind and kind[0] in NON_IMAGE_MODALITIES for kind in kinds)

    def _check_export(self, label: Dataset) -> list[str]:
        """Read back a label that a viewer stored.

        Returns:
            Sentences on how it was read, or on what is wrong with it.
        """
        if label.get("Modality") not in MODALITIES:
            return []
        notes: list[str] = []
        segments = stored_segments(label)
        register = self._labels.register
        try:
            if not segments:
                raise InputError("Its header does not say what it is a label of.")
            register.add(segments, counts=False)
            self._labels.find_images()
            image_id = register.image_of(segments[0].instance)
            if not image_id:
                raise InputError("The PACS has no image that it refers to.")
            errors = list[str]()
            for segment in segments:
                try:
                    self._organ(image_id, segment, notes=notes)
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
    address: str, login: PacsCredentials | None = None, worklist: Path | None = None, label_format: str = "seg"
) -> PacsDatastore:
    """Make the datastore of a DICOMweb address. The cache comes from MONAI Label's own settings.

    Args:
        address: of the PACS, which a query may follow, see ``read_pacs_studies``.
        login: who we are to it; None for what the environment says.
        worklist: file of the studies that are served, or None for all.
        label_format: see ``PacsDatastore``.

    Raises:
        InputError: if the query cannot be used.
        BapsError: if the worklist cannot be read.
    """
    studies = read_pacs_studies(address)
    listed = Worklist(worklist) if worklist else None
    if listed:
        listed.studies()
    cache = settings.MONAI_LABEL_DICOMWEB_CACHE_PATH or settings.MONAI_LABEL_DATASTORE_CACHE_PATH
    client = connect(studies.address, login or read_pacs_credentials(None))
    return PacsDatastore(client, cache.strip() or None, studies, listed, label_format)


def _disk_full(error: OSError) -> StorageError:
    return StorageError(f"What the PACS gave cannot be kept ({error.strerror}). Make room on the disk of the cache.")
