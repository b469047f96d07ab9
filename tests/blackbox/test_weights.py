from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from baps.blackbox.weights import KNOWN_SHA256, load_weights, sha256
from baps.errors import InputError

STATE = {"layer.weight": torch.arange(6.0).view(2, 3), "layer.bias": torch.ones(2)}


class _UnpicklingProbe:
    """Creates a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


def _equal(result: dict[str, torch.Tensor]) -> bool:
    return result.keys() == STATE.keys() and all(torch.equal(result[key], STATE[key]) for key in STATE)


def test_safetensors_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(STATE, path)
    result, digest = load_weights(path)
    assert _equal(result)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
@pytest.mark.parametrize("nested", ["", "model", "state_dict", "net"])
def test_plain_state_dict_is_read(tmp_path: Path, suffix: str, nested: str) -> None:
    path = tmp_path / f"a{suffix}"
    torch.save({"optimizer": {"state": {}}, nested: STATE, "epoch": 3} if nested else STATE, path)
    assert _equal(load_weights(path)[0])


def test_the_right_hash_is_accepted_in_any_case(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(STATE, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_weights(path, digest.upper())[1] == digest


def test_a_wrong_hash_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(STATE, path)
    with pytest.raises(InputError, match=f"{'0' * 64} was expected"):
        load_weights(path, "0" * 64)


@pytest.mark.parametrize("name", KNOWN_SHA256)
def test_a_published_name_demands_the_published_hash(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    torch.save(STATE, path)
    with pytest.raises(InputError, match=KNOWN_SHA256[name]):
        load_weights(path)
    assert _equal(load_weights(path, hashlib.sha256(path.read_bytes()).hexdigest())[0])


def test_the_hash_is_checked_before_the_file_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(b"this is no checkpoint")
    with pytest.raises(InputError, match="was expected"):
        load_weights(path, "0" * 64)


@pytest.mark.parametrize("inside", [False, True])
def test_pickle_is_refused_without_running_it(tmp_path: Path, inside: bool) -> None:
    path, trace = tmp_path / "a.pth", tmp_path / "trace"
    torch.save({**STATE, "odd": _UnpicklingProbe(trace)} if inside else _UnpicklingProbe(trace), path)
    with pytest.raises(InputError, match="cannot be read as a plain state dict"):
        load_weights(path)
    assert not trace.exists()


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, torch.ones(2), {"model": {"a": "text"}}])
def test_other_content_than_a_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "a.pth"
    torch.save(content, path)
    with pytest.raises(InputError, match="state dict"):
        load_weights(path)


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a.bin"])
def test_corrupt_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"rubbish" * 100)
    with pytest.raises(InputError, match="cannot be read"):
        load_weights(tmp_path / name)


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_weights(tmp_path / "absent.pth")
    with pytest.raises(InputError, match="does not exist"):
        load_weights(tmp_path)


def test_hash_depends_on_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for content in (b"one", b"another"):
        path.write_bytes(content)
        assert sha256(path) == hashlib.sha256(content).hexdigest()
