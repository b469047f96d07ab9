"""A file that is replaced when the new one is whole: a reader sees the old or the new one, never a part."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(target: Path, suffix: str = "", mode: int = 0o644) -> Iterator[Path]:
    """A path beside the target to write to; it becomes the target when all went well, and is gone when not.

    Its name is hidden, and nobody else's: of two who write at once, the last one's file is kept, whole.

    Args:
        target: the file, which need not be there; its folder must.
        suffix: what the path ends in, where a library tells the format by it.
        mode: who may read and write the file.

    Raises:
        OSError: if the folder cannot be written to, say; the target is as it was.
    """
    handle, name = tempfile.mkstemp(prefix=".partial-", suffix=suffix, dir=target.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(mode)  # mkstemp's own mode would keep the server's other users out
        os.replace(partial, target)
    except BaseException:
        with suppress(OSError):  # The first error says more.
            partial.unlink()
        raise
