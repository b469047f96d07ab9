"""Who asks for what, for as long as a request lasts."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastapi import Request

from baps.server.access_policy import RoutePolicy
from baps.site.roles import Role


@dataclass(frozen=True)
class Principal:
    """One who is let in.

    Attributes:
        name: of the user; "" on a machine that asks for no login.
        role: what they may do.
        by: how they are known: ``token``, ``openid``, or ``machine``.
    """

    name: str
    role: Role
    by: str


LOCAL_MACHINE = Principal("", Role.ADMIN, "machine")
"""Whoever sits at a machine that nobody else reaches."""


@dataclass
class RequestContext:
    """What becomes known of a request while it is answered, for the audit file.

    Attributes:
        kind: of the request, or None if nothing of the kind is served.
        asker: or None while nobody is known.
        image: name of the image that it is about, or "".
        adapter: that answered, or "".
        images: names of several that it is about: those of an archive, or that objects belong to.
        also: what it did beside, each with a line of its own.
    """

    kind: RoutePolicy | None
    asker: Principal | None = None
    image: str = ""
    adapter: str = ""
    images: list[str] = field(default_factory=list)
    also: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of who asks, or "" where nobody has to say it."""
        return self.asker.name if self.asker else ""

    @property
    def confirms(self) -> bool:
        """Whether their word on the labels of others counts: of a trainer or an admin who has signed in."""
        asker = self.asker
        return asker is not None and asker.by != "machine" and asker.role.may(Role.TRAINER)


def asked(request: Request) -> RequestContext:
    """What the guard knows of a request."""
    found: RequestContext = request.scope["baps.asked"]
    return found
