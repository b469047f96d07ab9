"""Check that an audit file is intact: no line was changed, removed, moved, added or cut off."""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from baps.site.audit import AuditFile, ChainHead, Link, digest_before, parse_line

_MAX_BREAKS = 20


@dataclass
class AuditCheck:
    """Result of a check.

    Attributes:
        last: The last line that has a chain.
        chained: Number of lines that have a chain.
        unchained: Number of lines before them, from a release without chains. Only changes since the first chain are
            detected.
        halves: Number of lines that a full disk or a power cut left incomplete.
        breaks: Sentences that say where the chain breaks, at most twenty.
    """

    last: Link = field(default_factory=Link)
    chained: int = 0
    unchained: int = 0
    halves: int = 0
    breaks: list[str] = field(default_factory=list)

    def note(self, sentence: str) -> None:
        """Add a break, unless there are already twenty.

        Args:
            sentence: Where the chain breaks.
        """
        if len(self.breaks) < _MAX_BREAKS:
            self.breaks.append(sentence)


def check_audit(file: Path, chain: str = "") -> AuditCheck:
    """Read an audit file and the full ones beside it, and follow the chain.

    A person who has the key can write another chain, and one who can write to the folder can restore an earlier state
    of all its files. Both are detected only by the chain of a line that was kept elsewhere.

    Args:
        file: The audit file that is written to.
        chain: Chain of a line that must be there, or "".

    Returns:
        The result.

    Raises:
        OSError: If the files cannot be read.
        BapsError: If the key is damaged.
    """
    audit, check = AuditFile(file), AuditCheck()
    had_lines = file.with_name(f"{file.name}.key").exists()  # It is made with the head.
    with audit.opened() as (files, head):
        before = digest_before(line for one, size in files for _, line in _lines(one, size))
        _follow(audit, files, head, Link(0, before), check, chain)
    if had_lines and head is None and not check.chained and not check.unchained:
        check.note("There is a key, but no line and no head file: all lines were removed.")
    return check


def _follow(
    audit: AuditFile,
    files: list[tuple[BinaryIO, int]],
    head: ChainHead | None,
    start: Link,
    check: AuditCheck,
    chain: str,
) -> None:
    last = start
    if head and (head.removed.n or not start.chain):
        last = head.removed
    chain_seen = not chain
    for file, size in files:
        name = Path(file.name).name
        for row, line in _lines(file, size):
            parsed = parse_line(line)
            if parsed is None:
                _count_unchained(line, f"Row {row} of {name}", check)
                continue
            link, body = parsed
            if head and link.n <= head.removed.n and not check.chained:
                continue  # A kill left a file that should have been removed.
            check.chained += 1
            chain_seen = chain_seen or link.chain == chain
            where = f"line {link.n} (row {row} of {name})"
            record = json.loads(body + b"}")
            missing = record.get("missing", 0)
            if record.get("head"):
                check.note(
                    f"Before {where} the head file was missing: it is not known whether lines were cut off there."
                )
            if missing:
                check.note(f"Before {where} {_lines_are(missing)} missing: they were cut off.")
            if link.n <= last.n:
                check.note(f"After line {last.n} comes {where}: lines were moved or doubled.")
            elif link.n > last.n + 1 + missing:
                check.note(f"Before {where} {_lines_are(link.n - last.n - 1)} missing.")
            elif not missing and not hmac.compare_digest(audit.chain(last.chain, body), link.chain):
                what = "Line" if last.n or not last.chain else "The lines before, or line"
                check.note(f"{what} {link.n} (row {row} of {name}) was changed.")
            last = max(last, link, key=lambda one: one.n)
    check.last = last
    if head is None:
        if check.chained:
            check.note(
                "The head file is missing or was changed: it is not known whether lines were cut off at the end."
            )
    elif head.last.n > last.n:
        check.note(f"At the end {_lines_are(head.last.n - last.n)} missing.")
    elif head.last.n == last.n and head.last.chain != last.chain:
        check.note("The last line differs from that in the head file.")
    if not chain_seen:
        check.note(f"No line has the chain {chain}.")


def _count_unchained(line: bytes, where: str, check: AuditCheck) -> None:
    """Count a line without a chain hash."""
    try:
        json.loads(line)
    except ValueError:
        check.halves += 1
        return
    if check.chained:
        check.note(f"{where} has no chain: it was added or changed.")
    else:
        check.unchained += 1


def _lines_are(count: int) -> str:
    return "1 line is" if count == 1 else f"{count} lines are"


def _lines(file: BinaryIO, size: int) -> Iterator[tuple[int, bytes]]:
    """Yield the lines in the first ``size`` bytes of a file, with their numbers."""
    file.seek(0)
    row = 0
    while (place := file.tell()) < size:
        row += 1
        yield row, file.readline(size - place).rstrip(b"\n")
