"""Every version of every label of a folder of studies; the newest is the one that is served.

A version is a folder, ``labels-history/<tag>/<image>/<time>``, with the label's file and what is known of it. It is
written under a hidden name, and is saved when it gets its own: until then the label is the old one, from then on the
new one. What is served, the file in ``labels/<tag>`` and its line in MONAI Label's list, follows. A version whose name
ends in ``.saving`` was saved when the machine stopped in between; it is served at the next start, or before the next
save.

Whoever saves a label of an image holds the lock of that label: the threads of a server, its trainings, the command
line. The list of the folder has a lock of its own, which is held while it is replaced and no longer. Who reads needs
neither, for nothing is ever half written.
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
"""Kinds of labels: which a person stands by, which one is still at, and a model's that nobody has confirmed."""

logger = logging.getLogger(__name__)

_NAME = "%Y%m%dT%H%M%S.%fZ"
_NAMED = re.compile(r"(\d{8}T\d{6}\.\d{6}Z)(\.saving)?")
_SAVING = ".saving"
_USED = "used"
"""A file in the folder of a version that a training has used."""
_REMOVED = "removed.jsonl"
"""What is known of the versions of a label that were removed."""
_CONVERTED = ".converted"
"""Where a folder of studies keeps images that the viewers cannot open themselves."""
_DIFFERS = (
    "The label was not saved: what was written differs from what was sent. The earlier label, if there is one, is as "
    "it was. Ask who runs the server to check its disk."
)


class OutdatedError(BapsError):
    """A label was saved meanwhile that what is to be saved does not know of."""


@dataclass(frozen=True)
class Version:
    """A label as it was saved once.

    Attributes:
        name: when it was saved, in UTC.
        file: the label.
        sha256: of the file.
        info: what is known of it: ``author``, ``authors`` by organ, ``annotated_slices``, ``model``, ``confirmed``.
            ``found`` where somebody had laid the file there, ``restored`` names the version that it repeats,
            ``disputed`` by organ the version that counts instead until a trainer confirms this one.
    """

    name: str
    file: Path
    sha256: str
    info: dict[str, Any]

    @property
    def is_evidence(self) -> bool:
        """Whether a training has used it, or may have: one that was found in the folder was there before."""
        return self.file.with_name(_USED).exists() or bool(self.info.get("found"))

    @property
    def suffix(self) -> str:
        """What the file's name ends in."""
        return self.file.name.removeprefix("label")

    @property
    def when(self) -> datetime:
        """It was saved."""
        return datetime.strptime(self.name, _NAME).replace(tzinfo=timezone.utc)


class LabelHistory:
    """The labels of one folder of studies.

    Args:
        studies: the folder.
        lock: of its list, shared with whoever else changes the list in this process.
    """

    def __init__(self, studies: Path, lock: FileLock | None = None) -> None:
        self._studies = studies
        self._folder = studies / FOLDER
        self.changing = lock or FileLock(studies / ".lock")

    @contextmanager
    def saving(self, image: str, tag: str) -> Iterator[None]:
        """Hold the lock of a label; a thread may take it twice.

        Raises:
            NotFoundError: if there is no such image.
        """
        self._known(image)
        with self.lock(image, tag):
            yield

    def lock(self, image: str, tag: str) -> FileLock:
        """Return the lock of a label, also of an image that is gone. It is taken before ``changing``."""
        place = self._folder / tag / image
        place.mkdir(parents=True, exist_ok=True)
        return _lock(place)

    def labels(self) -> list[tuple[str, str]]:
        """Image and tag of all labels that have versions, or had some."""
        places = self._folder.glob("*/*")
        return sorted((one.name, one.parent.name) for one in places if self._names(one) or (one / _REMOVED).exists())

    def versions(self, image: str, tag: str) -> list[Version]:
        """Those of a label, the oldest first; of a damaged one ``info`` says nothing but ``damaged``."""
        place, found = self._folder / tag / image, []
        for name in self._names(place):
            try:
                found.append(_read(place / name))
            except BapsError as error:
                found.append(Version(name, place / name, "", {"damaged": str(error)}))
        return found

    def served(self, image: str, tag: str) -> tuple[Path, dict[str, Any]]:
        """The file of a label that is served, and what is known of it.

        Raises:
            NotFoundError: if there is no such image, or it has no such label.
        """
        known = self._known(image).get(tag)
        file = self._served(self._folder / tag / image, known["ext"]) if known else None
        if known is None or file is None or not file.is_file():
            raise NotFoundError(f"There is no label {tag} of {image}. See `baps labels list`.")
        return file, known["info"]

    def image_file(self, image: str) -> Path:
        """The file of an image, or the folder of its series; of one volume of several, what it was converted to.

        Raises:
            NotFoundError: if there is no such image.
        """
        self._known(image)
        listed = self._list()
        folder = self._studies / listed["images_dir"] if "images_dir" in listed else images_folder(self._studies)
        file = folder / f"{image}{listed['objects'][image]['image']['ext']}"
        return file if file.exists() else self._studies / _CONVERTED / f"{image}.nii.gz"

    def version(self, image: str, tag: str, name: str) -> Version:
        """One of them.

        Raises:
            NotFoundError: if there is no such version.
            BapsError: if its file is not what was saved.
        """
        if name not in self._names(self._folder / tag / image):
            raise NotFoundError(f"The label {tag} of {image} has no version {name}. See `baps labels list`.")
        found = _read(self._folder / tag / image / name)
        if _sha256(found.file) != found.sha256:
            raise BapsError(f"The version {name} is damaged: its hash is another one. Take it from your backup.")
        return found

    def newest(self, image: str, tag: str) -> tuple[str, Version | None]:
        """Return the name of the newest version, or "", and that version if it is served.

        What somebody laid into the folder, or changed there, becomes a version.

        Raises:
            NotFoundError: if there is no such image.
            BapsError: if the version is damaged.
        """
        with self.saving(image, tag):
            place = self._folder / tag / image
            served = self._up_to_date(image, place)
            names = self._names(place)
            is_served = bool(names) and served is not None and self._served(place, served["ext"]).is_file()
            return names[-1] if names else "", _read(place / names[-1]) if is_served else None

    def fixed_copy(self, image: str, tag: str, served: Path) -> Path | None:
        """The file of the newest version, which stays what it is, if that is what is served.

        Args:
            image, tag: which label.
            served: its file.
        """
        names = self._names(self._folder / tag / image)
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
        after: str | None = None,
    ) -> str:
        """Save a label and serve it; what was served before, however it came there, is kept as a version.

        Args:
            image, tag: which label.
            file: the new one.
            suffix: what its name ends in: ``.nii.gz``.
            info: what is known of it.
            check: reads what was written, before it is served; what it raises ends the save.
            after: the name of the newest version that it takes account of, "" for none; unsaid, it knows of all.

        Returns:
            The version's name.

        Raises:
            NotFoundError: if there is no such image.
            OutdatedError: if another one is the newest.
            OSError: if it cannot be written; the earlier label is as it was.
            BapsError: if what was written is not what was given, or as ``check``; the earlier label is as it was.
        """
        with self.saving(image, tag):
            place = self._folder / tag / image
            self._up_to_date(image, place)
            if after is not None and after != (self._names(place) or [""])[-1]:
                raise OutdatedError(f"The label {tag} of {image} was changed by others meanwhile. Submit it again.")
            written = self._write(place, file, suffix, info)
            try:
                if check:
                    check(_read(written))
            except BaseException:
                shutil.rmtree(written, ignore_errors=True)
                raise
            return self._serve(written, self._next_name(place))

    def check_fits(self, image: str, version: Version) -> None:
        """Read a version as trainings do; to be given to ``restore``.

        Raises:
            InputError: if it does not fit its image any more, or marks nothing.
        """
        source = self.image_file(image)
        as_it_was = "The label was not restored; the one that is served is as it was."
        try:
            marked = read_label_map(version.file, read_volume(source), source).foreground().any()
        except InputError as error:
            raise InputError(f"{error} {as_it_was}") from error
        if not marked:
            raise InputError(f"This version marks nothing. {as_it_was}")

    def restore(self, image: str, tag: str, name: str, check: Callable[[Version], None] | None = None) -> str:
        """Save an earlier version again, as the newest.

        Args:
            image, tag: which label.
            name: of the version.
            check: as in ``save``.

        Raises:
            NotFoundError: if there is no such image or version.
            BapsError: if the version is damaged, or the disk is full, or as ``check``; nothing was changed then.
        """
        try:
            with self.saving(image, tag):
                version = self.version(image, tag, name)
                info = {**version.info, "restored": name}
                return self.save(image, tag, version.file, version.suffix, info, check)
        except OSError as error:
            raise BapsError(f"The label could not be restored ({error.strerror}). It is as it was.") from error

    def confirm(self, image: str, tag: str, organs: Collection[str] = (), by: str = "") -> list[str]:
        """Have what was disputed of a label count, as a new version of it.

        Args:
            image, tag: which label.
            organs: that are confirmed; all that are disputed where it is empty.
            by: who confirms them.

        Returns:
            The organs.

        Raises:
            NotFoundError: if there is no such image, or it has no such label.
            InputError: if none of the organs is disputed.
            BapsError: if the newest version is damaged, or the disk is full; nothing was changed then.
        """
        try:
            with self.saving(image, tag):
                _, version = self.newest(image, tag)
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
                    left = {organ: one for organ, one in (info.get(key) or {}).items() if organ not in confirmed}
                    info[key] = left
                self.save(image, tag, version.file, version.suffix, info)
                return confirmed
        except OSError as error:
            raise BapsError(f"The label could not be confirmed ({error.strerror}). It is as it was.") from error

    def note_used(self, files: Iterable[Path]) -> None:
        """Note that a training uses labels, so that no rule removes them; files that are no versions are passed over.

        Raises:
            OSError: if it cannot be written.
        """
        with self.changing:
            for file in files:
                if self._folder in file.parents and file.exists():
                    file.with_name(_USED).touch()

    def removed(self, image: str, tag: str) -> list[dict[str, str]]:
        """What is known of the versions of a label that were removed: ``version``, ``removed`` (time) and ``why``."""
        file = self._folder / tag / image / _REMOVED
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def remove(self, image: str, tag: str, names: Sequence[str], why: str, served: bool = False) -> None:
        """Remove versions of a label for good. That they were there, and why they are gone, is kept.

        Args:
            image, tag: which label.
            names: of the versions.
            why: a few words.
            served: remove the label that is served, too; else the newest version must stay.

        Raises:
            NotFoundError: if there is no such version.
            InputError: if it is the newest, which is served.
            BapsError: if they cannot be removed.
        """
        place = self._folder / tag / image
        try:
            with self.lock(image, tag), self.changing:
                self._finish(place)
                known = self._names(place)
                if unknown := [name for name in names if name not in known]:
                    raise NotFoundError(f"The label {tag} of {image} has no version {unknown[0]}.")
                if not served and known and known[-1] in names:
                    raise InputError(
                        f"The version {known[-1]} is the newest, which is served. Restore another one first."
                    )
                if served:
                    self._withdraw(image, tag)
                now = datetime.now(timezone.utc).isoformat(timespec="seconds")
                with (place / _REMOVED).open("a") as tombs:
                    tombs.writelines(json.dumps({"version": name, "removed": now, "why": why}) + "\n" for name in names)
                flush_to_disk(place / _REMOVED)
                for name in names:  # Hidden first: what a kill leaves of it is removed at the next start.
                    hidden = (place / name).rename(place / f"{PARTIAL}{name}")
                    shutil.rmtree(hidden)
                flush_to_disk(place)
        except OSError as error:
            raise BapsError(f"The versions could not all be removed ({error.strerror}). Try again.") from error

    def _withdraw(self, image: str, tag: str) -> None:
        """Serve no label of an image any more."""
        listed = self._list()
        known = listed["objects"].get(image, {}).get("labels", {}).pop(tag, None)
        if known:
            self._served(self._folder / tag / image, known["ext"]).unlink(missing_ok=True)
            with atomic_write(self._studies / LIST, ".json") as partial:
                partial.write_text(json.dumps(listed, indent=2))

    def repair(self) -> None:
        """Finish what was saved when the machine stopped, remove what was not, and list what the list has lost."""
        for place in sorted(self._folder.glob("*/*")):
            if not place.is_dir():
                continue
            with _lock(place):
                try:
                    self._finish(place)
                    self._list_again(place)
                except NotFoundError:  # An image that is gone, or not here now.
                    continue
                except (BapsError, OSError) as error:  # Of one label among many.
                    logger.warning("A label could not be repaired (%s).", type(error).__name__)
        with self.changing:
            for left in (*self._studies.glob(f"{PARTIAL}*.json"), *self._studies.glob(f"labels/*/{PARTIAL}*.label")):
                left.unlink()

    def _up_to_date(self, image: str, place: Path) -> dict[str, Any] | None:
        """Have versions of all that is served, and what was saved be served; what the list says of it."""
        self._finish(place)
        served: dict[str, Any] | None = self._known(image).get(place.parent.name)
        if served:
            self._keep_found(place, served)
        return served

    @staticmethod
    def _names(place: Path) -> list[str]:
        """Of the versions of a label."""
        if not place.is_dir():
            return []
        return sorted(named[1] for one in place.iterdir() if (named := _NAMED.fullmatch(one.name)))

    def _next_name(self, place: Path) -> str:
        """Of a version that is saved now; a clock that was put back must not make it an older one."""
        when = datetime.now(timezone.utc)
        if names := self._names(place):
            when = max(
                when, datetime.strptime(names[-1], _NAME).replace(tzinfo=timezone.utc) + timedelta(microseconds=1)
            )
        return when.strftime(_NAME)

    def _finish(self, place: Path) -> None:
        """Serve what was saved and not served, and remove what was not saved; who calls it holds the label's lock."""
        for left in place.glob(f"{PARTIAL}*"):
            shutil.rmtree(left)
        for saved in sorted(place.glob(f"*{_SAVING}")):
            self._serve(saved, saved.name.removesuffix(_SAVING))

    def _list_again(self, place: Path) -> None:
        """Have the list say of a file what is known of it, if it has lost that."""
        names, served = self._names(place), self._known(place.name).get(place.parent.name)
        if not names or not served or served["info"].get("version") == names[-1]:
            return
        newest, file = _read(place / names[-1]), self._served(place, served["ext"])
        if file.exists() and _sha256(file) == newest.sha256:
            self._serve(place / newest.name, newest.name)

    def _keep_found(self, place: Path, served: dict[str, Any]) -> None:
        """Keep a file that somebody laid into the folder of labels, or changed there."""
        file, names = self._served(place, served["ext"]), self._names(place)
        if not file.is_file():
            return
        with suppress(BapsError):  # Damaged: then what is served is kept again.
            if names and _read(place / names[-1]).sha256 == _sha256(file):
                return
        found = self._write(place, file, served["ext"], {**rename_info_keys(served["info"]), "found": True})
        found.rename(place / self._next_name(place))
        flush_to_disk(place)

    def _served(self, place: Path, suffix: str) -> Path:
        return self._studies / "labels" / place.parent.name / f"{place.name}{suffix}"

    def _write(self, place: Path, file: Path, suffix: str, info: Mapping[str, Any]) -> Path:
        """A version that is whole and on the disk, and has no name yet."""
        self._folder.mkdir(exist_ok=True)
        place.mkdir(parents=True, exist_ok=True)
        version = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=place))
        try:
            copy, said = version / f"label{suffix}", version / "version.json"
            shutil.copyfile(file, copy)
            if _sha256(copy) != _sha256(file):
                raise BapsError(_DIFFERS)
            said.write_text(json.dumps({"sha256": _sha256(copy), "info": dict(info)}, indent=2))
            for path in (copy, said, version, place, place.parent, self._folder):
                flush_to_disk(path)
        except BaseException:
            shutil.rmtree(version, ignore_errors=True)
            raise
        return version

    def _serve(self, folder: Path, name: str) -> str:
        """Save a version, if it is not yet, and put it where labels are served from."""
        place, version = folder.parent, _read(folder)
        image, tag = place.name, place.parent.name
        target = self._served(place, version.suffix)
        target.parent.mkdir(parents=True, exist_ok=True)
        saved = place / f"{name}{_SAVING}"
        with self.changing:
            try:
                # The list comes last: it must not name a file that is not there, or another process strikes it out.
                with atomic_write(self._studies / LIST, ".json") as listed, atomic_write(target, ".label") as label:
                    shutil.copyfile(version.file, label)
                    if _sha256(label) != version.sha256:
                        raise BapsError(_DIFFERS)
                    whole = self._list()
                    info = {**version.info, "ts": int(time.time()), "name": target.name, "version": name}
                    whole["objects"][image]["labels"][tag] = {"ext": version.suffix, "info": info}
                    listed.write_text(json.dumps(whole))
                    for path in (label, listed):
                        flush_to_disk(
                            path
                        )  # All that needs room has been written now; only names are changed from here on.
                    folder.rename(saved)
                    flush_to_disk(place)
            except BaseException:
                if folder.name.startswith(PARTIAL):
                    shutil.rmtree(folder, ignore_errors=True)
                raise
            for other in target.parent.iterdir():
                if other != target and not other.name.startswith(".") and self._belongs(other, image, whole):
                    other.unlink()
        saved.rename(place / name)
        flush_to_disk(place)
        return name

    @staticmethod
    def _belongs(label: Path, image: str, listed: Mapping[str, Any]) -> bool:
        """Whether a file is a label of an image: a.seg.nrrd is one of a, unless there is an image a.seg."""
        stem = file_stem(label)
        return (stem if stem in listed["objects"] else label_stem(label)) == image

    def _list(self) -> dict[str, Any]:
        try:
            listed: dict[str, Any] = json.loads((self._studies / LIST).read_text())
        except FileNotFoundError:
            listed = {"objects": {}}
        return listed

    def _known(self, image: str) -> dict[str, Any]:
        """What the list says of an image's labels, by tag."""
        try:
            known: dict[str, Any] = self._list()["objects"][image]["labels"]
        except KeyError:
            raise NotFoundError(f"There is no image {image!r} among the studies. Nothing was saved.") from None
        return known


def check_tag(tag: str) -> None:
    """Refuse a tag of labels that means nothing here; each would be a folder of its own.

    Raises:
        InputError: if it is one.
    """
    if tag not in TAGS:
        raise InputError(f"There are labels of the tags {', '.join(TAGS)}, not {printable(tag)[:40]!r}.")


def _lock(place: Path) -> FileLock:
    """The lock of a label, one for all who share it in this process."""
    return FileLock(place / ".lock", mode=0o600, is_singleton=True)


def _read(folder: Path) -> Version:
    """A version.

    Raises:
        BapsError: if it was damaged.
    """
    folder = folder if folder.exists() else folder.with_name(f"{folder.name}{_SAVING}")
    try:
        said = json.loads((folder / "version.json").read_text())
        (file,) = folder.glob("label*")
        return Version(folder.name.removesuffix(_SAVING), file, said["sha256"], rename_info_keys(said["info"]))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise BapsError(
            f"The version {folder.name} of a label is damaged ({type(error).__name__}). Take it from your backup."
        ) from error


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
