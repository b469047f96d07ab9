"""A stand-in for a hospital's archive: DICOMweb, with as many series as are wanted, made when they are asked for.

It answers searches for series (QIDO-RS: filters, ``limit`` and ``offset``), their metadata and objects (WADO-RS), and
keeps in memory what is stored (STOW-RS). ``/requests`` says how often it was asked for what. Run it in a process of its
own: ``python -m benchmarks.performance.archive_pacs PORT SERIES``.
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
SLICES, SIDE = 24, 64
_SERIES_OF_A_STUDY = 4
_KINDS = ("CT", "MR", "SR", "CT", "CT", "SM", "MR", "CT")
"""Modalities, in turn."""

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
    return f"{ROOT}.1.{number // _SERIES_OF_A_STUDY + 1}"


def modality(number: int) -> str:
    """Return the modality of a series by its number."""
    return _KINDS[number % len(_KINDS)]


class Archive:
    """The series, and what was stored.

    Args:
        series: how many there are.
        most: at once in an answer, whatever ``limit`` says.
    """

    def __init__(self, series: int, max_results: int = 1000) -> None:
        self.series, self.max_results = series, max_results
        self.asked: Counter[str] = Counter()
        self.stored: dict[str, Dataset] = {}
        self.lock = Lock()

    def search(self, wanted: dict[str, str], offset: int, limit: int) -> list[dict[str, Any]]:
        """Return the series that match, in DICOM's JSON form."""
        found: list[dict[str, Any]] = []
        limit = min(limit, self.max_results)
        if not wanted and offset + limit <= self.series:  # By place, as fast as a database.
            return [_json(_told(number)) for number in range(offset, offset + limit)]
        for told in self._candidates(wanted):
            if all(
                _matches(keyword, value, str(told[keyword])) for keyword, value in wanted.items() if keyword in told
            ):
                offset -= 1
                if offset < 0:
                    found.append(_json(told))
                if len(found) == limit:
                    break
        return found

    def _candidates(self, wanted: dict[str, str]) -> Iterator[dict[str, str | int]]:
        numbers: Sequence[int] = range(self.series)
        if uid := wanted.get("SeriesInstanceUID"):
            numbers = self._numbers(uid, 2, 1)
        elif study := wanted.get("StudyInstanceUID"):
            numbers = [n for n in self._numbers(study, 1, _SERIES_OF_A_STUDY) if n < self.series]
        if wanted.get("Modality", "CT") in _KINDS:
            yield from map(_told, numbers)
        with self.lock:
            stored = {str(one.SeriesInstanceUID): one for one in self.stored.values()}
        for uid, one in stored.items():
            count = sum(str(other.SeriesInstanceUID) == uid for other in self.stored.values())
            named = {name: str(one.get(name, "")) for name in _TAGS}
            yield {**named, "NumberOfSeriesRelatedInstances": count}

    def _numbers(self, uid: str, kind: int, of_each: int) -> list[int]:
        found = re.fullmatch(rf"{re.escape(ROOT)}\.{kind}\.(\d+)", uid)
        first = (int(found[1]) - 1) * of_each if found else -1
        return [n for n in range(first, first + of_each) if 0 <= n < self.series]

    def objects(self, uid: str, instance: str = "") -> list[Dataset]:
        """Return the objects of a series, or one of them."""
        found = [make_image(n, k) for n in self._numbers(uid, 2, 1) for k in range(SLICES)]
        with self.lock:
            found += [one for one in self.stored.values() if str(one.SeriesInstanceUID) == uid]
        return [one for one in found if instance in ("", str(one.SOPInstanceUID))]

    def store(self, content_type: str, body: bytes) -> list[Dataset]:
        """Keep the objects of a request to store them."""
        found = re.search(r'boundary="?([^";,]+)', content_type)
        parts = body.split(b"--" + found[1].encode())[1:-1] if found else []
        kept = [pydicom.dcmread(BytesIO(part.partition(b"\r\n\r\n")[2])) for part in parts]
        with self.lock:
            self.stored |= {str(one.SOPInstanceUID): one for one in kept}
        return kept


def _told(number: int) -> dict[str, str | int]:
    year, month, day = 2020 + number % 7, 1 + number // 7 % 12, 1 + number // 84 % 28
    return {
        "StudyDate": f"{year}{month:02}{day:02}",
        "Modality": modality(number),
        "PatientID": f"patient-{number // _SERIES_OF_A_STUDY + 1}",
        "StudyInstanceUID": study_uid(number),
        "SeriesInstanceUID": series_uid(number),
        "NumberOfSeriesRelatedInstances": SLICES,
    }


def _json(told: dict[str, str | int]) -> dict[str, Any]:
    return {tag: {"vr": vr, "Value": [told[name]]} for name, (tag, vr) in _TAGS.items() if told[name] != ""}


def _matches(keyword: str, wanted: str, value: str) -> bool:
    if keyword == "StudyDate" and "-" in wanted:
        first, _, last = wanted.partition("-")
        return first <= value <= (last or "9")
    return wanted in ("*", value)


@lru_cache(maxsize=256)
def make_image(number: int, k: int) -> Dataset:
    """Make a slice of a series: a bright ball on a dark background."""
    image = Dataset()
    for name, value in _told(number).items():
        if name != "NumberOfSeriesRelatedInstances":
            setattr(image, name, value)
    image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, f"{ROOT}.3.{number + 1}.{k + 1}"
    image.FrameOfReferenceUID = f"{ROOT}.4.{number + 1}"
    image.PatientName = image.AccessionNumber = image.StudyTime = ""
    image.InstanceNumber, image.SeriesNumber = k + 1, 1
    image.ImagePositionPatient, image.ImageOrientationPatient = [-64.0, -64.0, 3.0 * k], [1, 0, 0, 0, 1, 0]
    image.PixelSpacing, image.SliceThickness = [2.0, 2.0], 3.0
    image.Rows = image.Columns = SIDE
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
    j, i = np.indices((SIDE, SIDE))
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
        where = urlsplit(self.path)
        if where.path == "/requests":
            self._answer(200, "application/json", json.dumps(self.archive.asked).encode())
        elif search := _SERIES.fullmatch(where.path):
            self._count("search")
            wanted = {name: values[0] for name, values in parse_qs(where.query).items()}
            limit, offset = int(wanted.pop("limit", 1 << 30)), int(wanted.pop("offset", 0))
            if search["study"]:
                wanted["StudyInstanceUID"] = search["study"]
            self._tell(self.archive.search(wanted, offset, limit))
        elif where.path in ("/dicom-web/studies", "/dicom-web/instances"):
            self._count("search")
            self._tell(self._studies_or_instances(where.path, parse_qs(where.query)))
        elif found := _OBJECTS.fullmatch(where.path):
            objects = self.archive.objects(found["series"], found["instance"] or "")
            self._count("metadata" if found["metadata"] else "objects")
            if not objects:
                self._answer(404, "text/plain", b"")
            elif found["metadata"]:
                self._tell([_header(one) for one in objects])
            else:
                parts = (
                    b"--part\r\nContent-Type: application/dicom\r\n\r\n" + _encoded(one) + b"\r\n" for one in objects
                )
                kind = 'multipart/related; type="application/dicom"; boundary=part'
                self._answer(200, kind, b"".join(parts) + b"--part--\r\n")
        else:
            self._answer(404, "text/plain", b"")

    def _studies_or_instances(self, path: str, query: dict[str, list[str]]) -> list[dict[str, Any]]:
        """The study of a StudyInstanceUID, or the stored object of a SOPInstanceUID."""
        if path.endswith("studies"):
            return self.archive.search({"StudyInstanceUID": query["StudyInstanceUID"][0]}, 0, 1)
        with self.archive.lock:
            found = self.archive.stored.get(query["SOPInstanceUID"][0])
        return [_header(found)] if found else []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._count("store")
        self.archive.store(self.headers.get("Content-Type", ""), body)
        self._answer(200, "application/dicom+json", b"{}")

    def _count(self, kind: str) -> None:
        with self.archive.lock:
            self.archive.asked[kind] += 1

    def _tell(self, content: object) -> None:
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
    told: dict[str, Any] = header.to_json_dict()
    return told


def serve(archive: Archive, port: int = 0) -> ThreadingHTTPServer:
    """Serve an archive on this machine in a thread; who calls shuts the server down."""
    server = ThreadingHTTPServer(("127.0.0.1", port), _Handler)
    server.archive = archive  # type: ignore[attr-defined]
    Thread(target=server.serve_forever, daemon=True).start()
    return server


if __name__ == "__main__":
    serve(Archive(int(sys.argv[2])), int(sys.argv[1]))
    signal.pause()
