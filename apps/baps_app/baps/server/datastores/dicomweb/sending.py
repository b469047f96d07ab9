"""Send labels to a PACS. Each label is kept until the PACS has accepted it and returns it unchanged."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from pathlib import Path

from dicomweb_client import DICOMwebClient
from filelock import FileLock
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from baps.errors import BapsError, InputError, NotFoundError
from baps.server.datastores.dicomweb.client import convert_pacs_errors, status_code
from baps.server.datastores.dicomweb.outbox import Outbox
from baps.server.datastores.dicomweb.stored_segments import StoredSegment, stored_segments

logger = logging.getLogger(__name__)

_REJECTIONS = (400, 409, 413, 415, 422)
"""HTTP statuses with which a label is rejected for good: it would be rejected again."""

_DUPLICATE = 0x0111
"""Failure reason of an object that the PACS has already, because its response to an earlier request was lost."""


class LabelSender:
    """Sends labels to a PACS.

    Args:
        folder: Folder for the labels that are to be sent.
        client: Client of the PACS.
        read_back: Checks a label that the PACS has accepted. It raises an InputError if the PACS returns another label,
            and another BapsError if the PACS does not respond.
    """

    def __init__(self, folder: Path, client: DICOMwebClient, read_back: Callable[[Dataset], None]) -> None:
        self._outbox, self._client, self._read_back = Outbox(folder), client, read_back
        self._sending = FileLock(folder.with_name(f".{folder.name}.lock"), mode=0o600)
        self._lock, self._claimed = threading.Lock(), set[Path]()

    def add(self, labels: Iterable[Dataset], check: Callable[[Dataset], None]) -> list[Path]:
        """Add labels to the outbox.

        Args:
            labels: Label objects.
            check: Checks an object that was read from its file. It raises an InputError if the object is wrong.

        Returns:
            Their files, which no other thread sends.

        Raises:
            InputError: as ``check``; then none of the labels is kept.
            OSError: if the disk is full; then none of the labels is kept.
        """
        files: list[Path] = []
        try:
            for label in labels:
                with self._lock:  # Otherwise another thread could send the label before it is checked.
                    files.append(self._outbox.add(label))
                    self._claimed.add(files[-1])
                check(self._outbox.read(files[-1]))
        except BaseException as error:
            for file in files:
                self._outbox.remove(file)
            self._release(files)
            if not isinstance(error, InputError):
                raise
            raise InputError(f"The label cannot be stored as a DICOM object. {error} Nothing was saved.") from error
        return files

    def counts(self) -> tuple[int, int]:
        """Return the number of labels that are to be sent, and of those that the PACS has refused."""
        return len(self._outbox.files()), len(self._outbox.rejected())

    def listing(self) -> list[tuple[StoredSegment, bool]]:
        """List the segments of the labels that are to be sent, and of those that the PACS has refused.

        Returns:
            Segments, each with whether it was refused. Files that cannot be read are left out.
        """
        listed = []
        for is_refused, files in ((False, self._outbox.files()), (True, self._outbox.rejected())):
            for file in files:
                with suppress(InvalidDicomError, OSError):  # It was sent meanwhile, or is damaged.
                    listed += [(segment, is_refused) for segment in stored_segments(self._outbox.read(file))]
        return listed

    def has_waiting(self, image_id: str, organ: str) -> bool:
        """Return whether a label of an organ is still to be sent.

        Args:
            image_id: SeriesInstanceUID of the image.
            organ: Name of the organ.
        """
        waiting = [segment for file in self._outbox.files() for segment in stored_segments(self._outbox.read(file))]
        return any(image_id in segment.images and segment.name == organ for segment in waiting)

    def send(self, own: Collection[Path] = ()) -> None:
        """Send labels: those of the caller or, if there are none, all that wait, the oldest first.

        A label that the PACS rejects is kept, and not sent again. Other labels do not delay those of the caller.

        Args:
            own: Files of the caller's labels, as ``add`` returned them.

        Raises:
            BapsError: if the PACS does not respond; or if it rejects a label of the caller, or returns another label.
        """
        if own:
            try:
                for file in own:
                    self._send(file, self._outbox.read(file), is_own=True)
            finally:
                self._release(own)
            self.try_send_waiting()
            return
        with self._sending:
            for file in self._outbox.files():
                if not self._claim(file):
                    continue
                try:
                    self._send(file, self._outbox.read(file), is_own=False)
                except InvalidDicomError:  # Somebody edited the file, or the disk is damaged.
                    self._outbox.reject(file)
                finally:
                    self._release([file])

    def try_send_waiting(self) -> None:
        """Send the labels that wait, because the PACS just responded. Errors are logged.

        If another thread or process is sending them, nothing is done.
        """
        if not self._outbox.files():
            return
        try:
            with self._sending.acquire(timeout=0):
                self.send()
        except (BapsError, OSError) as error:  # The Timeout of the lock is an OSError, too.
            logger.warning("A label still waits to be sent to the PACS (%s).", type(error).__name__)

    def _claim(self, file: Path) -> bool:
        """Claim a file in order to send it. Return False if another thread has claimed or sent it."""
        with self._lock:
            if file in self._claimed or not file.exists():
                return False
            self._claimed.add(file)
            return True

    def _release(self, files: Iterable[Path]) -> None:
        with self._lock:
            self._claimed.difference_update(files)

    def _send(self, file: Path, label: Dataset, is_own: bool) -> None:
        """Send a label, read it back, and remove it from the outbox.

        Raises:
            BapsError: as ``send``.
        """
        if not self._store(file, label, is_own):
            return
        folder = self._outbox.folder.name
        try:
            self._read_back(label)
        except BapsError as error:
            if isinstance(error, InputError) and not isinstance(error, NotFoundError):
                self._outbox.reject(file)
                logger.warning("The PACS returns another label than it accepted; the label is kept as *.rejected.")
                if is_own:
                    raise BapsError(
                        f"The PACS took the label, but it does not read back as it was sent. {error} It does not count "
                        f"as a label; it is kept on this server too (as *.rejected in {folder} of its cache). Ask who "
                        "runs the PACS why, then submit again."
                    ) from error
                return
            logger.warning("A label that the PACS accepted is still to be read back (%s).", type(error).__name__)
            # Without a response, other labels would fail too. An image that is not served affects this label only.
            if is_own or not (isinstance(error, NotFoundError) or status_code(error)):
                raise BapsError(
                    f"The PACS took the label, but did not give it back to be checked. {error} The label is kept on "
                    f"this server (in {folder} of its cache), which sends and checks it again when the PACS answers. "
                    "You need not submit it again."
                ) from error
            return
        self._outbox.remove(file)

    def _store(self, file: Path, label: Dataset, is_own: bool) -> bool:
        """Store a label in the PACS.

        Returns:
            Whether the PACS accepted it.

        Raises:
            BapsError: as ``send``.
        """
        folder = self._outbox.folder.name
        try:
            with convert_pacs_errors():
                is_rejected = _is_rejected(self._client.store_instances([label]))
        except BapsError as error:
            code = status_code(error)
            is_rejected = code in _REJECTIONS
            if not is_rejected and (code is None or is_own):
                raise BapsError(
                    f"{error} The label is kept on this server (in {folder} of its cache), which sends it when the "
                    "PACS answers again. You need not submit it again."
                ) from error
            if not is_rejected:
                return False  # The PACS may fail on this label only, so the others are sent.
        if not is_rejected:
            return True
        self._outbox.reject(file)
        logger.warning("The PACS rejected a label; it is kept in the cache, as *.rejected.")
        if is_own:
            raise BapsError(
                "The PACS did not take the label, which is kept on this server alone (as *.rejected in "
                f"{folder} of its cache). Ask who runs the PACS why, then submit again."
            )
        return False


def _is_rejected(response: Dataset) -> bool:
    """Return whether an object was not stored, by the response to the request."""
    return any(item.get("FailureReason") != _DUPLICATE for item in response.get("FailedSOPSequence") or [])
