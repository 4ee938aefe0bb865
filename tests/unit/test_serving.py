"""Who of a blocking server's threads may run a handler, and that nothing waits for ever."""

import threading
from types import SimpleNamespace

import pytest

from lightning.serving import LONG, ServingThreads


class Endpoint:
    """An endpoint whose threads all are about to receive, and never seen to wait."""

    def __init__(self):
        self.ended = threading.Event()
        self.others_wait = False

    def serve(self, handle):
        self.ended.wait(30)

    def yield_lead(self):
        return self.others_wait


@pytest.fixture
def serving():
    """Make threads that serve an endpoint; they end with the test."""
    endpoint = Endpoint()

    def serving(most, suspects=()):
        threads = ServingThreads(most, lambda: suspects)
        threads.start(endpoint, lambda *_: None)
        return threads, endpoint

    yield serving
    endpoint.ended.set()


def test_as_many_may_run_as_are_allowed_however_many_threads_there_are(serving):
    threads, endpoint = serving(3)
    for _ in range(9):
        threads.add()
    assert threads._count == 7
    endpoint.others_wait = True
    assert [threads.take() for _ in range(5)] == [True] * 3 + [False] * 2
    threads.give()
    assert [threads.take() for _ in range(2)] == [True, False]


def test_who_is_about_to_receive_need_not_be_seen_to_wait(serving):
    """With all threads there, and none in a handler, what has come is run at once."""
    threads, _ = serving(1)
    assert threads.take()  # This adds the other thread.
    threads.give()
    assert threads._count == 2
    assert threads.take()
    assert not threads.take()


def test_one_thread_is_left_to_receive_if_brief_handlers_hold_up_all_others(serving):
    """It says no instead, until one of them ends; what waits is run by that one."""
    suspect = SimpleNamespace(typical_seconds=0.0)
    threads, endpoint = serving(1, [suspect])
    assert threads.is_brief(suspect)
    for _ in range(2):
        threads.add()
    assert suspect.typical_seconds == LONG
    assert not threads.is_brief(suspect)
    assert not threads.take()
    endpoint.others_wait = True
    assert threads.take()


def test_handlers_of_an_endpoint_before_take_no_place_and_give_none(serving):
    threads, endpoint = serving(2)
    endpoint.others_wait = True
    assert threads.take()
    threads.start(endpoint, lambda *_: None)
    threads.give()
    assert [threads.take() for _ in range(3)] == [True, True, False]
