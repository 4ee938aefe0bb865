"""Paths: what an address that is not proven may cost, and its proof."""

import pytest

from lightning._core.quic.paths import PathFace

NOW, PTO = 1_000_000, 100_000
MANY = 2**64 - 1


def challenge(n):
    return bytes([n] * 8)


def asked(*, small=False):
    """Make a path that was sent one challenge."""
    path = PathFace()
    path.validate(NOW, PTO)
    path.challenge_sent(challenge(1), NOW, small)
    return path


# What may be sent (RFC 9000 sections 8.1 and 9.3).


def test_three_bytes_for_one_until_it_is_validated():
    path = PathFace()
    assert path.room == 0
    path.count(received=400)
    assert path.room == 1200
    path.count(sent=1199)
    assert path.room == 1
    path.count(sent=500)
    assert path.room == 0
    path.count(received=167)
    assert path.room == 3 * 567 - 1699
    path.validate(NOW, PTO)
    path.challenge_sent(challenge(1), NOW)
    assert path.on_response(challenge(1), NOW)
    assert path.room == MANY


def test_received_bytes_do_not_overflow():
    path = PathFace()
    path.count(received=2**60 + 1)
    assert path.room == MANY


# Validation (section 8.2).


def test_starts_unproven_and_unasked():
    path = PathFace()
    assert not path.validated
    assert not path.asked
    assert path.next_step is None
    assert not path.on_timeout(2**62)
    assert not path.on_response(bytes(8), NOW), "zeros answer nothing"


def test_the_answer_validates_and_ends_the_timer():
    path = asked()
    assert path.next_step == NOW + PTO
    assert not path.on_response(challenge(2), NOW)
    assert not path.validated
    assert path.on_response(challenge(1), NOW + 1)
    assert path.validated
    assert not path.asked
    assert path.next_step is None
    assert not path.on_response(challenge(1), NOW + 2), "answered is answered"


def test_three_challenges_each_waited_for_twice_as_long():
    """Section 8.2.1: lost ones are repeated, with data of their own."""
    path = asked()
    times = [path.next_step]
    for number in (2, 3):
        assert not path.on_timeout(times[-1] - 1)
        assert not path.challenge_due
        assert not path.on_timeout(times[-1])
        assert path.challenge_due
        path.challenge_sent(challenge(number), times[-1])
        times.append(path.next_step)
    assert [at - NOW for at in times] == [PTO, 3 * PTO, 7 * PTO]
    assert path.on_timeout(times[-1])
    assert not path.asked
    assert not path.validated
    assert path.next_step is None


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_answer_to_any_of_them_counts(number):
    path = asked()
    for each in (2, 3):
        path.on_timeout(path.next_step)
        path.challenge_sent(challenge(each), path.next_step)
    assert path.on_response(challenge(number), NOW)
    assert path.validated


def test_a_failed_validation_leaves_no_challenge_to_answer():
    path = asked()
    for each in (2, 3):
        path.on_timeout(path.next_step)
        path.challenge_sent(challenge(each), path.next_step)
    assert path.on_timeout(path.next_step)
    assert not path.on_response(challenge(3), NOW)


def test_a_challenge_that_may_not_be_sent_is_given_up():
    """What came from there may allow none (section 8.1)."""
    path = PathFace()
    path.validate(NOW, PTO)
    assert path.challenge_due
    assert path.next_step == NOW + 3 * PTO
    assert path.on_timeout(NOW + 3 * PTO)
    assert not path.asked


def test_a_validation_under_way_is_not_begun_again():
    path = asked()
    path.validate(NOW + 10, 10 * PTO)
    assert not path.challenge_due
    assert path.next_step == NOW + PTO


def test_a_proven_path_may_be_asked_again_and_stays_proven():
    """Section 9.3.3: after a move the path of before is."""
    path = asked()
    path.on_response(challenge(1), NOW)
    path.validate(NOW + 8 * PTO, PTO)
    assert path.asked
    assert path.validated
    assert path.room == MANY
    path.challenge_sent(challenge(5), NOW)
    assert not path.on_response(challenge(1), NOW), "of the validation before"
    assert path.on_response(challenge(5), NOW)
    assert not path.asked


def test_a_proven_path_is_not_asked_again_soon():
    path = asked()
    path.on_response(challenge(1), NOW)
    path.validate(NOW + 8 * PTO - 1, PTO)
    assert not path.asked
    path.validate(NOW + 8 * PTO, PTO)
    assert path.asked


def test_a_small_challenge_is_followed_by_a_large_one():
    """Section 8.2.1: the address is proven, the size of its datagrams is not."""
    path = asked(small=True)
    assert path.on_response(challenge(1), NOW + 7)
    assert path.validated
    assert path.challenge_due
    assert path.next_step == NOW + 7 + 3 * PTO
    path.challenge_sent(challenge(2), NOW + 8)
    assert path.on_response(challenge(2), NOW + 9)
    assert not path.asked


def test_only_the_challenge_that_was_answered_counts_for_the_size():
    path = asked(small=True)
    path.on_timeout(path.next_step)
    path.challenge_sent(challenge(2), path.next_step)
    assert path.on_response(challenge(2), NOW)
    assert not path.asked


def test_a_path_too_narrow_fails_and_stays_proven():
    path = asked(small=True)
    path.on_response(challenge(1), NOW)
    for each in (2, 3, 4):
        path.challenge_sent(challenge(each), path.next_step)
        failed = path.on_timeout(path.next_step)
    assert failed
    assert path.validated


# Answers (section 8.2.2).


def test_eight_answers_wait_and_leave_in_order():
    path = PathFace()
    assert [path.on_challenge(challenge(n)) for n in range(10)] == [True] * 8 + [
        False
    ] * 2
    assert path.responses == [challenge(n) for n in range(8)]
    path.response_sent()
    assert path.responses == [challenge(n) for n in range(1, 8)]
    assert path.on_challenge(challenge(9))
    assert path.responses[-1] == challenge(9)
    for _ in range(8):
        path.response_sent()
    assert path.responses == []


def test_the_face_refuses_what_would_be_out_of_bounds():
    path = PathFace()
    for call in (
        lambda: path.on_response(b"short", NOW),
        lambda: path.on_challenge(bytes(9)),
        lambda: path.challenge_sent(bytes(8), NOW),
        path.response_sent,
    ):
        with pytest.raises(ValueError, match=r"8 bytes|is due"):
            call()
