"""Progress bars, and how messages stand beside them: on lines of their own, in terminals and in files."""

from __future__ import annotations

import logging
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from tqdm import tqdm

# Seconds from one line to the next where the bar goes to a file; work that takes less says nothing there.
LINE_PERIOD = 60.0
_LINE = "{desc}: {n_fmt} of {total_fmt}, {elapsed} gone, {remaining} left"
_LINE_OF_UNKNOWN_LENGTH = "{desc}: {n_fmt}, {elapsed} gone"


class ProgressBar(tqdm):
    """tqdm's bar in a terminal; in a file, which cannot take a line back, a plain line a minute."""

    open_bars: ClassVar[weakref.WeakSet[ProgressBar]] = weakref.WeakSet()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        stream = options.get("file") or sys.stderr  # None in a program without a console
        self._is_bar = stream is not None and stream.isatty()
        self._last_line = time.monotonic()
        if stream is None:
            options["disable"] = True
        super().__init__(*arguments, **options)
        if not self._is_bar:
            self.bar_format = _LINE_OF_UNKNOWN_LENGTH if self.total is None else _LINE
        if not self.disable:
            self.open_bars.add(self)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Show the state, or `msg` in its place; see tqdm.display."""
        if self._is_bar:
            return super().display(msg, pos)
        if msg is None and time.monotonic() - self._last_line >= LINE_PERIOD:
            self._last_line = time.monotonic()
            self.fp.write(f"{self}\n")
        return False

    def clear(self, nolock: bool = False) -> None:
        """Take the bar away; see tqdm.clear."""
        if self._is_bar:
            super().clear(nolock)

    def close(self) -> None:
        """Show the last state and go to the next line; see tqdm.close."""
        self.leave = self.leave and self._is_bar
        super().close()
        self.open_bars.discard(self)


@contextmanager
def closed_bars() -> Iterator[None]:
    """Close the bars that an exception leaves open, so that its message starts on the line below."""
    try:
        yield
    finally:
        for bar in list(ProgressBar.open_bars):
            bar.close()


class LogHandler(logging.StreamHandler):
    """Writes to standard error; bars are taken away before, and shown again below the message."""

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler.emit."""
        with ProgressBar.external_write_mode(file=self.stream):
            super().emit(record)
