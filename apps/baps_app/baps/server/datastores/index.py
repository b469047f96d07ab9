"""Atomic index: the list of images and labels of a datastore on disk, which is always complete and current."""

from __future__ import annotations

import json
import threading
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path

from filelock import FileLock
from monailabel.datastore.local import LocalDatastore, LocalDatastoreModel

from baps.annotations.history import LabelHistory
from baps.annotations.label_info import rename_info_keys
from baps.utils.atomic_write import atomic_write


class AtomicIndex(LocalDatastore):
    """A datastore whose index is replaced atomically, because MONAI Label cannot start with a broken one.

    The index on disk is authoritative: if another process has changed it, it is read again before it is next used. That
    needs no lock. To change the index, hold ``index_lock``, which is reentrant. To save a label, hold the lock of that
    label (``LabelHistory.locked``), and the lock of the index only while the index is replaced.
    """

    _reading = threading.RLock()
    _config_ts: tuple[int, int] | None

    @cached_property
    def index_lock(self) -> FileLock:
        """The lock of the index, against other threads and other processes."""
        return FileLock(self._lock_file)

    def has_image(self, image_id: str) -> bool:
        """Return whether there is an image of this name.

        Args:
            image_id: Name of the image.
        """
        return image_id in self.list_images()

    @cached_property
    def history(self) -> LabelHistory:
        """The labels that are kept on this machine."""
        return LabelHistory(Path(self._datastore_path), self.index_lock)

    @property
    def _datastore(self) -> LocalDatastoreModel:
        if self._stamp() not in (None, self._config_ts):
            self._init_from_datastore_file()
        return self._listed

    @_datastore.setter
    def _datastore(self, listed: LocalDatastoreModel) -> None:
        self._listed = listed

    def _stamp(self) -> tuple[int, int] | None:
        """Return time and inode of the index on disk, or None. The time alone is too coarse to tell two files apart."""
        try:
            status = Path(self._datastore_config_path).stat()
        except FileNotFoundError:
            return None
        return status.st_mtime_ns, status.st_ino

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        """Read the index if it has changed on disk."""
        with self._reading:
            stamp = self._stamp()
            if stamp in (None, self._config_ts):
                return
            try:
                listed = LocalDatastoreModel.model_validate_json(Path(self._datastore_config_path).read_bytes())
            except ValueError:
                if throw_exception:
                    raise
                return
            listed.base_path = self._datastore_path
            for entry in listed.objects.values():
                for label in entry.labels.values():
                    label.info = rename_info_keys(label.info)
            self._listed, self._config_ts = listed, stamp

    def _update_datastore_file(self, lock: bool = True) -> None:
        """Replace the index on disk atomically."""
        with self.index_lock if lock else nullcontext(), self._reading:
            with atomic_write(Path(self._datastore_config_path), ".json") as partial:
                partial.write_text(json.dumps(self._listed.model_dump(exclude={"base_path"}), default=str))
            self._config_ts = self._stamp()

    def _reconcile_datastore(self) -> None:
        with self.index_lock:  # Otherwise a label that is saved meanwhile would be lost.
            super()._reconcile_datastore()

    def _image_exists(self, image_id: str, extension: str) -> bool:
        return Path(self._datastore.image_path(), f"{image_id}{extension}").exists()

    def _remove_non_existing(self) -> int:
        """Remove missing files from the index. MONAI Label's method empties the index while other threads read it."""
        listed, removed = self._datastore, 0
        for image_id, entry in list(listed.objects.items()):
            if not self._image_exists(image_id, entry.image.ext):
                del listed.objects[image_id]
                removed += 1
            for tag, label in list(entry.labels.items()):
                if not Path(listed.label_path(tag), f"{image_id}{label.ext}").exists():
                    del entry.labels[tag]
                    removed += 1
        return removed
