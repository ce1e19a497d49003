"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from detseg.errors import DataError


@contextlib.contextmanager
def written_whole(path: str | os.PathLike[str], what: str) -> Iterator[Path]:
    """Give a temporary path beside `path`; what is written there takes its name when the block ends without exception.

    Whatever happens, nothing temporary stays. An OSError in the block becomes a DataError that says that `what` (for
    example "the picture") cannot be written to `path`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(
            f"{path}: {what} cannot be written: {error}; give a folder that is there and writable"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
