"""A folder of studies: files of every kind that ``baps.formats`` reads, and DICOM series, a folder each."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore
from monailabel.interfaces.datastore import DefaultLabelTag
from numpy.typing import NDArray

from baps.errors import BapsError, StorageError
from baps.formats import (
    IMAGE_SUFFIXES,
    file_stem,
    images_folder,
    list_images,
    read_labels,
    read_patient,
    read_volume,
    write_nifti,
)
from baps.replacing import replacing
from baps.volume import Volume
from lib.label_info import LabelInfo, read_label_info
from lib.whole_list import WholeList

CONVERTED = ".converted"


class StudiesDatastore(WholeList, LocalDatastore):
    """MONAI Label's own, which knows files alone. A DICOM series is handed out as NIfTI, as the host does for a PACS.

    The NIfTI file lies in ``.converted`` and is made when the series is first asked for, and again when it has changed.

    Args:
        folder: the studies; images may lie in it or in ``images/`` below it.
        auto_reload: notice files that come or go.
        read_only: write nothing at the start.
    """

    def __init__(self, folder: str, auto_reload: bool, read_only: bool) -> None:
        kinds = [f"*{suffix}" for suffix in IMAGE_SUFFIXES]
        super().__init__(
            folder, self.images_dir(Path(folder)), extensions=kinds, auto_reload=auto_reload, read_only=read_only
        )
        if not read_only:
            self.history.repair()

    def images_dir(self, folder: Path) -> str:
        """Where the images lie, as MONAI Label's list says it: below the folder, or an absolute path."""
        return str(images_folder(folder).relative_to(folder))

    def _list_files(self, path: str, patterns: list[str]) -> dict[str, str]:
        series_too = Path(path) == Path(self._datastore.image_path())  # A label is a file.
        return {found.name: found.name for found in list_images(Path(path)) if series_too or found.is_file()}

    def _to_id(self, file: str) -> tuple[str, str]:
        stem = file_stem(Path(file))
        return stem, file[len(stem) :]

    def get_image_uri(self, image_id: str) -> str:
        uri: str = super().get_image_uri(image_id)
        if not Path(uri).is_dir() or not uri:
            return uri
        series = Path(uri)
        converted = Path(self._datastore_path) / CONVERTED / f"{image_id}.nii.gz"
        try:
            newest = max(path.lstat().st_mtime_ns for path in (series, *series.iterdir()))
            if not converted.exists() or converted.stat().st_mtime_ns <= newest:
                converted.parent.mkdir(exist_ok=True)
                write_nifti(converted, read_volume(series))
        except OSError as error:
            raise StorageError(
                f"The series {image_id} cannot be converted ({error.strerror}). Make room, and let the server write to "
                f"{CONVERTED} in the folder of the studies."
            ) from error
        return str(converted)

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """As the host's, but the image gets its name when it is whole.

        Raises:
            StorageError: if it cannot be written; nothing is stored then.
        """
        suffix = self._to_id(Path(image_filename).name)[1]
        target = Path(self._datastore.image_path()) / f"{image_id}{suffix}"
        info = {**image_info, "ts": int(time.time()), "name": target.name}
        try:
            with self.changing:
                with replacing(target, suffix) as partial:
                    shutil.copyfile(image_filename, partial)
                self._datastore.objects[image_id] = ImageLabelModel(image=DataModel(info=info, ext=suffix))
                self._update_datastore_file(lock=False)
        except OSError as error:
            target.unlink(missing_ok=True)
            raise StorageError(
                f"The image could not be saved ({error.strerror}); nothing was stored. Make room on the server's disk "
                "and send it again."
            ) from error
        return image_id

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """As the host's, but a label is replaced when the new one is whole, and the earlier one is kept.

        Raises:
            NotFoundError: if there is no such image.
            OSError: if it cannot be written; an earlier one is as it was.
        """
        self.history.save(
            image_id, label_tag, Path(label_filename), self._to_id(Path(label_filename).name)[1], label_info
        )
        return image_id

    def label_to_change(self, image_id: str, organ: str, image: Volume) -> tuple[NDArray[np.integer[Any]], LabelInfo]:
        """The image's final labelmap, (I, J, K), with every organ in it; zeros where there is none.

        Raises:
            InputError: if it cannot be used.
        """
        tag = DefaultLabelTag.FINAL.value
        earlier = self.get_label_uri(image_id, tag)
        if not earlier or not Path(earlier).is_file():
            return np.zeros(image.shape, np.uint8), read_label_info({})
        return read_labels(Path(earlier), image), read_label_info(self.get_label_info(image_id, tag) or {})

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """As the host's. Of a series it is the NIfTI file that the viewers are told to load."""
        info: dict[str, Any] = super().get_image_info(image_id)
        if info and Path(info["path"]).is_dir():
            with suppress(BapsError):  # A broken series is refused where its voxels are wanted.
                info["path"] = self.get_image_uri(image_id)
                info["name"] = Path(info["path"]).name
        return info

    def patient(self, image_id: str) -> str | None:
        """The PatientID of a DICOM series; apart from what the host knows of an image, for that goes into its log.

        Raises:
            InputError: if the series is broken.
        """
        path = super().get_image_uri(image_id)
        return read_patient(Path(path)) if path else None
