"""``baps users``: manage the users of the server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.markup import escape
from rich.table import Table

from baps.cli.audit_log import add_audit_line, private_files
from baps.cli.console import Console
from baps.cli.options import Adapters
from baps.site.roles import Role

if TYPE_CHECKING:
    from baps.site.users import Users

app = typer.Typer(
    no_args_is_help=True,
    callback=private_files,
    help="Add, list, renew and remove users of the server, and change their roles.",
)

Name = Annotated[str, typer.Argument(help="Name of the user: letters, digits and . @ + - _")]
File = Annotated[str, typer.Option(metavar="FILE", help="File of users. Default: that of the settings.")]
Days = Annotated[Optional[int], typer.Option(help="Days until the token expires. Default: never.")]  # noqa: UP045 (typer)
console = Console(soft_wrap=True, highlight=False)


def _users(file: str) -> Users:
    from baps.errors import InputError
    from baps.site.settings import read_settings
    from baps.site.users import Users

    path = Path(file).expanduser() if file else read_settings({}).users
    if path is None:
        raise InputError("Give the file of users: --file /etc/baps/users.json, or BAPS_USERS in the environment.")
    return Users(path)


@app.command()
def add(
    name: Name,
    role: Annotated[Role, typer.Option(help="Role of the user.")],
    file: File = "",
    days: Days = None,
    adapters: Adapters = "",
) -> None:
    """Add a user and print their token, once."""
    token = _users(file).add(name, role, days)
    add_audit_line("add a user", adapters=adapters, about=name, as_role=role.value)
    _print_token(name, token)


@app.command("list")
def list_users(file: File = "") -> None:
    """List users, their roles, and when their tokens were made and expire."""
    table = Table("user", "role", "token made", "token expires")
    for user in _users(file).all().values():
        ends = f"{user.expires:%Y-%m-%d}" if user.expires else "never"
        table.add_row(
            escape(user.name), user.role.value, f"{user.created:%Y-%m-%d}", "has expired" if user.expired else ends
        )
    console.print(table)


@app.command()
def renew(name: Name, file: File = "", days: Days = None, adapters: Adapters = "") -> None:
    """Give a user a new token and print it, once. The old one becomes invalid at once."""
    token = _users(file).renew(name, days)
    add_audit_line("renew a user's token", adapters=adapters, about=name)
    _print_token(name, token)


@app.command("role")
def change_role(
    name: Name, role: Annotated[Role, typer.Argument(help="The new role.")], file: File = "", adapters: Adapters = ""
) -> None:
    """Give a user another role, at once, also in a running server. The token stays valid."""
    _users(file).change_role(name, role)
    add_audit_line("change a user's role", adapters=adapters, about=name, as_role=role.value)
    console.print(f"{name} is {role.value} now.", markup=False)


@app.command()
def remove(name: Name, file: File = "", adapters: Adapters = "") -> None:
    """Remove a user. The token becomes invalid at once, also in a running server."""
    _users(file).remove(name)
    add_audit_line("remove a user", adapters=adapters, about=name)
    console.print(f"{name} is removed.", markup=False)


def _print_token(name: str, token: str) -> None:
    console.print(
        f"The token of {name}, which is printed only once. Use it as the password in Slicer and on the login page:"
    )
    console.print(token, markup=False)
