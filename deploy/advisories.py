"""``make advisories``: are there known advisories on what constraints.txt pins, that nobody has looked at?

pip-audit asks the database of advisories; ``advisories.ini`` has those that were reviewed and stay.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PIP_AUDIT = ROOT / ".venv-tools" / "bin" / "pip-audit"
_KNOWN = ("diskcache", "5.6.3", "CVE-2025-69872")
"""An advisory that the database has, for good."""


@dataclass(frozen=True)
class Reviewed:
    """An advisory that stays.

    Attributes:
        id: by which it is known.
        package, version: on which.
        what: it says.
        why: it cannot be reached here.
        tests: that show it, as ``file::name``.
    """

    id: str
    package: str
    version: str
    what: str
    why: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """An advisory as the database has it.

    Attributes:
        package, version: on which.
        names: its id and the other ids by which it is known.
        fixed: versions that have it no more.
    """

    package: str
    version: str
    names: frozenset[str]
    fixed: tuple[str, ...]


class UnreachableError(Exception):
    """The database of advisories did not answer."""


def pins(file: Path = ROOT / "constraints.txt") -> dict[str, str]:
    """Packages and versions, names in lower case."""
    lines = (line.strip() for line in file.read_text().splitlines())
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {name.lower(): version for name, version in pairs}


def reviewed(file: Path = ROOT / "deploy" / "advisories.ini") -> list[Reviewed]:
    """The advisories that stay.

    Raises:
        KeyError: if a line has not all that it must have.
    """
    parser = ConfigParser(interpolation=None)
    parser.read_string(file.read_text())
    return [
        Reviewed(id, part["package"], part["version"], part["what"], part["why"], tuple(part["test"].split()))
        for id, part in parser.items()  # noqa: A001 (what it is called everywhere)
        if id != parser.default_section
    ]


def ask(packages: Mapping[str, str], command: Path = PIP_AUDIT) -> list[Found]:
    """What the database knows of packages.

    Raises:
        UnreachableError: if it does not answer. pip-audit then may say that it found nothing; so one of the advisories
            that are known is asked for first.
    """
    if not any(_KNOWN[2] in one.names for one in _audited({_KNOWN[0]: _KNOWN[1]}, command)):
        raise UnreachableError(f"asked for {_KNOWN[0]} {_KNOWN[1]}, pip-audit does not know {_KNOWN[2]}")
    return _audited(packages, command)


def unseen(found: list[Found], listed: list[Reviewed]) -> list[Found]:
    """Those that nobody has looked at."""
    seen = {(one.package, one.version, one.id) for one in listed}
    return [one for one in found if not any((one.package, one.version, name) in seen for name in one.names)]


def _audited(packages: Mapping[str, str], command: Path) -> list[Found]:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.writelines(f"{name}=={version}\n" for name, version in packages.items())
        file.flush()
        options = [
            "--requirement",
            file.name,
            "--no-deps",
            "--disable-pip",
            "--format",
            "json",
            "--progress-spinner=off",
        ]
        done = subprocess.run([str(command), *options], capture_output=True, text=True)  # noqa: S603 (our own list)
    try:
        answers = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UnreachableError(last) from None
    return [
        Found(
            one["name"].lower(),
            one["version"],
            frozenset([flaw["id"], *flaw.get("aliases", [])]),
            tuple(flaw.get("fix_versions", [])),
        )
        for one in answers
        for flaw in one.get("vulns", [])
    ]


def main() -> int:
    """Say what is new.

    Returns:
        0 if all was looked at, 1 if something was not, 2 if nobody can say.
    """
    pinned, listed = pins(), reviewed()
    try:
        found = ask(pinned)
    except (UnreachableError, OSError) as error:
        print(f"The database of advisories cannot be reached from here ({error}).")
        print("Nothing was checked. Run this where the Python package index itself is reached, before each update.")
        return 2
    new = unseen(found, listed)
    for one in new:
        names, fixed = ", ".join(sorted(one.names)), ", ".join(one.fixed) or "no version"
        print(f"{one.package} {one.version}: {names}; fixed in {fixed}")
    gone = [one for one in listed if not any(one.id in other.names for other in found)]
    for stays in gone:
        print(f"{stays.package} {stays.version}: {stays.id} is listed, but the database does not name it; look again.")
    print(f"{len(pinned)} packages, {len(found)} advisories, {len(new)} that deploy/advisories.ini does not list.")
    return 1 if new else 0


if __name__ == "__main__":
    sys.exit(main())
