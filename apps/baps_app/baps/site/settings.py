"""Settings of a site: one frozen dataclass, filled from a file, the environment and the command line.

Later sources win: defaults, then the JSON file named by ``config``, then ``BAPS_<NAME>`` in the environment, then
``--conf name value``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from baps.blackbox import BLACK_BOXES, RemoteSettings
from baps.errors import InputError
from baps.site.app_folder import app_folder
from baps.site.openid_settings import read_openid
from baps.site.users import Users
from baps.utils.limits import MOST_MB

DEFAULT_ADAPTERS = app_folder() / "model" / "adapters"

_MOST_LETTERS = 64
"""Of a label: what DICOM keeps of it."""

_HOST_KEYS = {"server_mode", "models", "preload"}
"""What MONAI Label itself puts among the --conf pairs; not ours."""

_FILES = ("adapters", "audit", "openid", "organ_weights", "pacs_login", "patients", "users", "weights", "worklist")

_CHOICES = {"pacs_label_format": ("seg", "rtstruct", "both")}

_NUMBERS: dict[str, tuple[type[int] | type[float], str]] = {
    "cache_mb": (int, "a whole number of megabytes"),
    "ahead": (int, "a whole number of slices"),
    "organ_cache_gb": (int, "a whole number of gigabytes"),
    "remote_side": (int, "a whole number of pixels"),
    "remote_batch": (int, "a whole number of images"),
    "remote_timeout": (float, "a number of seconds"),
    "remote_patience": (float, "a number of seconds"),
    "label_versions_keep": (int, "a whole number of versions"),
    "label_versions_days": (int, "a whole number of days"),
    "cache_days": (int, "a whole number of days"),
    "audit_max_mb": (int, "a whole number of megabytes"),
    "audit_keep": (int, "a whole number of files"),
    "most_upload_mb": (int, "a whole number of megabytes"),
    "most_volume_mb": (int, "a whole number of megabytes"),
}


@dataclass(frozen=True)
class Settings:
    """What an operator decides.

    Attributes:
        labels: names of the organs and their values in labelmaps that do not say (``spleen,liver`` counts from 1;
            ``spleen=1,liver=6`` is explicit).
        black_box: ``bundled``, ``sam``, ``sam2`` or ``remote``.
        weights: checkpoint of the black box; needed for ``sam`` and ``sam2``.
        weights_sha256: what its hash (of a remote model: its identity) must be; empty: the published one where the file
            name is known.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
        remote: address of the black box ``remote``; what follows is said of it in ``RemoteSettings``.
        remote_side: pixels of its images, where it does not say.
        remote_batch: images in one request.
        remote_prompts: ``clicks,boxes``, ``clicks`` or ``boxes``.
        remote_timeout: seconds that an answer may take.
        remote_patience: seconds that it is waited for when it has gone.
        encoder: frozen encoder of new adapters: ``statistics``, ``clip``, ``vit_mae`` or ``dino``.
        encoder_source: its weights, a local path or a hub's name; empty: the usual ones.
        pacs_login: private JSON file of the user, the password and the ca of a PACS.
        pacs_label_format: in which form final labels are stored in a PACS: ``seg``, ``rtstruct`` or ``both``.
        worklist: file of the studies of a PACS that are served, a StudyInstanceUID a line; None: all.
        patients: CSV file of image and patient, for images that do not say whom they show.
        whole_labels: whether a label that a viewer submits holds an organ wholly, so that the slices on which it is not
            marked do not show it; else they are taken for not looked at.
        adapters: folder of the adapter store.
        cache_mb: bound on decoded volumes, encodings and adapters in memory.
        ahead: neighbouring slices on either side that are encoded while the user looks.
        organ_model: of the task ``organs``: ``bundled``, or the name of a published checkpoint.
        organ_weights: its checkpoint; needed for all but ``bundled``.
        organ_weights_sha256: what its hash must be, or "".
        organ_cache_gb: bound on what the organ model read of volumes, which is kept on disk; 0 keeps nothing.
        users: private JSON file of those who may use the server, see ``baps.site.users``.
        openid: private JSON file of the OpenID provider whose users may, see ``baps.site.openid_settings``.
        cors_origins: other origins whose pages may ask the server, as in https://viewer.hospital, or ``*``.
        root_path: path that a proxy serves the server below: ``/baps`` for https://hospital/baps/; "" for none.
        audit: file of who did what; None: ``audit.jsonl`` in the folder of adapters.
        label_versions_keep: earlier versions of labels are removed beyond so many; 0 for no bound.
        label_versions_days: likewise when they were replaced so many days ago; with both, where both hold; 0 for none.
        cache_days: days after which series are removed that were fetched from a PACS or converted and not used since; 0
            for never.
        audit_max_mb: size at which the audit file is full and another one begins; 0 for never.
        audit_keep: full audit files that are kept; 0 for all.
        most_upload_mb: of one request.
        most_volume_mb: that an image or labels may have when they are unpacked.
        allow_unprotected: whether MONAI Label's stock server, which checks nothing, may serve a PACS.
    """

    labels: Mapping[str, int] = field(default_factory=lambda: {"organ": 1})
    black_box: str = "bundled"
    weights: Path | None = None
    weights_sha256: str = ""
    device: str = "auto"
    remote: str = ""
    remote_side: int = RemoteSettings.side
    remote_batch: int = RemoteSettings.batch_size
    remote_prompts: str = RemoteSettings.prompts
    remote_timeout: float = RemoteSettings.timeout
    remote_patience: float = RemoteSettings.patience
    encoder: str = "statistics"
    encoder_source: str = ""
    pacs_login: Path | None = None
    pacs_label_format: str = "seg"
    worklist: Path | None = None
    patients: Path | None = None
    whole_labels: bool = False
    adapters: Path = DEFAULT_ADAPTERS
    cache_mb: int = 2048
    ahead: int = 2
    organ_model: str = "bundled"
    organ_weights: Path | None = None
    organ_weights_sha256: str = ""
    organ_cache_gb: int = 4
    users: Path | None = None
    openid: Path | None = None
    cors_origins: tuple[str, ...] = ()
    root_path: str = ""
    audit: Path | None = None
    label_versions_keep: int = 0
    label_versions_days: int = 0
    cache_days: int = 0
    audit_max_mb: int = 100
    audit_keep: int = 0
    most_upload_mb: int = 4096
    most_volume_mb: int = MOST_MB
    allow_unprotected: bool = False

    @property
    def closed(self) -> bool:
        """Whether only those who are known are let in."""
        return self.users is not None or self.openid is not None

    @property
    def audit_file(self) -> Path:
        return self.audit or self.adapters / "audit.jsonl"

    @property
    def remote_model(self) -> RemoteSettings | None:
        """What is said of the black box ``remote``, or None if there is no address.

        Raises:
            InputError: if it cannot be used.
        """
        if not self.remote:
            return None
        return RemoteSettings(
            self.remote,
            self.remote_side,
            self.remote_batch,
            self.remote_prompts,
            self.remote_timeout,
            self.remote_patience,
        )


def read_settings(given: Mapping[str, str], environment: Mapping[str, str] = os.environ) -> Settings:
    """Fill the settings.

    Args:
        given: name and value pairs of the command line. ``config`` names a JSON file of more.
        environment: variables; ``BAPS_<NAME>`` counts.

    Raises:
        InputError: on an unknown name (the message lists the known ones) or a value that cannot be used.
    """
    known = {f.name for f in fields(Settings)}
    file = given.get("config") or environment.get("BAPS_CONFIG", "")
    merged: dict[str, object] = {}
    if file:
        merged.update(_from_file(Path(file)))
    merged.update(
        {name: environment[f"BAPS_{name.upper()}"] for name in known if environment.get(f"BAPS_{name.upper()}")}
    )
    merged.update({name: value for name, value in given.items() if name != "config" and name not in _HOST_KEYS})
    unknown = sorted(set(merged) - known)
    if unknown:
        raise InputError(
            f"Unknown settings: {', '.join(unknown)}. Known ones: {', '.join(sorted(known | {'config'}))}."
        )
    # An empty value means the default; an empty variable, as the Makefile sets it, does not hide the file's.
    return Settings(**{name: _parse(name, value) for name, value in merged.items() if value not in ("", None)})  # type: ignore[arg-type]


def absolute_paths(given: Mapping[str, str], environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The settings whose paths begin at the folder one is in, wherever they were given, for a process in another one.

    Args:
        given, environment: as for ``read_settings``.

    Raises:
        InputError: as there.
    """
    settings = read_settings(given, environment)
    paths = {name: getattr(settings, name) for name in _FILES}
    if settings.encoder_source and Path(settings.encoder_source).exists():  # Else it is a hub's name.
        paths["encoder_source"] = Path(settings.encoder_source)
    if file := given.get("config"):
        paths["config"] = Path(file)
    return {name: str(path.absolute()) for name, path in paths.items() if path and not path.is_absolute()}


def check_settings(settings: Settings) -> None:
    """Find at start what would otherwise be found at the first click; nothing is loaded.

    Raises:
        InputError: if the black box is unknown, weights are not there, its address cannot be used, or the users, the
            OpenID provider or the origins cannot.
    """
    check_access(settings)
    if settings.black_box not in BLACK_BOXES:
        raise InputError(f"There is no black box named {settings.black_box!r}. Known ones: {', '.join(BLACK_BOXES)}.")
    if settings.black_box == "remote" and settings.remote_model is None:
        raise InputError("The black box remote needs an address: give one such as http://host:8000/model (REMOTE=...).")
    if settings.black_box in ("sam", "sam2") and settings.weights is None:
        raise InputError(
            f"The black box {settings.black_box} needs weights: give the path of a checkpoint (WEIGHTS=...)."
        )
    if settings.organ_model != "bundled" and settings.organ_weights is None:
        raise InputError(
            f"The organ model {settings.organ_model} needs weights: give the path of a checkpoint (organ_weights)."
        )
    for weights in (settings.weights, settings.organ_weights):
        if weights is not None and not weights.is_file():
            raise InputError(f"The weights file {weights} does not exist. Give the path of a checkpoint.")


def check_access(settings: Settings) -> None:
    """Find at start whether those who may use the server are known.

    Raises:
        InputError: if the users or the OpenID provider cannot be read, or every page of the web could use the server.
    """
    if settings.users is not None:
        Users(settings.users).all()
    if settings.openid is not None:
        read_openid(settings.openid)
    if "*" in settings.cors_origins and not settings.closed:
        raise InputError(
            "Every page of the web could use this server (cors_origins=*): name users or an OpenID provider."
        )


def _from_file(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"The settings file {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f'The settings file {path} must hold one JSON object, such as {{"labels": "spleen,liver"}}.')
    return content


def _parse(name: str, value: object) -> object:
    if name == "labels":
        return parse_labels(value)
    if name == "cors_origins":
        return _origins(value)
    if name == "root_path":
        return parse_root_path(str(value))
    if name in ("allow_unprotected", "whole_labels"):
        return _yes(name, value)
    if name in _CHOICES and value not in _CHOICES[name]:
        raise InputError(f"{name} must be one of {', '.join(_CHOICES[name])}, not {value!r}.")
    if name in _FILES:
        return Path(str(value)).expanduser()
    if name in _NUMBERS:
        kind, unit = _NUMBERS[name]
        try:
            number = kind(str(value))
        except ValueError:
            number = -1
        if not number >= 0:
            raise InputError(f"{name} must be {unit}, not {value!r}.")
        return number
    return str(value)


def _origins(value: object) -> tuple[str, ...]:
    found = [str(one).strip() for one in (value if isinstance(value, (list, tuple)) else str(value).split(","))]
    for origin in found:
        if origin != "*" and not re.fullmatch(r"https?://[\w.:\[\]-]+", origin):
            raise InputError(
                f"cors_origins are origins such as https://viewer.hospital, without a path; got {origin!r}."
            )
    return tuple(found)


def parse_root_path(value: str) -> str:
    """``/baps``, ``baps`` or ``/baps/`` to ``/baps``; ``/`` to "".

    Raises:
        InputError: if it is no plain path.
    """
    parts = [part for part in value.strip("/").split("/") if value.strip("/")]
    if not all(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._~-]*", part) for part in parts):
        raise InputError(
            f"The root path is a path such as /baps, of letters, digits, dots, dashes and slashes; got {value!r}."
        )
    return "".join(f"/{part}" for part in parts)


def _yes(name: str, value: object) -> bool:
    said = str(value).lower()
    if said not in ("yes", "true", "1", "no", "false", "0"):
        raise InputError(f"{name} must be yes or no, not {value!r}.")
    return said in ("yes", "true", "1")


def parse_labels(value: object) -> dict[str, int]:
    """``"spleen,liver"``, ``"spleen=1,liver=6"``, a list of names, or a mapping, to names and values.

    Raises:
        InputError: on an empty or doubled name, or a value that is not a whole number above 0.
    """
    items: list[tuple[str, object]]
    if isinstance(value, Mapping):
        items = [(str(k), v) for k, v in value.items()]
    elif not isinstance(value, (str, list, tuple)):
        raise InputError(f"Labels are names, as in spleen,liver or spleen=1,liver=6; got {value!r}.")
    else:
        names = value.split(",") if isinstance(value, str) else list(value)  # type: ignore[call-overload]
        pairs = [str(name).partition("=") for name in names]
        items = [(name, number if sep else place) for place, (name, sep, number) in enumerate(pairs, start=1)]
    labels: dict[str, int] = {}
    for name, number in items:
        name = name.strip()
        if not name or name in labels:
            raise InputError(f"Labels need different names that are not empty, as in spleen,liver; got {value!r}.")
        if len(name) > _MOST_LETTERS or "\\" in name:
            raise InputError(f"A label has at most {_MOST_LETTERS} letters and no backslash, for DICOM; got {name!r}.")
        try:
            labels[name] = int(str(number))
        except ValueError:
            labels[name] = 0
        if not 0 < labels[name] < 256:
            raise InputError(f"The label {name!r} needs a value from 1 to 255, as in spleen=1; got {number!r}.")
    if len(set(labels.values())) != len(labels):
        raise InputError(f"Two labels have the same value: {value!r}.")
    return labels
