"""Datastore of a folder of studies: files of all formats that ``baps.io`` reads, and DICOM series, one folder each."""

from __future__ import annotations

import math
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
    """MONAI Label's datastore of files, extended by DICOM series. A series is served as NIfTI, as for a PACS.

    The NIfTI file is in ``.converted``, see ``Conversions``. A series or an object that holds several volumes becomes
    several images.

    Args:
        folder: Folder of the studies; images are in it, or in ``images/`` below it.
        auto_reload: Whether files that are added or removed are noticed, see ``FolderWatch``.
        read_only: Whether nothing is written at the start.
    """

    def __init__(self, folder: str, auto_reload: bool, read_only: bool) -> None:
        patterns = [f"*{suffix}" for suffix in IMAGE_SUFFIXES]
        self._conversions = Conversions(Path(folder) / CONVERTED)
        self._checks = LabelChecks(Path(folder), read_only)
        self._lock_file = str(Path(folder) / ".lock")  # MONAI Label sets it too late.
        self._watch = FolderWatch(self._watched_folders, self._reconcile_datastore, self.index_lock)
        self._other_folders: list[Path] = []
        self._watches_files = auto_reload
        super().__init__(
            folder, self.images_dir(Path(folder)), extensions=patterns, auto_reload=False, read_only=read_only
        )
        if not read_only:
            self.history.repair()

    def images_dir(self, folder: Path) -> str:
        """Return the folder of the images for MONAI Label's index: below the folder of the studies, or absolute.

        Args:
            folder: Folder of the studies.
        """
        return str(images_folder(folder).relative_to(folder))

    def _read_if_changed(self) -> None:
        if self._watches_files:
            self._watch.read_if_changed()

    def list_images(self) -> list[str]:
        """Return the names of all images that are in the folder now."""
        self._read_if_changed()
        images: list[str] = super().list_images()
        return images

    def json(self) -> dict[str, Any]:
        """Return the index, after files that were added or removed are noticed."""
        self._read_if_changed()
        index: dict[str, Any] = super().json()
        return index

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Return the images with final labels and these labels, after files that were added or removed are noticed.

        Args:
            full_path: Whether the paths are absolute.
        """
        self._read_if_changed()
        pairs: list[dict[str, Any]] = super().datalist(full_path)
        return pairs

    def _reconcile_datastore(self) -> None:
        with self.index_lock:
            if not self._datastore.objects:  # A folder ``images`` may have been added to an empty folder.
                self._datastore.images_dir = self.images_dir(Path(self._datastore_path))
            super()._reconcile_datastore()

    def _watched_folders(self) -> list[Path]:
        """Return the folders whose modification times change when images or labels are added or removed."""
        labels = Path(self._datastore.label_path(None))
        tags = [tag for tag in labels.iterdir() if tag.is_dir()] if labels.is_dir() else []
        return [Path(self._datastore.image_path()), labels, *tags, *self._other_folders]

    def _list_files(self, path: str, patterns: list[str]) -> dict[str, str]:
        is_image_folder = Path(path) == Path(self._datastore.image_path())
        names: dict[str, str] = {}
        files = list_images(Path(path))
        if is_image_folder:  # A folder becomes a series when its first file is added.
            series = set(files)
            self._other_folders = [entry for entry in Path(path).iterdir() if entry not in series and entry.is_dir()]
        listed, tag = self._datastore.objects, Path(path).name
        for file in files:
            entry = listed.get(self._to_id(file.name)[0])
            is_new = entry is None or not (is_image_folder or tag in entry.labels)
            if is_new and self._watches_files and not self._watch.is_complete(file):
                continue
            titles = self._conversions.volume_titles(file) if is_image_folder else []
            volumes = [f"{volume_id(file_stem(file), n)}.nii.gz" for n in range(1, len(titles) + 1)]
            if is_image_folder or file.is_file():  # A label is always a file.
                names |= {name: name for name in volumes or [file.name]}
        return names

    def _source(self, image_id: str) -> tuple[Path, int | None]:
        """Return the file or the folder of an image, and the number of its volume if that holds several.

        The path is empty if there is no such image.
        """
        file = str(super().get_image_uri(image_id))
        if file and Path(file).exists():
            return Path(file), None
        folder = Path(self._datastore.image_path())
        for name in self._conversions.sources():
            for number, _ in enumerate(self._conversions.volume_titles(folder / name), start=1):
                if volume_id(file_stem(folder / name), number) == image_id:
                    return folder / name, number
        return Path(file), None

    def _image_exists(self, image_id: str, extension: str) -> bool:
        source, number = self._source(image_id)
        return number is not None or (source.exists() and not self._conversions.volume_titles(source))

    def _to_id(self, file: str) -> tuple[str, str]:
        stem = file_stem(Path(file))
        if (image_stem := label_stem(Path(file))) != stem and not Path(self._datastore.image_path(), file).exists():
            stem = image_stem  # The file a.seg.nrrd of 3D Slicer is a label of a.
        return stem, file[len(stem) :]

    def get_image_uri(self, image_id: str) -> str:
        """Return the path of an image as a file that the viewers can open, with the geometry that the server uses.

        Args:
            image_id: Name of the image.

        Raises:
            SeveralImagesError: if it holds several volumes; they are images of their own from then on.
            InputError: if it cannot be read.
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
        """Add an image. It gets its name only when it is complete, and never replaces another image.

        Args:
            image_id: Name of the image.
            image_filename: Path of the file, which is copied.
            image_info: Information for the index.

        Returns:
            The name of the image.

        Raises:
            InputError: if there is an image or a series of that name already, or of a name that is the same on some
                file systems; nothing is stored then.
            StorageError: if it cannot be written; nothing is stored then.
        """
        suffix = self._to_id(Path(image_filename).name)[1]
        folder = Path(self._datastore.image_path())
        target = folder / f"{image_id}{suffix}"
        info = {**image_info, "ts": int(time.time()), "name": target.name}
        try:
            with stage_new_file(folder, suffix) as (partial, publish):
                shutil.copyfile(image_filename, partial)
                with self.index_lock:  # The command line and other processes hold it too to add an image.
                    check_new_name(image_id, [*self._datastore.objects, *list_names(folder)])
                    publish(target)
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
        base_version: str | None = None,
    ) -> str:
        """Save a label. It is served only when it is complete, and the earlier one is kept as a version.

        Args:
            image_id: Name of the image.
            label_filename: Path of the file, which is copied.
            label_tag: Tag of the label.
            label_info: Information about the label.
            check: Checks the written version before it is served. If it raises an error, nothing is saved.
            base_version: Newest version that the label takes into account, see ``LabelHistory.save``.

        Returns:
            The name of the label, which is that of the image.

        Raises:
            NotFoundError: if there is no such image.
            OutdatedError: if another version is the newest.
            OSError: if it cannot be written; an earlier label is unchanged.
            BapsError: as ``check``; an earlier label is unchanged.
        """
        file = Path(label_filename)
        self.history.save(image_id, label_tag, file, self._to_id(file.name)[1], label_info, check, base_version)
        if check and label_tag == DefaultLabelTag.FINAL.value:
            self._checks.add(image_id, self._labelled_files()[image_id], {})
        return image_id

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the images with a final label that can be read on them.

        A label that was copied into the folder is read once. If there are many, a call reads some of them. The others
        count as neither labelled nor unlabelled until a later call has read them.

        Args:
            label_tag: Ignored; the tag is always ``final``.
            labels: Ignored.
        """
        return [image for image, check in self.known_final_labels().items() if not check.error]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the images without a final label, or with one that cannot be read on them.

        Args:
            label_tag: Tag of the label, as in MONAI Label.
            labels: Names of labels, as in MONAI Label.
        """
        unlabelled = {*super().get_unlabeled_images(label_tag, labels)}
        unlabelled |= {image for image, check in self.known_final_labels().items() if check.error}
        return [image for image in self.list_images() if image in unlabelled]

    def read_final_labels(self) -> dict[str, LabelCheck]:
        """Read all final labels that are new or have changed.

        Returns:
            The result for each final label, by image.
        """
        return self.known_final_labels(timeout=math.inf)

    def known_final_labels(self, **timeout: float) -> dict[str, LabelCheck]:
        """Read some of the final labels that are new or have changed, in a short time.

        Args:
            timeout: ``timeout`` of ``LabelChecks.check``, if another one is wanted.

        Returns:
            The results by image. Labels that were not read yet are missing.
        """
        self._read_if_changed()
        return self._checks.check(self._labelled_files(), self._read_final_label, **timeout)

    def _labelled_files(self) -> dict[str, tuple[str, str]]:
        """Return the files of the final label and of the image, by image. It is fast, because every click needs it."""
        listed, tag = self._datastore, DefaultLabelTag.FINAL.value
        images, labels, has_volumes = listed.image_path(), listed.label_path(tag), self._conversions.sources()
        files = {}
        for name, entry in listed.objects.items():
            if tag in entry.labels:
                image = str(self._source(name)[0]) if has_volumes else f"{images}/{name}{entry.image.ext}"
                files[name] = f"{labels}/{name}{entry.labels[tag].ext}", image
        return files

    def _read_final_label(self, image_id: str) -> LabelMap:
        label = Path(self.get_label_uri(image_id, DefaultLabelTag.FINAL.value))
        return read_label_map(label, read_geometry(Path(self.get_image_uri(image_id))), self.source(image_id))

    def original(self, image_id: str) -> Path:
        """Return the file or folder of an image as it was placed in the folder. It may hold other images too.

        Args:
            image_id: Name of the image.
        """
        return self._source(image_id)[0]

    def source(self, image_id: str) -> Path | None:
        """Return the DICOM series or file of an image, against which DICOM labels are checked; None for other images.

        Args:
            image_id: Name of the image.
        """
        path, _ = self._source(image_id)
        return path if path.is_dir() or path.suffix.lower() == ".dcm" else None

    def label_to_rtstruct(self, image_id: str, notes: list[str] | None = None) -> FileDataset:
        """Convert the image's final label to an RTSTRUCT, see ``baps.annotations.export``.

        Args:
            image_id: Name of the image.
            notes: List to which sentences on how the label was read are appended.

        Raises:
            NotFoundError: if there is no such label.
            InputError: if the image is not a DICOM series, or its label cannot be converted.
        """
        return label_to_rtstruct(self.history, image_id, DefaultLabelTag.FINAL.value, *self._source(image_id), notes)

    def check_writable(self, what: str) -> None:
        """Do nothing, because this datastore can be written to. ``ReadOnlyStudies`` raises a StorageError.

        Args:
            what: Kind of object that is to be saved, for the message.
        """

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """Return the information about an image. For a series, the path is that of the NIfTI file for the viewers.

        Args:
            image_id: Name of the image.
        """
        info: dict[str, Any] = super().get_image_info(image_id)
        if info:
            with suppress(BapsError):  # A broken series is refused when its voxels are read.
                info["path"] = self.get_image_uri(image_id)
                info["name"] = Path(info["path"]).name
        return info

    def patient(self, image_id: str) -> str | None:
        """Return the PatientID of a DICOM series, or None.

        It is not in ``get_image_info``, because MONAI Label writes that to its log.

        Args:
            image_id: Name of the image.

        Raises:
            InputError: if the series is broken.
        """
        source, _ = self._source(image_id)
        return read_patient(source) if source.exists() else None
