"""Keep every version of every label of a folder of studies; the newest version is served.

A version is a folder, ``labels-history/<tag>/<image>/<time>``, with the label's file and information about it. It is
written under a hidden name, and is saved when it is renamed: before that the label is the old one, afterwards the new
one. The file in ``labels/<tag>``, which is served, and its entry in MONAI Label's list follow. A version whose name
ends in ``.saving`` was saved when the machine stopped in between; it is served at the next start, or before the next
save.

Every thread or process that saves a label of an image holds the lock of that label: in a server, a training or on the
command line. The list of the folder has its own lock, which is held only while the list is replaced. Readers need
neither lock, because files are replaced atomically.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock

from baps.annotations.label_info import rename_info_keys
from baps.errors import BapsError, InputError, NotFoundError
from baps.io import file_stem, images_folder, label_stem, read_label_map, read_volume
from baps.utils.atomic_write import PARTIAL, atomic_write, flush_to_disk
from baps.utils.printable import printable

FOLDER = "labels-history"
LIST = "datastore_v2.json"
"""MONAI Label's list of images and labels."""

TAGS = ("final", "draft", "original")
"""Tags of labels: confirmed by a person, in progress, and made by a model that nobody has confirmed."""

logger = logging.getLogger(__name__)

_TIME_FORMAT = "%Y%m%dT%H%M%S.%fZ"
_VERSION_NAME = re.compile(r"(\d{8}T\d{6}\.\d{6}Z)(\.saving)?")
_SAVING_SUFFIX = ".saving"
_USED_MARKER = "used"
"""A file in the folder of a version that a training has used."""
_REMOVED_LOG = "removed.jsonl"
"""Log of the versions of a label that were removed."""
_CONVERTED_FOLDER = ".converted"
"""Folder of images that were converted because the viewers cannot open the originals."""
_DIFFERENT_CONTENT = (
    "The label was not saved: what was written differs from what was sent. The earlier label, if there is one, is "
    "unchanged. Ask the operator of the server to check its disk."
)


class OutdatedError(BapsError):
    """Another label was saved meanwhile that the label to be saved does not take into account."""


@dataclass(frozen=True)
class Version:
    """A saved version of a label.

    Attributes:
        name: time at which it was saved, in UTC.
        file: the label.
        sha256: SHA-256 of the file.
        info: information about the label: ``author``, ``authors`` by organ, ``annotated_slices``, ``model``,
            ``confirmed``. ``found`` if somebody placed the file there, ``restored`` names the version that it repeats,
            ``restored_by`` the person who restored it, and ``disputed`` names, by organ, the version that trainings use
            until a trainer confirms this one.
    """

    name: str
    file: Path
    sha256: str
    info: dict[str, Any]

    @property
    def used_in_training(self) -> bool:
        """Whether a training has used it, or may have: a version that was found in the folder existed before."""
        return self.file.with_name(_USED_MARKER).exists() or bool(self.info.get("found"))

    @property
    def suffix(self) -> str:
        """The suffix of the file's name."""
        return self.file.name.removeprefix("label")

    @property
    def saved_at(self) -> datetime:
        """The time at which it was saved."""
        return datetime.strptime(self.name, _TIME_FORMAT).replace(tzinfo=timezone.utc)


class LabelHistory:
    """The labels of one folder of studies.

    Args:
        studies: the folder.
        lock: lock of its list, shared with everything else that changes the list in this process.
    """

    def __init__(self, studies: Path, lock: FileLock | None = None) -> None:
        self._studies = studies
        self._folder = studies / FOLDER
        self.list_lock = lock or FileLock(studies / ".lock")

    @contextmanager
    def locked(self, image: str, tag: str) -> Iterator[None]:
        """Hold the lock of a label; a thread may take it twice.

        Args:
            image: name of the image.
            tag: tag of the label.

        Raises:
            NotFoundError: if there is no such image.
        """
        self._listed_labels(image)
        with self.lock(image, tag):
            yield

    def lock(self, image: str, tag: str) -> FileLock:
        """Return the lock of a label, even if its image was removed. It must be taken before ``list_lock``.

        Args:
            image: name of the image.
            tag: tag of the label.

        Returns:
            The lock.
        """
        folder = self._folder / tag / image
        folder.mkdir(parents=True, exist_ok=True)
        return _lock(folder)

    def labels(self) -> list[tuple[str, str]]:
        """List the image and tag of all labels that have versions, or had some.

        Returns:
            Pairs of image and tag, in order.
        """
        places = self._folder.glob("*/*")
        return sorted(
            (one.name, one.parent.name) for one in places if self._version_names(one) or (one / _REMOVED_LOG).exists()
        )

    def versions(self, image: str, tag: str) -> list[Version]:
        """List the versions of a label, oldest first; the ``info`` of a damaged one only has ``damaged``.

        Args:
            image: name of the image.
            tag: tag of the label.

        Returns:
            The versions.
        """
        folder, versions = self._folder / tag / image, []
        for name in self._version_names(folder):
            try:
                versions.append(_read(folder / name))
            except BapsError as error:
                versions.append(Version(name, folder / name, "", {"damaged": str(error)}))
        return versions

    def version_names(self, image: str, tag: str) -> tuple[str, ...]:
        """List the names of the versions of a label, oldest first, without reading them.

        Args:
            image: name of the image.
            tag: tag of the label.

        Returns:
            The names.
        """
        return tuple(self._version_names(self._folder / tag / image))

    def served(self, image: str, tag: str) -> tuple[Path, dict[str, Any]]:
        """Return the file of the served label, and the information about it.

        Args:
            image: name of the image.
            tag: tag of the label.

        Returns:
            The file and the information.

        Raises:
            NotFoundError: if there is no such image, or it has no such label.
        """
        known = self._listed_labels(image).get(tag)
        file = self._served_file(self._folder / tag / image, known["ext"]) if known else None
        if known is None or file is None or not file.is_file():
            raise NotFoundError(f"There is no label {tag} of {image}. See `baps labels list`.")
        return file, known["info"]

    def image_file(self, image: str) -> Path:
        """Return the file of an image, or the folder of its series; for one volume of several, the converted file.

        Args:
            image: name of the image.

        Returns:
            The file or folder.

        Raises:
            NotFoundError: if there is no such image.
        """
        self._listed_labels(image)
        listed = self._list()
        folder = self._studies / listed["images_dir"] if "images_dir" in listed else images_folder(self._studies)
        file = folder / f"{image}{listed['objects'][image]['image']['ext']}"
        return file if file.exists() else self._studies / _CONVERTED_FOLDER / f"{image}.nii.gz"

    def version(self, image: str, tag: str, name: str) -> Version:
        """Return a version of a label.

        Args:
            image: name of the image.
            tag: tag of the label.
            name: name of the version.

        Returns:
            The version.

        Raises:
            NotFoundError: if there is no such version.
            BapsError: if its file differs from what was saved.
        """
        if name not in self._version_names(self._folder / tag / image):
            raise NotFoundError(f"The label {tag} of {image} has no version {name}. See `baps labels list`.")
        version = _read(self._folder / tag / image / name)
        if _sha256(version.file) != version.sha256:
            raise BapsError(f"The version {name} is damaged: its hash differs. Restore it from your backup.")
        return version

    def newest(self, image: str, tag: str) -> tuple[str, Version | None]:
        """Return the newest version of a label.

        A file that somebody placed in the folder, or changed there, becomes a version first.

        Args:
            image: name of the image.
            tag: tag of the label.

        Returns:
            The name of the newest version, or "", and that version if it is served, or None.

        Raises:
            NotFoundError: if there is no such image.
            BapsError: if the version is damaged.
        """
        with self.locked(image, tag):
            folder = self._folder / tag / image
            served = self._synchronise(image, folder)
            names = self._version_names(folder)
            is_served = bool(names) and served is not None and self._served_file(folder, served["ext"]).is_file()
            return names[-1] if names else "", _read(folder / names[-1]) if is_served else None

    def immutable_file(self, image: str, tag: str, served: Path) -> Path | None:
        """Return the file of the newest version, which never changes, if it equals what is served.

        Args:
            image: name of the image.
            tag: tag of the label.
            served: the served file.

        Returns:
            The file, or None.
        """
        names = self._version_names(self._folder / tag / image)
        with suppress(BapsError, OSError):
            if names and _sha256(served) == (newest := self.version(image, tag, names[-1])).sha256:
                return newest.file
        return None

    def save(
        self,
        image: str,
        tag: str,
        file: Path,
        suffix: str,
        info: Mapping[str, Any],
        check: Callable[[Version], None] | None = None,
        base_version: str | None = None,
    ) -> str:
        """Save a label and serve it; what was served before is kept as a version, even if it was placed there by hand.

        Args:
            image: name of the image.
            tag: tag of the label.
            file: file of the new label.
            suffix: suffix of its name, such as ``.nii.gz``.
            info: information about the label.
            check: validates the written version before it is served; an exception cancels the save.
            base_version: name of the newest version that the label takes into account, "" for none, or None for all.

        Returns:
            The name of the version.

        Raises:
            NotFoundError: if there is no such image.
            OutdatedError: if another version is the newest.
            OSError: if it cannot be written; the earlier label is unchanged.
            BapsError: if what was written differs from what was given, or as ``check``; the earlier label is unchanged.
        """
        with self.locked(image, tag):
            folder = self._folder / tag / image
            self._synchronise(image, folder)
            if base_version is not None and base_version != (self._version_names(folder) or [""])[-1]:
                raise OutdatedError(f"The label {tag} of {image} was changed by others meanwhile. Submit it again.")
            partial_version = self._write(folder, file, suffix, info)
            try:
                if check:
                    check(_read(partial_version))
            except BaseException:
                shutil.rmtree(partial_version, ignore_errors=True)
                raise
            return self._serve(partial_version, self._next_name(folder))

    def check_fits(self, image: str, version: Version) -> None:
        """Check that trainings can use a version; suitable for ``restore``.

        Args:
            image: name of the image.
            version: the version.

        Raises:
            InputError: if it no longer fits its image, or is empty.
        """
        source = self.image_file(image)
        unchanged = "The label was not restored; the served label is unchanged."
        try:
            marked = read_label_map(version.file, read_volume(source), source).foreground().any()
        except InputError as error:
            raise InputError(f"{error} {unchanged}") from error
        if not marked:
            raise InputError(f"This version is empty. {unchanged}")

    def restore(
        self,
        image: str,
        tag: str,
        name: str,
        check: Callable[[Version], None] | None = None,
        by: str = "",
        shown: str | None = None,
    ) -> str:
        """Save an earlier version again, as the newest.

        Args:
            image: name of the image.
            tag: tag of the label.
            name: name of the version.
            check: see ``save``.
            by: name of the person who restores it.
            shown: name of the newest version that this person knows of, or None for any.

        Returns:
            The name of the new version.

        Raises:
            NotFoundError: if there is no such image or version.
            OutdatedError: if another version than ``shown`` is the newest.
            BapsError: if the version is damaged, or the disk is full, or as ``check``; nothing is changed then.
        """
        try:
            with self.locked(image, tag):
                version = self.version(image, tag, name)
                info = {**version.info, "restored": name, "restored_by": by}
                return self.save(image, tag, version.file, version.suffix, info, check, shown)
        except OSError as error:
            raise BapsError(f"The label could not be restored ({error.strerror}). It is unchanged.") from error

    def confirm(
        self, image: str, tag: str, organs: Collection[str] = (), by: str = "", shown: str | None = None
    ) -> list[str]:
        """Confirm disputed organs of a label, so that trainings use them; this saves a new version.

        Args:
            image: name of the image.
            tag: tag of the label.
            organs: organs to confirm; empty for all that are disputed.
            by: name of the person who confirms them.
            shown: name of the newest version that this person knows of, or None for any.

        Returns:
            The confirmed organs.

        Raises:
            NotFoundError: if there is no such image, or it has no such label.
            OutdatedError: if another version than ``shown`` is the newest.
            InputError: if none of the organs is disputed.
            BapsError: if the newest version is damaged, or the disk is full; nothing is changed then.
        """
        try:
            with self.locked(image, tag):
                newest, version = self.newest(image, tag)
                if shown not in (None, newest):
                    raise OutdatedError(f"The label {tag} of {image} was changed by others meanwhile.")
                if version is None:
                    raise NotFoundError(f"There is no label {tag} of {image}. See `baps labels list`.")
                disputed = version.info.get("disputed") or {}
                confirmed = [organ for organ in disputed if organ in organs or not organs]
                if not confirmed or not set(organs) <= set(disputed):
                    known = f"These are: {', '.join(disputed)}." if disputed else "Nothing of it is."
                    raise InputError(f"The label {tag} of {image} is not disputed there. {known}")
                info = {**version.info, "confirmed_by": {**(version.info.get("confirmed_by") or {})}}
                info["confirmed_by"] |= dict.fromkeys(confirmed, by)
                for key in ("disputed", "basis"):
                    remaining = {organ: one for organ, one in (info.get(key) or {}).items() if organ not in confirmed}
                    info[key] = remaining
                self.save(image, tag, version.file, version.suffix, info)
                return confirmed
        except OSError as error:
            raise BapsError(f"The label could not be confirmed ({error.strerror}). It is unchanged.") from error

    def mark_used(self, files: Iterable[Path]) -> None:
        """Mark labels as used by a training, so that no retention rule removes them.

        Args:
            files: files of labels; those that are not versions are ignored.

        Raises:
            OSError: if a mark cannot be written.
        """
        with self.list_lock:
            for file in files:
                if self._folder in file.parents and file.exists():
                    file.with_name(_USED_MARKER).touch()

    def removed(self, image: str, tag: str) -> list[dict[str, str]]:
        """List the removed versions of a label: ``version``, ``removed`` (time) and ``why``.

        Args:
            image: name of the image.
            tag: tag of the label.

        Returns:
            One entry per removed version, in the order of their removal.
        """
        file = self._folder / tag / image / _REMOVED_LOG
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def remove(self, image: str, tag: str, names: Sequence[str], why: str, served: bool = False) -> None:
        """Remove versions of a label permanently. Their names, and why they were removed, are kept.

        Args:
            image: name of the image.
            tag: tag of the label.
            names: names of the versions.
            why: the reason, in a few words.
            served: remove the served label, too; otherwise the newest version must stay.

        Raises:
            NotFoundError: if there is no such version.
            InputError: if one is the newest, which is served.
            BapsError: if they cannot be removed.
        """
        folder = self._folder / tag / image
        try:
            with self.lock(image, tag), self.list_lock:
                self._finish_saving(folder)
                known = self._version_names(folder)
                if unknown := [name for name in names if name not in known]:
                    raise NotFoundError(f"The label {tag} of {image} has no version {unknown[0]}.")
                if not served and known and known[-1] in names:
                    raise InputError(
                        f"The version {known[-1]} is the newest, which is served. Restore another one first."
                    )
                if served:
                    self._unserve(image, tag)
                now = datetime.now(timezone.utc).isoformat(timespec="seconds")
                with (folder / _REMOVED_LOG).open("a") as log:
                    log.writelines(json.dumps({"version": name, "removed": now, "why": why}) + "\n" for name in names)
                flush_to_disk(folder / _REMOVED_LOG)
                for name in names:  # Hide it first: what a kill leaves behind is removed at the next start.
                    hidden = (folder / name).rename(folder / f"{PARTIAL}{name}")
                    shutil.rmtree(hidden)
                flush_to_disk(folder)
        except OSError as error:
            raise BapsError(f"The versions could not all be removed ({error.strerror}). Try again.") from error

    def _unserve(self, image: str, tag: str) -> None:
        """Stop serving a label."""
        listed = self._list()
        known = listed["objects"].get(image, {}).get("labels", {}).pop(tag, None)
        if known:
            self._served_file(self._folder / tag / image, known["ext"]).unlink(missing_ok=True)
            with atomic_write(self._studies / LIST, ".json") as partial:
                partial.write_text(json.dumps(listed, indent=2))

    def repair(self) -> None:
        """Finish interrupted saves, remove what was not saved, and restore lost entries of the list."""
        for folder in sorted(self._folder.glob("*/*")):
            if not folder.is_dir():
                continue
            with _lock(folder):
                try:
                    self._finish_saving(folder)
                    self._restore_list_entry(folder)
                except NotFoundError:  # The image was removed, or is unavailable now.
                    continue
                except (BapsError, OSError) as error:  # Continue with the other labels.
                    logger.warning("A label could not be repaired (%s).", type(error).__name__)
        with self.list_lock:
            for remaining in (
                *self._studies.glob(f"{PARTIAL}*.json"),
                *self._studies.glob(f"labels/*/{PARTIAL}*.label"),
            ):
                remaining.unlink()

    def _synchronise(self, image: str, folder: Path) -> dict[str, Any] | None:
        """Make a version of what is served, and serve what was saved; return the list's entry of the label."""
        self._finish_saving(folder)
        served: dict[str, Any] | None = self._listed_labels(image).get(folder.parent.name)
        if served:
            self._keep_external(folder, served)
        return served

    @staticmethod
    def _version_names(folder: Path) -> list[str]:
        """List the names of a label's versions, oldest first."""
        if not folder.is_dir():
            return []
        return sorted(named[1] for one in folder.iterdir() if (named := _VERSION_NAME.fullmatch(one.name)))

    def _next_name(self, folder: Path) -> str:
        """Choose the name of a new version; a clock that was set back must not make it older than the others."""
        saved_at = datetime.now(timezone.utc)
        if names := self._version_names(folder):
            saved_at = max(
                saved_at,
                datetime.strptime(names[-1], _TIME_FORMAT).replace(tzinfo=timezone.utc) + timedelta(microseconds=1),
            )
        return saved_at.strftime(_TIME_FORMAT)

    def _finish_saving(self, folder: Path) -> None:
        """Serve what was saved but not served, and remove what was not saved; the caller holds the label's lock."""
        for remaining in folder.glob(f"{PARTIAL}*"):
            shutil.rmtree(remaining)
        for saved in sorted(folder.glob(f"*{_SAVING_SUFFIX}")):
            self._serve(saved, saved.name.removesuffix(_SAVING_SUFFIX))

    def _restore_list_entry(self, folder: Path) -> None:
        """Restore the list's information about a served file, if it was lost."""
        names, served = self._version_names(folder), self._listed_labels(folder.name).get(folder.parent.name)
        if not names or not served or served["info"].get("version") == names[-1]:
            return
        newest, file = _read(folder / names[-1]), self._served_file(folder, served["ext"])
        if file.exists() and _sha256(file) == newest.sha256:
            self._serve(folder / newest.name, newest.name)

    def _keep_external(self, folder: Path, served: dict[str, Any]) -> None:
        """Keep a file that somebody placed in the folder of labels, or changed there."""
        file, names = self._served_file(folder, served["ext"]), self._version_names(folder)
        if not file.is_file():
            return
        with suppress(BapsError):  # The version is damaged: keep what is served again.
            if names and _read(folder / names[-1]).sha256 == _sha256(file):
                return
        version = self._write(folder, file, served["ext"], {**rename_info_keys(served["info"]), "found": True})
        version.rename(folder / self._next_name(folder))
        flush_to_disk(folder)

    def _served_file(self, folder: Path, suffix: str) -> Path:
        return self._studies / "labels" / folder.parent.name / f"{folder.name}{suffix}"

    def _write(self, folder: Path, file: Path, suffix: str, info: Mapping[str, Any]) -> Path:
        """Write a complete version to disk, under a hidden name.

        Raises:
            BapsError: if what was written differs from the file.
        """
        self._folder.mkdir(exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        version = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=folder))
        try:
            copy, record_file = version / f"label{suffix}", version / "version.json"
            shutil.copyfile(file, copy)
            if _sha256(copy) != _sha256(file):
                raise BapsError(_DIFFERENT_CONTENT)
            record_file.write_text(json.dumps({"sha256": _sha256(copy), "info": dict(info)}, indent=2))
            for path in (copy, record_file, version, folder, folder.parent, self._folder):
                flush_to_disk(path)
        except BaseException:
            shutil.rmtree(version, ignore_errors=True)
            raise
        return version

    def _serve(self, version_folder: Path, name: str) -> str:
        """Save a version, unless it is saved already, and copy it to where labels are served from.

        Raises:
            BapsError: if what was written differs from the version.
        """
        folder, version = version_folder.parent, _read(version_folder)
        image, tag = folder.name, folder.parent.name
        target = self._served_file(folder, version.suffix)
        target.parent.mkdir(parents=True, exist_ok=True)
        saved = folder / f"{name}{_SAVING_SUFFIX}"
        with self.list_lock:
            try:
                # The list comes last: an entry without a file would be deleted by another process.
                with atomic_write(self._studies / LIST, ".json") as listed, atomic_write(target, ".label") as label:
                    shutil.copyfile(version.file, label)
                    if _sha256(label) != version.sha256:
                        raise BapsError(_DIFFERENT_CONTENT)
                    listing = self._list()
                    info = {**version.info, "ts": int(time.time()), "name": target.name, "version": name}
                    listing["objects"][image]["labels"][tag] = {"ext": version.suffix, "info": info}
                    listed.write_text(json.dumps(listing))
                    for path in (label, listed):
                        flush_to_disk(path)  # Everything that needs space is written; only renames follow.
                    version_folder.rename(saved)
                    flush_to_disk(folder)
            except BaseException:
                if version_folder.name.startswith(PARTIAL):
                    shutil.rmtree(version_folder, ignore_errors=True)
                raise
            for other in target.parent.iterdir():
                if other != target and not other.name.startswith(".") and self._belongs(other, image, listing):
                    other.unlink()
        saved.rename(folder / name)
        flush_to_disk(folder)
        return name

    @staticmethod
    def _belongs(label: Path, image: str, listed: Mapping[str, Any]) -> bool:
        """Return whether a file is a label of an image: a.seg.nrrd belongs to a, unless there is an image a.seg."""
        stem = file_stem(label)
        return (stem if stem in listed["objects"] else label_stem(label)) == image

    def _list(self) -> dict[str, Any]:
        try:
            listed: dict[str, Any] = json.loads((self._studies / LIST).read_text())
        except FileNotFoundError:
            listed = {"objects": {}}
        return listed

    def _listed_labels(self, image: str) -> dict[str, Any]:
        """Return the list's entries of an image's labels, by tag.

        Raises:
            NotFoundError: if there is no such image.
        """
        try:
            known: dict[str, Any] = self._list()["objects"][image]["labels"]
        except KeyError:
            raise NotFoundError(f"There is no image {image!r} among the studies. Nothing was saved.") from None
        return known


def check_tag(tag: str) -> None:
    """Check that a tag of labels is known, because each tag has its own folder.

    Args:
        tag: the tag.

    Raises:
        InputError: if it is unknown.
    """
    if tag not in TAGS:
        raise InputError(f"The tag of a label must be one of {', '.join(TAGS)}, not {printable(tag)[:40]!r}.")


def _lock(folder: Path) -> FileLock:
    """Return the lock of a label, shared within this process."""
    return FileLock(folder / ".lock", mode=0o600, is_singleton=True)


def _read(folder: Path) -> Version:
    """Read a version.

    Raises:
        BapsError: if it is damaged.
    """
    folder = folder if folder.exists() else folder.with_name(f"{folder.name}{_SAVING_SUFFIX}")
    try:
        record_file = json.loads((folder / "version.json").read_text())
        (file,) = folder.glob("label*")
        return Version(
            folder.name.removesuffix(_SAVING_SUFFIX), file, record_file["sha256"], rename_info_keys(record_file["info"])
        )
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise BapsError(
            f"The version {folder.name} of a label is damaged ({type(error).__name__}). Restore it from your backup."
        ) from error


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
