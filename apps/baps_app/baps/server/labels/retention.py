"""What grows without end is cut back once a day: earlier versions of labels, fetched series, what kills have left.

Nothing that cannot be made again goes unless a setting says so.
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
_UNFINISHED = (f"{PARTIAL}*", ".fetching-*")
"""What files and folders are called until they are whole."""


class Retention:
    """Cuts back the files of a site, at the start and once a day.

    Args:
        datastore: of the server.
        site: its settings.
        audit: where it is noted which versions of labels are removed.
        closed: is set when the server ends.
    """

    def __init__(
        self, datastore: Datastore, site: Settings, audit: AuditFile, closed: threading.Event | None = None
    ) -> None:
        self._datastore, self._site, self._audit = datastore, site, audit
        self._closed = closed or threading.Event()

    def start(self) -> None:
        """Begin, in a thread."""
        threading.Thread(target=self._run, name="retention", daemon=True).start()

    def _run(self) -> None:
        while True:
            for step in (self.remove_unfinished, self.prune_labels, self.remove_unused):
                try:
                    step()
                except (BapsError, OSError) as error:
                    logger.warning("Old files could not be removed (%s).", type(error).__name__)
            if self._closed.wait(_DAY):
                return

    def remove_unfinished(self, now: float | None = None) -> None:
        """Remove what was being written a day ago or earlier: its writer was killed."""
        now = now or time.time()
        for folder in (self._site.adapters, *self._caches()):
            for kind in _UNFINISHED:
                for left in folder.rglob(kind):
                    with suppress(OSError):
                        if now - left.lstat().st_mtime > _DAY:
                            _remove(left)

    def prune_labels(self) -> None:
        """Remove the versions of labels that the settings do not keep, each with a line in the audit file."""
        keep, days = self._site.label_versions_keep, self._site.label_versions_days
        if not (keep or days) or not isinstance(self._datastore, AtomicIndex):
            return
        by_itself = {"user": None, "role": None, "by": "server", "what": "prune a label"}
        for image, tag, versions in prune(
            self._datastore.history, RetentionRule(keep or 1, days), adapter_times(self._site.adapters)
        ):
            self._audit.add({**by_itself, "image": self._audit.hashed(image), "tag": tag, "versions": versions})

    def remove_unused(self, now: float | None = None) -> None:
        """Remove series that were fetched or converted, and that nobody has read for as long as the setting says.

        They are made again when they are asked for. A training reads what it has listed, so nothing goes meanwhile.
        """
        days, now = self._site.cache_days, now or time.time()
        if not days or processes("train"):
            return
        for folder in self._caches():
            for file in folder.glob("*.nii.gz"):
                with suppress(OSError):
                    found = file.lstat()
                    if now - max(found.st_atime, found.st_mtime) > days * _DAY:
                        file.unlink()

    def _caches(self) -> Iterator[Path]:
        """The folders of what is made again."""
        if not isinstance(self._datastore, AtomicIndex):
            return
        if isinstance(self._datastore, PacsDatastore):
            yield Path(self._datastore._datastore.image_path())
        else:
            yield Path(self._datastore._datastore_path) / CONVERTED


def _remove(left: Path) -> None:
    """Remove a file, a link, or a folder with what it holds."""
    if left.is_dir() and not left.is_symlink():
        shutil.rmtree(left)
    else:
        left.unlink()
