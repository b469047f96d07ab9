"""Plan, train and predict with nnU-Net; run by the Python that has it, which has nothing of this project.

``nnunet_process.py FOLDER EPOCHS STEPS MEMORY_GB SEED`` reads ``raw`` and ``test`` in the folder, and writes ``masks``
and ``costs.json``.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import time
from pathlib import Path


def peak_mib() -> float:
    """Return the peak memory of this process. (The system reports bytes on macOS, otherwise kilobytes.)"""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def main(folder: Path, epochs: int, steps: int, memory_gb: float, seed: int) -> None:
    """Train on the volumes in ``raw`` and segment those in ``test``."""
    import numpy as np
    import torch
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiments,
        preprocess,
    )
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.run.run_training import get_trainer_from_args

    configuration, device = "3d_fullres", torch.device("cpu")
    extract_fingerprints([1], num_processes=1)
    plan_experiments([1], gpu_memory_target_in_gb=memory_gb)
    preprocess([1], configurations=(configuration,), num_processes=(1,))
    # Patches are drawn in this process, so that its time is all of it.
    os.environ["nnUNet_n_proc_DA"] = "0"  # noqa: SIM112
    torch.set_num_threads(1)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002, nnU-Net draws from it
    torch.manual_seed(seed)
    # A split needs five patients; with "all", it trains on all of them.
    trainer = get_trainer_from_args("Dataset001_organ", configuration, "all", device=device)
    trainer.num_epochs, trainer.num_iterations_per_epoch = epochs, steps
    trainer.num_val_iterations_per_epoch = 1  # Of training patients: it costs time and decides nothing.
    trainer.disable_checkpointing = True
    start = time.process_time()
    trainer.run_training()
    costs = {
        "parameters": sum(value.numel() for value in trainer.network.parameters()),
        "seconds": round(time.process_time() - start, 1),
        "epochs": [epochs],
        "memory_mib": round(peak_mib()),
        "patch": list(trainer.configuration_manager.patch_size),
        "batch": trainer.configuration_manager.batch_size,
    }
    trainer.set_deep_supervision_enabled(False)
    predictor = nnUNetPredictor(use_mirroring=False, device=device, allow_tqdm=False)
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [trainer.network.state_dict()],
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    (folder / "masks").mkdir()
    predictor.predict_from_files_sequential(
        [[str(file)] for file in sorted((folder / "test").iterdir())],
        [
            str(folder / "masks" / file.name.removesuffix("_0000.nii.gz"))
            for file in sorted((folder / "test").iterdir())
        ],
    )
    (folder / "costs.json").write_text(json.dumps(costs))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))
