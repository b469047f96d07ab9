"""Remove old files once a day: earlier versions of labels, fetched series, and incomplete files of killed processes.

Files that cannot be created again are removed only if a setting says so.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from monailabel.interfaces.datastore import Datastore
from monailabel.utils.async_tasks.utils import processes

from baps.annotations.retention import RetentionRule, prune
from baps.errors import BapsError
from baps.registry.store import adapter_times
from baps.server.datastores.conversions import FOLDER as CONVERTED
from baps.server.datastores.dicomweb import PacsDatastore
from baps.server.datastores.index import AtomicIndex
from baps.site.audit import AuditFile
from baps.site.settings import Settings
from baps.utils.atomic_write import PARTIAL

logger = logging.getLogger(__name__)

_DAY = 86_400.0
_INCOMPLETE = (f"{PARTIAL}*", ".fetching-*")
"""Patterns of the names of incomplete files and folders."""


class Retention:
    """Removes old files of a site, at the start and once a day.

    Args:
        datastore: Datastore of the server.
        site: Settings of the site.
        audit: Audit file, which gets a line for each label whose versions are removed.
        closed: Event that is set when the server ends.
    """

    def __init__(
        self, datastore: Datastore, site: Settings, audit: AuditFile, closed: threading.Event | None = None
    ) -> None:
        self._datastore, self._site, self._audit = datastore, site, audit
        self._closed = closed or threading.Event()

    def start(self) -> None:
        """Start a thread that removes old files now and once a day."""
        threading.Thread(target=self._run, name="retention", daemon=True).start()

    def _run(self) -> None:
        while True:
            for step in (self.remove_incomplete, self.prune_labels, self.remove_unused):
                try:
                    step()
                except (BapsError, OSError) as error:
                    logger.warning("Old files could not be removed (%s).", type(error).__name__)
            if self._closed.wait(_DAY):
                return

    def remove_incomplete(self, now: float | None = None) -> None:
        """Remove incomplete files that are older than a day: their writer was killed.

        Args:
            now: Time in seconds; None for the current time.
        """
        now = now or time.time()
        for folder in (self._site.adapters, *self._caches()):
            for pattern in _INCOMPLETE:
                for path in folder.rglob(pattern):
                    with suppress(OSError):
                        if now - path.lstat().st_mtime > _DAY:
                            _remove(path)

    def prune_labels(self) -> None:
        """Remove the versions of labels that the settings do not keep, with lines in the audit file."""
        keep, days = self._site.label_versions_keep, self._site.label_versions_days
        if not (keep or days) or not isinstance(self._datastore, AtomicIndex):
            return
        server_line = {"user": None, "role": None, "by": "server", "what": "prune a label"}
        for image, tag, versions in prune(
            self._datastore.history, RetentionRule(keep or 1, days), adapter_times(self._site.adapters)
        ):
            self._audit.add({**server_line, "image": self._audit.hashed(image), "tag": tag, "versions": versions})

    def remove_unused(self, now: float | None = None) -> None:
        """Remove fetched and converted series that were not read for as long as the setting says.

        They are fetched or converted again when they are needed. Nothing is removed during a training.

        Args:
            now: Time in seconds; None for the current time.
        """
        days, now = self._site.cache_days, now or time.time()
        if not days or processes("train"):
            return
        for folder in self._caches():
            for file in folder.glob("*.nii.gz"):
                with suppress(OSError):
                    status = file.lstat()
                    if now - max(status.st_atime, status.st_mtime) > days * _DAY:
                        file.unlink()

    def _caches(self) -> Iterator[Path]:
        """Yield the folders of files that can be created again."""
        if not isinstance(self._datastore, AtomicIndex):
            return
        if isinstance(self._datastore, PacsDatastore):
            yield Path(self._datastore._datastore.image_path())
        else:
            yield Path(self._datastore._datastore_path) / CONVERTED


def _remove(path: Path) -> None:
    """Remove a file, a link, or a folder with its content."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
