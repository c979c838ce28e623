import os
import signal
import threading

import pytest

from dis_cli.runtime.signals import is_stopping, stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_is_noted_and_the_old_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stop_on_signals() as stop:
        assert stop.requested is None
        os.kill(os.getpid(), number)
        assert stop.requested == number
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_after_a_stop_ends_the_work_at_once(first: signal.Signals) -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signals() as stop:
        os.kill(os.getpid(), first)
        assert stop.requested == first
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_a_repeated_sigterm_lets_the_work_end_in_order() -> None:
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.requested == signal.SIGINT


def test_a_block_inside_another_leaves_the_other_open() -> None:
    with stop_on_signals() as outer:
        with stop_on_signals():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert outer.requested == signal.SIGTERM
        assert is_stopping()
    assert not is_stopping()


def test_another_thread_installs_nothing() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def work() -> None:
        with stop_on_signals() as stop:
            seen.extend([signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), stop.requested])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [*before, None]


def test_a_signal_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.requested is None
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_whether_a_stop_was_asked_for_is_known_until_the_work_ends() -> None:
    assert not is_stopping()
    with stop_on_signals():
        assert not is_stopping()
        os.kill(os.getpid(), signal.SIGHUP)
        assert is_stopping()
    assert not is_stopping()
