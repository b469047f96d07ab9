"""The list of images and labels that MONAI Label's datastores keep on disk, never half written."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

from filelock import FileLock
from monailabel.datastore.local import LocalDatastore

from baps.replacing import replacing


class WholeList(LocalDatastore):
    """A datastore whose list is replaced when the new one is whole; the host cannot start with a broken one."""

    def _update_datastore_file(self, lock: bool = True) -> None:
        """The list of images and labels, replaced when the new one is whole."""
        with FileLock(self._lock_file) if lock else nullcontext():
            with replacing(Path(self._datastore_config_path)) as partial:
                partial.write_text(json.dumps(self._datastore.model_dump(exclude={"base_path"}), indent=2, default=str))
            self._config_ts = Path(self._datastore_config_path).stat().st_mtime
