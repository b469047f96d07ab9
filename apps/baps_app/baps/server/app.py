"""The MONAI Label app: creates the models, datastore, tasks and trainers of a site."""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
import threading
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from numpy.typing import NDArray

import baps.server.labels.save_labels
from baps.annotations.first_prompts import FirstPrompts
from baps.blackbox import BlackBox, Capabilities, load_black_box
from baps.blackbox.volumes.interface import VolumeBlackBox
from baps.errors import BapsError, InputError
from baps.evaluation.cases import Case
from baps.evaluation.splits import patient_hash
from baps.imaging.volume import Volume
from baps.inference.segmenter import Segmenter
from baps.inference.volume_segmenter import VolumeSegmenter
from baps.prompts import Prompt
from baps.registry.store import AdapterStore
from baps.server.datastores.dicomweb import open_pacs
from baps.server.datastores.folder import StudiesDatastore
from baps.server.datastores.read_only import ReadOnlyStudies, can_write
from baps.server.evidence import ClickJudge, EvidenceCollector, Judge, OrganJudge, VolumeJudge
from baps.server.expired_sessions import remove_expired
from baps.server.infer.base import IMAGE_ID
from baps.server.infer.organs import OrgansInfer
from baps.server.infer.prompted import PromptedInfer
from baps.server.infer.scribbles import ScribblesInfer
from baps.server.infer.volume_prompted import VolumePromptedInfer
from baps.server.infer.whole_organ import WholeOrganInfer
from baps.server.jobs import LongRequests
from baps.server.labels.retention import Retention
from baps.server.log_redaction import redact_logs
from baps.server.stock_server import check_stock_server
from baps.server.strategies.disagreement import Disagreement
from baps.server.strategies.first import First
from baps.server.strategies.random import RandomStrategy
from baps.server.train.adaptation import AdaptationTrainer
from baps.server.train.organs import OrgansTrainer
from baps.server.train.volumes import VolumeTrainer
from baps.server.training_cases import labelled_cases
from baps.site.audit import AuditFile
from baps.site.pacs_credentials import read_pacs_credentials
from baps.site.settings import check_settings, read_settings
from baps.training.settings import AdaptationSettings
from baps.utils.limits import MAX_VOLUME_MB_VARIABLE

if TYPE_CHECKING:
    from baps.fseft.predictor import OrganSegmenter

logger = logging.getLogger(__name__)

_SESSION_SECONDS = 300.0
"""Seconds between two removals of expired sessions."""


class BapsApp(MONAILabelApp):
    """Promptable segmentation, adapted on site."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        redact_logs()
        for name in ("monailabel.endpoints.activelearning", "dicomweb_client"):
            logging.getLogger(name).setLevel(logging.WARNING)  # They log patients and studies.
        self.site = read_settings(conf or {})
        check_settings(self.site)
        check_stock_server(studies, self.site)
        adapters = self.site.adapters
        self.store, self.organ_store = AdapterStore(adapters), AdapterStore(adapters / "organs")
        self.volume_store = AdapterStore(adapters / "volumes")
        self.jobs = LongRequests()
        self._loading, self._loading_organs, self._loading_volumes = (threading.Lock() for _ in range(3))
        self._black_box: BlackBox | None = None
        self._segmenter: Segmenter | None = None
        self._organs: OrganSegmenter | None = None
        self._volume_black_box: VolumeBlackBox | None = None
        self._volumes = VolumeSegmenter(
            self.volume_black_box, self.volume_store, lambda path: self.segmenter().volume(path)
        )
        self._closed = threading.Event()
        self._prompts = FirstPrompts(self.site.adapters / "prompts.sqlite")
        self._audit = AuditFile(self.site.audit_file, self.site.audit_max_mb, self.site.audit_keep)
        self._collector: EvidenceCollector | None = None
        # The threads of the training process must not spin while they wait for each other.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        os.environ[MAX_VOLUME_MB_VARIABLE] = str(self.site.max_volume_mb)
        # MONAI Label downloads dcmqi's programs unless it finds them on the PATH.
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name="BAPS",
            description="Promptable segmentation that adapts to your images, without the model's weights or gradients",
            labels=list(self.site.labels),
        )
        # Slicer disables its Train button while a scoring job is queued; there are no scoring methods here.
        self._auto_update_scoring = False

    def init_datastore(self) -> Datastore:
        """Open the folder of studies or the PACS, or one of MONAI Label's other stores."""
        if self.remote:
            if settings.MONAI_LABEL_DATASTORE or "googleapis.com" in self.studies:
                return super().init_datastore()
            site = self.site
            return open_pacs(
                self.studies, read_pacs_credentials(site.pacs_credentials), site.worklist, site.pacs_label_format
            )
        reload, read_only = settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD, settings.MONAI_LABEL_DATASTORE_READ_ONLY
        if not can_write(self.studies):
            return ReadOnlyStudies(self.studies, reload)
        return StudiesDatastore(self.studies, reload, read_only)

    @property
    def remote(self) -> bool:
        """Whether the images are in a PACS."""
        return self.studies.startswith(("http://", "https://"))

    def init_infers(self) -> dict[str, InferTask]:
        labels = dict(self.site.labels)
        lock_file, segmenter = self.store.inference_lock_file, self.segmenter
        names = ("baps", "zero_shot", "whole_organ", "scribbles", "organs", "volume")
        save = {name: partial(self.save_mask, name) for name in names}
        tasks: dict[str, InferTask] = {
            "baps": PromptedInfer(segmenter, lock_file, labels, save["baps"], True, self._keep_prompt),
            "zero_shot": PromptedInfer(segmenter, lock_file, labels, save["zero_shot"], False, self._keep_prompt),
            "whole_organ": WholeOrganInfer(segmenter, lock_file, labels, save["whole_organ"], self.jobs),
            "scribbles": ScribblesInfer(segmenter, lock_file, labels, save["scribbles"], self.jobs),
            "organs": OrgansInfer(
                self.organs,
                lock_file,
                labels,
                save["organs"],
                self.jobs,
                self._find_drawn,
                self.site.organ_min_dice,
                lambda: self._organs,
            ),
        }
        if self.site.volume_black_box:
            tasks["volume"] = VolumePromptedInfer(self.volumes, lock_file, labels, save["volume"], self.jobs)
        return tasks

    def _find_drawn(self, image: str) -> dict[str, Case | None]:
        """Return the confirmed labels of an image by organ, and None for an organ whose label cannot be read."""
        if not image:
            return {}
        cases, skipped = labelled_cases(self.datastore(), self.site.labels, {}, image)
        names = [name for name, found in cases.items() if found or f"{image}, {name}" in skipped]
        return {name: cases[name][-1] if cases[name] else None for name in names}

    def _keep_prompt(self, image: str, label: str, index: int, prompt: Prompt) -> None:
        """Keep a prompt for later evidence; a click does not fail because of it."""
        if not image or not self.site.evidence_images_per_label:
            return
        try:
            self._prompts.add(patient_hash(image), label, index, prompt)
        except (sqlite3.Error, OSError) as error:
            logger.warning("A prompt could not be kept (%s).", type(error).__name__)

    def first_prompts(self, volume: str, label: str) -> dict[int, Prompt]:
        """Return the first prompts that users made on an image, see ``FirstPrompts.read``.

        Args:
            volume: Hash of the image.
            label: The label.

        Returns:
            Prompts by slice.
        """
        return self._prompts.read(volume, label)

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> Any:
        """Run an infer task, which gets both the name of the image and its file.

        Args:
            request: The request.
            datastore: Datastore to use instead of that of the server.

        Returns:
            The file of the mask, and the JSON of the reply as ``params``.
        """
        return super().infer({**request, IMAGE_ID: request.get("image")}, datastore)

    def init_trainers(self) -> dict[str, TrainTask]:
        labels = dict(self.site.labels)
        defaults = AdaptationSettings(encoder=self.site.encoder, encoder_source=self.site.encoder_source)
        patients, lock_file, serve_trials = self.site.patients, self.store.inference_lock_file, self.site.serve_trials
        trainers: dict[str, TrainTask] = {
            "baps": AdaptationTrainer(self.black_box, labels, self.store, patients, defaults, serve_trials),
            "organs": OrgansTrainer(self.organs, labels, lock_file, self.organ_store.root, patients, serve_trials),
        }
        if self.site.volume_black_box:
            trainers["volume"] = VolumeTrainer(self.volumes, labels, lock_file, patients, serve_trials)
        return trainers

    def init_strategies(self) -> dict[str, Strategy]:
        disagreement = Disagreement(self.segmenter, self.organs, dict(self.site.labels), self.store.inference_lock_file)
        return {"random": RandomStrategy(), "first": First(), "disagreement": disagreement}

    def black_box(self) -> BlackBox:
        """Return the black box. The first call loads it.

        Raises:
            BapsError: If it cannot be loaded.
        """
        with self._loading:
            if self._black_box is None:
                site = self.site
                try:
                    self._black_box = load_black_box(
                        site.black_box, site.weights, site.weights_sha256, site.device, site.remote_model
                    )
                except InputError as error:  # A setting of the operator, so not a 400.
                    raise BapsError(f"The model cannot be loaded. {error}") from error
                capabilities = self._black_box.capabilities
                logger.info("Black box %s, weights SHA-256 %s", capabilities.name, capabilities.weights_sha256)
            return self._black_box

    def segmenter(self) -> Segmenter:
        """Return the segmenter for clicks. The first call creates it.

        Raises:
            BapsError: If the black box cannot be loaded.
        """
        black_box = self.black_box()
        with self._loading:
            if self._segmenter is None:
                self._segmenter = Segmenter(black_box, self.store, self.site.cache_mb << 20, self.site.prefetch_slices)
            return self._segmenter

    def organs(self) -> OrganSegmenter:
        """Return the segmenter without prompts. The first call creates it, and clicks do not wait meanwhile.

        Raises:
            BapsError: If the organ model cannot be loaded.
        """
        with self._loading_organs:
            if self._organs is None:
                from baps.fseft.feature_cache import FeatureCache
                from baps.fseft.models import load_organ_model  # Networks, which take seconds to import.
                from baps.fseft.predictor import OrganSegmenter

                site, root = self.site, self.organ_store.root
                try:
                    model = load_organ_model(
                        site.organ_model, site.organ_weights, site.organ_weights_sha256, site.device
                    )
                except BapsError as error:  # A setting of the operator, so not a 400.
                    raise BapsError(f"The organ model cannot be loaded; clicks still work. {error}") from error
                logger.info("Organ model %s, weights SHA-256 %s. %s", model.name, model.sha256, model.notice)
                cache = FeatureCache(root / "readings", site.feature_cache_gb << 30)
                self._organs = OrganSegmenter(model, self.organ_store, cache)
            return self._organs

    def volume_black_box(self) -> VolumeBlackBox:
        """Return the 3D black box. The first call loads it, and clicks on slices do not wait meanwhile.

        Raises:
            BapsError: If it cannot be loaded.
        """
        with self._loading_volumes:
            if self._volume_black_box is None:
                from baps.blackbox.volumes.loading import load_volume_black_box
                from baps.blackbox.volumes.nninteractive import licence_notice

                site = self.site
                try:
                    self._volume_black_box = load_volume_black_box(
                        site.volume_black_box,
                        site.volume_remote_model,
                        known=site.volume_models_file,
                        device=site.device,
                    )
                except InputError as error:  # A setting of the operator, so not a 400.
                    raise BapsError(f"The 3D model cannot be loaded. {error}") from error
                capabilities = self._volume_black_box.capabilities
                logger.info("3D black box %s, identity %s", capabilities.name, capabilities.weights_sha256)
                if site.volume_black_box == "nninteractive":
                    logger.warning("3D model behind %s: %s", site.volume_remote, licence_notice(capabilities.licence))
            return self._volume_black_box

    def volumes(self) -> VolumeSegmenter:
        """Return the segmenter of whole volumes with the 3D black box."""
        return self._volumes

    def on_init_complete(self) -> None:
        """Start the work in the background: load the model, remove expired sessions and old versions of labels.

        Neither the start of the server nor the first click waits for the model. MONAI Label's own method would start a
        clock and scoring, which are not used.
        """
        threading.Thread(target=self._load_first, name="load-model", daemon=True).start()
        threading.Thread(target=self._remove_sessions, name="sessions", daemon=True).start()
        site, lock_file = self.site, self.store.inference_lock_file
        audit = self._audit
        Retention(self.datastore(), site, audit, self._closed).start()
        if max_images := site.evidence_images_per_label:
            judges: tuple[Judge, ...] = (
                ClickJudge(self.black_box, self.store, max_images, self._prompts),
                OrganJudge(self.organs, self.organ_store, lock_file),
            )
            if site.volume_black_box:
                judges += (VolumeJudge(self._volumes, lock_file, max_images),)
            self._collector = EvidenceCollector(self.datastore(), site, judges, audit, self._closed)
            self._collector.start()

    def close(self) -> None:
        """Stop the work in the background."""
        self._closed.set()
        if self._collector:
            self._collector.wake()
        if self._volume_black_box:
            self._volume_black_box.close()

    def _remove_sessions(self) -> None:
        while True:
            try:
                self.cleanup_sessions()
            except OSError as error:
                logger.warning("Expired sessions could not be removed (%s).", type(error).__name__)
            if self._closed.wait(_SESSION_SECONDS):
                return

    def _load_first(self) -> None:
        for load in (self.segmenter, *((self.volume_black_box,) if self.site.volume_black_box else ())):
            try:
                load()
            except BapsError as error:  # Clicks get the same error.
                logger.error("%s", error)

    @property
    def loaded(self) -> bool:
        """Whether the black box has been loaded."""
        return self._segmenter is not None

    @property
    def capabilities(self) -> Capabilities | None:
        """Capabilities of the black box, or None if it has not been loaded."""
        return self._black_box.capabilities if self._black_box else None

    @property
    def organ_model_name(self) -> str:
        """Name of the organ model, or "" if it has not been loaded."""
        return str(self._organs.model.name) if self._organs else ""

    @property
    def volume_model_name(self) -> str:
        """Name of the 3D black box, or "" if it has not been loaded."""
        return self._volume_black_box.capabilities.name if self._volume_black_box else ""

    def identity(self, model: str) -> tuple[str, ...] | None:
        """Return what the adapters of a model depend on, without loading the model.

        Args:
            model: ``baps``, ``organs`` or ``volume``.

        Returns:
            The hash of the weights and, for ``baps`` and ``volume``, the preprocessing; None if the model has not been
                loaded.
        """
        if model == "organs":
            return (self._organs.model.sha256,) if self._organs else None
        if model == "volume":
            return self._volume_black_box.capabilities.identity if self._volume_black_box else None
        return self._black_box.capabilities.identity if self._black_box else None

    def cleanup_sessions(self) -> None:
        """Remove the sessions that have expired."""
        if self._sessions is not None:
            remove_expired(self._sessions)

    def save_label(
        self, image_id: str, path: Path, tag: str, info: dict[str, Any], confirms: bool = False
    ) -> tuple[str, ...]:
        """Check a label and save it, see ``baps.server.labels.save_labels.save_label``."""
        site = self.site
        notes = baps.server.labels.save_labels.save_label(
            self.datastore(), site.labels, image_id, path, tag, info, site.complete_labels, confirms
        )
        self.labels_changed()
        return notes

    def labels_changed(self) -> None:
        """Let new labels judge the adapters."""
        if self._collector:
            self._collector.wake()

    def save_mask(
        self,
        model: str,
        image_id: str,
        image: Volume,
        organ: str,
        mask: NDArray[np.bool_],
        slices: Collection[int],
        author: str,
        confirms: bool = False,
    ) -> str:
        """Save the mask of a model, see ``baps.server.labels.save_labels.save_mask``."""
        note = baps.server.labels.save_labels.save_mask(
            self.datastore(), self.site.labels, image_id, image, organ, mask, slices, model, author, confirms
        )
        if self._collector:
            self._collector.wake()
        return note
