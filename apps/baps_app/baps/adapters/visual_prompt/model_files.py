"""Find the files of a network: in a local folder, in the hub's cache on this machine, or else on the hub."""

from __future__ import annotations

import re
from pathlib import Path

from baps.errors import BapsError


def find_model_file(source: str, name: str) -> Path:
    """Find one file of a model, and download it if it is not on this machine.

    Args:
        source: a local folder, or a hub id, ``owner/name`` or ``owner/name@revision``.
        name: name of the file.

    Returns:
        Path of the file.

    Raises:
        BapsError: if the file is missing and cannot be downloaded.
    """
    if Path(source).exists():
        if not (path := Path(source) / name).is_file():
            raise BapsError(f"{source} is not a folder that holds {name}. Give the encoder's folder as its source.")
        return path
    repository, _, revision = source.removeprefix("hf-hub:").partition("@")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", repository):  # Owner and name, not a path.
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
    except Exception as error:  # The client raises many types; each means that the hub cannot supply the file.
        raise BapsError(
            f"{name} of the encoder was not found: {source!r} is not on this machine, and the hub did not supply it "
            f"({type(error).__name__}). Fetch the model where huggingface.co can be reached, copy it here, and give "
            "its path as the encoder's source."
        ) from error
