"""Routes that save images and labels, and send their files."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import BackgroundTasks, File, Form, Request, UploadFile
from fastapi.responses import FileResponse, Response
from monailabel.endpoints import datastore as monailabel_datastore
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.others.generic import file_checksum, get_mime_type

from baps.annotations.history import check_tag
from baps.annotations.label_info import check_extra
from baps.errors import InputError, NotFoundError
from baps.io import IMAGE_SUFFIXES, file_stem, read_volume
from baps.server.datastores.new_images import check_new_name
from baps.server.request_context import context_of
from baps.server.request_names import checked_name, json_object
from baps.utils.keyed_locks import KeyedLocks
from baps.utils.printable import printable_values
from baps.utils.redaction import shorten_paths_in_json

_reading_image, _reading_label = KeyedLocks(), KeyedLocks()

_HOST_FIELDS = ("strategy", "ts", "name", "checksum", "path")
"""Fields of an image that MONAI Label itself sets."""


def image_file(image: str) -> Path:
    """Return the file of an image. Only one thread at a time fetches it from the PACS or converts it.

    Args:
        image: Name of the image.

    Returns:
        The file.

    Raises:
        NotFoundError: If there is no such image.
    """
    datastore = app_instance().datastore()
    if hasattr(datastore, "forward"):  # A PACS reports missing images itself, and locks each series.
        return Path(datastore.get_image_uri(image))
    if image not in datastore.list_images():
        raise NotFoundError(f"There is no image {image!r} in the datastore. Choose one that Next Sample offers.")
    with _reading_image.holding(image):  # A second thread would read an incomplete file.
        return Path(datastore.get_image_uri(image))


def save_label(
    request: Request, image: str, tag: str = "final", params: str = Form("{}"), label: UploadFile = File(...)
) -> dict[str, Any]:
    """Check a label and save it. If it cannot be used, nothing is changed.

    The ``notes`` of the response say how it was read, and how it was merged with labels of others.
    """
    tag = tag or "final"
    check_tag(tag)
    info = json_object(params, "params")
    if name := context_of(request).name:
        info["author"] = name  # The author is the user who has signed in, whatever the client sends.
    image_file(image)
    with received(label) as path:
        notes = app_instance().save_label(image, path, tag, info, context_of(request).confirms)
    return {"image": image, "label": image, "notes": notes}


def add_image(
    request: Request, image: str = "", params: str = Form("{}"), file: UploadFile = File(...)
) -> dict[str, Any]:
    """Add an image to a folder of studies. Existing images are never replaced."""
    fields = {key: value for key, value in json_object(params, "params").items() if key not in _HOST_FIELDS}
    check_extra(fields, "The information about the image")
    info = printable_values(fields)
    datastore = app_instance().datastore()
    if hasattr(datastore, "forward"):
        raise InputError("This server serves the images of its PACS. Send yours to the PACS.")
    with received(file) as path:
        suffix = suffix_of(file)
        name = checked_name(image or Path(file.filename or "").name.removesuffix(suffix), "image")
        check_new_name(name, datastore.list_images())  # Before the slow reading. Adding the image checks it again.
        read_volume(path)
        context_of(request).image = name
        added = datastore.add_image(name, str(path), info)
    return {"image": added}


def image_for_viewer(image: str) -> FileResponse:
    """Send the file of an image.

    Raises:
        NotFoundError: If there is no such image.
    """
    return _file_response(image_file(image))


def check_image(image: str, check_sum: str = "") -> FileResponse:
    """Check that an image exists and has the checksum of the viewer's copy.

    Raises:
        NotFoundError: If there is no such image, or its checksum differs.
        InputError: If the algorithm of the checksum is not supported.
    """
    file = image_file(image)
    algorithm, _, digest = check_sum.rpartition(":")
    algorithm = algorithm or "SHA256"
    try:
        is_same = not check_sum or file_checksum(file, algo=algorithm) == f"{algorithm}:{digest.lower()}"
    except ValueError:
        raise InputError("The checksum must be of SHA256, SHA512 or MD5, as in SHA256:<hexadecimal digits>.") from None
    if not is_same:
        raise NotFoundError(f"The image {image!r} has another checksum. Fetch it again.")
    return _file_response(file)


def label_for_viewer(tag: str, label: str = "", image: str = "") -> FileResponse:
    """Send the file of a label.

    The parameter ``label`` is the id of the label. MONAI Label's HEAD request has the parameter ``image`` instead.

    Raises:
        NotFoundError: If there is no such label.
        InputError: If there is no such tag.
    """
    check_tag(tag)
    with _reading_label.holding(label or image):
        file = app_instance().datastore().get_label_uri(label or image, tag)
    if not file or not Path(file).is_file():
        raise NotFoundError(f"There is no label {tag!r} of {label or image!r} in the datastore.")
    return _file_response(Path(file))


def _file_response(file: Path) -> FileResponse:
    return FileResponse(file, media_type=get_mime_type(str(file)), filename=file.name)


def all_images(output: monailabel_datastore.ResultType | None = None) -> Response:
    """Return the numbers of images and labels, or a list of them."""
    content = shorten_paths_in_json(monailabel_datastore.datastore(output))
    return Response(json.dumps(content, default=str), media_type="application/json")


def all_labelled(request: Request, background_tasks: BackgroundTasks, limit_cases: int | None = None) -> FileResponse:
    """Send all images that have a final label, and these labels, as one ZIP file."""
    datastore = app_instance().datastore()
    if not datastore.datalist():
        raise NotFoundError("No image has a final label yet, so there is nothing to download.")
    archive = Path(datastore.get_dataset_archive(limit_cases))
    background_tasks.add_task(archive.unlink, missing_ok=True)
    with zipfile.ZipFile(archive) as packed:
        names = [name for name in packed.namelist() if name.startswith("image/")]
    context_of(request).images = [file_stem(Path(name)) for name in names]
    return FileResponse(archive, media_type="application/zip", filename="dataset.zip")


def file_name(file: UploadFile) -> str:
    """Return the last part of the name of an uploaded file."""
    return (file.filename or "").rpartition("/")[2]


def suffix_of(file: UploadFile) -> str:
    """Return the suffix of an uploaded image or label, such as ``.nii.gz``.

    Args:
        file: The uploaded file.

    Returns:
        The suffix, in lower case.

    Raises:
        InputError: If it is not the suffix of an image.
    """
    name = (file.filename or "").lower()
    suffix = next((suffix for suffix in IMAGE_SUFFIXES if name.endswith(suffix)), "")
    if not suffix:
        raise InputError(f"The file must have one of the suffixes {', '.join(IMAGE_SUFFIXES)}. Nothing was saved.")
    return suffix


@contextmanager
def received(file: UploadFile) -> Iterator[Path]:
    """Write an uploaded file to a temporary folder, for as long as the context lasts.

    Args:
        file: The uploaded file. Only the suffix of its name is used.

    Yields:
        Path of the file.

    Raises:
        InputError: If its suffix is not that of an image.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"upload{suffix_of(file)}"
        with path.open("wb") as target:
            shutil.copyfileobj(file.file, target)
        yield path
