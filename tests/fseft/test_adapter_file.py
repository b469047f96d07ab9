from __future__ import annotations

from pathlib import Path

import pytest
import torch

from baps.adapters.adapter_file import write_adapter
from baps.errors import InputError
from baps.fseft.adapter_file import adapter_record, read_organ_adapter
from baps.fseft.adapters import build_adapter
from baps.fseft.models import FoundationModel, OrganModel


@pytest.mark.parametrize(
    ("name", "method", "refused"),
    [("bias", 6, False), ("bias", 5, True), ("compacter", 5, True), ("linear_probe", 5, False)],
)
def test_adapters_of_a_method_that_changed_are_refused(
    name: str, method: int, refused: bool, unet: FoundationModel, tmp_path: Path
) -> None:
    model = OrganModel("bundled", unet, "c" * 64)
    adapter = build_adapter("linear_probe" if name == "compacter" else name, unet, "tumour")
    record = {"adapter": adapter_record(name, "tumour", False, 0), "black_box": model.to_dict(), "method": method}
    write_adapter(tmp_path / "a.adapter", adapter, record)
    if refused:
        with pytest.raises(InputError, match=f"earlier version's method {name}.*Train again"):
            read_organ_adapter(tmp_path / "a.adapter", model)
    else:
        assert read_organ_adapter(tmp_path / "a.adapter", model)[1]["method"] == method


@pytest.mark.parametrize(
    ("name", "method", "refused"),
    [("suprem_unet", 5, False), ("suprem_unet", 4, True), ("suprem_unet", None, True), ("bundled", 4, False)],
)
def test_adapters_for_other_features_of_a_published_model_are_refused(
    name: str, method: int | None, refused: bool, unet: FoundationModel, tmp_path: Path
) -> None:
    model = OrganModel(name, unet, "c" * 64)
    adapter = build_adapter("linear_probe", unet, "tumour")
    record = {"adapter": adapter_record("linear_probe", "tumour", False, 0), "black_box": model.to_dict()}
    write_adapter(tmp_path / "a.adapter", adapter, record if method is None else {**record, "method": method})
    if refused:
        with pytest.raises(InputError, match="other features of suprem_unet.*Train again"):
            read_organ_adapter(tmp_path / "a.adapter", model)
    else:
        result, _ = read_organ_adapter(tmp_path / "a.adapter", model)
        assert torch.equal(result.state_dict()["head.weight"], adapter.state_dict()["head.weight"])
