"""What the package imports is declared in setup.cfg, where it is used: in the core, or in the extra of the folder."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from functools import lru_cache
from importlib.metadata import packages_distributions
from pathlib import Path

from tests.support.paths import APP, ROOT

_PACKAGE = APP / "baps"

_EXTRAS = {
    "server": "server",
    "demo": "server",
    "cli/evidence_plot.py": "server",
    "cli/labels.py": "server",  # baps labels import, which saves as the server does
    "site/doctor.py": "server",
    "blackbox/remote": "remote",
    "blackbox/remote/hosting.py": "hosting",
    "blackbox/volumes": "nninteractive",
    "utils/packed_arrays.py": "nninteractive",
    "fseft/models/nnunet.py": "totalsegmentator",
    "blackbox/sam2.py": "sam2",
    "blackbox/sam2_memory.py": "sam2",
    "blackbox/transformers_sam.py": "encoders",
    "adapters/visual_prompt/networks.py": "encoders",
    "adapters/visual_prompt/model_files.py": "encoders",
}
"""Extra that a folder or a file needs; all others need the core alone."""

_NOT_IMPORTED = {
    "core": {
        "einops",  # MONAI's Swin UNETR
        "imagecodecs",  # decoders of tifffile
        "torchvision",  # segment-anything
    },
    "server": {
        "baps-monailabel",  # the extra nninteractive
        "dcmqi",  # programs
        "httptools",  # uvicorn
        "tensorboard",  # torch.utils.tensorboard
        "matplotlib",
        "numpy",  # a bound
        "pydicom",  # a bound
        "monai",  # a bound
        "highdicom",  # a bound
    },
}
"""What other packages need, or the demo, or what is declared for its version."""


def _name(requirement: str) -> str:
    return re.split(r"[ \[<>=!;~]", requirement, maxsplit=1)[0].lower().replace("_", "-")


@lru_cache
def _declared() -> dict[str, set[str]]:
    """Distributions by extra; those of the core by ``core``."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    texts = {"core": config["options"]["install_requires"], **config["options.extras_require"]}
    return {
        extra: {_name(line) for line in text.splitlines() if line.strip() and not line.startswith("#")}
        for extra, text in texts.items()
    }


@lru_cache
def _distributions() -> dict[str, set[str]]:
    found = {
        module: {name.lower().replace("_", "-") for name in names} for module, names in packages_distributions().items()
    }
    return found | {"baps": {"baps"}}


def _imports(file: Path) -> Iterator[str]:
    """The distribution of each module of others that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules = [node.module or ""]
        else:
            continue
        for module in modules:
            top = module.partition(".")[0]
            if top not in sys.stdlib_module_names and top != "baps":
                yield from _distributions().get(top, {f"{module}, which is not installed"})


def _extras(file: Path) -> set[str]:
    """The extras that a file may use."""
    place = file.relative_to(_PACKAGE).as_posix()
    return {extra for prefix, extra in _EXTRAS.items() if place == prefix or place.startswith(f"{prefix}/")}


def test_every_import_is_declared_where_it_is_used() -> None:
    missing = []
    for file in _PACKAGE.rglob("*.py"):
        allowed = _declared()["core"].union(*(_declared()[extra] for extra in _extras(file)))
        missing += [f"{file.relative_to(APP)}: {name}" for name in set(_imports(file)) if name not in allowed]
    assert not missing, "\n".join(sorted(missing))


def test_every_extra_is_used_where_it_is_declared() -> None:
    used: dict[str, set[str]] = {}
    for file in _PACKAGE.rglob("*.py"):
        for extra in {"core", *_extras(file)}:
            used.setdefault(extra, set()).update(_imports(file))
    for extra, names in _declared().items():
        if extra in used:
            assert names - used[extra] <= _NOT_IMPORTED.get(extra, set()), extra
