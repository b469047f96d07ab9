"""``baps users``: who may use the server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.markup import escape
from rich.table import Table

from baps.cli.audit_log import note, private_files
from baps.cli.console import Console
from baps.cli.options import Adapters as Noted
from baps.site.roles import Role

if TYPE_CHECKING:
    from baps.site.users import Users

app = typer.Typer(
    no_args_is_help=True, callback=private_files, help="Add, list, renew and remove those who may use the server."
)

Name = Annotated[str, typer.Argument(help="Of the user: letters, digits and . @ + - _")]
File = Annotated[str, typer.Option(metavar="FILE", help="The file of users; by default that of the settings.")]
Days = Annotated[Optional[int], typer.Option(help="After which the token ends; by default never.")]  # noqa: UP045 (typer)
console = Console(soft_wrap=True, highlight=False)


def _users(file: str) -> Users:
    from baps.errors import InputError
    from baps.site.settings import read_settings
    from baps.site.users import Users

    path = Path(file).expanduser() if file else read_settings({}).users
    if path is None:
        raise InputError("Say which file: --file /etc/baps/users.json, or BAPS_USERS in the environment.")
    return Users(path)


@app.command()
def add(
    name: Name,
    role: Annotated[Role, typer.Option(help="What they may do.")],
    file: File = "",
    days: Days = None,
    adapters: Noted = "",
) -> None:
    """Add a user and show their token, once."""
    token = _users(file).add(name, role, days)
    note("add a user", adapters=adapters, about=name, as_role=role.value)
    _show(name, token)


@app.command("list")
def list_users(file: File = "") -> None:
    """Users, their roles, and when their tokens were made and end."""
    table = Table("user", "role", "token made", "token ends")
    for user in _users(file).all().values():
        ends = f"{user.expires:%Y-%m-%d}" if user.expires else "never"
        table.add_row(
            escape(user.name), user.role.value, f"{user.created:%Y-%m-%d}", "has ended" if user.expired else ends
        )
    console.print(table)


@app.command()
def renew(name: Name, file: File = "", days: Days = None, adapters: Noted = "") -> None:
    """Give a user a new token and show it, once; the old one ends at once."""
    token = _users(file).renew(name, days)
    note("renew a user's token", adapters=adapters, about=name)
    _show(name, token)


@app.command()
def remove(name: Name, file: File = "", adapters: Noted = "") -> None:
    """Remove a user, whose token ends at once, also in a server that runs."""
    _users(file).remove(name)
    note("remove a user", adapters=adapters, about=name)
    console.print(f"{name} is removed.", markup=False)


def _show(name: str, token: str) -> None:
    console.print(f"The token of {name}, which is shown only now. In Slicer and on the login page it is the password:")
    console.print(token, markup=False)
