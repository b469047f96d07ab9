"""Hooks of ``make docs``: add pages of the repository's root, document the commands, and relocate links."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer
from mkdocs.exceptions import PluginError

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
ROOT_PAGES = {"SECURITY.md": "security.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages of the root, and their paths in the site."""

COMMANDS = re.compile(r"<!-- commands: .* -->")
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s#:]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of the repository's root."""
    from mkdocs.structure.files import File

    for name, destination in ROOT_PAGES.items():
        files.append(File.generated(config, destination, content=(ROOT / name).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite links to the site's pages, and insert the documentation of the commands."""
    source = page.file.src_uri
    in_root = next((name for name, destination in ROOT_PAGES.items() if destination == source), None)
    origin = ROOT / in_root if in_root else DOCS / source

    def relocate(link: re.Match[str]) -> str:
        text, target, anchor = link[1], (origin.parent / link[2]).resolve(), link[3] or ""
        if not target.exists():
            raise PluginError(f"{origin.relative_to(ROOT)} links to {link[2]}, which does not exist.")
        name = target.relative_to(ROOT).as_posix()
        if name in ROOT_PAGES:
            destination = ROOT_PAGES[name]
        elif target.is_relative_to(DOCS) and target.suffix == ".md":
            destination = target.relative_to(DOCS).as_posix()
        else:  # Other files of the repository have no page, so the text gives their path.
            return f"{text} (`{name}`)"
        return f"[{text}]({'../' * source.count('/')}{destination}{anchor})"

    return COMMANDS.sub(lambda _: command_reference(), _LINK.sub(relocate, markdown))


def command_reference() -> str:
    """Describe every command and its options, as Markdown."""
    from baps.cli import app

    lines: list[str] = []
    _describe(typer.main.get_command(app), "baps", lines)
    return "\n".join(lines)


def _describe(command: Any, name: str, lines: list[str]) -> None:
    if hasattr(command, "commands"):
        for part in command.commands.values():
            _describe(part, f"{name} {part.name}", lines)
        return
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    usage = " ".join([name, *(parameter.metavar or str(parameter.name).upper() for parameter in arguments)])
    lines += [f"## {name}", "", "```text", f"{usage} [OPTIONS]", "```", "", _escape(command.help or ""), ""]
    if options:
        lines += ["| option | meaning | default |", "| --- | --- | --- |"]
    for parameter in options:
        names = ", ".join(f"`{word}`" for word in (*parameter.opts, *parameter.secondary_opts))
        default = (
            "required"
            if parameter.required
            else ""
            if parameter.default in (None, "", False)
            else f"`{parameter.default}`"
        )
        lines.append(f"| {names} | {_escape(getattr(parameter, 'help', None) or '')} | {default} |")
    lines.append("")


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
