"""Base class of the train tasks. It reads options and the site's labels, and reports statistics and errors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from baps.adapters.old_records import OLD_SETTINGS
from baps.errors import BapsError, InputError
from baps.evaluation.cases import Case
from baps.evaluation.folders import read_patient_table
from baps.server.datastores.index import AtomicIndex
from baps.server.train.stats import Stats, read_stats
from baps.server.training_cases import labelled_cases, labelled_organs
from baps.utils.deprecation import rename_old_keys
from baps.utils.redaction import shorten_paths_in_json
from baps.utils.throttle import lower_priority

Settings = TypeVar("Settings")
"""A frozen dataclass, whose fields are the options."""

ALL_LABELS = "all"
"""Choice of the option ``label`` that trains on every label."""

_HOST_OPTIONS = frozenset(
    ("model", "client_id", "name", "device", "gpus", "multi_gpu", "local_rank", "logging", "pretrained", "max_epochs",
     "dataset", "train_batch_size", "val_batch_size", "early_stop_patience", "val_split")
)  # fmt: skip
"""Options that MONAI Label or viewers add to every training request; they have no effect here."""


class SiteTrainer(TrainTask, Generic[Settings]):
    """Trains on the saved labels of a site, in a process of its own.

    Args:
        description: Text for the viewers.
        labels: Names and values of the site.
        patients: CSV file of image and patient, or None.
        folder: Folder for the statistics, beside the adapters.
        options: Fields of the settings that a request may set.
    """

    def __init__(
        self, description: str, labels: Mapping[str, int], patients: Path | None, folder: Path, options: Sequence[str]
    ) -> None:
        super().__init__(description)
        self._labels, self._patients, self._options = labels, patients, tuple(options)
        self._stats_file = folder / "train_stats.json"

    @abstractmethod
    def _defaults(self) -> Settings:
        """Return the settings of a request without options."""

    @abstractmethod
    def _train(self, cases: dict[str, list[Case]], settings: Settings, stats: Stats) -> None:
        """Train on the cases of each label, and report progress and results in the statistics.

        Raises:
            BapsError: If it cannot continue; adapters that were published before stay published.
        """

    @abstractmethod
    def _check_settings(self, settings: Settings) -> None:
        """Refuse settings that the model rules out.

        Raises:
            InputError: If the model rules one out.
        """

    def _check_cases(self, cases: dict[str, list[Case]], settings: Settings) -> None:
        """Refuse settings with which no training on the cases can succeed, before a volume is read.

        Raises:
            InputError: If none can.
        """

    def stats(self) -> dict[str, Any]:
        """Return the statistics of the last training, without the folders of paths."""
        stats: dict[str, Any] = shorten_paths_in_json(read_stats(self._stats_file))
        return stats

    def read_options(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the options of a request that the trainer knows.

        Args:
            request: Body of the request.

        Raises:
            InputError: If neither the trainer nor MONAI Label knows an option; the message lists the known ones.
        """
        old_names = {old: new for old, new in OLD_SETTINGS.items() if new in self._options}
        request = rename_old_keys(request, old_names, "in a training request")
        known = {"label", *self._options}
        unknown = sorted(set(request) - known - _HOST_OPTIONS)
        if unknown:
            raise InputError(f"Unknown training options: {', '.join(unknown)}. Known ones: {', '.join(sorted(known))}.")
        return {name: value for name, value in request.items() if name in known}

    def prepare(self, request: dict[str, Any], datastore: Datastore) -> None:
        """Refuse a training that cannot succeed, and reset the statistics of the last training.

        This runs in a request, so no volume is read or fetched. The training itself reports problems of the volumes.

        Args:
            request: Options, as ``read_options`` returns them.
            datastore: Datastore of the server.

        Raises:
            InputError: If an option cannot be used, the label is unknown, or there is no label to train on.
        """
        settings, chosen = self._settings(request), self._chosen_label(request)
        self._check_settings(settings)
        organs, skipped = labelled_organs(datastore, self._labels)
        if not (organs if chosen == ALL_LABELS else organs & {chosen}):
            raise _nothing_to_train_on(chosen, skipped)
        self._reset_stats(request)

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Train. MONAI Label calls this in a separate process.

        Args:
            request: Options, and the keys that MONAI Label adds.
            datastore: Datastore of the server.

        Returns:
            The statistics of the training.

        Raises:
            BapsError: If it cannot continue; the statistics have the reason.
        """
        lower_priority()
        stats = self._reset_stats(request)
        try:
            settings, chosen = self._settings(request), self._chosen_label(request)
            self._check_settings(settings)
            by_label, skipped = labelled_cases(datastore, self._labels, read_patient_table(self._patients))
            cases = {
                name: label_cases
                for name, label_cases in by_label.items()
                if label_cases and chosen in (ALL_LABELS, name)
            }
            if not cases:
                raise _nothing_to_train_on(chosen, skipped)
            stats.add_skipped(skipped)
            self._check_cases(cases, settings)
            if isinstance(datastore, AtomicIndex):
                datastore.history.mark_used(case.labels for label_cases in cases.values() for case in label_cases)
            self._train(cases, settings, stats)
        except BapsError as error:
            stats.values["error"] = str(error)
            raise
        except Exception as error:
            stats.values["error"] = (
                f"The training failed ({type(error).__name__}: {error}). The log of the server has the details."
            )
            raise
        finally:
            stats.end()
        return stats.values

    def _reset_stats(self, request: Mapping[str, Any]) -> Stats:
        """Begin new statistics, which name the options that the request sets."""
        options = {name: str(_first(value)) for name, value in request.items() if name in ("label", *self._options)}
        return Stats.reset(self._stats_file, options)

    def _chosen_label(self, request: dict[str, Any]) -> str:
        """Return the label to train, or ``all``.

        Raises:
            InputError: If it is not a label of the site.
        """
        chosen = str(_first(request.get("label")) or ALL_LABELS)
        if chosen != ALL_LABELS and chosen not in self._labels:
            raise InputError(f"There is no label {chosen!r}. Known ones: {', '.join(self._labels)}.")
        return chosen

    def _settings(self, request: dict[str, Any]) -> Settings:
        """Return the settings of a request.

        Raises:
            InputError: If an option has the wrong type.
        """
        defaults: Any = self._defaults()
        chosen = {}
        for name in self._options:
            value = _first(request.get(name))
            if value in (None, ""):
                continue
            kind = type(getattr(defaults, name))
            try:
                if kind is int and (isinstance(value, bool) or (isinstance(value, float) and value % 1)):
                    raise ValueError
                chosen[name] = _flag(value) if kind is bool else kind(value)
            except (TypeError, ValueError, OverflowError):
                message = f"The training option {name} must be of type {kind.__name__}, not {value!r}."
                raise InputError(message) from None
        settings: Settings = replace(defaults, **chosen)
        return settings


def _nothing_to_train_on(chosen: str, skipped: Mapping[str, str]) -> InputError:
    organ, reason = "any organ" if chosen == ALL_LABELS else chosen, next(iter(skipped.values()), "")
    return InputError(
        f"There are no saved labels of {organ} to train on. Segment a volume, submit the label, and train again. "
        f"{reason}".rstrip()
    )


def _first(value: Any) -> Any:
    """Return the first value of a list: 3D Slicer sends all choices of an option if the user has chosen none."""
    return value[0] if isinstance(value, list) and value else value


def _flag(value: Any) -> bool:
    """Return the value of a check box, which may be sent as text.

    Raises:
        ValueError: If it is neither true nor false.
    """
    return bool(("false", "true").index(str(value).lower()))
