"""What commands print."""

from __future__ import annotations

import io

import pytest
from rich.table import Table
from rich.text import Text

from baps.cli.console import Console

EVIL = "spleen\x1b[2J\x9b31m\u202e"


@pytest.mark.parametrize("kind", ["text", "markup", "table", "json", "styled"])
def test_values_do_not_reach_the_terminal_as_commands(kind: str) -> None:
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
    said = out.getvalue()
    assert "spleen" in said
    assert not {"\x1b[2J", "\x9b", "\u202e"} & {letter for letter in ("\x1b[2J", "\x9b", "\u202e") if letter in said}
    assert "\x1b[" in said  # Its own colours stay.


def test_lines_stay_lines() -> None:
    out = io.StringIO()
    Console(file=out, width=80).print("one\ntwo")
    assert out.getvalue() == "one\ntwo\n"
