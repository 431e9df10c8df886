"""Signals that stop a long run after the current step.

A run that checks the event between steps never saves a partial step. Outside the main thread,
Python receives no signals, so the event is never set.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from liquidmm.runtime import get_logger

_LOG = get_logger(__name__)


class StopSignals:
    """Context manager that turns SIGTERM and the first SIGINT into an event.

    A second SIGINT has its usual effect. SIGTERM can arrive more than once because launchers send
    it to a process and to its group.
    """

    def __enter__(self) -> threading.Event:
        """Install the handlers and return the event."""
        self._event = threading.Event()
        self._before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._stop)
        return self._event

    def __exit__(self, *unused: object) -> None:
        """Restore the previous handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if not self._event.is_set():
            _LOG.info("stopping after this step; press Ctrl-C again to stop now")
        self._event.set()
        signal.signal(signal.SIGINT, self._before[signal.SIGINT])
