"""Write what a training on the command line made, and say what is served."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from baps.adapters.adapter_file import HasStateDict, write_adapter
from baps.cli.console import Console
from baps.evaluation.gate import State, judge_training
from baps.training.adapt import Adaptation


class HasDescription(HasStateDict, Protocol):
    """An adapter."""

    def to_dict(self) -> dict[str, Any]:
        """Describe the adapter for the record.

        Returns:
            Plain JSON.
        """


def write_outcome(console: Console, out: Path, result: Adaptation[Any], unchanged: HasDescription) -> Mapping[str, Any]:
    """Write the adapter if it serves; otherwise one that changes nothing, and the candidate beside it.

    Args:
        console: Where the verdict is printed.
        out: File for what is served.
        result: The result of the training.
        unchanged: An adapter that changes nothing.

    Returns:
        The record of the training, with its ``status``.

    Raises:
        BapsError: If a file cannot be written.
    """
    candidate = out.with_name(f"{out.name}.rejected")
    candidate.unlink(missing_ok=True)
    status = judge_training(result.scores.differences)
    record = {**result.record, "status": status.state.value}
    if result.comparison is None:
        write_adapter(out, result.adapter, record)
        console.print(
            "Only one patient: the adapter could not be checked on another one. It may help or harm.", style="yellow"
        )
    elif status.serves:
        write_adapter(out, result.adapter, record)
        proven = status.state is State.PUBLISHED
        console.print(f"{status.sentence()}.", style="green" if proven else "yellow", markup=False)
        console.print(result.sentence(), markup=False)
    else:
        write_adapter(candidate, result.adapter, record)
        write_adapter(out, unchanged, {**record, "adapter": unchanged.to_dict()})
        console.print(f"{status.sentence()}.", style="yellow", markup=False)
        console.print(
            f"{result.sentence()} {out.name} changes nothing; the candidate is {candidate.name}.", markup=False
        )
    return record
