"""Export of saved labels as an RTSTRUCT; the command itself is tested with the other commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from baps.annotations.export import label_to_rtstruct
from baps.annotations.history import LabelHistory
from baps.errors import InputError
from baps.imaging.label_map import LabelMap
from baps.io import read_volume, write_label_map
from baps.io.dicom.rtstruct import read_structures
from tests.support.small_series import random_segments, write_small_series


@pytest.fixture
def history(tmp_path: Path) -> LabelHistory:
    write_small_series(tmp_path / "p1")
    datastore = {"objects": {"p1": {"image": {"ext": ""}, "labels": {}}}}
    (tmp_path / "datastore_v2.json").write_text(json.dumps(datastore))
    return LabelHistory(tmp_path)


def test_overlapping_segments_become_named_structures(history: LabelHistory, tmp_path: Path) -> None:
    image = read_volume(tmp_path / "p1")
    masks = {"liver": random_segments(3)[0], "tumour": random_segments(3)[0].copy()}
    masks["tumour"][:6] = False
    labels = LabelMap.from_masks(enumerate(masks.values(), start=1), {1: "a", 2: "tumour"})
    file = write_label_map(tmp_path / "new", labels, image)
    for info in ({}, {"label_info": [{"name": "liver", "idx": 1}, {"name": "tumour", "idx": 2}], "model": "sam"}):
        history.save("p1", "final", file, ".seg.nrrd", info)
        dataset = label_to_rtstruct(history, "p1")
        results = {segment.name: segment.mask for segment in read_structures(dataset, image)}
        assert list(results) == (["liver", "tumour"] if info else ["a", "tumour"])
        for mask, expected in zip(results.values(), masks.values(), strict=True):
            np.testing.assert_array_equal(mask, expected)
    assert {structure.ROIGenerationAlgorithm for structure in dataset.StructureSetROISequence} == {"SEMIAUTOMATIC"}


def test_empty_label_is_refused(history: LabelHistory, tmp_path: Path) -> None:
    image = read_volume(tmp_path / "p1")
    empty = write_label_map(tmp_path / "new", LabelMap((np.zeros(image.shape, np.uint8),)), image)
    history.save("p1", "draft", empty, ".nii.gz", {})
    with pytest.raises(InputError, match="The label draft of p1 marks nothing"):
        label_to_rtstruct(history, "p1", "draft")
