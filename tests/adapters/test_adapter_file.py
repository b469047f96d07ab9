from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from baps.adapters.adapter import Adapter
from baps.adapters.adapter_file import check_trained_for, read_adapter, write_adapter
from baps.adapters.output_head import OutputHead
from baps.adapters.visual_prompt import KINDS, build_visual_prompt
from baps.blackbox import BlackBox
from baps.errors import BapsError, InputError
from baps.prompts import Prompt
from tests.support.paths import ROOT

PROMPTS = [Prompt(((3.0, 4.0),)), Prompt(((20.0, 9.0),))]
STATISTICS = {"name": "statistics", "source": "", "sha256": ""}


def _adapter(kind: str = "basis", condition: str = "label", seed: int = 0, head: bool = True) -> Adapter:
    new_adapter = Adapter(build_visual_prompt(kind, seed, condition), OutputHead(seed) if head else None)
    generator = torch.Generator().manual_seed(seed)
    for value in new_adapter.state_dict().values():
        if value.is_floating_point():
            value.add_(torch.rand(value.shape, generator=generator))
    return new_adapter


def _record(adapter: Adapter) -> dict[str, Any]:
    black_box = {"name": "brightness", "weights_sha256": "b" * 64, "preprocessing": "canvas"}
    return {"adapter": adapter.to_dict(), "black_box": black_box, "settings": {"seed": 3, "learning_rate": 0.03}}


def _same(first: Adapter, second: Adapter) -> bool:
    states = first.state_dict(), second.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][key], states[1][key]) for key in states[0]
    )


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    path = tmp_path / "spleen.safetensors"
    write_adapter(path, _adapter(), _record(_adapter()))
    return path


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("condition", ["label", "click"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_read_back_unchanged(tmp_path: Path, kind: str, condition: str, head: bool) -> None:
    path = tmp_path / "new" / "folder" / "adapter.safetensors"
    new_adapter = _adapter(kind, condition, 3, head)
    record = {**_record(new_adapter), "author": "Anna Müller", "verdict": None, "curve": [[0, 0.25]]}
    write_adapter(path, new_adapter, record)
    back, read_record = read_adapter(path)
    assert _same(back, new_adapter)
    assert (back.visual_prompt.kind, back.visual_prompt.condition) == (kind, "click" if kind == "tone" else condition)
    assert not back.visual_prompt.training
    assert (back.head is not None) == head
    assert back.head is None or not back.head.training
    assert read_record == record
    assert os.listdir(path.parent) == ["adapter.safetensors"]  # noqa: PTH208  # names alone


def test_an_adapter_read_back_transforms_images_identically(adapter: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    new_adapter, (back, _) = _adapter(), read_adapter(adapter)
    crops = new_adapter.crop(pixels, PROMPTS)
    changed = new_adapter.transform_images(crops)
    np.testing.assert_array_equal(back.transform_images(crops), changed)
    assert (changed != pixels).any()


def test_a_newer_adapter_replaces_an_older_one(adapter: Path) -> None:
    newer = _adapter("concat", seed=5)
    write_adapter(adapter, newer, _record(newer))
    assert _same(read_adapter(adapter)[0], newer)
    assert len(list(adapter.parent.iterdir())) == 1


def test_error_for_a_missing_file_names_the_command(tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(InputError, match=r"There is no adapter file .*`baps adapt --out FILE` makes one"):
            read_adapter(path)


def test_truncated_file_is_refused(adapter: Path) -> None:
    content = adapter.read_bytes()
    header = struct.unpack("<Q", content[:8])[0]
    for cut in {0, 1, 7, 8, 9, 8 + header // 2, 8 + header - 1, 8 + header, len(content) // 2, len(content) - 1}:
        adapter.write_bytes(content[:cut])
        with pytest.raises(InputError, match=r"spleen\.safetensors is not an adapter of this project, or it is broken"):
            read_adapter(adapter)


@pytest.mark.parametrize("content", [b"rubbish" * 100, b"\xff" * 100, b"{}", b"\0" * 64, b"PK\x03\x04" + b"\0" * 50])
def test_a_file_of_another_format_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not an adapter of this project"):
        read_adapter(path)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {},
        {"format": "pt"},
        {"record": "no JSON"},
        {"record": "[]"},
        {"record": "5"},
        {"record": "null"},
        {"record": "{}"},
        {"record": '{"adapter": null}'},
        {"record": '{"adapter": 5}'},
        {"record": '{"adapter": {}}'},
        {"record": '{"adapter": {"visual_prompt": null, "head": false}}'},
        {"record": '{"adapter": {"visual_prompt": 5, "head": false}}'},
        {"record": '{"adapter": {"visual_prompt": {}, "head": false}}'},
        {"record": '{"adapter": {"visual_prompt": {"encoder": []}, "head": false}}'},
        {"record": json.dumps({"adapter": {"visual_prompt": {"encoder": STATISTICS}, "head": False}})},
        {"record": json.dumps({"adapter": {"visual_prompt": build_visual_prompt("basis").to_dict()}})},
    ],
    ids=str,
)
def test_safetensors_without_our_record_are_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "model.safetensors"
    save_file(_adapter().state_dict(), path, metadata)
    with pytest.raises(InputError, match="is not an adapter of this project"):
        read_adapter(path)


@pytest.mark.parametrize("kind", ["unknown", "concat"])
def test_weights_that_do_not_match_the_record_are_refused(tmp_path: Path, kind: str) -> None:
    new_adapter = _adapter("basis")
    record = _record(new_adapter)
    record["adapter"]["visual_prompt"]["kind"] = kind
    write_adapter(tmp_path / "a", new_adapter, record)
    with pytest.raises(InputError):
        read_adapter(tmp_path / "a")


def test_an_encoder_with_other_weights_is_an_error(tmp_path: Path) -> None:
    new_adapter = _adapter()
    record = _record(new_adapter)
    record["adapter"]["visual_prompt"]["encoder"]["sha256"] = "f" * 64
    write_adapter(tmp_path / "a", new_adapter, record)
    with pytest.raises(BapsError, match="trained with weights of the encoder 'statistics'") as error:
        read_adapter(tmp_path / "a")
    assert not isinstance(error.value, InputError)


def test_a_record_that_is_not_json_leaves_the_older_file(adapter: Path) -> None:
    before = adapter.read_bytes()
    for invalid in (float("nan"), object()):
        with pytest.raises((TypeError, ValueError)):
            write_adapter(adapter, _adapter(), {**_record(_adapter()), "odd": invalid})
    assert adapter.read_bytes() == before
    assert len(list(adapter.parent.iterdir())) == 1


_FULL = """
import resource, sys
from pathlib import Path
from baps.adapters.adapter import Adapter
from baps.adapters.adapter_file import write_adapter
from baps.errors import BapsError
from baps.adapters.adapter import Adapter
from baps.adapters.visual_prompt import build_visual_prompt
made = Adapter(build_visual_prompt("concat", 9))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    write_adapter(Path(sys.argv[1]), made, {"adapter": made.to_dict()})
except BapsError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of file sizes")
@pytest.mark.parametrize("room", [0, 100, 5000])
def test_full_disk_leaves_the_older_file_intact(adapter: Path, room: int) -> None:
    """Limit the bytes that a process may write, as on a full disk."""
    before = adapter.read_bytes()
    paths = {"PYTHONPATH": str(ROOT / "apps" / "baps_app")}
    process = subprocess.run(
        [sys.executable, "-c", _FULL, str(adapter), str(room)],
        env={**os.environ, **paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert f"The adapter could not be written to {adapter} (" in process.stdout
    assert "Free some space or choose another place." in process.stdout
    assert adapter.read_bytes() == before
    assert list(adapter.parent.iterdir()) == [adapter]


def test_unwritable_path_is_an_error(adapter: Path) -> None:
    before = adapter.read_bytes()
    (adapter.parent / "folder").mkdir()
    (adapter.parent / "folder" / "full").write_text("")
    for path in (adapter / "below", adapter / "far" / "below", adapter.parent / "folder"):
        with pytest.raises(BapsError, match="could not be written to"):
            write_adapter(path, _adapter(), _record(_adapter()))
    assert adapter.read_bytes() == before
    assert sorted(path.name for path in adapter.parent.iterdir()) == ["folder", "spleen.safetensors"]


def test_adapter_is_accepted_for_the_weights_that_it_was_trained_for(
    adapter: Path, new_black_box: Callable[..., BlackBox]
) -> None:
    (_, record), capabilities = read_adapter(adapter), new_black_box().capabilities
    check_trained_for(record, capabilities.name, *capabilities.identity)
    renamed = {**record["black_box"], "name": "renamed"}
    check_trained_for({**record, "black_box": renamed}, capabilities.name, *capabilities.identity)


def test_an_adapter_for_other_weights_is_refused(adapter: Path, new_black_box: Callable[..., BlackBox]) -> None:
    (_, record), capabilities = read_adapter(adapter), new_black_box().capabilities
    record["black_box"] = {"name": "medsam", "weights_sha256": "a" * 64}
    with pytest.raises(InputError, match=r"trained for medsam with weights a{12}\.\.\., not for brightness with b{12}"):
        check_trained_for(record, capabilities.name, *capabilities.identity)


def test_adapter_of_another_preprocessing_is_refused(adapter: Path, new_black_box: Callable[..., BlackBox]) -> None:
    (_, record), capabilities = read_adapter(adapter), new_black_box().capabilities
    with pytest.raises(InputError, match="with the preprocessing canvas, but brightness now uses medsam. Adapt again"):
        check_trained_for(record, capabilities.name, capabilities.weights_sha256, "medsam")


def test_the_record_is_in_the_header_of_the_file(adapter: Path) -> None:
    """Other tools can read it without this project."""
    content = adapter.read_bytes()
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    assert json.loads(header["__metadata__"]["record"]) == _record(_adapter())


def test_two_runs_to_the_same_adapter_give_the_same_file(tmp_path: Path) -> None:
    new_adapter = _adapter()
    for name, seconds, recalled in (("one", 12.5, 0), ("two", 3.0, 400)):
        write_adapter(
            tmp_path / name, new_adapter, {**_record(new_adapter), "seconds": seconds, "replayed_images": recalled}
        )
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(
    "changed",
    [
        {"zoom": "1e999"},
        {"zoom": 0},
        {"zoom": [1]},
        {"visual_prompt": None},
        {"visual_prompt": {"encoder": [], "kind": "basis"}},
        {"visual_prompt": {"encoder": {"name": [], "source": {}, "sha256": 1}}},
    ],
)
def test_record_without_an_adapter_is_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    new_adapter = _adapter()
    record = _record(new_adapter)
    record["adapter"] = {**record["adapter"], **changed}
    write_adapter(tmp_path / "a.safetensors", new_adapter, record)
    with pytest.raises(BapsError, match=r"\."):
        read_adapter(tmp_path / "a.safetensors")


@pytest.mark.parametrize("record", ["null", "[]", "5", '"adapter"', '{"adapter": []}', "[" * 50_000])
def test_missing_record_is_refused(tmp_path: Path, record: str) -> None:
    save_file(_adapter().state_dict(), tmp_path / "a.safetensors", {"record": record})
    with pytest.raises(InputError, match="is not an adapter"):
        read_adapter(tmp_path / "a.safetensors")
