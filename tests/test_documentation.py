"""What the README and the guides say is true: their Python runs, their commands parse, and their names exist."""

from __future__ import annotations

import ast
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
import yaml
from pydantic.fields import FieldInfo

from baps.adapters import old_records
from baps.annotations import label_info
from baps.cli import app
from baps.server.access_policy import POLICIES, find_policy
from baps.site.settings import OLD_NAMES, Settings
from tests.support.paths import ROOT

DOCS = ROOT / "docs"
CHANGELOG = ROOT / "CHANGELOG.md"
PAGES = [
    *(ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(DOCS.rglob("*.md")),
]
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
COMMAND = typer.main.get_command(app)

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def sentences(page: Path) -> str:
    """The text of a page without its blocks of code."""
    return BLOCK.sub("", page.read_text())


def code(page: Path) -> list[str]:
    """What a page's sentences put between backticks."""
    return [re.sub(r"\s+", " ", words) for words in re.findall(r"`([^`]+)`", sentences(page))]


def lines(page: Path) -> Iterator[str]:
    """The lines of a page's blocks of commands, without comments; a continued line is one line."""
    for kind, block in BLOCK.findall(page.read_text()):
        if kind in ("", "sh", "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                yield re.sub(r"<[^<>]*>", "PLACEHOLDER", re.sub(r"\s#\s.*", "", line))


def commands(page: Path) -> list[str]:
    """The words after ``baps`` in a page's blocks."""
    return [one[1] for line in lines(page) for one in re.finditer(r"(?:^|bin/)baps ([^|&;]*)", line)]


def inline_commands(page: Path) -> list[str]:
    """The words after ``baps`` in a page's sentences, which may leave something out."""
    return [one[1] for words in code(page) if (one := re.match(r"(?:\.venv/bin/)?baps ([a-z-].*)", words))]


def parse(words: list[str], command: Any = COMMAND) -> None:
    """Parse a command line with the command's own parser, without running it."""
    context = command.make_context("baps", list(words))
    if hasattr(command, "commands"):
        rest = [*context._protected_args, *context.args]
        _, following, rest = command.resolve_command(context, rest)
        assert following is not None
        parse(rest, following)


@pytest.mark.parametrize("line", ["adapters list --no-such", "no-such", "segment", "labels export /data ct_01"])
def test_wrong_commands_are_recognised(line: str) -> None:
    with pytest.raises(Exception, match=r"(?i)no such|missing"):
        parse(line.split())


def test_the_pages_have_commands() -> None:
    assert len([line for page in PAGES for line in commands(page)]) > 20
    assert len([line for page in PAGES for line in inline_commands(page)]) > 10


@each_page
def test_commands_parse(page: Path) -> None:
    for line in commands(page):
        try:
            parse(shlex.split(line))
        except Exception as error:  # Of typer's own kind.
            pytest.fail(f"baps {line}: {error}")


@each_page
def test_commands_in_sentences_exist(page: Path) -> None:
    for line in inline_commands(page):
        command: Any = COMMAND
        words = line.replace("[", " ").replace("]", " ").replace("...", " ").split()
        while hasattr(command, "commands") and words and re.fullmatch(r"[a-z-]+", words[0]) and words[0][0] != "-":
            following = command.commands.get(words.pop(0))
            assert following is not None, f"baps {line}"
            command = following
        known = {"--help", "--version", *(name for one in command.params for name in (*one.opts, *one.secondary_opts))}
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert options <= known, f"baps {line}: {options - known}"


@each_page
def test_targets_and_variables_of_make_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([\w./-]+):", makefile, re.MULTILINE))
    for found in re.findall(r"(?:^|&&|=\S+) *make ([^|&;\n]*)", "\n".join([*lines(page), *code(page)]), re.MULTILINE):
        for word in found.split():
            name, is_variable, _ = word.partition("=")
            if is_variable:
                assert f"$({name})" in makefile or re.search(rf"\$\(if \$\({name}\)", makefile), f"make {found}"
            else:
                assert word in targets or "<" in found, f"make {found}"
            if word.endswith("..."):
                break


@each_page
def test_files_that_a_page_names_exist(page: Path) -> None:
    """Names of files of the repository between backticks; ``*`` stands for any name."""
    package = ROOT / "apps" / "baps_app" / "baps"
    layers = {folder.name: package for folder in package.iterdir() if folder.is_dir()}
    places = {path.name: ROOT for path in ROOT.iterdir() if path.is_dir()} | layers | {"baps": package.parent}
    for words in code(page):
        if re.fullmatch(r"[\w-]+/[\w./*-]*", words) and words.split("/")[0] in places:
            folder = places[words.split("/")[0]]
            kept_out_of_git = re.match(r"(build|demo-output|apps/baps_app/(model|logs))/", words)
            assert kept_out_of_git or list(folder.glob(words.rstrip("/"))), words
    for module in re.findall(r"python -m ([\w.]+)", "\n".join([*code(page), *lines(page)])):
        if module.split(".")[0] in ("benchmarks", "stress", "tools"):
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module


def renamed() -> dict[str, str]:
    """Former names and their new ones, from the tables of the changelog."""
    pairs = re.findall(r"^\| (`.*`) \| (`.*`) \|$", CHANGELOG.read_text(), re.MULTILINE)
    names = {}
    for old, new in pairs:
        names.update(zip(re.findall(r"`([^`]+)`", old), re.findall(r"`([^`]+)`", new), strict=True))
    return names


def test_the_changelog_has_the_former_names_that_are_still_read() -> None:
    for former in (OLD_NAMES, old_records.OLD_SETTINGS, old_records._OLD_KEYS, old_records._OLD_STATUS):
        assert former.items() <= renamed().items()
    assert label_info._OLD_KEYS.items() <= renamed().items()


@each_page
def test_former_names_are_gone(page: Path) -> None:
    if page == CHANGELOG:
        return
    distinctive = {name for name in renamed() if "_" in name or name.startswith("--")}
    assert len(distinctive) > 10
    words = set(re.findall(r"[\w-]+", "\n".join([*code(page), *lines(page)]).lower()))
    words |= {word.removeprefix("baps_") for word in words}
    assert not words & distinctive


def settings() -> dict[str, FieldInfo]:
    """The settings by name."""
    return Settings.model_fields


def setting_rows() -> list[list[str]]:
    """Rows of the tables of settings: name, meaning, other names, default."""
    page = (DOCS / "reference" / "settings.md").read_text()
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in page.splitlines() if re.match(r"\| `[a-z_0-9]+` \|", line)]
    return [[cell.strip() for cell in row] for row in rows]


def test_the_settings_page_has_every_setting() -> None:
    names = [row[0].strip("`") for row in setting_rows()]
    assert len(names) == len(set(names))
    assert set(names) == set(settings())


@pytest.mark.parametrize("row", setting_rows(), ids=lambda row: row[0].strip("`"))
def test_the_settings_page_has_the_defaults(row: list[str]) -> None:
    name, _, also, default = row
    one = settings()[name.strip("`")]
    value = one.get_default(call_default_factory=True)
    written = default.strip("`")
    if isinstance(value, dict):
        assert written == ",".join(value)
    elif isinstance(value, bool):
        assert written == ("yes" if value else "no")
    elif isinstance(value, (int, float)):
        assert float(written) == value
    elif isinstance(value, str) and value:
        assert written == value
    else:  # No default, or one that a sentence describes.
        assert not default.startswith("`") or written.endswith(" beside the adapters") or "`audit.jsonl`" in default
    options = {name for one in COMMAND.commands["serve"].params for name in one.opts}  # type: ignore[attr-defined]
    for word in re.findall(r"`([^`]+)`", also):
        if word.startswith("--"):
            assert word in options
        else:
            assert f"$({word})" in (ROOT / "Makefile").read_text()


def test_environment_variables_are_read() -> None:
    sources = [*(ROOT / "apps" / "baps_app").rglob("*.py"), *(ROOT / "tests").rglob("*.py"), ROOT / "Makefile"]
    sources += [*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "deploy").iterdir()]
    known = {f"BAPS_{name.upper()}" for name in settings()} | {"BAPS_CONFIG", "BAPS_NAME"}
    known |= set(re.findall(r"BAPS_[A-Z0-9_]+", "\n".join(file.read_text(errors="ignore") for file in sources)))
    for page in PAGES:
        unknown = set(re.findall(r"BAPS_[A-Z0-9_]+", page.read_text())) - known
        assert not unknown, page.name


def routes() -> list[tuple[str, str, str, str, str]]:
    """Method, path, query, role and audit of every request of the page of routes."""
    found = []
    for line in (DOCS / "reference" / "http-routes.md").read_text().splitlines():
        if not re.match(r"\| `(GET|POST|PUT|DELETE) ", line):
            continue
        method = ""
        for words in re.findall(r"`([^`]+)`", line.split("|")[1]):
            method, _, rest = words.rpartition(" ") if " " in words else (method, "", words)
            path, _, query = rest.partition("?")
            role, audit = (cell.strip() for cell in line.split("|")[3:5])
            found.append((method, path.replace("...", "x"), query, role, audit))
    return found


def test_the_routes_page_has_every_route() -> None:
    kinds = [find_policy(*route[:3]) for route in routes()]
    assert None not in kinds, [route for route, kind in zip(routes(), kinds, strict=True) if kind is None]
    for (*route, role, audit), kind in zip(routes(), kinds, strict=True):
        assert kind is not None
        assert role == (kind.role.value if kind.role else "none"), route
        assert "(" in audit or bool(audit) == kind.audited, route
    missing = [kind for kind in POLICIES if kind not in kinds]
    assert {kind.action for kind in missing} <= {"fetch the image of a session", "look"}, missing


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the site and the usual hosts of repositories make them."""
    titles = re.findall(r"^#+ (.+)$", sentences(page), re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", sentences(page)):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_the_messages_to_troubleshoot_are_those_of_the_code() -> None:
    texts = []
    for file in (ROOT / "apps" / "baps_app").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                texts.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    rows = re.findall(r"^\| (`.*?`) \|", (DOCS / "how-to" / "troubleshoot.md").read_text(), re.MULTILINE)
    messages = [message for row in rows for message in re.findall(r"`([^`]+)`", row)]
    assert len(messages) > 60
    for message in messages:
        parts = [part.strip(" .,") for part in message.split("...")]
        assert [part for part in parts if len(part) > 5], message
        for part in parts:
            assert any(part in text for text in texts), message


def test_the_layers_of_the_architecture_are_those_that_lint_holds() -> None:
    table = (DOCS / "explanation" / "architecture.md").read_text().split("## Two walks")[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    layers = [name.strip("/").removesuffix(".py") for row in rows for name in re.findall(r"`([\w./]+)`", row)]
    contract = (ROOT / "pyproject.toml").read_text().split("layers = [")[1].split("]")[0]
    assert layers == re.findall(r'"(\w+)"', contract)


@pytest.mark.parametrize("name", ["json-keys.md", "adapter-file.md"])
def test_the_keys_of_json_are_those_of_the_code(name: str) -> None:
    sources = "\n".join(file.read_text() for file in (ROOT / "apps" / "baps_app").rglob("*.py"))
    page = (DOCS / "reference" / name).read_text().split("## Benchmarks")[0]
    keys = [key for line in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE) for key in re.findall(r"`(\w+)`", line)]
    assert len(keys) > 20
    for key in keys:
        assert re.search(rf"[\"']{key}[\"']|\b{key}(:|=| =)", sources) or key.endswith("_std"), key


def test_the_files_on_disk_are_those_of_the_code() -> None:
    sources = "\n".join(file.read_text() for file in (ROOT / "apps" / "baps_app").rglob("*.py"))
    host = {"app.log", "apps", "baps_app", "logs", "datastore_v2.json", "labels", "final"}  # What MONAI Label writes.
    table = (DOCS / "reference" / "files-on-disk.md").read_text().split("## How long they stay")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if re.match(r"\| .*`", line)]
    places = [place for cell in cells for place in re.findall(r"`([^`]+)`", cell)]
    assert len(places) > 25
    for place in places:
        names = [
            name for name in place.split("/") if not re.search(r"^$|[<>~]|^STUDIES$|^v0001$|^[.]+$|^[.]0001$", name)
        ]
        for name in names:
            assert name in host or re.search(rf"[\"'/}}]{re.escape(name)}[\"'/`]", sources), place


def test_pictures_are_used() -> None:
    texts = "\n".join(page.read_text() for page in PAGES)
    assert not [picture.name for picture in (DOCS / "pictures").iterdir() if picture.name not in texts]


def test_the_readme_fits_a_screen_and_a_half() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 90


def test_the_citation_names_the_papers_of_the_methods() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    method = " ".join((DOCS / "explanation" / "method.md").read_text().split())
    for paper in citation["references"]:
        assert paper["title"] in method
        assert paper["identifiers"][0]["value"].replace("arXiv:", "arXiv ") in method
        assert paper["authors"][0]["family-names"] in method


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_other_hosts(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "apps" / "baps_app"), "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        text = page.read_text()
        loads = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?([^\"'\s>]+)", text)
        loads += re.findall(
            r"<link\b[^>]*\brel=[\"']?(?:stylesheet|icon|preconnect)[^>]*\bhref=[\"']?([^\"'\s>]+)", text
        )
        assert loads
        assert not [one for one in loads if re.match(r"(https?:)?//", one)], page.name
    reference = (tmp_path / "reference" / "command-line.html").read_text()
    assert all(f'id="baps-{name}"' in reference for name in ("segment", "adapt", "labels-restore", "organs-adapt"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["README.md", "docs/how-to/python.md"])
def test_the_python_of_a_page_runs_as_it_stands(tmp_path: Path, name: str) -> None:
    blocks = [block for kind, block in BLOCK.findall((ROOT / name).read_text()) if kind == "python"]
    assert blocks
    (tmp_path / "sample-data").symlink_to(ROOT / "sample-data")
    (tmp_path / "page.py").write_text("\n".join(blocks))
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "apps" / "baps_app"), "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [sys.executable, "page.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    if name == "README.md":
        assert printed[0].startswith("Dice 0.")
        before, after = map(float, re.findall(r"\d\.\d+", printed[1]))
        assert after > before + 0.1
        assert (tmp_path / "mask.nii.gz").is_file()
    else:
        assert printed[0] == "bundled (128, 128, 24)"
        assert printed[1].startswith("Dice 0.")
        assert (tmp_path / "spleen.adapter").is_file()
