"""Evaluation of 3D black boxes by volume."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from baps.errors import InputError
from baps.evaluation.cases import Case
from baps.evaluation.evaluate_volumes import evaluate_volumes
from tests.support.flood import FloodBlackBox, leaky_volume


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    result = []
    for number in range(2):
        labelled = leaky_volume(number)
        affine = np.diag([*labelled.image.spacing, 1])
        image, label = tmp_path / f"i{number}.nii.gz", tmp_path / f"l{number}.nii.gz"
        nibabel.Nifti1Image(labelled.image.voxels, affine).to_filename(image)
        nibabel.Nifti1Image(labelled.target.astype(np.uint8), affine).to_filename(label)
        result.append(Case(image, label, 1, labelled.patient))
    return result


def test_scores_by_patient_and_by_click(cases: list[Case]) -> None:
    black_box = FloodBlackBox()
    result = evaluate_volumes(black_box, cases, clicks=3, sets=2)
    assert set(result.by_patient()) == {"patient 0", "patient 1"}
    content = result.to_dict()
    assert content["predictions"] == black_box.images_queried == 2 * 2 * 3
    assert len(content["by_clicks"]) == len(content["hd95_by_clicks"]) == 3  # type: ignore[arg-type]
    assert content["mean"] == pytest.approx(np.mean(list(result.by_patient().values())))
    assert content["std"] == pytest.approx(np.std(list(result.by_patient().values()), ddof=1))
    assert 0.15 < content["mean"] < 0.8  # type: ignore[operator]  # It leaks.
    assert content["hd95_by_clicks"][0] > 5  # type: ignore[index]


def test_the_same_seed_gives_the_same_scores(cases: list[Case]) -> None:
    first, second = (evaluate_volumes(FloodBlackBox(), cases, seed=3, sets=1).to_dict() for _ in range(2))
    assert first == second


def test_nothing_can_be_evaluated(cases: list[Case]) -> None:
    with pytest.raises(InputError, match="No case can be evaluated. The label"):
        evaluate_volumes(FloodBlackBox(), [Case(cases[0].image, cases[0].labels, 9, "x")])
