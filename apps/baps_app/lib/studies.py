"""A folder of studies: files of every kind that ``baps.formats`` reads, and DICOM series, a folder each."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.datastore import DefaultLabelTag

from baps.errors import BapsError
from baps.formats import (
    IMAGE_SUFFIXES,
    file_stem,
    images_folder,
    label_stem,
    list_images,
    read_label_map,
    read_patient,
    read_volume,
    write_nifti,
)
from baps.label_history import Version
from baps.label_map import LabelMap
from baps.volume import Volume
from lib.label_checks import Checked, LabelChecks
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
        images = str(images_folder(Path(folder)).relative_to(folder))
        self._checks = LabelChecks(Path(folder), read_only)
        super().__init__(folder, images, extensions=kinds, auto_reload=auto_reload, read_only=read_only)
        if not read_only:
            self.history.repair()

    def _list_files(self, path: str, patterns: list[str]) -> dict[str, str]:
        series_too = Path(path) == Path(self._datastore.image_path())  # A label is a file.
        return {found.name: found.name for found in list_images(Path(path)) if series_too or found.is_file()}

    def _to_id(self, file: str) -> tuple[str, str]:
        stem = file_stem(Path(file))
        if (short := label_stem(Path(file))) != stem and not Path(self._datastore.image_path(), file).exists():
            stem = short  # 3D Slicer's a.seg.nrrd is a label of a.
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
            raise BapsError(
                f"The series {image_id} cannot be converted ({error.strerror}). Make room, and let the server write to "
                f"{CONVERTED} in the folder of the studies."
            ) from error
        return str(converted)

    def save_label(
        self,
        image_id: str,
        label_filename: str,
        label_tag: str,
        label_info: dict[str, Any],
        check: Callable[[Version], None] | None = None,
    ) -> str:
        """As the host's, but a label is replaced when the new one is whole, and the earlier one is kept.

        Args:
            image_id, label_filename, label_tag, label_info: as the host's.
            check: reads what was written, before it is served; what it raises ends the save.

        Raises:
            NotFoundError: if there is no such image.
            OSError: if it cannot be written; an earlier one is as it was.
            BapsError: as ``check``; an earlier one is as it was.
        """
        file = Path(label_filename)
        self.history.save(image_id, label_tag, file, self._to_id(file.name)[1], label_info, check)
        if check and label_tag == DefaultLabelTag.FINAL.value:
            self._checks.note(image_id, self._files(image_id), {})
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

    def read_final_labels(self) -> dict[str, Checked]:
        """What is known of each final label, by image, when all have been read."""
        return self._checked(patience=float("inf"))

    def _checked(self, **patience: float) -> dict[str, Checked]:
        files = {image: self._files(image) for image in super().get_labeled_images()}
        return self._checks.check(files, self._read_final, **patience)

    def _files(self, image_id: str) -> tuple[Path, Path]:
        """Of the final label and the image."""
        return Path(self.get_label_uri(image_id, DefaultLabelTag.FINAL.value)), Path(super().get_image_uri(image_id))

    def _read_final(self, image_id: str) -> LabelMap:
        label, _ = self._files(image_id)
        return read_label_map(label, read_volume(Path(self.get_image_uri(image_id))), self.source(image_id))

    def source(self, image_id: str) -> Path | None:
        """The DICOM series or file of an image, against which DICOM labels are checked; none of other images."""
        path = Path(super().get_image_uri(image_id))
        return path if path.is_dir() or path.suffix.lower() == ".dcm" else None

    def label_to_change(self, image_id: str, organ: str, image: Volume) -> tuple[LabelMap, LabelInfo]:
        """The image's final label map with every organ in it; zeros where there is none.

        Raises:
            InputError: if it cannot be used.
        """
        tag = DefaultLabelTag.FINAL.value
        earlier = self.get_label_uri(image_id, tag)
        if not earlier or not Path(earlier).is_file():
            return LabelMap((np.zeros(image.shape, np.uint8),)), read_label_info({})
        found = read_label_map(Path(earlier), image, self.source(image_id))
        return found, read_label_info(self.get_label_info(image_id, tag) or {})

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
