"""Adapters on disk: versions by label, one of them published.

``<root>/<label>/v0001/`` has ``adapter.safetensors``, ``record.json`` and ``training.jsonl``. The file
``<root>/<label>/published`` names the version that is served and, below it, those that were served before; at the end,
with a minus, those that were rolled back. A version appears by one rename when it is whole, and publishing is one
rename: whatever dies in between, the served adapter is the one before.
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
    """A version that was read back."""

    label: str
    version: str
    record: dict[str, Any]
    adapter: Adapter


@contextmanager
def _sentence(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BapsError(
            f"The adapter could not be {what} ({error.strerror}); what was served is served as before. Free space, or "
            "choose another folder for adapters, and train again: it goes on from its log."
        ) from error


class AdapterStore:
    """All adapters below a folder.

    Args:
        root: the folder; made when the first adapter is added.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def split_memory(self) -> Path:
        """Where the roles of patients are kept."""
        return self.root / "split.json"

    @property
    def clicks(self) -> Path:
        """The lock of those who click, see ``yielding``."""
        return self.root / "clicks.lock"

    def log(self, label: str) -> Path:
        """The log of a training of a label, as long as it is not finished."""
        return self._folder(label) / LOG

    def unfinished(self, label: str) -> Path:
        """A folder for a training of a label, as long as it is not finished."""
        return self._folder(label) / "unfinished"

    def versions(self, label: str) -> list[str]:
        """All versions of a label, oldest first."""
        folder = self._folder(label)
        return sorted(p.name for p in folder.glob("v*") if p.is_dir()) if folder.is_dir() else []

    def published(self, label: str) -> str | None:
        """The version that is served, or None."""
        return next(iter(self._served(label)), "") or None

    def _served(self, label: str) -> list[str]:
        """What was served and not rolled back, newest first; "" stands for the model as it is."""
        return [line for line in self._history(label) if not line.startswith("-")]

    def _history(self, label: str) -> list[str]:
        """What was served, newest first, and then, with a minus, what was rolled back."""
        try:
            return (self._folder(label) / "published").read_text().splitlines()
        except FileNotFoundError:
            return []

    def served(self, label: str, weights_sha256: str) -> tuple[str, str] | None:
        """Label and version of the adapter that serves a label, or None.

        Its own; the shared one only if the label was never trained: a label whose candidates were all rejected is
        better off with the unadapted model. An adapter of other weights than these is skipped. If one is damaged, the
        previous version is served.
        """

        def fits(record: Mapping[str, Any]) -> bool:
            return bool(record["black_box"]["weights_sha256"] == weights_sha256)

        for name in dict.fromkeys((label, SHARED)):
            newest = self._newest_whole(name)
            if newest and fits(newest[1]):
                return name, newest[0]
            for version in self.versions(name):
                with suppress(BapsError):  # A broken version is passed over.
                    if fits(self.record(name, version)):
                        return None
        return None

    def _newest_whole(self, label: str) -> tuple[str, dict[str, Any]] | None:
        """What was served last and is what was trained, and its record; None where that is the model as it is."""
        for version in self._served(label):
            if not version:
                return None
            try:
                record = self.record(label, version)
                if record.get("adapter_sha256") in (None, sha256(self.file(label, version))):
                    return version, record  # Adapters of earlier releases have no hash.
                reason = "its hash is another one."
            except (BapsError, OSError) as error:
                reason = str(error) if isinstance(error, BapsError) else f"{error.strerror}."
            logger.warning(
                "Version %s of the adapter %s is damaged: %s The one before it serves, or the model as it is.",
                version, label or "shared", reason,
            )  # fmt: skip
        return None

    def record(self, label: str, version: str) -> dict[str, Any]:
        """What is known of a version.

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
            raise NotFoundError(self._nothing_before(label))
        try:
            return rename_record(json.loads(path.read_text()))
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise BapsError(
                f"The record of version {version} of the adapter {label or 'shared'!r} cannot be read. Bring it back "
                "from the backup, or move the version out of the store and train again."
            ) from error

    def file(self, label: str, version: str) -> Path:
        """The weights of a version."""
        return self._folder(label) / version / "adapter.safetensors"

    def was_served(self, label: str, version: str) -> bool:
        """Whether a version is served or was at some time."""
        return not {version, f"-{version}"}.isdisjoint(self._history(label))

    def load(self, label: str, version: str) -> StoredAdapter:
        """Read a version back.

        Raises:
            NotFoundError: if there is no such version.
        """
        record = self.record(label, version)
        adapter, _ = read_adapter(self.file(label, version))
        return StoredAdapter(label, version, record, adapter)

    def find(self, label: str, fingerprint: str) -> str | None:
        """The newest version that came of the same data, settings and black box, or None."""
        for version in reversed(self.versions(label)):
            with suppress(BapsError):  # A broken version is passed over.
                if self.record(label, version).get("fingerprint") == fingerprint:
                    return version
        return None

    def add(
        self, label: str, adapter: HasStateDict, record: dict[str, Any], status: str, log: Path | None = None
    ) -> str:
        """Keep a candidate; it is not served yet.

        Args:
            label: what it was trained for.
            adapter: the weights.
            record: goes beside it.
            status: ``accepted``, ``rejected`` or ``unverified``, by the check.
            log: of the training; a copy is kept.

        Returns:
            Its version.

        Raises:
            BapsError: if the disk is full, say; nothing is left of the candidate then.
        """
        folder = self._folder(label)
        with _sentence("kept"):
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
                        raise  # else another process took the number meanwhile
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return version

    def publish(self, label: str, version: str) -> None:
        """Serve a version from now on.

        Raises:
            NotFoundError: if there is no such version.
            BapsError: if the disk is full, say; what was served is served as before.
        """
        self.record(label, version)
        if version != self.published(label):
            self._serve(label, [version, *self._history(label)])

    def roll_back(self, label: str) -> str | None:
        """Serve what was served before; twice goes back twice.

        Returns:
            The version that is served now, or None for the model as it is.

        Raises:
            NotFoundError: if the model as it is serves, and nothing was served before.
            BapsError: as ``publish``.
        """
        served = self._served(label)
        if not served:
            raise NotFoundError(self._nothing_before(label))
        self._serve(label, [*self._history(label)[1:], *(f"-{version}" for version in served[:1] if version)])
        return self.published(label)

    def _nothing_before(self, label: str) -> str:
        """Why there is nothing to roll back to, and what can be done."""
        name, versions = label or "shared", self.versions(label)
        if not versions:
            known = ", ".join(one or "shared" for one in self.labels() if self.versions(one)) or "none"
            return f"There is no adapter of {name}. There are adapters of: {known}."
        back = [line.removeprefix("-") for line in self._history(label) if line.startswith("-")]
        before = f"version {back[-1]} was rolled back" if back else "no version was ever published"
        return (
            f"{name} is served by the model as it is, and nothing was served before that: {before}. To serve a "
            f"version: baps adapters publish {shlex.quote(name)} VERSION ({', '.join(versions)})."
        )

    def withdraw(self, label: str) -> None:
        """Serve no version of a label any more; all are kept.

        Raises:
            NotFoundError: if there is no version of the label.
            BapsError: as ``publish``.
        """
        if not self.versions(label):
            raise NotFoundError(self._nothing_before(label))
        if self.published(label):
            self._serve(label, ["", *self._history(label)])

    def _serve(self, label: str, versions: list[str]) -> None:
        with _sentence("published"), atomic_write(self._folder(label) / "published") as partial:
            partial.write_text("".join(f"{version}\n" for version in versions))

    def times(self) -> Iterator[datetime]:
        """When each adapter was made; one whose record is damaged is passed over."""
        for label in self.labels():
            for version in self.versions(label):
                with suppress(BapsError, KeyError, ValueError):
                    yield datetime.fromisoformat(self.record(label, version)["created"])

    def labels(self) -> list[str]:
        """Labels that have versions; the shared adapter's comes first."""
        found = sorted(unquote(p.name.removeprefix("label-")) for p in self.root.glob("label-*") if p.is_dir())
        return [SHARED, *found] if self.versions(SHARED) else found

    def _folder(self, label: str) -> Path:
        # No separator is left, and the prefix keeps a label named ".." from being a path.
        escaped = re.sub(r'[%/\\:*?"<>|]', lambda found: f"%{ord(found[0]):02X}", label)
        # Half of a surrogate pair, which JSON can carry, has no bytes at all.
        size = len(escaped.encode(errors="replace"))
        if len(label) > 100 or size > 200 or not label.isprintable():
            raise InputError("A label is at most 100 printing characters long, and 200 bytes.")
        return self.root / (f"label-{escaped}" if label else "shared")


def adapter_times(adapters: Path) -> list[datetime]:
    """List when the adapters of a site were made.

    Args:
        adapters: folder of adapters; those of the organ model lie below, in ``organs``.
    """
    return [*AdapterStore(adapters).times(), *AdapterStore(adapters / "organs").times()]
