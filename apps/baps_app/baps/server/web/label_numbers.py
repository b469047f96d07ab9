"""Compute the volumes and slices of the labels that a page shows, in a thread. Results are kept by checksum."""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from monailabel.interfaces.datastore import Datastore

from baps.annotations.label_info import label_values, read_label_info
from baps.blackbox.weights import sha256
from baps.errors import BapsError
from baps.imaging.label_map import LabelMap
from baps.io import read_geometry, read_label_map, read_volume
from baps.server.datastores.dicomweb import PacsDatastore
from baps.server.datastores.folder import StudiesDatastore
from baps.server.web.label_table import LabelRow

logger = logging.getLogger(__name__)

_MAX_KEPT = 20_000
"""Number of labels whose results are kept."""


@dataclass(frozen=True)
class OrganNumbers:
    """Numbers of an organ of a label.

    Attributes:
        millilitres: Its volume in ml.
        slices: Number of slices across K that it is marked on.
    """

    millilitres: float
    slices: int


Numbers = Mapping[str, OrganNumbers]
"""Numbers by organ."""


class LabelNumbers:
    """Computes the numbers of labels. Thread-safe.

    Args:
        datastore: Returns the datastore of the server.
        labels: Names and values of the site.
    """

    def __init__(self, datastore: Callable[[], Datastore], labels: Mapping[str, int]) -> None:
        self._datastore, self._labels, self._lock = datastore, labels, threading.Lock()
        self._by_content = OrderedDict[tuple[str, ...], Numbers]()
        self._by_stamp = OrderedDict[tuple[str, tuple[object, ...]], Numbers]()
        self._queue = OrderedDict[tuple[str, tuple[object, ...]], LabelRow]()
        self._thread: threading.Thread | None = None

    def get(self, rows: Sequence[LabelRow]) -> list[Numbers | None]:
        """Return the numbers of labels that are known, and compute the others.

        Args:
            rows: The labels of a page. What earlier pages have requested is computed later.

        Returns:
            For each row the numbers, which are empty if they cannot be computed, or None if they are being computed.
        """
        datastore = self._datastore()
        fetched = datastore.fetched_instances() if isinstance(datastore, PacsDatastore) else frozenset[str]()
        keys = [(f"{row.tag}/{row.image}", _stamp(row, fetched)) for row in rows]
        with self._lock:
            known = [self._by_stamp.get(key) for key in keys]
            for key, row, numbers in reversed(list(zip(keys, rows, known, strict=True))):
                if numbers is None:
                    self._queue[key] = row
                    self._queue.move_to_end(key)
            while len(self._queue) > _MAX_KEPT:
                self._queue.popitem(last=False)
            if self._queue and self._thread is None:
                self._thread = threading.Thread(target=self._run, name="label-numbers", daemon=True)
                self._thread.start()
        return known

    def wait(self, seconds: float) -> None:
        """Wait until everything is computed, for programs that need all numbers.

        Args:
            seconds: Maximum time to wait.
        """
        thread = self._thread
        if thread:
            thread.join(seconds)

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._thread = None
                    return
                key, row = self._queue.popitem()
            try:
                numbers = self._compute(row)
            except (BapsError, OSError):  # The table says what is wrong with the label.
                numbers = {}
            except Exception as error:
                logger.warning("The volume of a label could not be computed (%s).", type(error).__name__)
                numbers = {}
            with self._lock:
                self._by_stamp[key] = numbers
                while len(self._by_stamp) > _MAX_KEPT:
                    self._by_stamp.popitem(last=False)

    def _compute(self, row: LabelRow) -> Numbers:
        datastore = self._datastore()
        if row.file is None:
            return _pacs_numbers(datastore, row) if isinstance(datastore, PacsDatastore) else {}
        # The same file may lie beside another image, or have other names for its values.
        info = datastore.get_label_info(row.image, row.tag) or {}
        key = (row.image, sha256(row.file), json.dumps(info.get("label_info"), default=str))
        if key not in self._by_content:
            self._by_content[key] = self._read(datastore, row)
            while len(self._by_content) > _MAX_KEPT:
                self._by_content.popitem(last=False)
        return self._by_content[key]

    def _read(self, datastore: Datastore, row: LabelRow) -> Numbers:
        assert row.file is not None
        source = datastore.source(row.image) if isinstance(datastore, StudiesDatastore) else None
        image = read_geometry(Path(datastore.get_image_uri(row.image)))
        label_map = read_label_map(row.file, image, source)
        info = read_label_info(datastore.get_label_info(row.image, row.tag) or {})
        values = label_values(info, self._labels, label_map.names)
        names = {value: name for name, value in values.items()}
        voxel = float(abs(np.linalg.det(image.affine[:3, :3]))) / 1000
        counts, slices = count_voxels(label_map), label_map.slices_by_value()
        return {
            names.get(value, f"value {value}"): OrganNumbers(count * voxel, len(slices[value]))
            for value, count in counts.items()
        }


def count_voxels(label_map: LabelMap) -> dict[int, int]:
    """Count the voxels of each segment.

    Args:
        label_map: The label map.

    Returns:
        Number of voxels by value.
    """
    counts: dict[int, int] = {}
    for layer in label_map.layers:
        values, found = np.unique(layer, return_counts=True)
        for value, count in zip(values.tolist(), found.tolist(), strict=True):
            if value:
                counts[value] = counts.get(value, 0) + count
    return counts


def _pacs_numbers(datastore: PacsDatastore, row: LabelRow) -> Numbers:
    """Return the numbers of labels that were fetched earlier; for a page, nothing is fetched from the PACS."""
    numbers = {}
    for organ in row.organs:
        label = datastore.fetched_label(organ.segment) if organ.segment else None
        if label is None:
            continue
        volume = read_volume(label.file)
        mask = np.asarray(volume.voxels, np.uint8) > 0
        voxel = float(abs(np.linalg.det(volume.affine[:3, :3]))) / 1000
        numbers[organ.organ] = OrganNumbers(float(mask.sum()) * voxel, int(mask.any((0, 1)).sum()))
    return numbers


def _stamp(row: LabelRow, fetched: Container[str]) -> tuple[object, ...]:
    """Return what changes when a label changes, or is fetched from the PACS."""
    names = tuple(one.organ for one in row.organs)
    if row.file is None:
        instances = [one.segment.instance for one in row.organs if one.segment]
        return names, *instances, *(one in fetched for one in instances)
    try:
        status = row.file.stat()
    except OSError:
        return ()
    return names, status.st_mtime_ns, status.st_size, status.st_ino
