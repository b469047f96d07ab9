from __future__ import annotations

import io

import pytest
from rich.table import Table
from rich.text import Text

from baps.cli.console import Console

EVIL = "spleen\x1b[2J\x9b31m\u202e"


@pytest.mark.parametrize("kind", ["text", "markup", "table", "json", "styled"])
def test_control_characters_are_removed(kind: str) -> None:
    out = io.StringIO()
    console = Console(file=out, width=200, force_terminal=True, color_system="truecolor")
    if kind == "table":
        table = Table("organ")
        table.add_row(EVIL)
        console.print(table)
    elif kind == "json":
        console.print_json(data={"organ": EVIL})
    elif kind == "styled":
        console.print(Text(EVIL, style="red"))
    else:
        console.print(EVIL, markup=kind == "markup", style="red")
    output = out.getvalue()
    assert "spleen" in output
    assert not {"\x1b[2J", "\x9b", "\u202e"} & {letter for letter in ("\x1b[2J", "\x9b", "\u202e") if letter in output}
    assert "\x1b[" in output  # Its own colours stay.


def test_line_ends_are_kept() -> None:
    out = io.StringIO()
    Console(file=out, width=80).print("one\ntwo")
    assert out.getvalue() == "one\ntwo\n"
