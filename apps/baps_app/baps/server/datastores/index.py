"""The list of images and labels that MONAI Label's datastores keep on disk: never half written, never out of date."""

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
    """A datastore whose list is replaced when the new one is whole; the host cannot start with a broken one.

    The list on disk holds: what another process changed there is read when the list is next looked at. That needs no
    lock. Who changes the list holds ``index_lock``, which a thread may take twice. Who saves a label holds a lock of that
    label (``LabelHistory.saving``), and the list's only while the list is replaced.
    """

    _reading = threading.RLock()
    _config_ts: tuple[int, int] | None

    @cached_property
    def index_lock(self) -> FileLock:
        """The lock of the list."""
        return FileLock(self._lock_file)

    def has_image(self, image_id: str) -> bool:
        """Return whether there is an image of the name."""
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
        """What tells one list on disk from another; the clock of files is too coarse to do it alone."""
        try:
            found = Path(self._datastore_config_path).stat()
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_ino

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        """Read the list, if another one is there."""
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
            for known in listed.objects.values():
                for label in known.labels.values():
                    label.info = rename_info_keys(label.info)
            self._listed, self._config_ts = listed, stamp

    def _update_datastore_file(self, lock: bool = True) -> None:
        """Write the list, replaced when the new one is whole."""
        with self.index_lock if lock else nullcontext(), self._reading:
            with atomic_write(Path(self._datastore_config_path), ".json") as partial:
                partial.write_text(json.dumps(self._listed.model_dump(exclude={"base_path"}), default=str))
            self._config_ts = self._stamp()

    def _reconcile_datastore(self) -> None:
        with self.index_lock:  # What is saved meanwhile would be lost.
            super()._reconcile_datastore()

    def _image_exists(self, image_id: str, extension: str) -> bool:
        return Path(self._datastore.image_path(), f"{image_id}{extension}").exists()

    def _remove_non_existing(self) -> int:
        """As the host's, which empties the list for a moment, while others look at it."""
        listed, gone = self._datastore, 0
        for image_id, known in list(listed.objects.items()):
            if not self._image_exists(image_id, known.image.ext):
                del listed.objects[image_id]
                gone += 1
            for tag, label in list(known.labels.items()):
                if not Path(listed.label_path(tag), f"{image_id}{label.ext}").exists():
                    del known.labels[tag]
                    gone += 1
        return gone
