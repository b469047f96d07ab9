"""Keep the last mask of an nnInteractive client's session as a draft: these clients have no button to submit."""

from __future__ import annotations

import logging

from baps.errors import BapsError
from baps.imaging.fingerprint import Fingerprint
from baps.server.access_policy import find_policy
from baps.server.nninteractive.sessions import Session
from baps.server.request_context import Principal
from baps.site.audit import AuditFile
from baps.site.drafts import open_drafts
from baps.site.settings import Settings

logger = logging.getLogger(__name__)


def may_save_labels(principal: Principal | None) -> bool:
    """Return whether a user may save labels, and so drafts.

    Args:
        principal: The user.
    """
    policy = find_policy("PUT", "/datastore/label")
    assert policy is not None
    return principal is not None and (policy.role is None or principal.role.may(policy.role))


class KeptDrafts:
    """Keeps drafts. Thread-safe.

    Args:
        settings: Settings of the site.
        audit: Audit file, which gets a line for each draft that is kept or removed.
    """

    def __init__(self, settings: Settings, audit: AuditFile) -> None:
        self._drafts, self._audit, self._is_on = open_drafts(settings), audit, settings.nninteractive_drafts > 0

    def keep(self, session: Session) -> None:
        """Keep the mask of a session if it has a label and a mask, and its user may save labels.

        If that fails, the session ends all the same, with a line in the log.

        Args:
            session: The session, in which nothing else happens meanwhile.
        """
        volume = session.volume
        if volume is None or volume.is_empty or not (session.label and session.may_save and self._is_on):
            return
        try:
            image = Fingerprint.of(volume.image.voxels)
            name, removed = self._drafts.add(session.label, session.owner, image, volume.mask, volume.image.spacing)
            if not name:
                logger.warning("A draft was not kept, because there is no room for it (nninteractive_drafts_mb).")
            else:
                self._add_line(session.owner, "keep a draft", name)
            for oldest in removed:
                self._add_line(None, "remove an old draft", oldest)
        except (BapsError, OSError, MemoryError) as error:
            logger.error("A draft could not be kept (%s).", type(error).__name__)

    def _add_line(self, user: str | None, what: str, draft: str) -> None:
        self._audit.add({"user": user, "role": None, "by": "server", "what": what, "image": None, "draft": draft})
