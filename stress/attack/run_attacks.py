"""The attacks of ``tests/security/attacks.py``, each tried on a server of its own kind."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

_TESTS = Path(__file__).resolve().parents[1] / "tests" / "security"


def try_attacks(folder: Path) -> dict[str, Any]:
    """Try every attack on our server, on a folder of studies and beside a PACS.

    Returns:
        ``attacks_tried``, ``attacks_succeeded``, the names of these, and ``missing`` where there are no attacks to try.
    """
    if not (_TESTS / "attacks.py").is_file():
        return {"attacks_tried": 0, "attacks_succeeded": 0, "succeeded": [], "missing": True}
    sys.path[:0] = [str(_TESTS), str(_TESTS.with_name("web"))]  # The second has an OpenID provider.
    attacks: Any = importlib.import_module("attacks")
    every: Any = importlib.import_module("all_attacks").ATTACKS
    attacked: Any = importlib.import_module("attacked")
    tried, succeeded = 0, []
    for number, kind in enumerate(attacks.Site):
        own = folder / str(number)
        own.mkdir(parents=True)
        with attacked.attacked(own, kind, False) as target:
            for attack in every:
                if attack.site is kind:
                    tried += 1
                    if attacks.tried(attack, target).succeeded:
                        succeeded.append(attack.name)
    return {
        "attacks_tried": tried,
        "attacks_succeeded": len(succeeded),
        "succeeded": succeeded,
        "missing": False,
    }
