"""Labels that a viewer stores in the PACS by itself, through this server: the objects in its request."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from tempfile import TemporaryFile
from typing import BinaryIO

import pydicom
from pydicom.dataset import Dataset

_BOUNDARY = re.compile(r'boundary="?([^";,]+)"?', re.IGNORECASE)


def exported_objects(content_type: str, body: BinaryIO) -> Iterator[Dataset]:
    """Yield the headers of the DICOM objects in a request to store them; what cannot be read is passed over.

    Args:
        content_type: of the request: ``multipart/related`` with its boundary.
        body: of the request; a file on disk.
    """
    boundary = _BOUNDARY.search(content_type)
    if not boundary:
        return
    with mmap.mmap(body.fileno(), 0, access=mmap.ACCESS_READ) as content, memoryview(content) as bytes_:
        marker = b"--" + boundary[1].encode()
        place = content.find(marker)
        while place >= 0 and (end := content.find(marker, place + len(marker))) >= 0:
            start = content.find(b"\r\n\r\n", place, end)
            with TemporaryFile() as part:  # An object may be large.
                part.write(bytes_[start + 4 : end] if start >= 0 else b"")
                part.seek(0)
                try:
                    found = pydicom.dcmread(part, stop_before_pixels=True)
                except Exception:  # pydicom raises many kinds; the PACS says what is wrong with it.
                    found = None
            if found is not None:
                yield found
            place = end
