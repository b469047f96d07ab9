"""Sending labels to a PACS: each is kept until the PACS has taken it and gives it back as it was."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from dicomweb_client import DICOMwebClient
from filelock import FileLock
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from baps.errors import BapsError, InputError, NotFoundError
from baps.server.datastores.dicomweb.client import convert_pacs_errors, status_code
from baps.server.datastores.dicomweb.outbox import Outbox
from baps.server.datastores.dicomweb.stored_segments import stored_segments

logger = logging.getLogger(__name__)

_REFUSALS = (400, 409, 413, 415, 422)
"""Answers of HTTP to a label that would be no others if it was sent again."""

_STORED_BEFORE = 0x0111
"""A reason not to store an object: the same one is there, and its answer was lost on the way."""


class LabelSender:
    """Labels on their way to a PACS.

    Args:
        folder: for those that wait.
        client: of the PACS.
        read_back: raises an InputError if the PACS has something else than a label that it took, another BapsError if
            it does not answer.
    """

    def __init__(self, folder: Path, client: DICOMwebClient, read_back: Callable[[Dataset], None]) -> None:
        self._unsent, self._client, self._read_back = Outbox(folder), client, read_back
        self._sending = FileLock(folder.with_name(f".{folder.name}.lock"), mode=0o600)
        self._changing, self._claimed = threading.Lock(), set[Path]()

    def keep(self, labels: Iterable[Dataset], check: Callable[[Dataset], None]) -> list[Path]:
        """Keep labels that are to be sent, and return their files.

        Args:
            labels: the objects.
            check: raises an InputError if an object, read from its file, is not what it should be.

        Raises:
            InputError: as ``check``; nothing is kept then.
        """
        files: list[Path] = []
        try:
            for label in labels:
                with self._changing:  # Nobody else sends what is checked here, and sent next.
                    files.append(self._unsent.keep(label))
                    self._claimed.add(files[-1])
                check(self._unsent.read(files[-1]))
        except BaseException as error:
            for file in files:
                self._unsent.remove(file)
            self._give_up(files)
            if not isinstance(error, InputError):
                raise
            raise InputError(f"The label cannot be stored as a DICOM object. {error} Nothing was saved.") from error
        return files

    def holds(self, image_id: str, organ: str) -> bool:
        """Return whether a label of an organ of an image waits."""
        waiting = [segment for file in self._unsent.files() for segment in stored_segments(self._unsent.read(file))]
        return any(image_id in segment.images and segment.name == organ for segment in waiting)

    def send(self, own: Collection[Path] = ()) -> None:
        """Send labels that were just kept, or all that wait, the oldest first.

        What the PACS refuses is kept, and not sent again. Labels of others do not hold up those that were just kept.

        Args:
            own: the files of who asks; all that wait, if there are none.

        Raises:
            BapsError: if the PACS does not answer, or refuses one of those, or has something else of it.
        """
        if own:
            try:
                for file in own:
                    self._send(file, self._unsent.read(file), own=True)
            finally:
                self._give_up(own)
            self.send_in_passing()
            return
        with self._sending:
            for file in self._unsent.files():
                if not self._claim(file):
                    continue
                try:
                    self._send(file, self._unsent.read(file), own=False)
                except InvalidDicomError:  # Changed by hand, or by a disk that fails.
                    self._unsent.set_aside(file)
                finally:
                    self._give_up([file])

    def _claim(self, file: Path) -> bool:
        """Take a file to send it, unless somebody else has."""
        with self._changing:
            if file in self._claimed or not file.exists():
                return False
            self._claimed.add(file)
            return True

    def _give_up(self, files: Iterable[Path]) -> None:
        with self._changing:
            self._claimed.difference_update(files)

    def _send(self, file: Path, label: Dataset, own: bool) -> None:
        folder = self._unsent.folder.name
        try:
            with convert_pacs_errors():
                refused = _refused(self._client.store_instances([label]))
        except BapsError as error:
            code = status_code(error)
            refused = code in _REFUSALS
            if not refused and (code is None or own):
                raise BapsError(
                    f"{error} The label is kept on this server (in {folder} of its cache), which sends it when the "
                    "PACS answers again. You need not submit it again."
                ) from error
            if not refused:
                return  # It may be this one alone that the PACS stumbles over.
        if refused:
            self._unsent.set_aside(file)
            logger.warning("The PACS did not take a label; it is kept in the cache, as *.rejected.")
            if own:
                raise BapsError(
                    "The PACS did not take the label, which is kept on this server alone (as *.rejected in "
                    f"{folder} of its cache). Ask who runs the PACS why, then submit again."
                )
            return
        try:
            self._read_back(label)
        except BapsError as error:
            if isinstance(error, InputError) and not isinstance(error, NotFoundError):
                self._unsent.set_aside(file)
                logger.warning("The PACS has something else than a label that it took, which is kept as *.rejected.")
                if own:
                    raise BapsError(
                        f"The PACS took the label, but it does not read back as it was sent. {error} It does not count "
                        f"as a label; it is kept on this server too (as *.rejected in {folder} of its cache). Ask who "
                        "runs the PACS why, then submit again."
                    ) from error
                return
            logger.warning("A label that the PACS took waits to be read back (%s).", type(error).__name__)
            # Without an answer the others would fare no better; an image that is not served is this one's alone.
            if own or not (isinstance(error, NotFoundError) or status_code(error)):
                raise BapsError(
                    f"The PACS took the label, but did not give it back to be checked. {error} The label is kept on "
                    f"this server (in {folder} of its cache), which sends and checks it again when the PACS answers. "
                    "You need not submit it again."
                ) from error
            return
        self._unsent.remove(file)

    def send_in_passing(self) -> None:
        """Send what waits, now that the PACS answers; unless somebody does so."""
        if not self._unsent.files():
            return
        try:
            with self._sending.acquire(timeout=0):
                self.send()
        except (BapsError, OSError) as error:  # OSError: also a Timeout of the lock.
            logger.warning("A label still waits to be sent to the PACS (%s).", type(error).__name__)


def _refused(reply: Dataset) -> bool:
    """Whether an object was not stored, by the answer to storing it."""
    return any(one.get("FailureReason") != _STORED_BEFORE for one in reply.get("FailedSOPSequence") or [])
