"""A folder of studies: files of every kind that ``baps.formats`` reads, and DICOM series, a folder each."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from monailabel.datastore.local import LocalDatastore

from baps.errors import InputError
from baps.formats import IMAGE_SUFFIXES, file_stem, is_dicom_folder, read_patient, read_volume, write_nifti

CONVERTED = ".converted"


class StudiesDatastore(LocalDatastore):
    """MONAI Label's own, which knows files alone. A DICOM series is handed out as NIfTI, as the host does for a PACS.

    The NIfTI file lies in ``.converted`` and is made when the series is first asked for, and again when it has changed.

    Args:
        folder: the studies; images may lie in it or in ``images/`` below it.
        auto_reload: notice files that come or go.
        read_only: write nothing at the start.
    """

    def __init__(self, folder: str, auto_reload: bool, read_only: bool) -> None:
        kinds = [f"*{suffix}" for suffix in IMAGE_SUFFIXES]
        inside = Path(folder) / "images"
        loose = [path for kind in kinds for path in Path(folder).glob(kind)]
        images = "images" if inside.is_dir() and not loose and not is_dicom_folder(inside) else "."
        super().__init__(folder, images, extensions=kinds, auto_reload=auto_reload, read_only=read_only)

    def _list_files(self, path: str, patterns: list[str]) -> dict[str, str]:
        files: dict[str, str] = super()._list_files(path, patterns)
        if Path(path) == Path(self._datastore.image_path()):
            series = [found.name for found in Path(path).iterdir() if is_dicom_folder(found)]
            files.update((name, name) for name in series)
        return files

    def _to_id(self, file: str) -> tuple[str, str]:
        stem = file_stem(Path(file))
        return stem, file[len(stem) :]

    def get_image_uri(self, image_id: str) -> str:
        uri: str = super().get_image_uri(image_id)
        if not Path(uri).is_dir() or not uri:
            return uri
        series = Path(uri)
        converted = Path(self._datastore_path) / CONVERTED / f"{image_id}.nii.gz"
        newest = max(path.stat().st_mtime_ns for path in (series, *series.iterdir()))
        if not converted.exists() or converted.stat().st_mtime_ns <= newest:
            converted.parent.mkdir(exist_ok=True)
            write_nifti(converted, read_volume(series))
        return str(converted)

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """As the host's. Of a series it is the NIfTI file that the viewers are told to load."""
        info: dict[str, Any] = super().get_image_info(image_id)
        if info and Path(info["path"]).is_dir():
            with suppress(InputError):  # A broken series is refused where its voxels are wanted.
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
