"""Store adapters on disk: versions by label, one of them published.

``<root>/<label>/v0001/`` has ``adapter.safetensors``, ``record.json`` and ``training.jsonl``. The file
``<root>/<label>/published`` names the version that is served and, below it, those that were served before; at the end,
with a minus, those that were rolled back. A version appears by one rename when it is complete, and publishing is one
rename: if a process dies in between, the previous adapter is still served.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from baps.adapters.adapter import Adapter
from baps.adapters.adapter_file import HasStateDict, read_adapter, write_adapter
from baps.adapters.old_records import rename_record
from baps.blackbox.weights import sha256
from baps.errors import BapsError, InputError, NotFoundError
from baps.utils.atomic_write import atomic_write

logger = logging.getLogger(__name__)

LOG = "training.jsonl"

SHARED = ""
"""The label of the adapter that serves clicks without a label, and labels that were never trained."""


@dataclass(frozen=True)
class StoredAdapter:
    """A version that was read from the store.

    Attributes:
        label: the label that it was trained for.
        version: name of the version.
        record: the record of its training.
        adapter: the adapter.
    """

    label: str
    version: str
    record: dict[str, Any]
    adapter: Adapter


@contextmanager
def _convert_os_error(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BapsError(
            f"The adapter could not be {what} ({error.strerror}); the previous one is still served. Free space, or "
            "choose another folder for adapters, and train again: the training continues from its log."
        ) from error


class AdapterStore:
    """All adapters below a folder.

    Args:
        root: the folder; it is created when the first adapter is added.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._not_served: set[tuple[str, str]] = set()
        """Versions whose preprocessing was already reported as another one."""

    @property
    def inference_lock_file(self) -> Path:
        """The lock file that is held during inference, see ``baps.utils.throttle``."""
        return self.root / "clicks.lock"

    def log(self, label: str) -> Path:
        """Return the query log of an unfinished training.

        Args:
            label: the label.

        Returns:
            The path; the file exists during the training.
        """
        return self._folder(label) / LOG

    def evidence_file(self, label: str) -> Path:
        """Return the file of the evidence of a label's versions, see ``baps.registry.evidence``.

        Args:
            label: the label.

        Returns:
            The path.
        """
        return self._folder(label) / "evidence.json"

    def checkpoint_folder(self, label: str) -> Path:
        """Return the folder for checkpoints of an unfinished training.

        Args:
            label: the label.

        Returns:
            The path; the folder exists during the training.
        """
        return self._folder(label) / "unfinished"

    def versions(self, label: str) -> list[str]:
        """List all versions of a label, oldest first.

        Args:
            label: the label.

        Returns:
            Names of the versions.
        """
        folder = self._folder(label)
        return sorted(p.name for p in folder.glob("v*") if p.is_dir()) if folder.is_dir() else []

    def published(self, label: str) -> str | None:
        """Return the version that is served, or None.

        Args:
            label: the label.

        Returns:
            Name of the version, or None for the unadapted model.
        """
        return next(iter(self._served_versions(label)), "") or None

    def _served_versions(self, label: str) -> list[str]:
        """List what was served and not rolled back, newest first; "" stands for the unadapted model."""
        return [line for line in self._history(label) if not line.startswith("-")]

    def _history(self, label: str) -> list[str]:
        """List what was served, newest first, and then, with a minus, what was rolled back."""
        try:
            return (self._folder(label) / "published").read_text().splitlines()
        except FileNotFoundError:
            return []

    def served(self, label: str, weights_sha256: str, preprocessing: str = "canvas") -> tuple[str, str] | None:
        """Return the adapter that serves a label.

        This is the label's own adapter, or the shared one if the label was never trained; a label whose candidates were
        all rejected is better served by the unadapted model. Adapters of other weights, or of images that were
        preprocessed differently, are skipped. If an adapter is damaged, the one that was served before it is used.

        Args:
            label: the label.
            weights_sha256: SHA-256 of the model's weights.
            preprocessing: how the model prepares images, see ``Capabilities``. Organ models have only one way.

        Returns:
            Label and version, or None for the unadapted model.
        """

        def fits(record: Mapping[str, Any]) -> bool:
            trained_for = record["black_box"]
            return (trained_for["weights_sha256"], trained_for["preprocessing"]) == (weights_sha256, preprocessing)

        for name in dict.fromkeys((label, SHARED)):
            newest = self._newest_intact(name)
            if newest and fits(newest[1]):
                return name, newest[0]
            if newest and newest[1]["black_box"]["weights_sha256"] == weights_sha256:
                self._warn_of_preprocessing(name, *newest, preprocessing)
            for version in self.versions(name):
                with suppress(BapsError):  # A broken version is passed over.
                    record = self.record(name, version)
                    if _names_model(record) and fits(record):
                        return None
        return None

    def _warn_of_preprocessing(self, label: str, version: str, record: Mapping[str, Any], preprocessing: str) -> None:
        """Log once why an adapter of the same weights is not served."""
        if (label, version) not in self._not_served:
            self._not_served.add((label, version))
            logger.warning(
                "Version %s of the adapter %s is not served: it was trained with the preprocessing %s, but the model "
                "now uses %s. Train again.",
                version, label or "shared", record["black_box"]["preprocessing"], preprocessing,
            )  # fmt: skip

    def _newest_intact(self, label: str) -> tuple[str, dict[str, Any]] | None:
        """Return the version that was served last and is intact, and its record, or None for the unadapted model."""
        for version in self._served_versions(label):
            if not version:
                return None
            record, reason = self._read_intact(label, version)
            if record is not None:
                return version, record
            logger.warning(
                "Version %s of the adapter %s is damaged: %s The previous version is served, or the unadapted model.",
                version, label or "shared", reason,
            )  # fmt: skip
        return None

    def _read_intact(self, label: str, version: str) -> tuple[dict[str, Any] | None, str]:
        """Return the record of a version, or None and the reason if the version is damaged."""
        try:
            record = self.record(label, version)
            if not _names_model(record):
                return None, "its record does not name the model that it was trained for."
            if record.get("adapter_sha256") in (None, sha256(self.file(label, version))):
                return record, ""  # Adapters of earlier releases have no hash.
            return None, "its hash differs."
        except (BapsError, OSError) as error:
            return None, str(error) if isinstance(error, BapsError) else f"{error.strerror}."

    def is_intact(self, label: str, version: str) -> bool:
        """Return whether a version is there and can be served.

        Args:
            label: the label.
            version: name of the version.

        Returns:
            Whether its record can be read, and its file is the one that was stored.
        """
        return self._read_intact(label, version)[0] is not None

    def record(self, label: str, version: str) -> dict[str, Any]:
        """Return the record of a version.

        Args:
            label: the label.
            version: name of the version.

        Returns:
            The record.

        Raises:
            NotFoundError: if there is no such version.
            BapsError: if its record is broken.
        """
        path = self._folder(label) / version / "record.json"
        versions = self.versions(label)
        if versions and version not in versions:
            raise NotFoundError(
                f"There is no version {version!r} of the adapter {label or 'shared'!r}. "
                f"There are {', '.join(versions)}."
            )
        if not versions:
            raise NotFoundError(self._no_rollback_reason(label))
        try:
            return rename_record(json.loads(path.read_text()))
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise BapsError(
                f"The record of version {version} of the adapter {label or 'shared'!r} cannot be read. Restore it from "
                "your backup, or move the version out of the store and train again."
            ) from error

    def file(self, label: str, version: str) -> Path:
        """Return the file with the weights of a version.

        Args:
            label: the label.
            version: name of the version.

        Returns:
            The path of the safetensors file.
        """
        return self._folder(label) / version / "adapter.safetensors"

    def was_served(self, label: str, version: str) -> bool:
        """Return whether a version is served or was served at some time.

        Args:
            label: the label.
            version: name of the version.

        Returns:
            Whether it is or was.
        """
        return not {version, f"-{version}"}.isdisjoint(self._history(label))

    def load(self, label: str, version: str) -> StoredAdapter:
        """Read a version of an adapter of clicks.

        Adapters of the organ model and of a 3D black box are read by ``read_organ_adapter`` and
        ``read_volume_adapter`` from ``file``.

        Args:
            label: the label.
            version: name of the version.

        Returns:
            The adapter and its record.

        Raises:
            NotFoundError: if there is no such version.
        """
        record = self.record(label, version)
        adapter, _ = read_adapter(self.file(label, version))
        return StoredAdapter(label, version, record, adapter)

    def find(self, label: str, fingerprint: str) -> str | None:
        """Find the newest version that was made of the same data, settings and black box.

        Args:
            label: the label.
            fingerprint: fingerprint of the adaptation.

        Returns:
            Its name, or None.
        """
        for version in reversed(self.versions(label)):
            with suppress(BapsError):  # A broken version is passed over.
                if self.record(label, version).get("fingerprint") == fingerprint:
                    return version
        return None

    def add(
        self,
        label: str,
        adapter: HasStateDict,
        record: dict[str, Any],
        status: str = "candidate",
        log: Path | None = None,
    ) -> str:
        """Store a candidate; it is not served yet.

        Args:
            label: the label that it was trained for.
            adapter: its weights.
            record: the record that is stored with it.
            status: its state when it was trained; the present one is in the evidence.
            log: query log of the training, of which a copy is stored, or None.

        Returns:
            The name of the version.

        Raises:
            BapsError: if it cannot be written; nothing of the candidate is left then.
        """
        folder = self._folder(label)
        with _convert_os_error("kept"):
            folder.mkdir(parents=True, exist_ok=True)
            return self._add(label, folder, adapter, record, status, log)

    def _add(
        self,
        label: str,
        folder: Path,
        adapter: HasStateDict,
        record: dict[str, Any],
        status: str,
        log: Path | None,
    ) -> str:
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
        try:
            if log:
                shutil.copyfile(log, partial / LOG)
            write_adapter(partial / "adapter.safetensors", adapter, record)
            full = {
                "label": label,
                "status": status,
                "parent": self.published(label),
                "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                **record,
                "adapter_sha256": sha256(partial / "adapter.safetensors"),
            }
            while True:
                versions = self.versions(label)
                version = f"v{int(versions[-1][1:]) + 1 if versions else 1:04d}"
                (partial / "record.json").write_text(
                    json.dumps({"version": version, **full}, indent=1, allow_nan=False)
                )
                try:
                    partial.rename(folder / version)
                    break
                except OSError:
                    if not (folder / version).exists():
                        raise  # Otherwise another process took the number meanwhile.
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return version

    def publish(self, label: str, version: str) -> None:
        """Serve a version from now on.

        Args:
            label: the label.
            version: name of the version.

        Raises:
            NotFoundError: if there is no such version.
            BapsError: if the disk is full; the previous version is still served then.
        """
        self.record(label, version)
        if version != self.published(label):
            self._serve(label, [version, *self._history(label)])

    def previous(self, label: str) -> str | None:
        """Return what ``roll_back`` would serve.

        Args:
            label: the label.

        Returns:
            The version, or None for the unadapted model.

        Raises:
            NotFoundError: if the unadapted model is served, and nothing was served before.
        """
        served = self._served_versions(label)
        if not served:
            raise NotFoundError(self._no_rollback_reason(label))
        return next(iter(served[1:]), "") or None

    def roll_back(self, label: str) -> str | None:
        """Serve what was served before; calling it twice goes back twice.

        Args:
            label: the label.

        Returns:
            The version that is served now, or None for the unadapted model.

        Raises:
            NotFoundError: if the unadapted model is served, and nothing was served before.
            BapsError: as ``publish``.
        """
        self.previous(label)
        served = self._served_versions(label)
        self._serve(label, [*self._history(label)[1:], *(f"-{version}" for version in served[:1] if version)])
        return self.published(label)

    def _no_rollback_reason(self, label: str) -> str:
        """Explain why there is nothing to roll back to, and what can be done."""
        name, versions = label or "shared", self.versions(label)
        if not versions:
            known = ", ".join(name or "shared" for name in self.labels() if self.versions(name)) or "none"
            return f"There is no adapter of {name}. There are adapters of: {known}."
        back = [line.removeprefix("-") for line in self._history(label) if line.startswith("-")]
        before = f"version {back[-1]} was rolled back" if back else "no version was ever published"
        return (
            f"{name} is served by the unadapted model, and nothing was served before that: {before}. To serve a "
            f"version, run baps adapters publish {shlex.quote(name)} VERSION ({', '.join(versions)})."
        )

    def withdraw(self, label: str) -> None:
        """Stop serving versions of a label; all versions are kept.

        Args:
            label: the label.

        Raises:
            NotFoundError: if there is no version of the label.
            BapsError: as ``publish``.
        """
        if not self.versions(label):
            raise NotFoundError(self._no_rollback_reason(label))
        if self.published(label):
            self._serve(label, ["", *self._history(label)])

    def _serve(self, label: str, versions: list[str]) -> None:
        with _convert_os_error("published"), atomic_write(self._folder(label) / "published") as partial:
            partial.write_text("".join(f"{version}\n" for version in versions))

    def creation_times(self) -> Iterator[datetime]:
        """Iterate over the times at which adapters were made; adapters with damaged records are skipped.

        Yields:
            The times, in UTC.
        """
        for label in self.labels():
            for version in self.versions(label):
                with suppress(BapsError, KeyError, ValueError):
                    yield datetime.fromisoformat(self.record(label, version)["created"])

    def labels(self) -> list[str]:
        """List the labels that have versions, the shared adapter's first.

        Returns:
            The labels; the shared adapter's is "".
        """
        entries = sorted(unquote(p.name.removeprefix("label-")) for p in self.root.glob("label-*") if p.is_dir())
        return [SHARED, *entries] if self.versions(SHARED) else entries

    def _folder(self, label: str) -> Path:
        # Separators are escaped, and the prefix prevents that a label named ".." is a path.
        escaped = re.sub(r'[%/\\:*?"<>|]', lambda entries: f"%{ord(entries[0]):02X}", label)
        # Half of a surrogate pair, which JSON can contain, cannot be encoded.
        size = len(escaped.encode(errors="replace"))
        if len(label) > 100 or size > 200 or not label.isprintable():
            raise InputError("The name of a label must have at most 100 printable characters and 200 bytes.")
        return self.root / (f"label-{escaped}" if label else "shared")


def _names_model(record: Mapping[str, Any]) -> bool:
    """Return whether a record has the weights that the adapter was trained for; ``rename_record`` adds the rest."""
    trained_for = record.get("black_box")
    return isinstance(trained_for, dict) and isinstance(trained_for.get("weights_sha256"), str)


def adapter_times(adapters: Path) -> list[datetime]:
    """List when the adapters of a site were made.

    Args:
        adapters: folder of adapters; those of the organ model and of the 3D black box lie below, in ``organs`` and
            ``volumes``.

    Returns:
        The times, in UTC.
    """
    stores = (AdapterStore(folder) for folder in (adapters, adapters / "organs", adapters / "volumes"))
    return [time for store in stores for time in store.creation_times()]
