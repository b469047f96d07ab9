"""The page about users, for admins: add, renew and remove users, change roles, and see and end sessions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from fastapi import Form, HTTPException, Request
from fastapi.responses import Response

from baps.errors import BapsError, InputError, NotFoundError
from baps.server.auth.authenticator import cookie_for
from baps.server.auth.browser_sessions import BrowserSessions
from baps.server.request_context import Principal, context_of
from baps.server.web.layout import principal_of, redirect, render, require_own_page
from baps.server.web.state import Change, WebState, state_of
from baps.site.roles import Role
from baps.site.users import Check, User, Users
from baps.utils.redaction import shorten_paths

ROLES = {
    Role.ANNOTATOR: "segments and saves labels",
    Role.TRAINER: "also trains, publishes adapters, restores and confirms labels",
    Role.ADMIN: "also manages users and reads the audit file",
}
"""What each role may do."""

ACTIONS = {"renew": "Give {} a new token", "role": "Change the role of {}", "remove": "Remove {}"}
"""Titles of the changes of a user."""

_SELF, _LAST_ADMIN = "self", "last-admin"


@dataclass(frozen=True)
class SignedIn:
    """A session of a browser.

    Attributes:
        id: Name of the session.
        user: Name of the user.
        role: Role of the user now.
        by: How the user signed in, ``token`` or ``openid``.
        started: When it began.
        last_used: When the user last used it.
        is_own: Whether it is that of the browser that shows the page.
    """

    id: str
    user: str
    role: Role
    by: str
    started: datetime
    last_used: datetime
    is_own: bool


def people_page(request: Request) -> Response:
    """Show the users, their sessions, and a form to add a user."""
    return _page(request)


def confirm(request: Request, action: str = "", user: str = "") -> Response:
    """Ask whether to change a user, and say what changes.

    Raises:
        NotFoundError: If there is no such user or action.
    """
    if action not in ACTIONS:
        raise NotFoundError(f"There is no such change. Known ones: {', '.join(ACTIONS)}.")
    users = _users(state_of(request)).all()
    if user not in users:
        raise NotFoundError("There is no such user. Open the page People again.")
    warnings = consequences(users, user, action, principal_of(request))
    return render(
        request,
        "web/people-confirm.html",
        action=action,
        title=ACTIONS[action].format(user),
        user=users[user],
        warnings=warnings,
        roles=ROLES,
    )


def add(request: Request, name: str = Form(""), role: str = Form(""), days: str = Form("")) -> Response:
    """Add a user, and show the token, once."""
    require_own_page(request)
    state, name = state_of(request), name.strip()
    context_of(request).details["about"] = name[:64]
    users = _users(state)
    try:
        chosen = _read_role(role)
        token = users.add(name, chosen, _read_days(days))
    except InputError as error:
        return _page(request, 400, str(error), {"name": name, "role": role, "days": days})
    context_of(request).details["as_role"] = chosen.value
    _note(request, name, f"added {name}")
    return _token_page(request, name, token)


def renew(request: Request, name: str = Form(""), days: str = Form(""), shown: str = Form("")) -> Response:
    """Give a user a new token, and show it, once. The old one becomes invalid."""
    require_own_page(request)
    context_of(request).details["about"] = name[:64]
    check = _check(request, name, "renew", shown, told="")
    token = _users(state_of(request)).renew(name, _read_days(days), check)
    _note(request, name, f"gave {name} a new token")
    return _token_page(request, name, token)


def change_role(
    request: Request, name: str = Form(""), role: str = Form(""), shown: str = Form(""), told: str = Form("")
) -> Response:
    """Give a user another role, from the next request on."""
    require_own_page(request)
    chosen = _read_role(role)
    context_of(request).details.update(about=name[:64], as_role=chosen.value)
    action = "renew" if chosen is Role.ADMIN else "role"  # An admin who stays one loses nothing.
    _users(state_of(request)).change_role(name, chosen, _check(request, name, action, shown, told))
    _note(request, name, f"made {name} {chosen.value}")
    return redirect(request, "/web/people")


def remove(request: Request, name: str = Form(""), shown: str = Form(""), told: str = Form("")) -> Response:
    """Remove a user. The token becomes invalid at once."""
    require_own_page(request)
    context_of(request).details["about"] = name[:64]
    _users(state_of(request)).remove(name, _check(request, name, "remove", shown, told))
    _note(request, name, f"removed {name}")
    return redirect(request, "/web/people")


def end_session(request: Request, session: str = Form("")) -> Response:
    """Sign a browser out.

    Raises:
        HTTPException: 409 if the session has ended already.
    """
    require_own_page(request)
    user = state_of(request).authenticator.sessions.end_by_id(session)
    if user is None:
        raise HTTPException(409, "This session has ended already: the user signed out, or another admin ended it.")
    context_of(request).details["about"] = user.name
    return redirect(request, "/web/people")


ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", "/web/people", people_page),
    ("GET", "/web/people/confirm", confirm),
    ("POST", "/web/people/add", add),
    ("POST", "/web/people/renew", renew),
    ("POST", "/web/people/role", change_role),
    ("POST", "/web/people/remove", remove),
    ("POST", "/web/people/end-session", end_session),
]


def consequences(users: Mapping[str, User], name: str, action: str, principal: Principal) -> dict[str, str]:
    """List what an admin must know before a change: that it is about oneself, or leaves no admin.

    Args:
        users: The users.
        name: The user to change.
        action: ``renew``, ``role`` (to one that is less than admin) or ``remove``.
        principal: Who changes the user.

    Returns:
        Sentences by the name of each consequence.
    """
    warnings = {}
    is_self = principal.by == "token" and principal.name == name
    if is_self and action == "renew":
        warnings[_SELF] = "This is your own token. You are signed out, and sign in again with the new one."
    elif is_self and action == "role":
        warnings[_SELF] = "This is your own role. With another one than admin, you cannot open this page again."
    elif is_self:
        warnings[_SELF] = "This is you. You are signed out at once, and cannot sign in again."
    others = (one for one in users.values() if one.name != name and one.role is Role.ADMIN and not one.expired)
    user = users.get(name)
    if action != "renew" and user and user.role is Role.ADMIN and not any(others):
        warnings[_LAST_ADMIN] = (
            "No other user of this list with a valid token is an admin. Afterwards, only a person at the server can "
            "manage users, with baps users add, or an admin of the OpenID provider, if there is one."
        )
    return warnings


def list_sessions(state: WebState, own: set[str]) -> list[SignedIn]:
    """List the sessions of browsers, the last used first.

    Args:
        state: What the pages share.
        own: Names of the sessions of the browser that asks.

    Returns:
        The sessions.

    Raises:
        BapsError: If the users cannot be read.
    """
    return [
        SignedIn(one.id, user.name, user.role, user.by, one.started, one.last_used, one.id in own)
        for one, user in state.authenticator.active_sessions()
    ]


def _page(request: Request, status: int = 200, sentence: str = "", sent: Mapping[str, str] | None = None) -> Response:
    state = state_of(request)
    values = cookie_for(request.scope).values(request.headers.get("cookie", ""))
    users, sessions, problem = list[User](), list[SignedIn](), ""
    try:
        users = list(state.authenticator.users.all().values()) if state.authenticator.users else []
        sessions = list_sessions(state, set(map(BrowserSessions.id_of, values)))
    except BapsError as error:
        problem = shorten_paths(str(error))
    return render(
        request,
        "web/people.html",
        status,
        users=users,
        sessions=sessions,
        problem=problem,
        sentence=sentence,
        sent={"name": "", "role": "", "days": "", **(sent or {})},
        roles=ROLES,
        has_file=state.authenticator.users is not None,
        has_openid=state.authenticator.openid is not None,
    )


def _token_page(request: Request, name: str, token: str) -> Response:
    is_self = principal_of(request).name == name
    return render(request, "web/people-token.html", name=name, token=token, is_self=is_self)


def _users(state: WebState) -> Users:
    if state.authenticator.users is None:
        raise NotFoundError(
            "This server has no file of users. Make one with baps users add, and name it in the setting users."
        )
    return state.authenticator.users


def _check(request: Request, name: str, action: str, shown: str, told: str) -> Check:
    """Return a check that nobody changed a user since the page was shown, and that its reader knew what would follow.

    It runs while the file of users is locked.
    """
    state, principal = state_of(request), principal_of(request)

    def check(users: Mapping[str, User]) -> None:
        user = users.get(name)
        if user is None or user.state != shown:
            raise HTTPException(409, _changed_meanwhile(state, name, user))
        if action == "renew":
            return
        untold = [text for key, text in consequences(users, name, action, principal).items() if key not in told.split()]
        if untold:
            raise HTTPException(409, f"Nothing was changed. {' '.join(untold)} Open the page again to go on.")

    return check


def _changed_meanwhile(state: WebState, name: str, user: User | None) -> str:
    change = state.user_changes.get(name)
    if change:
        happened = f"{change.user or 'Another page'} {change.sentence} at {change.time.astimezone():%H:%M}"
    else:
        happened = "a command or another server changed the users"
    now = f"{user.role.value}, with a token of {user.created.astimezone():%Y-%m-%d %H:%M}" if user else "not a user"
    return f"Nothing was changed. Your page is out of date: {happened}. {name[:64]} is {now}. Open the page again."


def _note(request: Request, name: str, sentence: str) -> None:
    """Keep who changed a user, for others whose page shows the user as before."""
    changes = state_of(request).user_changes
    changes.pop(name, None)
    changes[name] = Change(principal_of(request).name, sentence, datetime.now(timezone.utc))
    while len(changes) > 1000:
        changes.pop(next(iter(changes)))


def _read_role(text: str) -> Role:
    try:
        return Role(text)
    except ValueError:
        raise InputError(f"There is no such role. Choose one of {', '.join(role.value for role in Role)}.") from None


def _read_days(text: str) -> int | None:
    text = text.strip()
    if text and not (text.isdecimal() and text.isascii() and len(text) < 9):
        raise InputError("Give the days until the token expires as a whole number, or leave them empty for never.")
    return int(text) if text else None
