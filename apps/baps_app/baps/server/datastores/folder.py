"""A folder of studies: files of every kind that ``baps.io`` reads, and DICOM series, a folder each."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore
from monailabel.interfaces.datastore import DefaultLabelTag
from pydicom.dataset import FileDataset

from baps.annotations.export import label_to_rtstruct
from baps.annotations.history import Version
from baps.errors import BapsError, InputError, StorageError
from baps.imaging.label_map import LabelMap
from baps.io import (
    IMAGE_SUFFIXES,
    SeveralVolumesError,
    file_stem,
    images_folder,
    label_stem,
    list_images,
    opens_in_viewers,
    read_geometry,
    read_label_map,
    read_patient,
    volume_id,
)
from baps.server.datastores.conversions import FOLDER as CONVERTED
from baps.server.datastores.conversions import Conversions, SeveralImagesError
from baps.server.datastores.file_watch import FolderWatch
from baps.server.datastores.index import AtomicIndex
from baps.server.datastores.label_checks import LabelCheck, LabelChecks
from baps.server.datastores.new_images import check_new_name, list_names, stage_new_file


class StudiesDatastore(AtomicIndex, LocalDatastore):
    """MONAI Label's own, which knows files alone. A DICOM series is handed out as NIfTI, as the host does for a PACS.

    The NIfTI file lies in ``.converted``, see ``Conversions``. A series or an object that turns out to hold several
    volumes becomes as many images.

    Args:
        folder: the studies; images may lie in it or in ``images/`` below it.
        auto_reload: notice files that come or go, see ``FolderWatch``.
        read_only: write nothing at the start.
    """

    def __init__(self, folder: str, auto_reload: bool, read_only: bool) -> None:
        kinds = [f"*{suffix}" for suffix in IMAGE_SUFFIXES]
        self._conversions = Conversions(Path(folder) / CONVERTED)
        self._checks = LabelChecks(Path(folder), read_only)
        self._lock_file = str(Path(folder) / ".lock")  # The host's, which sets it later.
        self._arrivals = FolderWatch(self._looked_at, self._reconcile_datastore, self.index_lock)
        self._no_series: list[Path] = []
        self._reloads = auto_reload
        super().__init__(
            folder, self.images_dir(Path(folder)), extensions=kinds, auto_reload=False, read_only=read_only
        )
        if not read_only:
            self.history.repair()

    def images_dir(self, folder: Path) -> str:
        """Where the images lie, as MONAI Label's list says it: below the folder, or an absolute path."""
        return str(images_folder(folder).relative_to(folder))

    def _look(self) -> None:
        if self._reloads:
            self._arrivals.look()

    def list_images(self) -> list[str]:
        """As the host's, with what has come since, and without what has gone."""
        self._look()
        listed: list[str] = super().list_images()
        return listed

    def json(self) -> dict[str, Any]:
        """As the host's, likewise."""
        self._look()
        described: dict[str, Any] = super().json()
        return described

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """As the host's, likewise."""
        self._look()
        pairs: list[dict[str, Any]] = super().datalist(full_path)
        return pairs

    def _reconcile_datastore(self) -> None:
        with self.index_lock:
            if not self._datastore.objects:  # A folder ``images`` may have come to an empty one.
                self._datastore.images_dir = self.images_dir(Path(self._datastore_path))
            super()._reconcile_datastore()

    def _looked_at(self) -> list[Path]:
        """The folders whose times of change tell of images and labels that come or go."""
        labels = Path(self._datastore.label_path(None))
        tags = [tag for tag in labels.iterdir() if tag.is_dir()] if labels.is_dir() else []
        return [Path(self._datastore.image_path()), labels, *tags, *self._no_series]

    def _list_files(self, path: str, patterns: list[str]) -> dict[str, str]:
        images = Path(path) == Path(self._datastore.image_path())  # A label is a file, and one alone.
        found: dict[str, str] = {}
        there = list_images(Path(path))
        if images:  # A folder may become a series when the first of its files comes.
            series = set(there)
            self._no_series = [one for one in Path(path).iterdir() if one not in series and one.is_dir()]
        listed, tag = self._datastore.objects, Path(path).name
        for file in there:
            known = listed.get(self._to_id(file.name)[0])
            is_new = known is None or not (images or tag in known.labels)
            if is_new and self._reloads and not self._arrivals.is_complete(file):
                continue
            titles = self._conversions.titles(file) if images else []
            names = [f"{volume_id(file_stem(file), n)}.nii.gz" for n in range(1, len(titles) + 1)]
            if images or file.is_file():
                found |= {name: name for name in names or [file.name]}
        return found

    def _source(self, image_id: str) -> tuple[Path, int | None]:
        """The file or the folder of an image, and the number of its volume where that holds several.

        A path of an image that is not there is empty.
        """
        file = str(super().get_image_uri(image_id))
        if file and Path(file).exists():
            return Path(file), None
        folder = Path(self._datastore.image_path())
        for name in self._conversions.sources():
            for number, _ in enumerate(self._conversions.titles(folder / name), start=1):
                if volume_id(file_stem(folder / name), number) == image_id:
                    return folder / name, number
        return Path(file), None

    def _image_exists(self, image_id: str, extension: str) -> bool:
        source, number = self._source(image_id)
        return number is not None or (source.exists() and not self._conversions.titles(source))

    def _to_id(self, file: str) -> tuple[str, str]:
        stem = file_stem(Path(file))
        if (short := label_stem(Path(file))) != stem and not Path(self._datastore.image_path(), file).exists():
            stem = short  # 3D Slicer's a.seg.nrrd is a label of a.
        return stem, file[len(stem) :]

    def get_image_uri(self, image_id: str) -> str:
        """The image as a file that the viewers open and show where the server sees it.

        Raises:
            InputError: if it cannot be read, or holds several volumes: they are images of their own from then on.
            BapsError: if it cannot be converted.
        """
        uri: str = super().get_image_uri(image_id)
        if not uri:
            return uri
        source, number = self._source(image_id)
        if number is None and opens_in_viewers(source):
            return uri
        try:
            return str(self._conversions.convert(source, image_id, number))
        except SeveralVolumesError as error:
            self._reconcile_datastore()
            raise SeveralImagesError(image_id, error.titles) from None

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """As the host's, but the image gets its name when it is whole, and takes nobody else's.

        Raises:
            InputError: if there is an image, or a series, of that name already, or of one that some file systems take
                for the same; nothing is stored then.
            StorageError: if it cannot be written; nothing is stored then.
        """
        suffix = self._to_id(Path(image_filename).name)[1]
        folder = Path(self._datastore.image_path())
        target = folder / f"{image_id}{suffix}"
        info = {**image_info, "ts": int(time.time()), "name": target.name}
        try:
            with stage_new_file(folder, suffix) as (partial, add):
                shutil.copyfile(image_filename, partial)
                with self.index_lock:  # Also the command line and other processes hold it to add one.
                    check_new_name(image_id, [*self._datastore.objects, *list_names(folder)])
                    add(target)
                    self._datastore.objects[image_id] = ImageLabelModel(image=DataModel(info=info, ext=suffix))
                    self._update_datastore_file(lock=False)
        except FileExistsError:
            raise InputError(f"There is a file {target.name} already; give the new image another name.") from None
        except OSError as error:
            raise StorageError(
                f"The image could not be saved ({error.strerror}); nothing was stored. Make room on the server's disk "
                "and send it again."
            ) from error
        return image_id

    def save_label(
        self,
        image_id: str,
        label_filename: str,
        label_tag: str,
        label_info: dict[str, Any],
        check: Callable[[Version], None] | None = None,
        after: str | None = None,
    ) -> str:
        """As the host's, but a label is replaced when the new one is whole, and the earlier one is kept.

        Args:
            image_id, label_filename, label_tag, label_info: as the host's.
            check: reads what was written, before it is served; what it raises ends the save.
            after: the newest version that it takes account of, see ``LabelHistory.save``.

        Raises:
            NotFoundError: if there is no such image.
            OutdatedError: if another version is the newest.
            OSError: if it cannot be written; an earlier one is as it was.
            BapsError: as ``check``; an earlier one is as it was.
        """
        file = Path(label_filename)
        self.history.save(image_id, label_tag, file, self._to_id(file.name)[1], label_info, check, after)
        if check and label_tag == DefaultLabelTag.FINAL.value:
            self._checks.note(image_id, self._labelled_files()[image_id], {})
        return image_id

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """The images with a final label that can be read on them.

        A label that somebody laid into the folder is read once. Where there are many, a call reads some of them, and
        the others count as neither labelled nor unlabelled until a later call has read them.
        """
        return [image for image, checked in self._checked().items() if not checked.error]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """The images without a final label, or with one that cannot be read on them."""
        unlabelled = {*super().get_unlabeled_images(label_tag, labels)}
        unlabelled |= {image for image, checked in self._checked().items() if checked.error}
        return [image for image in self.list_images() if image in unlabelled]

    def read_final_labels(self) -> dict[str, LabelCheck]:
        """Return what is known of each final label, by image, after all have been read."""
        return self._checked(patience=float("inf"))

    def known_final_labels(self) -> dict[str, LabelCheck]:
        """Return what is known of each final label, by image; labels that need long to be read are left out."""
        return self._checked()

    def _checked(self, **patience: float) -> dict[str, LabelCheck]:
        self._look()
        return self._checks.check(self._labelled_files(), self._read_final, **patience)

    def _labelled_files(self) -> dict[str, tuple[str, str]]:
        """The files of the final label and of the image, by image; quick, for it is asked with each count."""
        listed, tag = self._datastore, DefaultLabelTag.FINAL.value
        images, labels, several = listed.image_path(), listed.label_path(tag), self._conversions.sources()
        files = {}
        for name, known in listed.objects.items():
            if tag in known.labels:
                image = str(self._source(name)[0]) if several else f"{images}/{name}{known.image.ext}"
                files[name] = f"{labels}/{name}{known.labels[tag].ext}", image
        return files

    def _read_final(self, image_id: str) -> LabelMap:
        label = Path(self.get_label_uri(image_id, DefaultLabelTag.FINAL.value))
        return read_label_map(label, read_geometry(Path(self.get_image_uri(image_id))), self.source(image_id))

    def source(self, image_id: str) -> Path | None:
        """The DICOM series or file of an image, against which DICOM labels are checked; none of other images."""
        path, _ = self._source(image_id)
        return path if path.is_dir() or path.suffix.lower() == ".dcm" else None

    def label_to_rtstruct(self, image_id: str, notes: list[str] | None = None) -> FileDataset:
        """Make an RTSTRUCT of the image's final label, see ``baps.annotations.export``.

        Args:
            image_id: Name of the image.
            notes: Gets sentences on how the label was read.

        Raises:
            NotFoundError: if there is no such label.
            InputError: if the image is no DICOM series, or no RTSTRUCT can be made of its label.
        """
        return label_to_rtstruct(self.history, image_id, DefaultLabelTag.FINAL.value, *self._source(image_id), notes)

    def check_writable(self, what: str) -> None:
        """Refuse to save where that is not possible; see ``ReadOnlyStudies``."""

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """As the host's. Of a series it is the NIfTI file that the viewers are told to load."""
        info: dict[str, Any] = super().get_image_info(image_id)
        if info:
            with suppress(BapsError):  # A broken series is refused where its voxels are wanted.
                info["path"] = self.get_image_uri(image_id)
                info["name"] = Path(info["path"]).name
        return info

    def patient(self, image_id: str) -> str | None:
        """The PatientID of a DICOM series; apart from what the host knows of an image, for that goes into its log.

        Raises:
            InputError: if the series is broken.
        """
        source, _ = self._source(image_id)
        return read_patient(source) if source.exists() else None
