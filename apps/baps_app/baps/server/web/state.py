"""Hold what the pages of one application share: the app, values that are computed in threads, and pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime
from typing import TYPE_CHECKING

from fastapi import Request

from baps.annotations.drafts import DraftStore
from baps.server.auth.authenticator import Authenticator
from baps.server.labels.drafts import DraftImages
from baps.server.strategies.preview import Preview
from baps.server.web.adapter_table import AdapterTable
from baps.server.web.background import BackgroundValue
from baps.server.web.draft_pictures import DraftPictures
from baps.server.web.images import ImageCounter, ImageCounts
from baps.server.web.label_differences import Differences
from baps.server.web.label_numbers import LabelNumbers
from baps.server.web.label_table import LabelTable, list_labels
from baps.server.web.next_sample import preview_strategies
from baps.server.web.pictures import Pictures
from baps.server.web.readers import Readers, ReaderTable
from baps.site.audit import AuditFile
from baps.site.audit_check import AuditCheck, check_audit
from baps.site.audit_search import Week, count_by_week
from baps.site.doctor import Finding, examine_server
from baps.site.drafts import open_drafts

if TYPE_CHECKING:
    from baps.server.app import BapsApp

_COUNT_SECONDS, _EXAMINE_SECONDS = 15.0, 300.0
"""Age from which labels are counted, and the site is examined, again."""

_LIST_SECONDS, _READERS_SECONDS = 10.0, 30.0
"""Age from which labels are listed, and people are compared, again."""

_AUDIT_SECONDS, _USAGE_SECONDS = 600.0, 300.0
"""Age from which the audit file is checked, and usage is counted, again. Both read the whole file."""


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
        authenticator: Users, and sessions of browsers.
        counts: Numbers of images and labels.
        findings: Problems of the site, by the name of the check.
        adapters: The adapters of the site.
        pictures: Draws labelled images with masks.
        changes: The last change by a person, by model and organ.
        labels: The labels of the site.
        numbers: Volumes and slices of labels.
        differences: Compares versions of labels.
        readers: Agreement of people who drew the same organ on the same image.
        next_samples: What each strategy of Next Sample would offer.
        drafts: Masks that nnInteractive's clients left behind.
        draft_images: Finds the images of drafts.
        draft_pictures: Draws drafts on their images.
        label_changes: The last change of each label by a person on a page, by image and tag.
        audit: The audit file.
        audit_check: Whether its chain is intact.
        usage: What was done in each week.
        user_changes: The last change of each user by an admin, by name.
    """

    app: BapsApp
    authenticator: Authenticator
    counts: BackgroundValue[ImageCounts] = field(init=False)
    findings: BackgroundValue[dict[str, Finding]] = field(init=False)
    adapters: AdapterTable = field(init=False)
    pictures: Pictures = field(init=False)
    changes: dict[tuple[str, str], Change] = field(default_factory=dict)
    labels: BackgroundValue[LabelTable] = field(init=False)
    numbers: LabelNumbers = field(init=False)
    differences: Differences = field(init=False)
    readers: BackgroundValue[ReaderTable] = field(init=False)
    next_samples: BackgroundValue[dict[str, Preview]] = field(init=False)
    drafts: DraftStore = field(init=False)
    draft_images: DraftImages = field(init=False)
    draft_pictures: DraftPictures = field(init=False)
    label_changes: dict[tuple[str, str], Change] = field(default_factory=dict)
    audit: AuditFile = field(init=False)
    audit_check: BackgroundValue[AuditCheck] = field(init=False)
    usage: BackgroundValue[list[Week]] = field(init=False)
    user_changes: dict[str, Change] = field(default_factory=dict)

    def __post_init__(self) -> None:
        app = self.app
        counter = ImageCounter(app.datastore, app.site)
        self.counts = BackgroundValue(counter.count, _COUNT_SECONDS)
        self.findings = BackgroundValue(lambda: examine_server(app.site, app.studies), _EXAMINE_SECONDS)
        self.adapters = AdapterTable(app)
        self.pictures = Pictures(app)
        self.labels = BackgroundValue(lambda: list_labels(app.datastore(), counter.known_patient), _LIST_SECONDS)
        self.numbers = LabelNumbers(app.datastore, app.site.labels)
        self.differences = Differences(app)
        self.readers = BackgroundValue(Readers(app).compare, _READERS_SECONDS)
        self.next_samples = BackgroundValue(lambda: preview_strategies(app), _COUNT_SECONDS)
        self.drafts, self.draft_images = open_drafts(app.site), DraftImages(app.datastore)
        self.draft_pictures = DraftPictures(self.drafts, self.draft_images)
        self.audit = audit = AuditFile(app.site.audit_file, app.site.audit_max_mb, app.site.audit_keep)
        self.audit_check = BackgroundValue(lambda: check_audit(audit.file), _AUDIT_SECONDS)
        self.usage = BackgroundValue(lambda: count_by_week(audit, date.today()), _USAGE_SECONDS)


def state_of(request: Request) -> WebState:
    """Return the state of the application that a request was sent to.

    Args:
        request: The request.
    """
    state: WebState = request.app.state.web
    return state
