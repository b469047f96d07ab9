"""Labels that a viewer stores in the PACS by itself, through this server: the objects in its request."""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import BytesIO

import pydicom
from pydicom.dataset import Dataset

_BOUNDARY = re.compile(r'boundary="?([^";,]+)"?', re.IGNORECASE)


def exported_objects(content_type: str, body: bytes) -> Iterator[Dataset]:
    """Yield the headers of the DICOM objects in a request to store them; what cannot be read is passed over.

    Args:
        content_type: of the request: ``multipart/related`` with its boundary.
        body: of the request.
    """
    boundary = _BOUNDARY.search(content_type)
    if not boundary:
        return
    for part in body.split(b"--" + boundary[1].encode())[1:-1]:
        try:
            yield pydicom.dcmread(BytesIO(part.partition(b"\r\n\r\n")[2]), stop_before_pixels=True)
        except Exception:  # noqa: S112  # pydicom raises many kinds; the PACS says what is wrong with it.
            continue
