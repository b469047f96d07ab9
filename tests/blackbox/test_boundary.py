"""Modules outside the package do not access a black box's internals, and the package does not import the server."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import baps
from tests.support.paths import ROOT as CHECKOUT

ROOT = Path(baps.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
PRETRAINING = sorted((CHECKOUT / "tools" / "pretraining").rglob("*.py"))
METHOD = [path for path in MODULES if path.relative_to(ROOT).parts[0] not in ("server", "demo")]
OUTSIDE = [path for path in METHOD if path.relative_to(ROOT).parts[0] != "blackbox"]
HIDDEN = {
    "_model",
    "_content",
    "_segment",
    "_encode",
    "_decode",
    "_embed",
    "_predict",
    "_capabilities",
    "_images_queried",
    "_remember",
    "_propagate",
}
HIDDEN_MODULES = {"segment_anything", "sam", "medsam", "sam2_memory", "transformers_sam", "decoding", "bundled_model"}


def _imports(tree: ast.AST) -> set[str]:
    """Return every part of every dotted name that is imported."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [node.module or "", *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            names += [
                part.value for part in node.args if isinstance(part, ast.Constant) and isinstance(part.value, str)
            ]
    return {part for name in names for part in name.split(".")}


def _reaches_in(tree: ast.AST) -> set[str]:
    """Return the hidden attributes that the code accesses, by a dot or by name (getattr)."""
    dotted = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    named = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return (dotted | named) & HIDDEN


@pytest.mark.parametrize(
    ("code", "result"),
    [
        ("black_box._model.parameters()", {"_model"}),
        ("getattr(encoding, '_content')", {"_content"}),
        ("self._segment = 1", {"_segment"}),
        ("model = black_box.segment(images, prompts)", set()),
    ],
)
def test_check_finds_access_to_hidden_attributes(code: str, result: set[str]) -> None:
    assert _reaches_in(ast.parse(code)) == result


@pytest.mark.parametrize(
    "code",
    [
        "import segment_anything",
        "import segment_anything.modeling as m",
        "from segment_anything.modeling import Sam",
        "def f():\n    from segment_anything import SamPredictor",
        "importlib.import_module('segment_anything')",
    ],
)
def test_check_finds_imports(code: str) -> None:
    assert "segment_anything" in _imports(ast.parse(code))


def test_check_reads_the_package() -> None:
    assert {"segmenter.py", "training.py", "sam.py", "scenes.py"} <= {path.name for path in (*MODULES, *PRETRAINING)}
    assert len(OUTSIDE) > 15
    assert "segment_anything" in _imports(ast.parse((ROOT / "blackbox" / "sam.py").read_text()))


def test_no_module_accesses_hidden_attributes() -> None:
    trees = {path: ast.parse(path.read_text()) for path in OUTSIDE}
    results = {path: (_imports(tree) & HIDDEN_MODULES) | _reaches_in(tree) for path, tree in trees.items()}
    assert {path: names for path, names in results.items() if names} == {}


def test_no_module_below_the_server_imports_the_host() -> None:
    """Like the contract of import-linter, but also finds ``import_module``."""
    modules = [*METHOD, *PRETRAINING]
    results = {path: _imports(ast.parse(path.read_text())) & {"monailabel", "lib", "fastapi"} for path in modules}
    assert {path: names for path, names in results.items() if names} == {}
