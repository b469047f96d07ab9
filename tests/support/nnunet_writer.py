"""Write TotalSegmentator's folder with nnU-Net's own code, and what nnU-Net answers. Run it in ``.venv-nninteractive``.

    python nnunet_writer.py FOLDER

writes small networks with random weights to ``FOLDER/results``, in the layout of TotalSegmentator's download, CT
volumes, and for each network and volume what nnU-Net's predictor returns.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from scipy.ndimage import zoom

STRUCTURES = {
    291: "spleen kidney_right kidney_left gallbladder liver stomach pancreas adrenal_gland_right adrenal_gland_left "
    "lung_upper_lobe_left lung_lower_lobe_left lung_upper_lobe_right lung_middle_lobe_right lung_lower_lobe_right "
    "esophagus trachea thyroid_gland small_bowel duodenum colon urinary_bladder prostate kidney_cyst_left "
    "kidney_cyst_right",
    292: "sacrum vertebrae_S1 "
    + " ".join(
        f"vertebrae_{part}{n}" for part, count in zip("LTC", (5, 12, 7), strict=True) for n in range(count, 0, -1)
    ),
    293: "heart aorta pulmonary_vein brachiocephalic_trunk subclavian_artery_right subclavian_artery_left "
    "common_carotid_artery_right common_carotid_artery_left brachiocephalic_vein_left brachiocephalic_vein_right "
    "atrial_appendage_left superior_vena_cava inferior_vena_cava portal_vein_and_splenic_vein iliac_artery_left "
    "iliac_artery_right iliac_vena_left iliac_vena_right",
    294: "humerus_left humerus_right scapula_left scapula_right clavicula_left clavicula_right femur_left femur_right "
    "hip_left hip_right spinal_cord gluteus_maximus_left gluteus_maximus_right gluteus_medius_left "
    "gluteus_medius_right gluteus_minimus_left gluteus_minimus_right autochthon_left autochthon_right "
    "iliopsoas_left iliopsoas_right brain skull",
    295: " ".join(f"rib_{side}_{n}" for side in ("left", "right") for n in range(1, 13)) + " sternum costal_cartilages",
}
"""TotalSegmentator's ``class_map_5_parts``."""

NAMES = {
    291: "part1_organs_1559subj", 292: "part2_vertebrae_1532subj", 293: "part3_cardiac_1559subj",
    294: "part4_muscles_1559subj", 295: "part5_ribs_1559subj", 297: "total_3mm_1559subj",
}  # fmt: skip

SHAPES = {"one window": (40, 32, 30), "four windows": (70, 56, 30)}
"""Voxels of the volumes towards right, front and head. The window has 40, 32 and 32: the last axis is padded.
Windows that overlap by a quarter lie where nnU-Net's do.
"""

_STRIDES, _KERNELS = [[1, 1, 1], [2, 2, 2], [2, 1, 2]], [[3, 3, 3], [3, 3, 3], [1, 3, 3]]


def plans_of(dataset: int) -> dict[str, Any]:
    """Return the plans of a network: those of 297 as nnU-Net wrote them until 2.3, the parts' as it writes them now."""
    spacing, patch, transpose = 3.0, [32, 32, 40], [0, 1, 2]
    configuration: dict[str, Any] = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": patch,
        "spacing": [spacing] * 3,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
        "batch_dice": False,
    }
    if dataset == 297:
        configuration |= {
            "UNet_class_name": "PlainConvUNet",
            "UNet_base_num_features": 6,
            "unet_max_num_features": 20,
            "n_conv_per_stage_encoder": [2, 2, 2],
            "n_conv_per_stage_decoder": [2, 2],
            "num_pool_per_axis": [2, 1, 2],
            "pool_op_kernel_sizes": _STRIDES,
            "conv_kernel_sizes": _KERNELS,
        }
    else:
        transpose = [2, 0, 1]
        configuration["spacing"], configuration["patch_size"] = [1.5] * 3, [patch[axis] for axis in transpose]
        configuration["architecture"] = {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 3,
                "features_per_stage": [4, 8, 16],
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": _KERNELS,
                "strides": _STRIDES,
                "n_conv_per_stage": [1, 2, 2],
                "n_conv_per_stage_decoder": [2, 1],
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        }
    intensities = {
        "percentile_00_5": -1000.0 + 7 * (dataset - 291), "percentile_99_5": 900.0 - 11 * (dataset - 291),
        "mean": 30.0, "std": 350.0 + dataset - 291, "median": 40.0, "min": -1024.0, "max": 3000.0,
    }  # fmt: skip
    return {
        "dataset_name": f"Dataset{dataset}_TotalSegmentator_{NAMES[dataset]}",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [spacing] * 3,
        "original_median_shape_after_transp": patch,
        "image_reader_writer": "SimpleITKIO" if dataset == 297 else "NibabelIOWithReorient",
        "transpose_forward": transpose,
        "transpose_backward": np.argsort(transpose).tolist(),
        "configurations": {"2d": {}, "3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": intensities},
    }


def structures_of(dataset: int) -> list[str]:
    """Return the classes of a network in order."""
    return STRUCTURES.get(dataset, " ".join(STRUCTURES.values())).split()


def write_network(dataset: int) -> str:
    """Write a network with nnU-Net's trainer, as after two epochs, and return its folder."""
    from batchgenerators.utilities.file_and_folder_operations import save_json
    from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import (
        nnUNetTrainerNoMirroring,
    )
    from nnunetv2.training.nnUNetTrainer.variants.training_length.nnUNetTrainer_Xepochs_NoMirroring import (
        nnUNetTrainer_4000epochs_NoMirroring,
    )

    names = structures_of(dataset)
    dataset_json = {
        "name": "TotalSegmentator", "channel_names": {"0": "CT"}, "file_ending": ".nii.gz", "numTraining": 1559,
        "labels": {"background": 0} | {name: number for number, name in enumerate(names, 1)},
    }  # fmt: skip
    plans, kind = (
        plans_of(dataset),
        nnUNetTrainer_4000epochs_NoMirroring if dataset == 297 else nnUNetTrainerNoMirroring,
    )
    torch.manual_seed(dataset)
    trainer = kind({**plans, "continue_training": False}, "3d_fullres", 0, dataset_json, device=torch.device("cpu"))
    case = Path(trainer.preprocessed_dataset_folder, "case.b2nd")  # From its name, nnU-Net infers how it reads cases.
    case.parent.mkdir(parents=True)
    case.touch()
    trainer.initialize()
    with torch.no_grad():  # Other biases than 0, and confident answers.
        for name, parameter in trainer.network.named_parameters():
            if name.endswith(("norm.bias", "conv.bias")):
                parameter.normal_(0, 0.3)
        trainer.network.decoder.seg_layers[-1].weight *= 8
    images = torch.rand(1, 1, *trainer.configuration_manager.patch_size)
    sum(output.square().mean() for output in trainer.network(images)).backward()
    trainer.optimizer.step()
    for _ in range(2):
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()
        trainer.on_train_epoch_end([{"loss": np.float32(0.5)}])
        counts = np.arange(1, len(names) + 1)
        trainer.on_validation_epoch_end(
            [{"loss": np.float32(0.4), "tp_hard": counts, "fp_hard": counts, "fn_hard": counts}]
        )
        trainer.logger.log("epoch_end_timestamps", 0.0, trainer.current_epoch)
        trainer.current_epoch += 1
    trainer.save_checkpoint(str(Path(trainer.output_folder, "checkpoint_final.pth")))
    folder = trainer.output_folder_base
    save_json(plans, str(Path(folder, "plans.json")), sort_keys=False)
    save_json(dataset_json, str(Path(folder, "dataset.json")), sort_keys=False)
    return str(folder)


def predict(folder: str, image: Path) -> np.ndarray[Any, Any]:
    """Return nnU-Net's logits of an image, (K + 1, H, W, D) in the order of the network's axes, with its padding.

    Those of several windows are blended, in half precision, as nnU-Net does.
    """
    from acvl_utils.cropping_and_padding.padding import pad_nd_image
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(0.75, use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(folder, (0,), "checkpoint_final.pth")
    configuration = predictor.configuration_manager
    data, _, _ = configuration.preprocessor_class(verbose=False).run_case(
        [str(image)], None, predictor.plans_manager, configuration, predictor.dataset_json
    )
    padded = pad_nd_image(torch.from_numpy(data), configuration.patch_size, "constant", {"value": 0})
    if list(padded.shape[1:]) == list(configuration.patch_size):
        with torch.inference_mode():
            return predictor.network.eval()(padded[None])[0].numpy()
    return predictor.predict_logits_from_preprocessed_data(padded).float().numpy()


def main(written: Path) -> None:
    """Write everything to a folder."""
    torch.set_num_threads(1)
    os.environ.update({f"nnUNet_{name}": str(written / name) for name in ("raw", "preprocessed", "results")})
    random = np.random.default_rng(0)
    folders = {dataset: write_network(dataset) for dataset in NAMES}
    for name, shape in SHAPES.items():
        coarse = random.uniform(-1100, 1000, [-(-side // 4) for side in shape])
        voxels = zoom(coarse, 4, order=1)[tuple(map(slice, shape))].round().astype(np.int16)
        for dataset, folder in folders.items():
            spacing = plans_of(dataset)["configurations"]["3d_fullres"]["spacing"][0]
            image = written / f"{name} {spacing}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(voxels, np.diag([spacing, spacing, spacing, 1.0])), image)
            np.save(written / f"{name} {dataset}.npy", predict(folder, image))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
