"""Who did what to which image: a file that only grows, one JSON object a line.

Images and studies stand in it as keyed hashes (HMAC-SHA-256): the same image has the same hash, and only who has the
key, a private file beside, can tell which image that is. Lines are written whole, by any number of threads and
processes (O_APPEND), and not forced onto the disk one by one: a power cut may take the last seconds.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import secrets
import threading
from datetime import datetime, timezone
from pathlib import Path

from fastapi.responses import FileResponse

from baps.errors import BapsError
from web.asking import Asked

logger = logging.getLogger(__name__)


class Audit:
    """The audit file, which is made with its first line.

    Args:
        file: its place; the key is kept beside it, as ``<name>.key``.
    """

    def __init__(self, file: Path) -> None:
        self._file, self._key_file = file, file.with_name(f"{file.name}.key")
        self._lock = threading.Lock()
        self._key: bytes | None = None

    def note(self, asked: Asked, status: int) -> None:
        """Add a line on a request that was answered; where that fails, the log says so and the answer stands."""
        asker = asked.asker
        try:
            line = {
                "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
                "user": asker.name if asker else None,
                "role": asker.role.value if asker else None,
                "by": asker.by if asker else None,
                "what": asked.kind.meaning if asked.kind else "what is not served",
                "image": self.hashed(asked.image) if asked.image else None,
                "adapter": asked.adapter or None,
                "status": status,
            }
            self._append(json.dumps(line, ensure_ascii=True).encode() + b"\n")
        except (OSError, BapsError) as error:
            logger.error("A line of the audit file %s could not be written (%s).", self._file, type(error).__name__)

    def hashed(self, image: str) -> str:
        """The keyed hash of an image's name.

        Raises:
            OSError: if the key can neither be read nor made.
        """
        with self._lock:
            if self._key is None:
                self._key = self._read_key()
        return hmac.new(self._key, image.encode(errors="replace"), hashlib.sha256).hexdigest()[:32]

    def read(self) -> FileResponse:
        """The whole file, for an admin."""
        return FileResponse(self._file, media_type="application/jsonl")

    def check(self) -> None:
        """Make the file and its key, if they are not there.

        Raises:
            BapsError: if they cannot be written to.
        """
        try:
            self._append(b"")
            self.hashed("")
        except OSError as error:
            raise BapsError(
                f"The audit file {self._file} cannot be written ({error.strerror}). Give another place (audit), or let "
                "the server's user write there."
            ) from error

    def _append(self, line: bytes) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, line)
        finally:
            os.close(handle)

    def _read_key(self) -> bytes:
        """The key; of two processes that make one, the first one's is kept."""
        if not self._key_file.exists():
            self._file.parent.mkdir(parents=True, exist_ok=True)
            made = self._key_file.with_name(f".{self._key_file.name}-{secrets.token_hex(8)}")
            handle = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.write(handle, secrets.token_hex(32).encode())
                os.link(made, self._key_file)
            except FileExistsError:
                pass
            finally:
                os.close(handle)
                made.unlink()
        return bytes.fromhex(self._key_file.read_text())
