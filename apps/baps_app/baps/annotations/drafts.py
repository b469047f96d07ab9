"""Keep masks that viewers without a button to submit have left behind, until a person confirms or deletes them.

A draft is one file with the mask, who drew it, and a fingerprint of the image that it was drawn on. The image itself is
not kept, and neither is its name, because these viewers send none. A file is called by its time and a random
number. Files appear by a rename when they are complete, so a kill leaves none that is broken.

A lock for each draft keeps two people, or a person and a command, from confirming it twice. Another lock is held for
moments, while the oldest drafts are removed.
"""

from __future__ import annotations

import io
import re
import secrets
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from pydantic import BaseModel

from baps.errors import BapsError, NotFoundError, StorageError
from baps.imaging.fingerprint import Fingerprint
from baps.utils.atomic_write import atomic_write

_SUFFIX = ".npz"
_NAME = re.compile(r"\d{8}T\d{9}-[0-9a-f]{6}")

_DAMAGED = (
    OSError, ValueError, TypeError, AttributeError, KeyError, EOFError, MemoryError, RuntimeError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What reading a damaged file raises: also room for the terabytes that it declares, or an archive with a password."""


class MissingDraftError(NotFoundError):
    """There is no such draft, or not any more, or the user may not see it.

    Args:
        name: name of the draft.
    """

    def __init__(self, name: str) -> None:
        super().__init__(
            f"There is no draft {name[:40]!r}. It was confirmed or deleted, or newer drafts took its place. Look at "
            "the list of drafts again."
        )


class DraftTakenError(BapsError):
    """Somebody else is confirming or deleting the draft at this moment."""


class Draft(BaseModel, frozen=True):
    """What is known of a draft.

    Attributes:
        name: name of the draft.
        label: the organ.
        user: who drew it, or "" if no login is needed.
        saved: when it was kept.
        image: fingerprint of the image. Its shape is that of the mask, in the order of axes of the viewer.
        voxels: number of voxels of the mask.
        spacing: distance of voxels along each axis, mm, or None if the viewer did not send it.
    """

    name: str
    label: str
    user: str
    saved: datetime
    image: Fingerprint
    voxels: int
    spacing: tuple[float, float, float] | None = None

    @property
    def millilitres(self) -> float | None:
        """Volume of the mask in ml, or None if it is not known."""
        return self.voxels * float(np.prod(self.spacing)) / 1000 if self.spacing else None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size of the mask along each axis."""
        x, y, z = self.image.shape[:3]
        return x, y, z


@dataclass(frozen=True)
class DamagedDraft:
    """A draft that cannot be read.

    Attributes:
        name: name of the draft.
        problem: a sentence about it.
    """

    name: str
    problem: str


class DraftStore:
    """The drafts of a site. Thread-safe, also across processes.

    Args:
        folder: folder of the drafts; it is created with the first.
        max_drafts: number of drafts to keep; the oldest are removed.
        max_bytes: size of all drafts together; the oldest are removed.
    """

    def __init__(self, folder: Path, max_drafts: int, max_bytes: int) -> None:
        self._folder, self._max_drafts, self._max_bytes = folder, max_drafts, max_bytes

    def add(
        self,
        label: str,
        user: str,
        image: Fingerprint,
        mask: NDArray[np.bool_],
        spacing: tuple[float, float, float] | None = None,
    ) -> tuple[str, list[str]]:
        """Keep a draft, and remove the oldest ones if there is no room for it.

        Args:
            label: the organ.
            user: who drew it, or "".
            image: fingerprint of the image.
            mask: the object, (X, Y, Z).
            spacing: distance of voxels along each axis, mm, or None.

        Returns:
            The name of the draft, or "" if it is larger than all drafts may be; and the names of the removed ones.

        Raises:
            OSError: if it cannot be written.
        """
        now = datetime.now(timezone.utc)
        name = f"{now:%Y%m%dT%H%M%S}{now.microsecond // 1000:03}-{secrets.token_hex(3)}"
        draft = Draft(
            name=name, label=label, user=user, saved=now, image=image, voxels=int(mask.sum()), spacing=spacing
        )
        record = np.frombuffer(draft.model_dump_json().encode(), np.uint8)
        content = io.BytesIO()
        np.savez_compressed(content, record=record, mask=np.packbits(mask))
        if not self._max_drafts or content.tell() > self._max_bytes:
            return "", []
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with atomic_write(self._file(name), mode=0o600) as partial:
            partial.write_bytes(content.getvalue())
        return name, self._make_room()

    def _make_room(self) -> list[str]:
        """Remove the oldest drafts that there is no room for, and return their names."""
        removed: list[str] = []
        with FileLock(self._folder / ".lock", mode=0o600):
            sizes = {name: self._size(name) for name in self._names()}
            for name in sorted(sizes):
                if len(sizes) <= self._max_drafts and sum(sizes.values()) <= self._max_bytes:
                    break
                self._file(name).unlink(missing_ok=True)
                del sizes[name]
                removed.append(name)
        return removed

    def all(self) -> list[Draft | DamagedDraft]:
        """List the drafts, the newest first. Their masks are not read.

        Returns:
            The drafts, and sentences about those that cannot be read.
        """
        drafts: list[Draft | DamagedDraft] = []
        for name in sorted(self._names(), reverse=True):
            try:
                drafts.append(self.get(name))
            except MissingDraftError:  # It was removed a moment ago.
                continue
            except BapsError as error:
                drafts.append(DamagedDraft(name, str(error)))
        return drafts

    def get(self, name: str) -> Draft:
        """Return what is known of a draft.

        Args:
            name: name of the draft.

        Returns:
            The draft.

        Raises:
            MissingDraftError: if there is none of this name.
            BapsError: if it is damaged.
        """
        return self._read(name, with_mask=False)[0]

    def mask(self, name: str) -> NDArray[np.bool_]:
        """Read the mask of a draft.

        Args:
            name: name of the draft.

        Returns:
            The mask, (X, Y, Z), in the order of axes of the viewer.

        Raises:
            MissingDraftError: if there is no draft of this name.
            BapsError: if it is damaged.
        """
        return self._read(name, with_mask=True)[1]

    @contextmanager
    def claim(self, name: str) -> Iterator[Draft]:
        """Keep others from confirming or deleting a draft while the context lasts.

        Args:
            name: name of the draft.

        Yields:
            The draft.

        Raises:
            DraftTakenError: if somebody else does either now.
            MissingDraftError: if there is no draft of this name.
            BapsError: if it is damaged.
        """
        with self._locked(name):
            yield self.get(name)

    def delete(self, name: str) -> None:
        """Delete a draft that was claimed.

        Args:
            name: name of the draft.

        Raises:
            StorageError: if it cannot be deleted.
        """
        try:
            self._file(name).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"The draft {name} could not be deleted ({error.strerror}). Delete it with the account of the server."
            ) from error

    def discard(self, name: str) -> None:
        """Delete a draft, even a damaged one.

        Args:
            name: name of the draft.

        Raises:
            MissingDraftError: if there is no draft of this name.
            DraftTakenError: if somebody is confirming it now.
            StorageError: if it cannot be deleted.
        """
        with self._locked(name):
            self.delete(name)

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        """Hold the lock of a draft that exists. The file of the lock goes with the draft."""
        file = self._file(name)
        if not file.exists():
            raise MissingDraftError(name)
        lock_file = self._folder / f".{name}.lock"
        lock = FileLock(lock_file, timeout=0, mode=0o600, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            raise DraftTakenError(
                f"Somebody else is confirming or deleting the draft {name} now. Look at the list of drafts again."
            ) from None
        except OSError as error:
            raise _denied(name, error) from error
        try:
            if not file.exists():  # Whoever held the lock before has confirmed or deleted it.
                raise MissingDraftError(name)
            yield
        finally:
            if not file.exists():
                with suppress(OSError):
                    lock_file.unlink()
            lock.release()

    def _read(self, name: str, with_mask: bool) -> tuple[Draft, NDArray[np.bool_]]:
        file = self._file(name)
        try:
            with np.load(file, allow_pickle=False) as content:
                draft = Draft.model_validate_json(content["record"].tobytes())
                count = int(np.prod(draft.shape, dtype=object))
                if draft.name != name:
                    raise ValueError(name)
                if not with_mask:
                    return draft, np.zeros((0, 0, 0), bool)
                bits = content["mask"]
                if not 0 <= 8 * bits.size - count < 8:
                    raise ValueError(name)
                mask = np.unpackbits(bits, count=count).view(bool).reshape(draft.shape)
        except FileNotFoundError:
            raise MissingDraftError(name) from None
        except PermissionError as error:
            raise _denied(name, error) from error
        except _DAMAGED as error:
            raise BapsError(
                f"The draft {name} is damaged and cannot be confirmed. Delete it, and segment the image again."
            ) from error
        return draft, mask

    def _names(self) -> list[str]:
        files = self._folder.glob(f"*{_SUFFIX}") if self._folder.is_dir() else ()
        return [file.stem for file in files if _NAME.fullmatch(file.stem)]

    def _size(self, name: str) -> int:
        try:
            return self._file(name).stat().st_size
        except OSError:
            return 0

    def _file(self, name: str) -> Path:
        """Return the file of a draft.

        Raises:
            MissingDraftError: if this is not the name of a draft.
        """
        if not _NAME.fullmatch(name):
            raise MissingDraftError(name)
        return self._folder / f"{name}{_SUFFIX}"


def _denied(name: str, error: OSError) -> BapsError:
    return BapsError(f"The draft {name} cannot be used ({error.strerror}). Use the account of the server.")
