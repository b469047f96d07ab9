"""Define the access policy: which requests are served, and which role each needs. Other requests are refused."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qs

from baps.site.roles import Role

ANNOTATOR, TRAINER, ADMIN = Role


@dataclass(frozen=True)
class RoutePolicy:
    """The policy for one kind of request.

    Attributes:
        methods: HTTP methods.
        path: Pattern that matches the whole path.
        action: What the request does, for the audit file and for the message to users who may not do it.
        role: Role that is needed, or None if the request needs no login.
        audited: Whether the audit file gets a line for each request.
        brings_images: Whether the body may be as large as an image.
        repeated: Whether viewers send it so often that the audit file gets one line per user and image in ten minutes.
        automatic: Whether pages send it on their own, so that it does not keep an idle session alive.
        option: Name of a query parameter, and the values, separated by spaces, with which this policy applies. ""
            stands for all values except false ones.
    """

    methods: tuple[str, ...]
    path: re.Pattern[str]
    action: str
    role: Role | None
    audited: bool = False
    brings_images: bool = False
    repeated: bool = False
    automatic: bool = False
    option: tuple[str, str] | None = None

    def matches(self, method: str, path: str, query: Mapping[str, Sequence[str]]) -> bool:
        """Return whether the policy applies to a request.

        Args:
            method: HTTP method.
            path: Path below the root path.
            query: Query parameters, each with its values.

        Returns:
            Whether the policy applies.
        """
        if method not in self.methods or not self.path.fullmatch(path):
            return False
        if self.option is None:
            return True
        name, values = self.option
        sent = [value.strip().lower() for value in query.get(name, ())]
        return any(value in values.split() if values else value not in _FALSE for value in sent)


_FALSE = ("", "0", "f", "false", "n", "no", "off")
"""Values that FastAPI reads as False."""


def _policy(
    methods: str,
    path: str,
    action: str,
    role: Role | None,
    audited: bool = False,
    brings_images: bool = False,
    repeated: bool = False,
    automatic: bool = False,
    option: tuple[str, str] | None = None,
) -> RoutePolicy:
    return RoutePolicy(
        tuple(methods.split()), re.compile(path), action, role, audited, brings_images, repeated, automatic, option
    )


_READ = "GET HEAD"
_NNINTERACTIVE = "/nninteractive(/[^/]+)?"

POLICIES = (
    # Signing in.
    _policy(_READ, r"/auth/?", "ask whether to sign in", None),
    _policy("POST", r"/auth/token/?", "sign in", None, audited=True),
    _policy("GET", r"/login", "see the login page", None),
    _policy("POST", r"/login", "sign in", None, audited=True),
    _policy("GET", r"/login/openid", "go to the OpenID provider", None),
    _policy("GET", r"/login/openid/return", "sign in", None, audited=True),
    _policy("GET", r"/logout", "see the login page", None),
    _policy("POST", r"/logout", "sign out", None, audited=True),
    _policy(_READ, r"/favicon\.ico", "see the icon of the login page", None),
    _policy(_READ, r"/auth/token/valid/?", "check a token", ANNOTATOR),
    # What viewers do.
    _policy(_READ, r"/|/info/?|/openapi\.json|/docs|/static/.*|/ohif(/.*)?", "look", ANNOTATOR),
    _policy(_READ, r"/web/adapters/picture", "see a picture of an image", ANNOTATOR, audited=True, repeated=True),
    _policy(_READ, r"/web/training-status|/web/train/events", "look", ANNOTATOR, automatic=True),
    _policy(
        _READ,
        r"/web/labels/(picture|differences|draft/picture)",
        "see a picture of an image",
        ANNOTATOR,
        True,
        repeated=True,
    ),
    _policy(_READ, r"/web/labels/(rows|draft/match)", "see the labels", ANNOTATOR, True, repeated=True, automatic=True),
    _policy(_READ, r"/web/labels(/.*)?", "see the labels", ANNOTATOR, audited=True, repeated=True),
    _policy(_READ, r"/web/people/audit", "read who did what", ADMIN, audited=True, repeated=True),
    _policy(_READ, r"/web/people(/.*)?", "see the users", ADMIN),
    _policy(_READ, r"/web/.*", "look", ANNOTATOR),
    _policy(_READ, r"/datastore/(image|label)(/.*)?", "fetch an image or a label", ANNOTATOR, audited=True),
    _policy(_READ, r"/datastore/dataset/?", "fetch all labelled images", ANNOTATOR, audited=True),
    _policy(_READ, r"/datastore/?", "list the images", ANNOTATOR, audited=True, option=("output", "all train")),
    _policy(_READ, r"/session/.*", "fetch the image of a session", ANNOTATOR, audited=True, option=("image", "")),
    _policy(_READ, r"/proxy/dicom/.*", "read from the PACS", ANNOTATOR, audited=True, repeated=True),
    _policy(_READ, r"/datastore/.*|/train/.*|/session/.*|/progress/.*", "look", ANNOTATOR),
    _policy("POST", r"/infer/[^/]+", "segment", ANNOTATOR, audited=True, brings_images=True),
    _policy("POST", r"/activelearning/[^/]+", "next sample", ANNOTATOR, audited=True),
    _policy("PUT", r"/datastore/label", "save a label", ANNOTATOR, audited=True, brings_images=True),
    _policy("PUT", r"/datastore/(image)?", "add an image", ANNOTATOR, audited=True, brings_images=True),
    _policy("POST", r"/proxy/dicom/.*", "store in the PACS", ANNOTATOR, audited=True, brings_images=True),
    _policy("PUT", r"/session/?", "open a session", ANNOTATOR, audited=True, brings_images=True),
    _policy("DELETE", r"/session/.*", "close a session", ANNOTATOR, audited=True),
    _policy("DELETE", r"/progress/.*", "end a long answer", ANNOTATOR, audited=True),
    # What nnInteractive's clients do. Their images have no name.
    _policy("GET", rf"{_NNINTERACTIVE}/(healthz|capabilities|lease_status)", "look", ANNOTATOR),
    _policy(
        "POST",
        rf"{_NNINTERACTIVE}/(claim|heartbeat|release|set_target_buffer|set_do_autozoom|undo|reset_interactions)",
        "keep a session of nnInteractive",
        ANNOTATOR,
    ),
    _policy("POST", rf"{_NNINTERACTIVE}/set_image", "open an unnamed image", ANNOTATOR, True, brings_images=True),
    _policy(
        "POST",
        rf"{_NNINTERACTIVE}/add_(scribble|lasso|initial_seg)_interaction",
        "segment an unnamed image",
        ANNOTATOR,
        audited=True,
        brings_images=True,
    ),
    _policy(
        "POST", rf"{_NNINTERACTIVE}/(add_(point|bbox)_interaction|predict)", "segment an unnamed image", ANNOTATOR, True
    ),
    # The masks that their clients left behind; annotators see their own.
    _policy("POST", r"/web/labels/draft/confirm", "confirm a draft", ANNOTATOR, audited=True),
    _policy("POST", r"/web/labels/draft/delete", "delete a draft", ANNOTATOR, audited=True),
    # What changes the results of all users.
    _policy("POST", r"/train/.*", "start a training", TRAINER, audited=True),
    _policy("DELETE", r"/train/.*", "stop the training", TRAINER, audited=True),
    _policy("POST", r"/web/train", "start a training", TRAINER, audited=True),
    _policy("POST", r"/web/train/stop", "stop the training", TRAINER, audited=True),
    _policy("POST", r"/web/adapters/publish", "publish an adapter", TRAINER, audited=True),
    _policy("POST", r"/web/adapters/rollback", "roll back an adapter", TRAINER, audited=True),
    _policy("POST", r"/web/adapters/withdraw", "withdraw an adapter", TRAINER, audited=True),
    _policy("POST", r"/web/labels/restore", "restore a label", TRAINER, audited=True),
    _policy("POST", r"/web/labels/confirm", "confirm a label", TRAINER, audited=True),
    # What admins do.
    _policy("POST", r"/web/people/add", "add a user", ADMIN, audited=True),
    _policy("POST", r"/web/people/renew", "renew a user's token", ADMIN, audited=True),
    _policy("POST", r"/web/people/role", "change a user's role", ADMIN, audited=True),
    _policy("POST", r"/web/people/remove", "remove a user", ADMIN, audited=True),
    _policy("POST", r"/web/people/end-session", "end a session", ADMIN, audited=True),
    _policy("GET", "/audit", "read who did what", ADMIN, audited=True),
)


def find_policy(method: str, path: str, query: str = "") -> RoutePolicy | None:
    """Return the policy for a request, or None if the request is not served.

    Args:
        method: HTTP method.
        path: Path below the root path.
        query: Query string, as it was sent.

    Returns:
        The policy, or None.
    """
    parameters = parse_qs(query, keep_blank_values=True)
    return next((policy for policy in POLICIES if policy.matches(method, path, parameters)), None)
