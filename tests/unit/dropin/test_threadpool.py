"""The pool runs what is most important first, and loses nothing."""

import argparse
import gc
import queue
import threading

import pytest

from lightning.dropin.threadpool import BrokenThreadPool, PriorityThreadPoolExecutor
from lightning.errors import ConfigError
from tests.support.waiting import until


@pytest.fixture
def make_pool():
    pools = []

    def make(**settings):
        pools.append(PriorityThreadPoolExecutor(**settings))
        return pools[-1]

    yield make
    for pool in pools:
        pool.shutdown()


def blocked(pool):
    """Keep the only thread busy; return what frees it."""
    started, free = threading.Event(), threading.Event()
    pool.submit(lambda: (started.set(), free.wait(10)))
    assert started.wait(10)
    return free


def test_it_runs_what_is_submitted(make_pool):
    pool = make_pool(max_workers=2)
    future = pool.submit(lambda a, b: a - b, 5, b=3)
    assert future.result(10) == 2
    assert pool.is_empty


def test_it_tells_what_was_raised(make_pool):
    future = make_pool(max_workers=1).submit(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        future.result(10)


def test_higher_priorities_come_first_and_then_the_earliest(make_pool):
    pool, order = make_pool(max_workers=1), []
    free = blocked(pool)
    futures = [
        pool.submit(order.append, (priority, n), priority=priority)
        for n, priority in enumerate([1, 5, None, 5, -2, 0])
    ]
    assert not pool.is_empty
    free.set()
    for future in futures:
        future.result(10)
    assert order == [(5, 1), (5, 3), (1, 0), (None, 2), (0, 5), (-2, 4)]


def test_it_has_no_more_threads_than_it_may(make_pool):
    pool = make_pool(max_workers=3, thread_name_prefix="lightning-handler-test")
    barrier = threading.Barrier(3, timeout=10)
    for future in [pool.submit(barrier.wait) for _ in range(6)]:
        future.result(10)
    names = {t.name for t in threading.enumerate()}
    assert {n for n in names if n.startswith("lightning-handler-test")} == {
        f"lightning-handler-test_{n}" for n in range(3)
    }


def test_no_more_wait_than_may(make_pool):
    pool = make_pool(maxsize=2, max_workers=1)
    free = blocked(pool)
    futures = [pool.submit(int) for _ in range(2)]
    with pytest.raises(queue.Full):
        pool.submit(int)
    free.set()
    assert [future.result(10) for future in futures] == [0, 0]


def test_what_was_cancelled_does_not_run(make_pool):
    pool, ran = make_pool(max_workers=1), []
    free = blocked(pool)
    future = pool.submit(ran.append, 1)
    assert future.cancel()
    last = pool.submit(ran.append, 2)
    free.set()
    last.result(10)
    assert ran == [2]


def test_shutting_down_runs_what_waits(make_pool):
    pool = make_pool(max_workers=1)
    free = blocked(pool)
    future = pool.submit(int)
    pool.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(int)
    free.set()
    pool.shutdown()
    assert future.done()


def test_shutting_down_may_cancel_what_waits(make_pool):
    pool = make_pool(max_workers=1)
    free = blocked(pool)
    future = pool.submit(int)
    pool.shutdown(wait=False, cancel_futures=True)
    assert future.cancelled()
    free.set()


def test_a_pool_whose_initializer_fails_is_broken_and_says_so(make_pool, caplog):
    go = threading.Event()

    def fail():
        go.wait(10)
        raise OSError("no")

    pool = make_pool(max_workers=1, initializer=fail)
    future = pool.submit(int)
    go.set()
    with pytest.raises(BrokenThreadPool):
        future.result(10)
    with pytest.raises(BrokenThreadPool):
        pool.submit(int)
    assert "the initializer of a pool of threads failed" in caplog.text


def test_an_initializer_is_run_in_each_thread(make_pool):
    local = threading.local()

    def begin(value):
        local.value = value

    pool = make_pool(max_workers=2, initializer=begin, initargs=(7,))
    assert pool.submit(lambda: local.value).result(10) == 7


def test_without_threads_nothing_is_lost(make_pool, monkeypatch):
    def fail(self):
        raise RuntimeError("can't start new thread")

    pool = make_pool(max_workers=1)
    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(BrokenThreadPool, match="can't start new thread"):
        pool.submit(int).result(10)


def test_its_threads_end_with_it_and_when_they_rest():
    def threads():
        return [t for t in threading.enumerate() if t.name.startswith("lightning-end")]

    pool = PriorityThreadPoolExecutor(max_workers=1, thread_name_prefix="lightning-end")
    pool.submit(int).result(10)
    assert threads()
    pool.rest()
    until(lambda: not threads())
    pool.submit(int).result(10)
    assert threads()
    del pool
    gc.collect()
    until(lambda: not threads())


@pytest.mark.parametrize(
    ("settings", "error"),
    [({"max_workers": 0}, ValueError), ({"initializer": 1}, TypeError)],
)
def test_settings_are_checked(settings, error):
    with pytest.raises(error):
        PriorityThreadPoolExecutor(**settings)


def test_arguments_and_environment(monkeypatch):
    monkeypatch.setenv("BT_PRIORITY_MAXSIZE", "77")
    monkeypatch.setattr("sys.argv", ["miner", "--priority.max_workers", "9"])
    config = PriorityThreadPoolExecutor.config()
    assert (config.priority.max_workers, config.priority.maxsize) == (9, 77)
    parser = argparse.ArgumentParser()
    PriorityThreadPoolExecutor.add_args(parser, "one")
    PriorityThreadPoolExecutor.add_args(parser, "one")
    assert vars(parser.parse_args([])) == {
        "one.priority.max_workers": 5,
        "one.priority.maxsize": 77,
    }
    monkeypatch.setenv("BT_PRIORITY_MAXSIZE", "many")
    with pytest.raises(ConfigError, match="BT_PRIORITY_MAXSIZE"):
        PriorityThreadPoolExecutor.add_args(argparse.ArgumentParser())
