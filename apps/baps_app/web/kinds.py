"""Every kind of request that is answered, and who may make it: the one table. What is not here is not served."""

from __future__ import annotations

import re
from dataclasses import dataclass

from baps.roles import Role

ANNOTATOR, TRAINER, ADMIN = Role


@dataclass(frozen=True)
class Kind:
    """A kind of request.

    Attributes:
        methods: of HTTP.
        path: that matches all of it.
        meaning: for the audit file, and for the sentence to who may not.
        role: that is needed, or None where nobody need be known.
        noted: whether each one gets a line in the audit file.
        large: whether it brings images.
    """

    methods: tuple[str, ...]
    path: re.Pattern[str]
    meaning: str
    role: Role | None
    noted: bool = False
    large: bool = False


def _kind(methods: str, path: str, meaning: str, role: Role | None, noted: bool = False, large: bool = False) -> Kind:
    return Kind(tuple(methods.split()), re.compile(path), meaning, role, noted, large)


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
    _kind(_READ, r"/datastore/(image|label)", "fetch an image or a label", ANNOTATOR, noted=True),
    _kind("GET", r"/datastore/label/rtstruct", "fetch an image or a label", ANNOTATOR, noted=True),
    _kind(_READ, r"/datastore/.*|/train/.*|/session/.*|/progress/.*|/proxy/dicom/.*", "look", ANNOTATOR),
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


def kind_of_request(method: str, path: str) -> Kind | None:
    """The kind of a request, or None if nothing of the kind is served."""
    return next((kind for kind in KINDS if method in kind.methods and kind.path.fullmatch(path)), None)
