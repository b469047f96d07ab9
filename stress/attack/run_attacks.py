"""Try every attack of ``all_attacks`` on a server of the kind that it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stress.attack.all_attacks import ATTACKS
from stress.attack.attacked_server import attacked_server
from stress.attack.attacks import Site, try_attack


def try_attacks(folder: Path) -> dict[str, Any]:
    """Try every attack on our server, which serves a folder of studies or a PACS.

    Args:
        folder: folder in which the servers keep their files.

    Returns:
        ``attacks_tried``, ``attacks_succeeded``, and ``succeeded``: the names of the attacks that succeeded.
    """
    count, succeeded = 0, []
    for number, kind in enumerate(Site):
        parent = folder / str(number)
        parent.mkdir(parents=True)
        with attacked_server(parent, kind, False) as target:
            for attack in ATTACKS:
                if attack.site is kind:
                    count += 1
                    if try_attack(attack, target).succeeded:
                        succeeded.append(attack.name)
    return {"attacks_tried": count, "attacks_succeeded": len(succeeded), "succeeded": succeeded}
