"""Ctrl-C and SIGTERM end a training between two iterations instead of in the middle of one."""

from __future__ import annotations

import logging
import signal
import threading
import time
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Seconds within which a second signal is the first one again: `timeout` sends it to its command and then to the group.
_SAME = 1.0


class TrainingInterrupted(Exception):  # noqa: N818 (nothing went wrong)
    """A signal ended a run early; what is needed to continue it is on the disk.

    Attributes:
        signal: the number of the signal.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number


class StopRequest:
    """Context manager that notes the first SIGINT or SIGTERM; the second acts at once, as without it.

    Signals can only be caught in the main thread; in others the context does nothing.

    Args:
        what_happens: said when a signal comes.
        patient: later signals do nothing. For the processes of torchrun: it passes on what the terminal sends them too,
            and ends them itself where they take too long.

    Attributes:
        signal: the number of the signal that came, or None.
    """

    def __init__(self, what_happens: str = "stopping after this iteration", *, patient: bool = False) -> None:
        self.what_happens = what_happens
        self.patient = patient
        self.signal: int | None = None
        self._came = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        # After a signal the process is about to end, and the same signal may still be repeated: `_note` ignores that,
        # and gives a later one to the handlers that were there before.
        if self.signal is None or self.patient:
            self._restore()

    def raise_if_requested(self, message: str) -> None:
        """Raise TrainingInterrupted with `message` where a signal came."""
        if self.signal is not None:
            raise TrainingInterrupted(message, self.signal)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.patient:
            if self.signal is None:
                self.signal = number
                logger.info("%s: %s", signal.Signals(number).name, self.what_happens)
            return
        if self.signal is not None:
            if time.monotonic() - self._came > _SAME:
                self._restore()
                signal.raise_signal(number)
            return
        self.signal, self._came = number, time.monotonic()
        logger.warning("%s: %s; once more stops at once", signal.Signals(number).name, self.what_happens)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
