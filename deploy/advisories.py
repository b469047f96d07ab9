"""``make advisories``: list known advisories on the packages in constraints.txt that were not reviewed.

pip-audit queries the database of advisories; ``advisories.ini`` lists those that were reviewed and accepted.
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
_CANARY = ("diskcache", "5.6.3", "CVE-2025-69872")
"""An advisory that the database always has. If it is not reported, the database was not reached."""


@dataclass(frozen=True)
class ReviewedAdvisory:
    """An advisory that was reviewed and accepted.

    Attributes:
        id: id of the advisory.
        package: name of the package.
        version: version of the package.
        what: summary of the advisory.
        why: why the flaw cannot be reached here.
        tests: tests that show this, as ``file::name``.
    """

    id: str
    package: str
    version: str
    what: str
    why: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Advisory:
    """An advisory of the database.

    Attributes:
        package: name of the package.
        version: version of the package.
        names: id of the advisory and its aliases.
        fixed: versions in which it is fixed.
    """

    package: str
    version: str
    names: frozenset[str]
    fixed: tuple[str, ...]


class UnreachableError(Exception):
    """Raised if the database of advisories does not answer."""


def read_pins(file: Path = ROOT / "constraints.txt") -> dict[str, str]:
    """Read the pinned versions by package, names in lower case."""
    lines = (line.strip() for line in file.read_text().splitlines())
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {name.lower(): version for name, version in pairs}


def read_reviewed(file: Path = ROOT / "deploy" / "advisories.ini") -> list[ReviewedAdvisory]:
    """Read the advisories that were reviewed and accepted.

    Raises:
        KeyError: if a section lacks a key.
    """
    parser = ConfigParser(interpolation=None)
    parser.read_string(file.read_text())
    return [
        ReviewedAdvisory(
            id, section["package"], section["version"], section["what"], section["why"], tuple(section["test"].split())
        )
        for id, section in parser.items()  # noqa: A001 (the usual word)
        if id != parser.default_section
    ]


def query_database(packages: Mapping[str, str], command: Path = PIP_AUDIT) -> list[Advisory]:
    """Query the database for advisories on packages.

    Raises:
        UnreachableError: if the database does not answer. pip-audit may then report no advisories, so a known advisory
            is queried first.
    """
    if not any(_CANARY[2] in advisory.names for advisory in _run_pip_audit({_CANARY[0]: _CANARY[1]}, command)):
        raise UnreachableError(f"for {_CANARY[0]} {_CANARY[1]}, pip-audit does not report {_CANARY[2]}")
    return _run_pip_audit(packages, command)


def not_reviewed(advisories: list[Advisory], reviewed_advisories: list[ReviewedAdvisory]) -> list[Advisory]:
    """Return the advisories that were not reviewed."""
    reviewed_keys = {(advisory.package, advisory.version, advisory.id) for advisory in reviewed_advisories}
    return [
        advisory
        for advisory in advisories
        if not any((advisory.package, advisory.version, name) in reviewed_keys for name in advisory.names)
    ]


def _run_pip_audit(packages: Mapping[str, str], command: Path) -> list[Advisory]:
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
        process = subprocess.run([str(command), *options], capture_output=True, text=True)  # noqa: S603 (our own list)
    try:
        dependencies = json.loads(process.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = (process.stderr.strip().splitlines() or ["pip-audit printed nothing"])[-1]
        raise UnreachableError(last) from None
    return [
        Advisory(
            advisory["name"].lower(),
            advisory["version"],
            frozenset([flaw["id"], *flaw.get("aliases", [])]),
            tuple(flaw.get("fix_versions", [])),
        )
        for advisory in dependencies
        for flaw in advisory.get("vulns", [])
    ]


def main() -> int:
    """Print the advisories that were not reviewed.

    Returns:
        0 if all were reviewed, 1 if some were not, 2 if the database cannot be reached.
    """
    pins, reviewed_advisories = read_pins(), read_reviewed()
    try:
        advisories = query_database(pins)
    except (UnreachableError, OSError) as error:
        print(f"The database of advisories cannot be reached from here ({error}).")
        print("Nothing was checked. Run this where the Python package index can be reached, before each update.")
        return 2
    new_advisories = not_reviewed(advisories, reviewed_advisories)
    for advisory in new_advisories:
        names, fixed = ", ".join(sorted(advisory.names)), ", ".join(advisory.fixed) or "no version"
        print(f"{advisory.package} {advisory.version}: {names}; fixed in {fixed}")
    no_longer_reported = [
        advisory for advisory in reviewed_advisories if not any(advisory.id in other.names for other in advisories)
    ]
    for old in no_longer_reported:
        name = f"{old.package} {old.version}: {old.id}"
        print(f"{name} is listed, but the database no longer reports it. Review it again.")
    counts = f"{len(pins)} packages, {len(advisories)} advisories"
    print(f"{counts}, {len(new_advisories)} of them not in deploy/advisories.ini.")
    return 1 if new_advisories else 0


if __name__ == "__main__":
    sys.exit(main())
