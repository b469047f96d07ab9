"""Hold what the pages of one application share: the app, values that are computed in threads, and pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from fastapi import Request

from baps.server.web.adapter_table import AdapterTable
from baps.server.web.background import BackgroundValue
from baps.server.web.images import ImageCounter, ImageCounts
from baps.server.web.pictures import Pictures
from baps.site.doctor import Finding, examine_server

if TYPE_CHECKING:
    from baps.server.app import BapsApp

_COUNT_SECONDS, _EXAMINE_SECONDS = 15.0, 300.0
"""Age from which labels are counted, and the site is examined, again."""


@dataclass(frozen=True)
class Change:
    """A change of what serves, which a person made on a page.

    Attributes:
        user: Name of the user, or "" if no login is needed.
        sentence: What the user did, without the subject.
        time: When.
    """

    user: str
    sentence: str
    time: datetime


@dataclass
class WebState:
    """What the pages of one application share.

    Attributes:
        app: The app.
        counts: Numbers of images and labels.
        findings: Problems of the site, by the name of the check.
        adapters: The adapters of the site.
        pictures: Draws labelled images with masks.
        changes: The last change by a person, by model and organ.
    """

    app: BapsApp
    counts: BackgroundValue[ImageCounts] = field(init=False)
    findings: BackgroundValue[dict[str, Finding]] = field(init=False)
    adapters: AdapterTable = field(init=False)
    pictures: Pictures = field(init=False)
    changes: dict[tuple[str, str], Change] = field(default_factory=dict)

    def __post_init__(self) -> None:
        app = self.app
        self.counts = BackgroundValue(ImageCounter(app.datastore, app.site).count, _COUNT_SECONDS)
        self.findings = BackgroundValue(lambda: examine_server(app.site, app.studies), _EXAMINE_SECONDS)
        self.adapters = AdapterTable(app)
        self.pictures = Pictures(app)


def state_of(request: Request) -> WebState:
    """Return the state of the application that a request was sent to.

    Args:
        request: The request.
    """
    state: WebState = request.app.state.web
    return state
