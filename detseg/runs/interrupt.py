"""Ctrl-C and SIGTERM: end a training between two iterations instead of within one."""

from __future__ import annotations

import logging
import signal
import threading
import time
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Seconds within which a second signal counts as the first: `timeout` signals its command and then the process group.
_SAME = 1.0


class TrainingInterrupted(Exception):  # noqa: N818 (not an error)
    """A signal ended a run early; everything needed to continue it is saved.

    Attributes:
        signal: the number of the signal.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number


class StopRequest:
    """Context manager that records the first SIGINT or SIGTERM; the second one takes effect at once, as usual.

    Signals can be caught only in the main thread; in other threads the context does nothing.

    Args:
        what_happens: logged when a signal arrives.
        patient: ignore later signals. For processes of torchrun, which forwards signals that the terminal has also sent
        to them, and kills them itself if they take too long.

    Attributes:
        signal: the number of the received signal, or None.
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
        # and passes a later one on to the previous handlers.
        if self.signal is None or self.patient:
            self._restore()

    def raise_if_requested(self, message: str) -> None:
        """Raise TrainingInterrupted with `message` if a signal was received."""
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
        logger.warning("%s: %s; a second signal stops at once", signal.Signals(number).name, self.what_happens)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
