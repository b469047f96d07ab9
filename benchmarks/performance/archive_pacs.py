"""A simulated PACS with DICOMweb and any number of series, which are generated on request.

It answers searches for series (QIDO-RS: filters, ``limit`` and ``offset``), returns their metadata and objects
(WADO-RS), and keeps stored objects in memory (STOW-RS). ``/requests`` returns the number of requests by kind. Run it
in a process of its own: ``python -m benchmarks.performance.archive_pacs PORT SERIES``.
"""

from __future__ import annotations

import json
import re
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

ROOT = "1.2.826.0.1.3680043.8.498.19"
SLICES, IMAGE_SIZE = 24, 64
_SERIES_PER_STUDY = 4
_MODALITIES = ("CT", "MR", "SR", "CT", "CT", "SM", "MR", "CT")
"""Modalities of the series, in turn."""

_TAGS = {
    "StudyDate": ("00080020", "DA"),
    "Modality": ("00080060", "CS"),
    "PatientID": ("00100020", "LO"),
    "StudyInstanceUID": ("0020000D", "UI"),
    "SeriesInstanceUID": ("0020000E", "UI"),
    "NumberOfSeriesRelatedInstances": ("00201209", "IS"),
}


def series_uid(number: int) -> str:
    """Return the SeriesInstanceUID of a series by its number."""
    return f"{ROOT}.2.{number + 1}"


def study_uid(number: int) -> str:
    """Return the StudyInstanceUID of a series by its number."""
    return f"{ROOT}.1.{number // _SERIES_PER_STUDY + 1}"


def modality(number: int) -> str:
    """Return the modality of a series by its number."""
    return _MODALITIES[number % len(_MODALITIES)]


class Archive:
    """The generated series and the stored objects.

    Args:
        series: number of series.
        max_results: maximum number of results in an answer, even if ``limit`` is larger.
    """

    def __init__(self, series: int, max_results: int = 1000) -> None:
        self.series, self.max_results = series, max_results
        self.request_counts: Counter[str] = Counter()
        self.stored: dict[str, Dataset] = {}
        self.lock = Lock()

    def search(self, filters: dict[str, str], offset: int, limit: int) -> list[dict[str, Any]]:
        """Return the series that match, in DICOM's JSON form."""
        results: list[dict[str, Any]] = []
        limit = min(limit, self.max_results)
        if not filters and offset + limit <= self.series:  # Direct access, as fast as a database.
            return [_json(_series_attributes(number)) for number in range(offset, offset + limit)]
        for attributes in self._candidates(filters):
            if all(
                _matches(keyword, pattern, str(attributes[keyword]))
                for keyword, pattern in filters.items()
                if keyword in attributes
            ):
                offset -= 1
                if offset < 0:
                    results.append(_json(attributes))
                if len(results) == limit:
                    break
        return results

    def _candidates(self, filters: dict[str, str]) -> Iterator[dict[str, str | int]]:
        numbers: Sequence[int] = range(self.series)
        if uid := filters.get("SeriesInstanceUID"):
            numbers = self._numbers(uid, 2, 1)
        elif study := filters.get("StudyInstanceUID"):
            numbers = [n for n in self._numbers(study, 1, _SERIES_PER_STUDY) if n < self.series]
        if filters.get("Modality", "CT") in _MODALITIES:
            yield from map(_series_attributes, numbers)
        with self.lock:
            stored = {str(dataset.SeriesInstanceUID): dataset for dataset in self.stored.values()}
        for uid, dataset in stored.items():
            count = sum(str(other.SeriesInstanceUID) == uid for other in self.stored.values())
            values = {name: str(dataset.get(name, "")) for name in _TAGS}
            yield {**values, "NumberOfSeriesRelatedInstances": count}

    def _numbers(self, uid: str, kind: int, series_per_uid: int) -> list[int]:
        match = re.fullmatch(rf"{re.escape(ROOT)}\.{kind}\.(\d+)", uid)
        first = (int(match[1]) - 1) * series_per_uid if match else -1
        return [n for n in range(first, first + series_per_uid) if 0 <= n < self.series]

    def objects(self, uid: str, instance: str = "") -> list[Dataset]:
        """Return the objects of a series, or one of them."""
        results = [make_image(n, k) for n in self._numbers(uid, 2, 1) for k in range(SLICES)]
        with self.lock:
            results += [dataset for dataset in self.stored.values() if str(dataset.SeriesInstanceUID) == uid]
        return [dataset for dataset in results if instance in ("", str(dataset.SOPInstanceUID))]

    def store(self, content_type: str, body: bytes) -> list[Dataset]:
        """Store the objects in the body of a STOW-RS request."""
        boundary = re.search(r'boundary="?([^";,]+)', content_type)
        parts = body.split(b"--" + boundary[1].encode())[1:-1] if boundary else []
        datasets = [pydicom.dcmread(BytesIO(part.partition(b"\r\n\r\n")[2])) for part in parts]
        with self.lock:
            self.stored |= {str(dataset.SOPInstanceUID): dataset for dataset in datasets}
        return datasets


def _series_attributes(number: int) -> dict[str, str | int]:
    year, month, day = 2020 + number % 7, 1 + number // 7 % 12, 1 + number // 84 % 28
    return {
        "StudyDate": f"{year}{month:02}{day:02}",
        "Modality": modality(number),
        "PatientID": f"patient-{number // _SERIES_PER_STUDY + 1}",
        "StudyInstanceUID": study_uid(number),
        "SeriesInstanceUID": series_uid(number),
        "NumberOfSeriesRelatedInstances": SLICES,
    }


def _json(attributes: dict[str, str | int]) -> dict[str, Any]:
    return {tag: {"vr": vr, "Value": [attributes[name]]} for name, (tag, vr) in _TAGS.items() if attributes[name] != ""}


def _matches(keyword: str, pattern: str, value: str) -> bool:
    if keyword == "StudyDate" and "-" in pattern:
        first, _, last = pattern.partition("-")
        return first <= value <= (last or "9")
    return pattern in ("*", value)


@lru_cache(maxsize=256)
def make_image(number: int, k: int) -> Dataset:
    """Make a slice of a series: a bright ball on a dark background."""
    image = Dataset()
    for name, value in _series_attributes(number).items():
        if name != "NumberOfSeriesRelatedInstances":
            setattr(image, name, value)
    image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, f"{ROOT}.3.{number + 1}.{k + 1}"
    image.FrameOfReferenceUID = f"{ROOT}.4.{number + 1}"
    image.PatientName = image.AccessionNumber = image.StudyTime = ""
    image.InstanceNumber, image.SeriesNumber = k + 1, 1
    image.ImagePositionPatient, image.ImageOrientationPatient = [-64.0, -64.0, 3.0 * k], [1, 0, 0, 0, 1, 0]
    image.PixelSpacing, image.SliceThickness = [2.0, 2.0], 3.0
    image.Rows = image.Columns = IMAGE_SIZE
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
    j, i = np.indices((IMAGE_SIZE, IMAGE_SIZE))
    inside = (i - 32) ** 2 + (j - 32) ** 2 + ((k - 12) * 1.5) ** 2 < 15**2
    image.PixelData = np.where(inside, 150, -50 + number % 10).astype("<i2").tobytes()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.is_little_endian, image.is_implicit_VR = True, False
    return image


def _encoded(image: Dataset) -> bytes:
    buffer = BytesIO()
    image.save_as(buffer, write_like_original=False)
    return buffer.getvalue()


_SERIES = re.compile(r"/dicom-web/(?:studies/(?P<study>[\d.]+)/)?series")
_OBJECTS = re.compile(
    r"/dicom-web/studies/[\d.]+/series/(?P<series>[\d.]+)(?:/instances/(?P<instance>[\d.]+))?(?P<metadata>/metadata)?"
)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def archive(self) -> Archive:
        return self.server.archive  # type: ignore[attr-defined, no-any-return]

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        if address.path == "/requests":
            self._answer(200, "application/json", json.dumps(self.archive.request_counts).encode())
        elif search := _SERIES.fullmatch(address.path):
            self._count("search")
            filters = {name: values[0] for name, values in parse_qs(address.query).items()}
            limit, offset = int(filters.pop("limit", 1 << 30)), int(filters.pop("offset", 0))
            if search["study"]:
                filters["StudyInstanceUID"] = search["study"]
            self._answer_json(self.archive.search(filters, offset, limit))
        elif address.path in ("/dicom-web/studies", "/dicom-web/instances"):
            self._count("search")
            self._answer_json(self._studies_or_instances(address.path, parse_qs(address.query)))
        elif path := _OBJECTS.fullmatch(address.path):
            objects = self.archive.objects(path["series"], path["instance"] or "")
            self._count("metadata" if path["metadata"] else "objects")
            if not objects:
                self._answer(404, "text/plain", b"")
            elif path["metadata"]:
                self._answer_json([_header(dataset) for dataset in objects])
            else:
                parts = (
                    b"--part\r\nContent-Type: application/dicom\r\n\r\n" + _encoded(dataset) + b"\r\n"
                    for dataset in objects
                )
                kind = 'multipart/related; type="application/dicom"; boundary=part'
                self._answer(200, kind, b"".join(parts) + b"--part--\r\n")
        else:
            self._answer(404, "text/plain", b"")

    def _studies_or_instances(self, path: str, query: dict[str, list[str]]) -> list[dict[str, Any]]:
        """Return the study of a StudyInstanceUID, or the stored object of a SOPInstanceUID."""
        if path.endswith("studies"):
            return self.archive.search({"StudyInstanceUID": query["StudyInstanceUID"][0]}, 0, 1)
        with self.archive.lock:
            stored = self.archive.stored.get(query["SOPInstanceUID"][0])
        return [_header(stored)] if stored else []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._count("store")
        self.archive.store(self.headers.get("Content-Type", ""), body)
        self._answer(200, "application/dicom+json", b"{}")

    def _count(self, kind: str) -> None:
        with self.archive.lock:
            self.archive.request_counts[kind] += 1

    def _answer_json(self, content: object) -> None:
        self._answer(200, "application/dicom+json", json.dumps(content).encode())

    def _answer(self, code: int, kind: str, content: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def _header(image: Dataset) -> dict[str, Any]:
    header = Dataset()
    header.update({tag: image[tag] for tag in image.keys() if image[tag].keyword != "PixelData"})  # noqa: SIM118
    content: dict[str, Any] = header.to_json_dict()
    return content


def serve(archive: Archive, port: int = 0) -> ThreadingHTTPServer:
    """Serve an archive on this machine in a thread; the caller must shut the server down."""
    server = ThreadingHTTPServer(("127.0.0.1", port), _Handler)
    server.archive = archive  # type: ignore[attr-defined]
    Thread(target=server.serve_forever, daemon=True).start()
    return server


if __name__ == "__main__":
    serve(Archive(int(sys.argv[2])), int(sys.argv[1]))
    signal.pause()
