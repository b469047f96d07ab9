"""Processes that ``stress/kill/kills.py`` kills: each one prints what it has done, and continues.

``labels STUDIES FOLDER`` saves a label of the first image repeatedly; ``adapters ROOT`` adds and publishes adapters
repeatedly; ``training FOLDER SEED IMAGES`` trains one adapter.
"""

from __future__ import annotations

import sys
from pathlib import Path

from stress.served_site import CASES, LABELS, SAMPLES

CASE, LABEL = CASES[0], "spleen"


def labels(studies: Path, files: Path) -> None:
    """Save two labels in turn; print the number of each save when it is done."""
    from baps.annotations.history import LabelHistory

    history, number = LabelHistory(studies), 0
    history.repair()
    print("ready", flush=True)
    while True:
        history.save(CASE, "final", files / f"{number % 2}.nii.gz", ".nii.gz", {"author": "anna", "number": number})
        print(number, flush=True)
        number += 1


def adapters(root: Path) -> None:
    """Add and publish adapters one after the other; print each version when it is published."""
    import torch

    from baps.adapters.adapter import Adapter
    from baps.adapters.output_head import OutputHead
    from baps.adapters.visual_prompt import build_visual_prompt
    from baps.registry.store import AdapterStore

    torch.set_num_threads(1)
    store, number = AdapterStore(root), 0
    print("ready", flush=True)
    while True:
        adapter = Adapter(build_visual_prompt("basis"), OutputHead(number))
        record = {"adapter": adapter.to_dict(), "black_box": {"name": "none", "weights_sha256": "b" * 64}}
        version = store.add(LABEL, adapter, record, "accepted")
        store.publish(LABEL, version)
        print(version, flush=True)
        number += 1


def training(folder: Path, seed: int, images: int) -> None:
    """Train on three sample volumes and publish the adapter, as the server does; print its progress."""
    from baps.blackbox import load_black_box
    from baps.evaluation.cases import Case, load_cases
    from baps.registry.store import AdapterStore
    from baps.training.adapt import ProgressReport
    from baps.training.publishing import adapt_and_publish
    from baps.training.settings import AdaptationSettings

    black_box = load_black_box(device="cpu")
    store = AdapterStore(folder)
    folder.mkdir(parents=True, exist_ok=True)
    cases = [
        Case(SAMPLES / "images" / f"{case}.nii.gz", SAMPLES / "labels" / f"{case}.nii.gz", LABELS[LABEL], case)
        for case in CASES[:3]
    ]
    slices, _ = load_cases(cases, black_box.capabilities.input_size, 8, folder)
    print("ready", flush=True)

    def report(progress: ProgressReport) -> None:
        print(progress.images, flush=True)

    result = adapt_and_publish(
        store, (LABEL,), black_box, slices, AdaptationSettings(max_images=images, seed=seed), report
    )
    print("done", result["version"], result.get("replayed_images", 0), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "labels":
        labels(Path(sys.argv[2]), Path(sys.argv[3]))
    elif sys.argv[1] == "adapters":
        adapters(Path(sys.argv[2]))
    else:
        training(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
