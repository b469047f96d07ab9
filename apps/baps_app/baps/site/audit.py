"""The audit file, which records who did what to which image: one JSON object per line, chained to the previous one.

The file names images and studies by keyed hashes (HMAC-SHA-256): the same image has the same hash, and only a person
who has the key, a private file beside it, can find out which image it is. Each line has a number, ``n``, and a
``chain``: the HMAC of the line and of the previous line's chain, under the same key. ``<name>.head`` holds the number
and the chain of the last line. ``audit_check`` thus detects lines that were changed, removed, moved or cut off, unless
the person who did it has the key.

Threads and processes take turns by a lock beside the file. A full file is renamed to ``<name>.0001`` and so on, and the
chain continues in the next one. Lines are forced onto the disk only when a file is full and when the server stops: a
kill loses none, a power cut may lose the last seconds.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import json
import os
import pwd
import re
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock

from baps.errors import BapsError
from baps.utils.atomic_write import flush_to_disk

_CHAINED = re.compile(rb'(\{.*, "n": (\d+)), "chain": "([0-9a-f]{64})"\}')
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Link:
    """A place in the chain.

    Attributes:
        n: Number of the line; 0 before the first.
        chain: Chain of the line; before the first, a hash of the lines that have no chain, or "" if there are none.
    """

    n: int = 0
    chain: str = ""


@dataclass(frozen=True)
class ChainHead:
    """Content of the head file.

    Attributes:
        last: The last line.
        removed: The last of the lines that were removed because only some full files are kept.
    """

    last: Link = Link()
    removed: Link = Link()


class AuditFile:
    """A chained file of JSON lines. The first line creates it.

    Args:
        file: Path of the file. The key is kept beside it as ``<name>.key``, full files as ``<name>.0001`` and so on.
        max_mb: Size at which a file is full; 0 for never.
        keep: Number of full files to keep; 0 for all.
    """

    def __init__(self, file: Path, max_mb: int = 100, keep: int = 0) -> None:
        self.file, self._max_bytes, self._keep = file, max_mb << 20, keep
        self._head_file = file.with_name(f"{file.name}.head")
        self._threads = threading.Lock()
        self._processes = FileLock(
            file.with_name(f".{file.name}.lock"), mode=0o600, thread_local=False, poll_interval=0.001
        )

    def add(self, record: Mapping[str, Any]) -> None:
        """Add a line with the time and a record.

        Args:
            record: What the line says, as plain JSON.

        Raises:
            OSError: If the line cannot be written. The file then holds no part of it.
            BapsError: If the key is damaged.
        """
        with self._locked():
            last, removed, remarks = self._place()
            if self._max_bytes and self._size() >= self._max_bytes:
                removed, count = self._rotate(last, removed)
                if count:
                    by_itself = {"user": None, "role": None, "by": "server"}
                    last = self._write(last, {**by_itself, "what": "remove old audit lines", "count": count})
            self._write_head(ChainHead(self._write(last, {**record, **remarks}), removed))

    def hashed(self, image: str) -> str:
        """Hash the name of an image.

        Args:
            image: The name.

        Returns:
            The keyed hash.

        Raises:
            OSError: If the key can neither be read nor made.
            BapsError: If the key is damaged.
        """
        return hmac.new(self._key, image.encode(errors="replace"), hashlib.sha256).hexdigest()[:32]

    def chain(self, before: str, body: bytes) -> str:
        """Compute the chain of a line.

        Args:
            before: Chain of the previous line.
            body: The line up to its chain.

        Returns:
            The chain.
        """
        return hmac.new(self._key, b"line\n%s\n%s" % (before.encode(), body), hashlib.sha256).hexdigest()

    def check(self) -> None:
        """Make the file, its key and its head, if they do not exist.

        Raises:
            BapsError: If they cannot be written.
        """
        try:
            with self._locked():
                self._append(b"")
                self.hashed("")
                if not self._head_file.exists() and not self._last().n:
                    self._write_head(ChainHead(self._last()))
        except OSError as error:
            raise BapsError(
                f"The audit file {self.file} cannot be written ({error.strerror}). Give another place (audit), or give "
                "the server's user write permission there."
            ) from error

    def sync(self) -> None:
        """Force all lines onto the disk.

        Raises:
            OSError: If they cannot be written.
        """
        with self._locked():
            if self.file.exists():
                flush_to_disk(self.file)

    @contextmanager
    def opened(self) -> Iterator[tuple[list[tuple[BinaryIO, int]], ChainHead | None]]:
        """Open all files as they are now. Other threads and processes may add lines at the same time.

        Yields:
            The files, oldest first, each open and with its length, and the head if it is whole.

        Raises:
            OSError: If the files cannot be read.
        """
        with ExitStack() as stack:
            with self._locked():
                files: list[BinaryIO] = [stack.enter_context(file.open("rb")) for file in self._files()]
                sizes, head = [(file, os.fstat(file.fileno()).st_size) for file in files], self._head()
            yield sizes, head

    # The caller of the following methods holds the lock.

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Threads wait for each other without polling, which would delay requests; processes seldom meet.
        with self._threads, self._processes:
            yield

    def _files(self) -> list[Path]:
        full = [file for file in self.file.parent.glob(f"{self.file.name}.*") if file.suffix[1:].isdecimal()]
        full.sort(key=lambda file: int(file.suffix[1:]))
        return [*full, self.file] if self.file.exists() else full

    def _size(self) -> int:
        return self.file.stat().st_size if self.file.exists() else 0

    def _place(self) -> tuple[Link, Link, dict[str, Any]]:
        """Return the line to continue after, the last removed line, and the next line's remarks on a damaged chain."""
        last, head = self._last(), self._head()
        if head is None:
            return last, Link(), {"head": "missing"} if last.n else {}
        if head.last.n > last.n:
            return head.last, head.removed, {"missing": head.last.n - last.n}
        # A line may be ahead of the head if a kill came between the two.
        return (last if last.n > head.last.n else head.last), head.removed, {}

    def _last(self) -> Link:
        """Return the last line that has a chain. Incomplete lines, from a full disk or a power cut, are skipped."""
        for file in reversed(self._files()):
            for line in _backwards(file):
                if parsed := parse_line(line):
                    return parsed[0]
        return Link(0, digest_before(line for file in self._files() for line in _lines(file)))

    def _write(self, last: Link, record: Mapping[str, Any]) -> Link:
        content = {"time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"), **record, "n": last.n + 1}
        body = json.dumps(content, ensure_ascii=True).encode()[:-1]
        link = Link(last.n + 1, self.chain(last.chain, body))
        self._append(b'%s, "chain": "%s"}\n' % (body, link.chain.encode()))
        return link

    def _append(self, line: bytes) -> None:
        handle = os.open(self.file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(handle).st_size
            if line and size and os.pread(handle, 1, size - 1) != b"\n":
                line = b"\n" + line  # An incomplete line stays; this one begins a line of its own.
            if os.write(handle, line) != len(line):
                os.ftruncate(handle, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(handle)

    def _rotate(self, last: Link, removed: Link) -> tuple[Link, int]:
        """Rename the full file, and remove the oldest files beyond the number to keep.

        Returns:
            The last line that was removed now or earlier, and the number of lines removed now.
        """
        flush_to_disk(self.file)
        full = self._files()[:-1]
        number = int(full[-1].suffix[1:]) + 1 if full else 1
        self.file.rename(self.file.with_name(f"{self.file.name}.{number:04d}"))
        flush_to_disk(self.file.parent)
        gone = self._files()[: -self._keep] if self._keep else []
        before = removed
        for file in gone:
            parsed = next(filter(None, map(parse_line, _backwards(file))), None)
            removed = parsed[0] if parsed else Link(0, digest_before(_lines(file)))
            # Written first: if it came after the removal, a kill between the two would look like lines cut off.
            self._write_head(ChainHead(last, removed))
            file.unlink()
        return removed, removed.n - before.n

    def _head(self) -> ChainHead | None:
        """Read the head file; None if it does not exist or was changed."""
        try:
            content = json.loads(self._head_file.read_bytes())
            head = ChainHead(Link(**content["last"]), Link(**content["removed"]))
            return head if hmac.compare_digest(content["mac"], self._mac(head)) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _write_head(self, head: ChainHead) -> None:
        partial = self._head_file.with_name(f".{self._head_file.name}-new")
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "w") as file:
            json.dump({**asdict(head), "mac": self._mac(head)}, file)
        partial.replace(self._head_file)

    def _mac(self, head: ChainHead) -> str:
        content = json.dumps(asdict(head), sort_keys=True).encode()
        return hmac.new(self._key, b"head\n" + content, hashlib.sha256).hexdigest()

    @cached_property
    def _key(self) -> bytes:
        """Read the key, or make it. If two processes make one, the first is kept.

        No new key is made for existing lines: they could not be checked, nor could images be found in them.

        Raises:
            BapsError: If there are lines, and their key is gone.
        """
        file = self.file.with_name(f"{self.file.name}.key")
        if not file.exists():
            if self._last().n:
                raise BapsError(
                    f"The key of the audit file, {file}, is gone. Restore it from your backup. If it is lost, move "
                    "the audit file and those that begin with its name away: a new one begins."
                )
            self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            new_file = file.with_name(f".{file.name}-{secrets.token_hex(8)}")
            handle = os.open(new_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.write(handle, secrets.token_hex(32).encode())
                os.link(new_file, file)
            except FileExistsError:
                pass
            finally:
                os.close(handle)
                new_file.unlink()
        try:
            return bytes.fromhex(file.read_text())
        except ValueError as error:
            raise BapsError(
                f"The key of the audit file, {file}, is damaged. Restore it from your backup: without it no image and "
                "no change can be found in the existing lines."
            ) from error


def command(what: str) -> dict[str, Any]:
    """Return the first entries of the line of a command. The user is that of the operating system.

    Args:
        what: The action, as in ``restore a label``.

    Returns:
        User, role, origin and action.
    """
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # As in a container.
        name = str(os.getuid())
    return {"user": name, "role": None, "by": "command", "what": what}


def parse_line(line: bytes) -> tuple[Link, bytes] | None:
    """Parse a line.

    Args:
        line: The line, without its end.

    Returns:
        Its number and chain, and the line up to its chain; None if it has no chain.
    """
    match = _CHAINED.fullmatch(line)
    return (Link(int(match[2]), match[3].decode()), match[1]) if match else None


def digest_before(lines: Iterator[bytes]) -> str:
    """Hash the lines before the first that has a chain.

    Args:
        lines: All lines, oldest first, without their ends.

    Returns:
        The hash, or "" if there are no such lines.
    """
    digest, empty = hashlib.sha256(), True
    for line in lines:
        if parse_line(line):
            break
        digest.update(line + b"\n")
        empty = False
    return "" if empty else digest.hexdigest()


def _lines(file: Path) -> Iterator[bytes]:
    with file.open("rb") as lines:
        for line in lines:
            yield line.rstrip(b"\n")


def _backwards(file: Path) -> Iterator[bytes]:
    """Yield the lines of a file, last one first, also an incomplete last line."""
    with file.open("rb") as content:
        for _, line in read_backwards(content, content.seek(0, os.SEEK_END)):
            yield line


def read_backwards(content: BinaryIO, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield the lines before a place in a file, last one first, without their ends.

    Args:
        content: The file.
        end: The place, in bytes from the beginning.

    Yields:
        The place at which the line begins, and the line. If the place follows the end of a line, the first is empty.
    """
    place, rest = end, b""
    while place:
        size = min(_BLOCK, place)
        place -= size
        content.seek(place)
        rest, *whole = (content.read(size) + rest).split(b"\n")
        at, starts = place + len(rest) + 1, []
        for line in whole:
            starts.append(at)
            at += len(line) + 1
        yield from zip(reversed(starts), reversed(whole), strict=True)
    yield 0, rest
