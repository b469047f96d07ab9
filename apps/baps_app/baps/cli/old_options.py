"""Options of commands by their names in version 0.1, which this release still reads."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

from baps.errors import InputError
from baps.utils.deprecation import warn_of_old_name

OLD_OPTIONS = {
    "--corrected": "--correction-ratio",
    "--optimizer": "--optimiser",
    "--queries": "--unlabelled",
    "--rate": "--learning-rate",
    "--zero-shot": "--unadapted",
}


class CommandWithOldOptions(TyperCommand):
    """A command that also reads its options by their old names, with a warning."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Replace old names before the options are parsed.

        Args:
            ctx: The context of the command.
            args: The words of the command line. Those after ``--`` are arguments.

        Returns:
            Words that are left over.

        Raises:
            InputError: If an option is given by both names.
        """
        known = {name for parameter in self.params for name in parameter.opts}
        end = args.index("--") if "--" in args else len(args)
        names = [word.partition("=")[0] for word in args[:end]]
        for place, old in enumerate(names):
            new = OLD_OPTIONS.get(old, "")
            if new in known:
                if new in names:
                    raise InputError(f"{old} is the old name of {new}. Give only {new}.")
                warn_of_old_name(old, new)
                args[place] = new + args[place].removeprefix(old)
        return super().parse_args(ctx, args)
