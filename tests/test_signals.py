import os
import signal
import threading

import pytest

from liquidmm.signals import StopSignals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_signals_set_the_event_and_are_restored(number):
    before = signal.getsignal(number)
    with StopSignals() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        assert stop.wait(5)
        os.kill(os.getpid(), signal.SIGTERM)  # launchers repeat it
    assert signal.getsignal(number) is before


def test_stop_signals_second_interrupt_raises():
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(5)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_stop_signals_outside_the_main_thread_do_nothing():
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def run():
        with StopSignals() as stop:
            found.append((stop.is_set(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [(False, before)]
