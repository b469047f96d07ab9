"""Every kind of request that is answered, and who may make it: the one table. What is not here is not served."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qs

from baps.site.roles import Role

ANNOTATOR, TRAINER, ADMIN = Role


@dataclass(frozen=True)
class RoutePolicy:
    """A kind of request.

    Attributes:
        methods: of HTTP.
        path: that matches all of it.
        meaning: for the audit file, and for the sentence to who may not.
        role: that is needed, or None where nobody need be known.
        noted: whether each one gets a line in the audit file.
        large: whether it brings images.
        repeats: whether viewers ask so often that only one in ten minutes gets a line, of each user and image.
        option: a name of the query that makes it this kind, and with which values; "" for any but a false one.
    """

    methods: tuple[str, ...]
    path: re.Pattern[str]
    meaning: str
    role: Role | None
    noted: bool = False
    large: bool = False
    repeats: bool = False
    option: tuple[str, str] | None = None

    def fits(self, method: str, path: str, query: Mapping[str, Sequence[str]]) -> bool:
        """Whether a request is of this kind."""
        if method not in self.methods or not self.path.fullmatch(path):
            return False
        if self.option is None:
            return True
        name, values = self.option
        given = [value.strip().lower() for value in query.get(name, ())]
        return any(value in values.split() if values else value not in _FALSE for value in given)


_FALSE = ("", "0", "f", "false", "n", "no", "off")
"""What FastAPI takes for False."""


def _kind(
    methods: str,
    path: str,
    meaning: str,
    role: Role | None,
    noted: bool = False,
    large: bool = False,
    repeats: bool = False,
    option: tuple[str, str] | None = None,
) -> RoutePolicy:
    return RoutePolicy(tuple(methods.split()), re.compile(path), meaning, role, noted, large, repeats, option)


_READ = "GET HEAD"

KINDS = (
    # To be let in.
    _kind(_READ, r"/auth/?", "ask whether to sign in", None),
    _kind("POST", r"/auth/token/?", "sign in", None, noted=True),
    _kind("GET", r"/login", "see the login page", None),
    _kind("POST", r"/login", "sign in", None, noted=True),
    _kind("GET", r"/login/openid", "go to the OpenID provider", None),
    _kind("GET", r"/login/openid/return", "sign in", None, noted=True),
    _kind("GET", r"/logout", "see the login page", None),
    _kind("POST", r"/logout", "sign out", None, noted=True),
    _kind(_READ, r"/auth/token/valid/?", "check a token", ANNOTATOR),
    # What the viewers do.
    _kind(_READ, r"/|/info/?|/openapi\.json|/docs|/favicon\.ico|/static/.*|/ohif(/.*)?", "look", ANNOTATOR),
    _kind(_READ, r"/datastore/(image|label)(/.*)?", "fetch an image or a label", ANNOTATOR, noted=True),
    _kind(_READ, r"/datastore/dataset/?", "fetch all labelled images", ANNOTATOR, noted=True),
    _kind(_READ, r"/datastore/?", "list the images", ANNOTATOR, noted=True, option=("output", "all train")),
    _kind(_READ, r"/session/.*", "fetch the image of a session", ANNOTATOR, noted=True, option=("image", "")),
    _kind(_READ, r"/proxy/dicom/.*", "read from the PACS", ANNOTATOR, noted=True, repeats=True),
    _kind(_READ, r"/datastore/.*|/train/.*|/session/.*|/progress/.*", "look", ANNOTATOR),
    _kind("POST", r"/infer/[^/]+", "segment", ANNOTATOR, noted=True, large=True),
    _kind("POST", r"/activelearning/[^/]+", "next sample", ANNOTATOR, noted=True),
    _kind("PUT", r"/datastore/label", "save a label", ANNOTATOR, noted=True, large=True),
    _kind("PUT", r"/datastore/(image)?", "add an image", ANNOTATOR, noted=True, large=True),
    _kind("POST", r"/proxy/dicom/.*", "store in the PACS", ANNOTATOR, noted=True, large=True),
    _kind("PUT", r"/session/?", "open a session", ANNOTATOR, noted=True, large=True),
    _kind("DELETE", r"/session/.*", "close a session", ANNOTATOR, noted=True),
    _kind("DELETE", r"/progress/.*", "end a long answer", ANNOTATOR, noted=True),
    # What changes what everybody gets.
    _kind("POST", r"/train/.*", "start a training", TRAINER, noted=True),
    _kind("DELETE", r"/train/.*", "stop the training", TRAINER, noted=True),
    # What tells of people.
    _kind("GET", "/audit", "read who did what", ADMIN, noted=True),
)


def find_policy(method: str, path: str, query: str = "") -> RoutePolicy | None:
    """The kind of a request, or None if nothing of the kind is served.

    Args:
        method, path: of the request.
        query: as it was sent.
    """
    given = parse_qs(query, keep_blank_values=True)
    return next((kind for kind in KINDS if kind.fits(method, path, given)), None)
