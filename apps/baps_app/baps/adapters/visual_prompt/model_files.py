"""The files of a network: in a local folder, in the hub's cache on this machine, or else fetched from the hub."""

from __future__ import annotations

import re
from pathlib import Path

from baps.errors import BapsError


def model_file(source: str, name: str) -> Path:
    """A file of a model.

    Args:
        source: a local folder, or a hub id, ``owner/name`` or ``owner/name@revision``.
        name: of the file.

    Raises:
        BapsError: if it is not there and cannot be fetched.
    """
    if Path(source).exists():
        if not (path := Path(source) / name).is_file():
            raise BapsError(f"{source} is no folder that holds {name}. Give the encoder's folder as its source.")
        return path
    repository, _, revision = source.removeprefix("hf-hub:").partition("@")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", repository):  # Owner and name, and no path.
        raise BapsError(
            f"The encoder's source {source!r} does not exist. Give a folder on this machine, or a hub id, owner/name."
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        try:
            return Path(hf_hub_download(repository, name, revision=revision or None, local_files_only=True))
        except LocalEntryNotFoundError:
            return Path(hf_hub_download(repository, name, revision=revision or None))
    except Exception as error:  # The client raises many kinds; each means that the file cannot be had from the hub.
        raise BapsError(
            f"{name} of the encoder was not found: {source!r} is not on this machine, and the hub did not give it "
            f"({type(error).__name__}). Fetch the model where huggingface.co can be reached, copy it here, and give "
            "its path as the encoder's source."
        ) from error
