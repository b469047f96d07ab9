"""Try every attack of ``all_attacks``, on a server of the kind that it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stress.attack.all_attacks import ATTACKS
from stress.attack.attacked import attacked
from stress.attack.attacks import Site, tried


def try_attacks(folder: Path) -> dict[str, Any]:
    """Try every attack on our server, on a folder of studies and beside a PACS.

    Args:
        folder: where the servers keep their files.

    Returns:
        ``attacks_tried``, ``attacks_succeeded``, and the names of these, ``succeeded``.
    """
    count, succeeded = 0, []
    for number, kind in enumerate(Site):
        own = folder / str(number)
        own.mkdir(parents=True)
        with attacked(own, kind, False) as target:
            for attack in ATTACKS:
                if attack.site is kind:
                    count += 1
                    if tried(attack, target).succeeded:
                        succeeded.append(attack.name)
    return {"attacks_tried": count, "attacks_succeeded": len(succeeded), "succeeded": succeeded}
