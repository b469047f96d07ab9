"""Define the settings of a site, and read them from a file, the environment and the command line.

Later sources win: the defaults, then the JSON file that ``config`` names, then ``BAPS_<NAME>`` in the environment, then
``--conf name value`` and the options of ``baps``.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
)

from baps.blackbox.choices import CHECKPOINT_BLACK_BOXES, VOLUME_BLACK_BOXES, check_black_box
from baps.blackbox.remote.settings import RemoteSettings
from baps.blackbox.volumes.settings import TOKEN_VARIABLE, VolumeRemoteSettings
from baps.errors import InputError
from baps.site.app_folder import app_folder
from baps.site.openid_settings import read_openid
from baps.site.secret_file import read_private
from baps.site.users import Users
from baps.utils.deprecation import rename_old_keys
from baps.utils.limits import DEFAULT_MAX_VOLUME_MB

DEFAULT_ADAPTERS = app_folder() / "model" / "adapters"

OLD_NAMES = {
    "ahead": "prefetch_slices",
    "most_upload_mb": "max_upload_mb",
    "most_volume_mb": "max_volume_mb",
    "organ_cache_gb": "feature_cache_gb",
    "pacs_login": "pacs_credentials",
    "remote_batch": "remote_batch_size",
    "remote_patience": "remote_retry_seconds",
    "remote_side": "remote_image_size",
    "whole_labels": "complete_labels",
}
"""Names of the settings by those of version 0.1, which this release still reads, with a warning."""

_MAX_LABEL_LENGTH = 64
"""Maximum length of a name in DICOM."""

_HOST_KEYS = {"server_mode", "models", "preload"}
"""Names of --conf that belong to MONAI Label."""


def _labels(value: object) -> dict[str, int]:
    return parse_labels(value)


def _yes_or_no(value: object, info: ValidationInfo) -> bool:
    text = str(value).lower()
    if text not in ("yes", "true", "1", "no", "false", "0"):
        raise InputError(f"{info.field_name} must be yes or no, not {value!r}.")
    return text in ("yes", "true", "1")


def _one_of(*choices: str) -> BeforeValidator:
    def check(value: object, info: ValidationInfo) -> object:
        if value not in choices:
            raise InputError(f"{info.field_name} must be one of {', '.join(choices)}, not {value!r}.")
        return value

    return BeforeValidator(check)


def _number(kind: Callable[[str], float], unit: str, maximum: float = math.inf) -> BeforeValidator:
    def check(value: object, info: ValidationInfo) -> float:
        try:
            number = kind(str(value))
        except ValueError:
            number = -1
        if not 0 <= number <= maximum:
            raise InputError(f"{info.field_name} must be {unit}, not {value!r}.")
        return number

    return BeforeValidator(check)


def _origins(value: object) -> tuple[str, ...]:
    origins = [str(one).strip() for one in (value if isinstance(value, (list, tuple)) else str(value).split(","))]
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"https?://[\w.:\[\]-]+", origin):
            raise InputError(
                f"cors_origins are origins such as https://viewer.hospital, without a path; got {origin!r}."
            )
    return tuple(origins)


Text = Annotated[str, BeforeValidator(str)]
File = Annotated[Path, BeforeValidator(lambda value: Path(str(value)).expanduser())]
YesOrNo = Annotated[bool, BeforeValidator(_yes_or_no)]
Seconds = Annotated[float, _number(float, "a number of seconds")]


def _whole(units: str) -> BeforeValidator:
    return _number(int, f"a whole number of {units}")


class Settings(BaseSettings, frozen=True, extra="forbid"):  # type: ignore[misc]  # mypy takes it for a dataclass.
    """Settings of a site.

    ``Settings(...)`` reads its arguments only; ``read_settings`` reads the file, the environment and the command line.

    Attributes:
        labels: Names of the organs and their values in labelmaps that do not name their segments (``spleen,liver``
            counts from 1; ``spleen=1,liver=6`` is explicit).
        black_box: ``bundled``, ``sam``, ``medsam``, ``sam_hq``, ``sam2``, ``sam3`` or ``remote``.
        weights: Checkpoint of the black box; all but ``bundled`` and ``remote`` need it.
        weights_sha256: Hash that the weights (of a remote model: its identity) must have. Empty: the published one
            where the file name is known.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``, or several, as in ``cuda:0,cuda:1``: one replica of the black
            box on each.
        remote: Address of the black box ``remote``. ``RemoteSettings`` documents the settings that follow.
        remote_image_size: Size of its square images, in pixels, if the model's metadata does not define it.
        remote_batch_size: Images per request.
        remote_prompts: ``clicks,boxes``, ``clicks`` or ``boxes``.
        remote_timeout: Seconds to wait for a response.
        remote_retry_seconds: Seconds to retry if the model's server does not respond.
        remote_connections: Requests at once, for a server that has several instances of the model.
        volume_black_box: Model that answers nnInteractive's viewers and the task ``volume`` in 3D, ``bundled3d`` or
            ``nninteractive``. Empty: the black box answers the viewers slice by slice, and there is no such task.
        volume_remote: Address of the nninteractive-server of ``nninteractive``. ``remote_timeout`` and
            ``remote_retry_seconds`` hold for it too.
        volume_remote_token_file: Private file with its API key. None: the environment variable
            ``BAPS_VOLUME_REMOTE_TOKEN``.
        encoder: Frozen encoder of new adapters: ``statistics``, ``clip``, ``vit_mae`` or ``dino``.
        encoder_source: Weights of the encoder, a local path or a hub's name. Empty: the usual ones.
        pacs_credentials: Private JSON file with the user, the password and the CA certificate of a PACS.
        pacs_label_format: Format in which final labels are stored in a PACS: ``seg``, ``rtstruct`` or ``both``.
        worklist: File of the studies of a PACS that are served, one StudyInstanceUID per line. None: all.
        patients: CSV file of image and patient, for images that do not name their patient.
        complete_labels: Whether a label that a viewer submits shows the whole organ, so that the slices on which it is
            not marked do not show the organ. Otherwise these slices count as not annotated.
        adapters: Folder of the adapter store.
        trial: What happens to an adapter that is likely to be better, and not yet proven to be: ``serve`` serves it,
            ``shadow`` only compares it with what serves.
        evidence_images_per_label: Images that are sent to the model for each confirmed label, to compare what serves
            and the newest adapter with the unadapted model; 0 for none.
        cache_mb: Memory for decoded volumes, encodings and adapters.
        prefetch_slices: Number of neighbouring slices on either side that are encoded in advance.
        organ_model: Model of the task ``organs``: ``bundled``, ``totalsegmentator``, ``totalsegmentator_full``, or the
            name of a published checkpoint.
        organ_weights: Checkpoint of the organ model, or TotalSegmentator's folder; all but ``bundled`` need it.
        organ_weights_sha256: Hash that the weights must have, or "".
        organ_min_dice: Expected Dice (0 to 1) below which ``organs`` does not offer an organ; 0 offers all.
        feature_cache_gb: Disk space for the features that the organ model computes of volumes; 0 keeps none.
        users: Private JSON file of the users, see ``baps.site.users``.
        openid: Private JSON file of the OpenID provider whose users may sign in, see ``baps.site.openid_settings``.
        cors_origins: Other origins whose pages may send requests, as in https://viewer.hospital, or ``*``.
        root_path: Path below which a proxy serves the server: ``/baps`` for https://hospital/baps/. Empty: none.
        audit: Audit file. None: ``audit.jsonl`` in the folder of adapters.
        label_versions_keep: Number of earlier versions of a label to keep; 0 for no limit.
        label_versions_days: Days to keep a version after it was replaced; 0 for no limit. With both, a version is
            removed where both limits are exceeded.
        cache_days: Days after which unused series that were fetched from a PACS or converted are removed; 0 for never.
        audit_max_mb: Size at which the audit file is full and another one begins; 0 for never.
        audit_keep: Number of full audit files to keep; 0 for all.
        max_upload_mb: Maximum size of a request.
        max_volume_mb: Maximum size of an unpacked image or label.
        nninteractive_sessions: Maximum number of nnInteractive clients at once. If users sign in, one user may have
            half of them.
        nninteractive_mb: Memory for the images and masks of all nnInteractive clients.
        nninteractive_idle_seconds: Seconds after which a client's session ends if nobody does anything in it.
        nninteractive_liveness_seconds: Seconds after which it ends if the client has disappeared.
        nninteractive_drafts: Number of masks of these clients to keep as drafts until somebody confirms them; 0 keeps
            none. The oldest are removed.
        nninteractive_drafts_mb: Disk space for all drafts. The oldest are removed.
        allow_unprotected: Whether MONAI Label's stock server, which has no access control, may serve a PACS.
    """

    labels: Annotated[Mapping[str, int], BeforeValidator(_labels)] = Field(default_factory=lambda: {"organ": 1})
    black_box: Text = "bundled"
    weights: File | None = None
    weights_sha256: Text = ""
    device: Text = "auto"
    remote: Text = ""
    remote_image_size: Annotated[int, _whole("pixels")] = RemoteSettings.image_size
    remote_batch_size: Annotated[int, _whole("images")] = RemoteSettings.batch_size
    remote_prompts: Text = RemoteSettings.prompts
    remote_timeout: Seconds = RemoteSettings.timeout
    remote_retry_seconds: Seconds = RemoteSettings.retry_seconds
    remote_connections: Annotated[int, _whole("connections")] = RemoteSettings.connections
    volume_black_box: Text = ""
    volume_remote: Text = ""
    volume_remote_token_file: File | None = None
    encoder: Text = "statistics"
    encoder_source: Text = ""
    pacs_credentials: File | None = None
    pacs_label_format: Annotated[str, _one_of("seg", "rtstruct", "both")] = "seg"
    worklist: File | None = None
    patients: File | None = None
    complete_labels: YesOrNo = False
    adapters: File = DEFAULT_ADAPTERS
    trial: Annotated[str, _one_of("serve", "shadow")] = "serve"
    evidence_images_per_label: Annotated[int, _whole("images")] = 60
    cache_mb: Annotated[int, _whole("megabytes")] = 2048
    prefetch_slices: Annotated[int, _whole("slices")] = 2
    organ_model: Text = "bundled"
    organ_weights: File | None = None
    organ_weights_sha256: Text = ""
    organ_min_dice: Annotated[float, _number(float, "a Dice from 0 to 1", 1)] = 0.7
    feature_cache_gb: Annotated[int, _whole("gigabytes")] = 4
    users: File | None = None
    openid: File | None = None
    cors_origins: Annotated[tuple[str, ...], BeforeValidator(_origins)] = ()
    root_path: Annotated[str, BeforeValidator(lambda value: parse_root_path(str(value)))] = ""
    audit: File | None = None
    label_versions_keep: Annotated[int, _whole("versions")] = 0
    label_versions_days: Annotated[int, _whole("days")] = 0
    cache_days: Annotated[int, _whole("days")] = 0
    audit_max_mb: Annotated[int, _whole("megabytes")] = 100
    audit_keep: Annotated[int, _whole("files")] = 0
    max_upload_mb: Annotated[int, _whole("megabytes")] = 4096
    max_volume_mb: Annotated[int, _whole("megabytes")] = DEFAULT_MAX_VOLUME_MB
    nninteractive_sessions: Annotated[int, _whole("sessions")] = 8
    nninteractive_mb: Annotated[int, _whole("megabytes")] = 4096
    nninteractive_idle_seconds: Seconds = 600
    nninteractive_liveness_seconds: Seconds = 60
    nninteractive_drafts: Annotated[int, _whole("drafts")] = 100
    nninteractive_drafts_mb: Annotated[int, _whole("megabytes")] = 256
    allow_unprotected: YesOrNo = False

    @property
    def serve_trials(self) -> bool:
        """Whether adapters on trial serve."""
        return self.trial == "serve"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read nothing but the arguments.

        Args:
            settings_cls: This class.
            init_settings: The arguments.
            env_settings: Not read.
            dotenv_settings: Not read.
            file_secret_settings: Not read.

        Returns:
            The arguments, as the only source.
        """
        return (init_settings,)

    @property
    def requires_login(self) -> bool:
        """Whether users must sign in."""
        return self.users is not None or self.openid is not None

    @property
    def audit_file(self) -> Path:
        """The audit file, or its default if the setting is not given."""
        return self.audit or self.adapters / "audit.jsonl"

    @property
    def remote_model(self) -> RemoteSettings | None:
        """Settings of the black box ``remote``, or None if there is no address.

        Raises:
            InputError: If they cannot be used.
        """
        if not self.remote:
            return None
        return RemoteSettings(
            self.remote,
            self.remote_image_size,
            self.remote_batch_size,
            self.remote_prompts,
            self.remote_timeout,
            self.remote_retry_seconds,
            self.remote_connections,
        )

    @property
    def volume_remote_model(self) -> VolumeRemoteSettings | None:
        """Settings of the nninteractive-server, or None if there is no address. The API key is read now.

        Raises:
            InputError: If they cannot be used, or others can read the file with the key.
        """
        if not self.volume_remote:
            return None
        file = self.volume_remote_token_file
        if file is None:
            token = os.environ.get(TOKEN_VARIABLE, "")
        else:
            token = read_private(file, "The API key of the nninteractive-server").decode(errors="replace").strip()
        return VolumeRemoteSettings(self.volume_remote, token, self.remote_timeout, self.remote_retry_seconds)

    @property
    def volume_models_file(self) -> Path:
        """File of the models behind nninteractive-servers that are known, see ``baps.blackbox.volumes.identity``."""
        return self.adapters / "volume_models.json"


_NAMES = tuple(Settings.model_fields)
_PATH_NAMES = ("adapters", "audit", "openid", "organ_weights", "pacs_credentials", "patients", "users",
               "volume_remote_token_file", "weights", "worklist")  # fmt: skip
_OPTIONS, _VARIABLES = "on the command line", "in the environment"


def read_settings(given: Mapping[str, str], environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings of a site from the command line, the environment and the settings file.

    An empty option means the default. Empty variables, as the Makefile sets them, and empty values in the file are
    ignored. Names of version 0.1 are read, each with a warning; where both names are given, the new one is used.

    Args:
        given: Names and values of the command line. ``config`` names the settings file.
        environment: Variables; those that are called ``BAPS_<NAME>`` count.

    Returns:
        The settings.

    Raises:
        InputError: On an unknown name (the message lists the known ones) or a value that cannot be used.
    """
    places: dict[str, dict[str, object]] = {
        _OPTIONS: {name: value for name, value in given.items() if name != "config" and name not in _HOST_KEYS},
        _VARIABLES: _from_variables(environment),
    }
    if file := given.get("config") or environment.get("BAPS_CONFIG", ""):
        places[f"in the settings file {file}"] = _from_file(Path(file))
    places = {place: rename_old_keys(values, OLD_NAMES, place) for place, values in places.items()}
    for place, values in places.items():
        _check_names(values, place)
    reset = {name for name, value in places[_OPTIONS].items() if value in ("", None)}
    for values in places.values():
        for name in [name for name, value in values.items() if value in ("", None) or name in reset]:
            del values[name]
    try:
        sources = tuple(InitSettingsSource(Settings, values) for values in places.values())
        return Settings(_build_sources=(sources, {}))  # type: ignore[call-arg]  # mypy sees the fields alone.
    except ValidationError as error:
        raise InputError(_explain(error, places)) from None


def _from_variables(environment: Mapping[str, str]) -> dict[str, object]:
    old_variables = {_variable(old): _variable(new) for old, new in OLD_NAMES.items()}
    known = {*map(_variable, _NAMES), *old_variables}
    variables = {name: value for name, value in environment.items() if name in known and value}
    renamed = rename_old_keys(variables, old_variables, _VARIABLES)
    return {name.removeprefix("BAPS_").lower(): value for name, value in renamed.items()}


def _variable(name: str) -> str:
    return f"BAPS_{name.upper()}"


def _from_file(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"The settings file {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f'The settings file {path} must hold one JSON object, such as {{"labels": "spleen,liver"}}.')
    return content


def _check_names(values: Mapping[str, object], place: str) -> None:
    known = sorted((*_NAMES, "config"))
    unknown = sorted(set(values) - set(_NAMES))
    if not unknown:
        return
    similar = {name: near[0] for name in unknown if (near := get_close_matches(name, known, 1))}
    meant = "".join(f" Did you mean {near} instead of {name}?" for name, near in similar.items())
    raise InputError(f"Unknown settings {place}: {', '.join(unknown)}.{meant} Known ones: {', '.join(known)}.")


def _explain(error: ValidationError, places: Mapping[str, Mapping[str, object]]) -> str:
    """Return a sentence on the first invalid value and on the place that it comes from."""
    first = error.errors()[0]
    name = str(first["loc"][0])
    sentence = first.get("ctx", {}).get("error") or f"{name} cannot be used: {first['msg']}."
    place = next(place for place, values in places.items() if name in values)
    variable = f", as {_variable(name)}" if place == _VARIABLES else ""
    return f"{sentence} It was set {place}{variable}."


def absolute_paths(given: Mapping[str, str], environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the settings with relative paths as absolute paths, for a process that runs in another folder.

    Args:
        given: Names and values of the command line, as for ``read_settings``.
        environment: Variables, likewise.

    Returns:
        Absolute paths by the name of the setting, wherever it was given.

    Raises:
        InputError: as ``read_settings``.
    """
    settings = read_settings(given, environment)
    paths = {name: getattr(settings, name) for name in _PATH_NAMES}
    if settings.encoder_source and Path(settings.encoder_source).exists():  # Otherwise it is a hub's name.
        paths["encoder_source"] = Path(settings.encoder_source)
    if file := given.get("config"):
        paths["config"] = Path(file)
    return {name: str(path.absolute()) for name, path in paths.items() if path and not path.is_absolute()}


def check_settings(settings: Settings) -> None:
    """Check at start the settings that would otherwise fail at the first click. Nothing is loaded.

    Args:
        settings: The settings of the site.

    Raises:
        InputError: If the black box is unknown, weights do not exist, its address cannot be used, or the users, the
            OpenID provider or the origins cannot be used.
    """
    check_access(settings)
    check_black_box(settings.black_box)
    if settings.black_box == "remote" and settings.remote_model is None:
        raise InputError(
            "The black box remote needs an address: give --remote http://host:8000/model (with make: REMOTE=...)."
        )
    if settings.black_box in CHECKPOINT_BLACK_BOXES and settings.weights is None:
        raise InputError(
            f"The black box {settings.black_box} needs weights: give --weights a checkpoint (with make: WEIGHTS=...)."
        )
    if settings.volume_black_box and settings.volume_black_box not in VOLUME_BLACK_BOXES:
        raise InputError(
            f"There is no 3D black box named {settings.volume_black_box!r}. Known ones: "
            f"{', '.join(VOLUME_BLACK_BOXES)}."
        )
    if settings.volume_remote_model is None and settings.volume_black_box == "nninteractive":
        raise InputError("The 3D black box nninteractive needs an address: give --volume-remote http://host:1527.")
    if settings.organ_model != "bundled" and settings.organ_weights is None:
        raise InputError(
            f"The organ model {settings.organ_model} needs weights: give the path of its checkpoint or folder "
            "(organ_weights)."
        )
    if settings.weights is not None and not settings.weights.is_file():
        raise InputError(f"The weights file {settings.weights} does not exist. Give the path of a checkpoint.")
    if settings.organ_weights is not None and not settings.organ_weights.exists():
        raise InputError(f"The organ model's weights {settings.organ_weights} do not exist. Give their path.")


def check_access(settings: Settings) -> None:
    """Check at start the settings that control access to the server.

    Args:
        settings: The settings of the site.

    Raises:
        InputError: If the users or the OpenID provider cannot be read, or if any web page could use the server.
    """
    if settings.users is not None:
        Users(settings.users).all()
    if settings.openid is not None:
        read_openid(settings.openid)
    if "*" in settings.cors_origins and not settings.requires_login:
        raise InputError("Any web page could use this server (cors_origins=*). Set users or openid.")


def parse_root_path(value: str) -> str:
    """Normalise a root path: ``/baps``, ``baps`` and ``/baps/`` become ``/baps``; ``/`` becomes "".

    Args:
        value: The path below which a proxy serves the server.

    Returns:
        The path with a slash before it and none after it, or "".

    Raises:
        InputError: If it is not a plain path.
    """
    parts = [part for part in value.strip("/").split("/") if value.strip("/")]
    if not all(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._~-]*", part) for part in parts):
        raise InputError(
            f"The root path is a path such as /baps, of letters, digits, dots, dashes and slashes; got {value!r}."
        )
    return "".join(f"/{part}" for part in parts)


def parse_labels(value: object) -> dict[str, int]:
    """Parse labels: ``"spleen,liver"``, ``"spleen=1,liver=6"``, a list of names, or a mapping.

    Args:
        value: The labels in one of these forms. Names without values count from 1.

    Returns:
        Values by name, in the order given.

    Raises:
        InputError: On an empty or repeated name, or a value that is not a whole number from 1 to 255.
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
        if len(name) > _MAX_LABEL_LENGTH or "\\" in name:
            raise InputError(
                f"A label has at most {_MAX_LABEL_LENGTH} letters and no backslash, for DICOM; got {name!r}."
            )
        try:
            labels[name] = int(str(number))
        except ValueError:
            labels[name] = 0
        if not 0 < labels[name] < 256:
            raise InputError(f"The label {name!r} needs a value from 1 to 255, as in spleen=1; got {number!r}.")
    if len(set(labels.values())) != len(labels):
        raise InputError(f"Two labels have the same value: {value!r}.")
    return labels
