"""Flow control records."""

import pytest

from lightning._core.quic.flow import OpeningCredit, ReceiveWindow, SendingLimit

OK, E_FLOW_CONTROL = 0, 3
MAX = 2**62 - 1


def test_window_refuses_the_first_byte_above_its_limit():
    window = ReceiveWindow(100)
    assert window.receive(60) == OK
    assert window.receive(41) == E_FLOW_CONTROL
    assert window.receive(40) == OK
    assert window.receive(1) == E_FLOW_CONTROL
    assert window.receive(0) == OK
    assert window.receive(2**64 - 1) == E_FLOW_CONTROL


def test_window_does_not_move_with_what_arrives():
    window = ReceiveWindow(100, 10_000)
    window.receive(100)
    assert window.limit == 100


def test_window_is_raised_when_half_is_consumed():
    window = ReceiveWindow(100)
    window.receive(100)
    assert not window.consume(49)
    assert window.limit == 100
    assert window.consume(1)
    assert window.limit == 150
    assert not window.consume(49)
    assert window.consume(51)
    assert window.limit == 250


def test_window_of_one_byte_still_moves():
    window = ReceiveWindow(1)
    assert window.receive(1) == OK
    assert window.consume(1)
    assert window.limit == 2


def test_window_of_nothing_grants_nothing():
    window = ReceiveWindow(0)
    assert window.receive(1) == E_FLOW_CONTROL
    assert not window.consume(0)
    assert window.limit == 0


def test_window_doubles_when_it_is_consumed_within_two_round_trips():
    window = ReceiveWindow(100, 350, now=1000)
    window.receive(100)
    assert window.consume(50, now=1010, rtt=20)
    assert (window.size, window.limit) == (200, 250)
    window.receive(150)
    assert window.consume(100, now=1029, rtt=20)
    assert (window.size, window.limit) == (350, 500)
    window.receive(250)
    assert window.consume(175, now=1030, rtt=20)
    assert window.size == 350


def test_window_keeps_its_size_when_it_is_consumed_slowly():
    window = ReceiveWindow(100, 1000, now=1000)
    window.receive(100)
    assert window.consume(50, now=1020, rtt=20)
    assert (window.size, window.limit) == (100, 150)


def test_window_keeps_its_size_while_the_round_trip_is_unknown():
    window = ReceiveWindow(100, 1000)
    window.receive(100)
    assert window.consume(50, now=0, rtt=0)
    assert window.size == 100


def test_window_stops_at_the_largest_offset():
    window = ReceiveWindow(2**64 - 1)
    assert window.limit == MAX
    assert window.receive(MAX) == OK
    assert not window.consume(MAX)
    assert window.limit == MAX


def test_only_the_newest_lost_window_frame_is_written_again():
    window = ReceiveWindow(100)
    window.receive(100)
    window.consume(50)
    first = window.advertise()
    assert window.lost(first)
    window.consume(50)
    assert window.lost(first), "the newer value is not on the wire yet"
    second = window.advertise()
    assert not window.lost(first)
    assert window.lost(second)


def test_sending_limit_only_rises():
    limit = SendingLimit(10)
    limit.use(7)
    assert limit.left == 3
    assert not limit.raise_to(10)
    assert not limit.raise_to(5)
    assert limit.raise_to(11)
    assert limit.left == 4
    with pytest.raises(ValueError, match="more than"):
        limit.use(5)


def test_blocked_is_due_once_for_each_limit():
    limit = SendingLimit(0)
    assert limit.block()
    assert not limit.block()
    limit.raise_to(10)
    limit.use(10)
    assert limit.block()
    assert not limit.block()


def test_lost_blocked_is_written_again_only_while_true():
    limit = SendingLimit(10)
    assert not limit.lost(10), "never blocked"
    limit.use(10)
    limit.block()
    assert limit.lost(10)
    limit.raise_to(20)
    assert not limit.lost(10)
    limit.use(10)
    assert not limit.lost(20), "no frame said so"


def test_credit_is_given_back_by_closing_and_not_by_opening():
    credit = OpeningCredit(8)
    assert not credit.open(8)
    assert credit.limit == 8
    with pytest.raises(ValueError, match="granted"):
        credit.open()
    assert credit.close()
    assert credit.limit == 9


def test_credit_waits_until_half_of_it_is_used():
    credit = OpeningCredit(8)
    credit.open(3)
    assert not credit.close(3)
    assert credit.limit == 8
    assert credit.open(1), "four are left, three have closed"
    assert credit.limit == 11


def test_credit_stops_at_the_largest_stream_count():
    credit = OpeningCredit(2**62)
    assert credit.limit == 2**60
    credit.open(2**60)
    assert not credit.close(5)
    assert credit.limit == 2**60


def test_credit_of_nothing_grants_nothing():
    credit = OpeningCredit(0)
    with pytest.raises(ValueError, match="granted"):
        credit.open()


def test_only_the_newest_lost_credit_frame_is_written_again():
    credit = OpeningCredit(2)
    credit.open(2)
    credit.close()
    first = credit.advertise()
    assert credit.lost(first)
    credit.close()
    assert credit.lost(first)
    second = credit.advertise()
    assert not credit.lost(first)
    assert credit.lost(second)
