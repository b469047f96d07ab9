"""Find an image that can be used, so that Next Sample skips broken ones."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from itertools import chain

from monailabel.interfaces.datastore import Datastore

from baps.errors import BapsError, InputError, StorageError
from baps.server.datastores.conversions import SeveralImagesError

logger = logging.getLogger(__name__)

_SECONDS = 20.0
"""Time after which no further image is tried."""

_FAILURES = 3
"""Images that the PACS fails to send before the error is reported; a single one is skipped."""


def first_usable(images: Iterable[str], datastore: Datastore) -> str | None:
    """Return the first image whose file can be read, or None; the image is fetched from a PACS.

    Args:
        images: Names, the preferred first.
        datastore: Datastore of the images.

    Raises:
        InputError: If none of the images that were tried can be used; the message has the reason of the last one.
        BapsError: If the PACS does not respond, or the disk is full.
    """
    end, unusable, failures = time.monotonic() + _SECONDS, 0, 0
    queue: Iterator[str] = iter(images)
    while (image := next(queue, None)) is not None:
        try:
            if datastore.get_image_uri(image):
                return image
            continue  # It was removed.
        except SeveralImagesError as error:
            queue = chain(error.images, queue)
        except InputError as error:
            logger.warning("Next Sample skipped an image that cannot be used.")
            unusable += 1
            last_reason = error
        except StorageError:
            raise
        except BapsError as error:
            logger.warning("Next Sample skipped an image that the PACS does not send.")
            failures += 1
            if failures == _FAILURES:
                raise
            last_failure = error
        if time.monotonic() >= end:
            break
    if failures:
        raise last_failure
    if unusable:
        raise InputError(
            f"None of {unusable} images that were tried can be used. Ask for another one. The reason for the last one: "
            f"{last_reason}"
        )
    return None
