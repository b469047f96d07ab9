"""What the README and the docs tell one to type: the Python runs as written, and the commands have these options."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from baps.cli import app
from baps.site.settings import Settings
from demo.server import ROOT

PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = typer.main.get_command(app)


def lines(page: Path) -> Iterator[str]:
    """The lines of a page's blocks of commands, without comments; those that go on are one."""
    for kind, block in BLOCK.findall(page.read_text()):
        if kind in ("", "sh", "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                yield re.sub(r"<[^<>]*>", "PLACEHOLDER", re.sub(r"\s#\s.*", "", line))


def told(page: Path) -> list[str]:
    """The words after ``baps`` in a page's blocks."""
    found = []
    for line in lines(page):
        found += [part[1] for part in re.finditer(r"(?:^|[ /])bin/baps ([^|&;]*)", line)]
    return found


def inline(page: Path) -> list[str]:
    """The words after ``baps`` in a page's sentences, which may leave something out."""
    text = BLOCK.sub("", page.read_text())
    return [re.sub(r"\s+", " ", found) for found in re.findall(r"`(?:\.venv/bin/)?baps ([^`]+)`", text)]


def parsed(words: list[str], command: Any = COMMAND) -> None:
    """Parse a command line by the command's own parser, and run nothing."""
    context = command.make_context("baps", list(words))
    if hasattr(command, "commands"):
        rest = [*context._protected_args, *context.args]
        _, following, rest = command.resolve_command(context, rest)
        assert following is not None
        parsed(rest, following)


@pytest.mark.parametrize("line", ["adapters list --no-such", "no-such", "segment", "labels export /data ct_01"])
def test_what_is_wrong_is_found(line: str) -> None:
    with pytest.raises(Exception, match=r"(?i)no such|missing"):
        parsed(line.split())


def test_commands_are_found() -> None:
    assert len([line for page in PAGES for line in told(page)]) > 20
    assert len([line for page in PAGES for line in inline(page)]) > 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_have_these_options(page: Path) -> None:
    for line in told(page):
        try:
            parsed(shlex.split(line))
        except Exception as error:  # Of typer's own kind.
            pytest.fail(f"baps {line}: {error}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_sentences_are_there(page: Path) -> None:
    for line in inline(page):
        command: Any = COMMAND
        words = line.replace("[", " ").replace("]", " ").replace("...", " ").split()
        while hasattr(command, "commands") and words and not words[0].startswith("-"):
            found = command.commands.get(words.pop(0))
            assert found is not None, f"baps {line}"
            command = found
        known = {"--help", "--version", *(name for one in command.params for name in (*one.opts, *one.secondary_opts))}
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert options <= known, f"baps {line}: {options - known}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_targets_and_variables_of_make_are_there(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([\w./-]+):", makefile, re.MULTILINE))
    text = "\n".join([*lines(page), *re.findall(r"`([^`\n]+)`", BLOCK.sub("", page.read_text()))])
    for found in re.findall(r"(?:^|&&|=\S+) *make ([^|&;\n]*)", text, re.MULTILINE):
        for word in found.split():
            name, gives, _ = word.partition("=")
            if gives:
                assert f"$({name})" in makefile or re.search(rf"\$\(if \$\({name}\)", makefile), f"make {found}"
            else:
                assert word in targets or "<" in found, f"make {found}"
            if word.endswith("..."):
                break


def test_variables_of_the_environment_are_read() -> None:
    known = {f"BAPS_{name.upper()}" for name in Settings.model_fields}
    sources = [*(ROOT / "apps" / "baps_app").rglob("*.py"), *(ROOT / "tests").rglob("*.py"), ROOT / "Makefile"]
    sources += [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "deploy").iterdir()]
    written = set(re.findall(r"BAPS_[A-Z0-9_]+", "\n".join(file.read_text(errors="ignore") for file in sources)))
    for page in PAGES:
        unknown = set(re.findall(r"BAPS_[A-Z0-9_]+", page.read_text())) - known - written
        assert not unknown, page.name


@pytest.mark.slow
def test_the_readmes_python_runs_as_written(tmp_path: Path) -> None:
    blocks = [block for kind, block in BLOCK.findall((ROOT / "README.md").read_text()) if kind == "python"]
    assert len(blocks) == 2
    (tmp_path / "sample-data").symlink_to(ROOT / "sample-data")
    (tmp_path / "readme.py").write_text("\n".join(blocks))
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "apps" / "baps_app"), "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [sys.executable, "readme.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert [line.startswith("Dice 0.") for line in said] == [True, True]
    assert (tmp_path / "training.jsonl").is_file()
