"""Which requests are worked on, and in which order, on a clock that is an argument."""

import random
import threading

import pytest

from lightning.work import SLACK, Ticket, Verdict, Work


def admit(
    work: Work, hotkey: str, priority: float = 0
) -> tuple[Verdict, Ticket, object]:
    ticket = Ticket(hotkey, priority, object())
    verdict, displaced = work.admit(ticket, 0)
    return verdict, ticket, displaced


def waiting(work: Work, *wanted: tuple[str, float]) -> list[Ticket]:
    """Have requests wait that find no room."""
    tickets = []
    for hotkey, priority in wanted:
        verdict, ticket, displaced = admit(work, hotkey, priority)
        assert (verdict, displaced) == (Verdict.WAIT, None)
        tickets.append(ticket)
    return tickets


def test_without_limits_everything_runs_and_nothing_is_kept():
    work = Work()
    tickets = [admit(work, "a")[1] for _ in range(1000)]
    assert (work.running, work.waiting) == (1000, 0)
    for ticket in tickets:
        assert work.end(ticket) == []
        assert ticket.request is None
        assert work.end(ticket) == [], "twice is once"
    assert (work.running, len(work)) == (0, 0)


def test_the_highest_priority_is_next_and_of_equals_the_first():
    work = Work(most=1)
    _, current, _ = admit(work, "a")
    low, first, second, high = waiting(
        work, ("a", 0), ("b", 1), ("c", 1), ("d", float("inf"))
    )
    for ticket in (high, first, second, low):
        assert work.end(current) == [ticket]
        current = ticket
    assert work.end(current) == []
    assert len(work) == 0


def test_when_too_many_wait_the_lowest_priority_is_refused():
    """Be it one that waits, or the newcomer."""
    work = Work(most=1, most_waiting=2)
    _, current, _ = admit(work, "a")
    middle, low = waiting(work, ("a", 5), ("b", 1))
    assert admit(work, "c", 1)[0] is Verdict.BUSY
    assert admit(work, "c", 0)[0] is Verdict.BUSY
    verdict, high, displaced = admit(work, "c", 9)
    assert (verdict, displaced) == (Verdict.WAIT, low)
    assert low.request is not None, "its client is to be told"
    assert work.waiting == 2
    assert not work.withdraw(low)
    assert work.end(current) == [high]
    assert work.end(high) == [middle]
    assert work.end(middle) == []
    assert len(work) == 0


def test_a_validator_cannot_fill_the_queue():
    """Of equals, who has the most waiting loses the latest."""
    work = Work(most=1, most_waiting=4)
    admit(work, "a")
    _first, second, third, fourth = waiting(work, *[("greedy", 0)] * 4)
    verdict, _one, displaced = admit(work, "modest")
    assert (verdict, displaced) == (Verdict.WAIT, fourth)
    verdict, two, displaced = admit(work, "modest")
    assert (verdict, displaced) == (Verdict.WAIT, third)
    assert admit(work, "modest")[0] is Verdict.BUSY
    assert admit(work, "greedy")[0] is Verdict.BUSY
    verdict, _other, displaced = admit(work, "other")
    assert verdict is Verdict.WAIT
    assert displaced in (second, two)


def test_a_validator_has_so_many_at_once_and_holds_up_nobody():
    work = Work(most=3, most_each=2)
    _, a1, _ = admit(work, "a")
    _, a2, _ = admit(work, "a")
    a3, a4 = waiting(work, ("a", 9), ("a", 8))
    assert admit(work, "b")[0] is Verdict.RUN
    (c,) = waiting(work, ("c", 0))
    assert work.end(a1) == [a3]
    assert work.end(a2) == [a4]
    assert work.end(a3) == [c]


def test_a_limit_for_each_alone():
    work = Work(most_each=1)
    _, a1, _ = admit(work, "a")
    assert admit(work, "b")[0] is Verdict.RUN
    a2, a3 = waiting(work, ("a", 0), ("a", 1))
    assert work.end(a1) == [a3]
    assert work.withdraw(a2)
    assert work.end(a3) == []


def test_who_leaves_gives_its_turn_to_the_next_of_its_validator():
    work = Work(most=2, most_each=1)
    _, a1, _ = admit(work, "a")
    _, b1, _ = admit(work, "b")
    a2, a3, c = waiting(work, ("a", 5), ("a", 4), ("c", 0))
    assert work.end(b1) == [c]
    # a3 and a2 have been held back; a2 is in line again, and leaves.
    admitted, b2, _ = admit(work, "b")
    assert admitted is Verdict.WAIT
    assert work.end(a1) == [a2]
    assert work.end(a2) == [a3]
    assert work.withdraw(b2)
    assert not work.withdraw(b2)
    assert b2.request is None


def test_one_that_is_displaced_by_its_own_validator_leaves_it_known():
    work = Work(most=1, most_each=1, most_waiting=1)
    _, current, _ = admit(work, "a")
    (old,) = waiting(work, ("b", 0))
    verdict, new, displaced = admit(work, "b", 1)
    assert (verdict, displaced) == (Verdict.WAIT, old)
    assert work.end(current) == [new]
    assert admit(work, "b")[0] is Verdict.WAIT, "one at a time"


def test_a_rate_is_an_average_with_a_burst():
    work = Work(rate=2, burst=3)
    assert [work.allow("a", 0) for _ in range(4)] == [True, True, True, False]
    assert not work.allow("a", 0.4)
    assert work.allow("a", 0.5)
    assert not work.allow("a", 0.5)
    assert work.allow("b", 0.5), "each has its own"
    assert [work.allow("a", 1000) for _ in range(4)] == [True, True, True, False]
    assert not work.allow("a", 0), "a clock that steps back gives nothing"


def test_without_a_rate_all_may_come():
    work = Work(most=1)
    assert all(work.allow("a", 0) for _ in range(1000))
    work.expire(0)
    assert len(work) == 0


def test_a_validator_that_comes_back_finds_its_rate_as_it_left_it():
    """And is forgotten when there is nothing left to remember."""
    work = Work(rate=1, burst=10)
    for _ in range(10):
        assert work.allow("a", 0)
        work.end(admit(work, "a")[1])
    work.expire(5)
    assert len(work) == 1
    assert [work.allow("a", 5) for _ in range(6)] == [True] * 5 + [False]
    work.expire(15)
    assert len(work) == 0


def test_as_many_are_remembered_as_allowed():
    work = Work(rate=1, burst=1, most_known=3)
    _, busy, _ = admit(work, "busy")
    for n in range(100):
        assert work.allow(str(n), 0)
        assert len(work) <= 3
    assert not work.allow("99", 0)
    assert work.allow("0", 0), "forgotten"
    assert work.running == 1
    # Those with requests are never forgotten.
    for n in range(5):
        admit(work, f"busy {n}")
    assert len(work) == 6
    work.end(busy)


def test_what_is_over_is_let_go_of():
    """Clients that come and go while all is busy leave nothing behind."""
    work = Work(most=1, most_each=1, most_waiting=1000)
    admit(work, "a")
    for n in range(10 * SLACK):
        for _ in range(3):
            _, ticket, _ = admit(work, "ab"[n % 2], n % 7)
            assert work.withdraw(ticket)
    kept = len(work._next) + len(work._last)
    kept += sum(len(party.held) for party in work._parties.values())
    assert kept <= 4 * SLACK
    for n in range(10 * SLACK):
        admit(work, "ab"[n % 2], n)
    assert len(work._next) <= work.waiting + 2 * SLACK


@pytest.mark.parametrize("seed", range(5))
def test_whatever_happens_the_limits_hold_and_nobody_starves(seed):
    """Against the rule itself, looked for the slow way."""
    chance = random.Random(seed)
    work = Work(most=4, most_each=2, most_waiting=12)
    running: list[Ticket] = []
    queue: list[Ticket] = []

    def may_run(ticket: Ticket) -> bool:
        own = sum(other.hotkey == ticket.hotkey for other in running)
        return len(running) < 4 and own < 2

    for _ in range(3000):
        action = chance.random()
        if action < 0.55:
            verdict, ticket, displaced = admit(
                work, chance.choice("abc"), chance.randrange(3)
            )
            if displaced is not None:
                assert displaced.priority <= ticket.priority
                assert displaced.priority == min(t.priority for t in queue)
                queue.remove(displaced)
            if verdict is Verdict.RUN:
                assert may_run(ticket)
                running.append(ticket)
            elif verdict is Verdict.WAIT:
                assert not may_run(ticket)
                queue.append(ticket)
            else:
                assert len(queue) == 12
                assert ticket.priority <= min(t.priority for t in queue)
        elif action < 0.65 and queue:
            ticket = queue.pop(chance.randrange(len(queue)))
            assert work.withdraw(ticket)
        elif running:
            ticket = running.pop(chance.randrange(len(running)))
            for following in work.end(ticket):
                able = [t for t in queue if may_run(t)]
                # The queue is in the order of arrival, and `max` takes the first.
                assert following is max(able, key=lambda t: t.priority)
                queue.remove(following)
                running.append(following)
        assert not any(may_run(ticket) for ticket in queue)
        assert (work.running, work.waiting) == (len(running), len(queue))
    while running or queue:
        if running:
            running.extend(work.end(running.pop()))
        queue = [ticket for ticket in queue if ticket not in running]
    assert (work.running, work.waiting, len(work)) == (0, 0, 0)


def test_threads_share_it():
    work = Work(most=3, most_each=2, most_waiting=10_000)
    most = []

    def go(hotkey: str) -> None:
        for _ in range(300):
            todo = []
            verdict, ticket, _ = admit(work, hotkey)
            if verdict is Verdict.RUN:
                todo.append(ticket)
            while todo:
                most.append(work.running)
                todo += work.end(todo.pop())

    threads = [threading.Thread(target=go, args=(name,)) for name in "abcdef"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert max(most) <= 3
    assert (work.running, work.waiting, len(work)) == (0, 0, 0)
