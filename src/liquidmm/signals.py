"""Ending a long run from outside, after the step in progress.

Contract: a run that looks at the event between its steps never saves a step that was done by half.
Outside the main thread, where Python takes no signals, the event is simply never set.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from liquidmm.runtime import get_logger

_LOG = get_logger(__name__)


class StopSignals:
    """Turns SIGTERM and the first SIGINT into an event; a second SIGINT acts as usual.

    A launcher may send SIGTERM more than once, to a process and to its group.
    """

    def __enter__(self) -> threading.Event:
        """Take the signals over and return the event."""
        self._event = threading.Event()
        self._before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._stop)
        return self._event

    def __exit__(self, *unused: object) -> None:
        """Give the signals back."""
        self._restore()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if not self._event.is_set():
            _LOG.info("stopping after this step; Ctrl-C to stop at once")
        self._event.set()
        signal.signal(signal.SIGINT, self._before[signal.SIGINT])

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
