"""Signals are noted while somebody listens, and do what they did before when nobody does."""

import os
import signal
import threading

import pytest

from mm_fibinet import signals


@pytest.fixture
def caller():
    """Handlers of the caller's own, which note what reaches them."""
    reached = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, lambda number, frame: reached.append(number)) for number in numbers]
    yield reached
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_signals_are_noted_in_their_order_and_the_callers_handlers_come_back(caller):
    with signals.noted() as came:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGHUP)  # was not asked for
    assert came == [signal.SIGTERM, signal.SIGINT]
    os.kill(os.getpid(), signal.SIGINT)
    assert caller == [signal.SIGHUP, signal.SIGINT]


def test_further_signals_are_noted_unless_the_process_ignores_them(caller):
    with signals.noted(signal.SIGHUP) as came:
        os.kill(os.getpid(), signal.SIGHUP)
    assert came == [signal.SIGHUP]
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with signals.noted(signal.SIGHUP) as came:
        os.kill(os.getpid(), signal.SIGHUP)
    assert came == [] == caller


def test_a_reaction_sees_what_came_and_may_end_it(caller):
    seen = []

    def react(came):
        seen.append(list(came))
        if len(came) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), signals.noted(react=react):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the reaction was not called")
    assert seen == [[signal.SIGTERM], [signal.SIGTERM, signal.SIGINT]]
    os.kill(os.getpid(), signal.SIGTERM)
    assert caller == [signal.SIGTERM]


def test_in_another_thread_nothing_is_listened_to(caller):
    lists = []

    def listen():
        with signals.noted() as came:
            lists.append(came)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    os.kill(os.getpid(), signal.SIGTERM)
    assert lists == [[]] and caller == [signal.SIGTERM]
