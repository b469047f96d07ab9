"""Next Sample goes on to the next image where one turns out to be unusable."""

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
"""After which no further image is tried."""

_FAILURES = 3
"""Images that the PACS does not give before it is said that it fails; one alone must not hold up the others."""


def first_usable(images: Iterable[str], datastore: Datastore) -> str | None:
    """Return the first image whose file can be had; of a PACS it is fetched.

    Args:
        images: names, the preferred first.
        datastore: that has them.

    Raises:
        InputError: if none of those that were tried can be used; it says why the last one cannot.
        BapsError: if the PACS does not answer, or the disk is full.
    """
    end, tried, failures = time.monotonic() + _SECONDS, 0, 0
    waiting: Iterator[str] = iter(images)
    while (image := next(waiting, None)) is not None:
        try:
            if datastore.get_image_uri(image):
                return image
            continue  # It is gone.
        except SeveralImagesError as error:
            waiting = chain(error.images, waiting)
        except InputError as error:
            logger.warning("Next Sample passed over an image that cannot be used.")
            tried += 1
            last = error
        except StorageError:
            raise
        except BapsError as error:
            logger.warning("Next Sample passed over an image that the PACS does not give.")
            failures += 1
            if failures == _FAILURES:
                raise
            failed = error
        if time.monotonic() >= end:
            break
    if failures:
        raise failed
    if tried:
        raise InputError(
            f"None of {tried} images that were tried can be used. Ask for another one. Of the last one: {last}"
        )
    return None
