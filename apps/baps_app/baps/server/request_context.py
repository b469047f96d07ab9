"""The context of a request: its user, its policy, and the images and adapters that it uses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from baps.server.access_policy import RoutePolicy
from baps.site.roles import Role


@dataclass(frozen=True)
class Principal:
    """A user who has signed in, or anyone at a machine that needs no login.

    Attributes:
        name: Name of the user; "" if no login is needed.
        role: Role of the user.
        by: How the user signed in: ``token``, ``openid``, or ``machine``.
    """

    name: str
    role: Role
    by: str


LOCAL_MACHINE = Principal("", Role.ADMIN, "machine")
"""The user of a server that serves its own machine only."""


@dataclass
class RequestContext:
    """The context of a request, for its route and for the audit file.

    Attributes:
        policy: Its access policy, or None if the request is not served.
        principal: The user, or None before the user is known.
        image: Name of the image, or "".
        adapter: Adapters that the result was made with, or "".
        images: Names of the images, if there are several.
        further_actions: Further actions of the request. Each gets a line in the audit file.
        details: Further entries of its line in the audit file; no names of patients or images.
    """

    policy: RoutePolicy | None
    principal: Principal | None = None
    image: str = ""
    adapter: str = ""
    images: list[str] = field(default_factory=list)
    further_actions: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the user, or "" if no login is needed."""
        return self.principal.name if self.principal else ""

    @property
    def confirms(self) -> bool:
        """Whether the user may confirm labels of others: a trainer or an admin who has signed in."""
        principal = self.principal
        return principal is not None and principal.by != "machine" and principal.role.may(Role.TRAINER)


def context_of(request: Request) -> RequestContext:
    """Return the context of a request."""
    context: RequestContext = request.scope["baps.context"]
    return context
