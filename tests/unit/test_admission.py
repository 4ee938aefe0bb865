"""The server's gates: allowlist, rate limit, nonces, permits and the table."""

import inspect
import tracemalloc
from dataclasses import FrozenInstanceError

import pytest

from lightning.admission import (
    HandshakeObserver,
    LoginRateLimiter,
    NonceCache,
    PermitSet,
    SourceAddressResolver,
    SourceAllowlist,
    ValidatorPermitResolver,
    ValidatorTable,
)
from lightning.errors import NonceReplayed, ServerFull

NOW = 1_795_573_209


def nonce(number):
    return f"{number:032x}"


# --- SourceAllowlist ------------------------------------------------------------------


def test_bypass_lets_everybody_through():
    everybody = SourceAllowlist.bypass()
    assert everybody.is_bypass
    assert everybody.count == 0
    assert everybody.allows("192.0.2.1")
    assert everybody.allows("::1")
    assert repr(everybody) == "<SourceAllowlist bypass>"


def test_empty_list_lets_nobody_through():
    """The list before the first answer of a resolver."""
    nobody = SourceAllowlist.enforce(())
    assert not nobody.is_bypass
    assert nobody.count == 0
    assert not nobody.allows("127.0.0.1")


@pytest.mark.parametrize(
    ("listed", "asked", "allowed"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:c000:201", "192.0.2.1", True),
        ("192.0.2.1", "::192.0.2.1", False),
        ("192.0.2.1", "64:ff9b::192.0.2.1", False),
        ("2001:db8::1", "2001:0DB8:0:0:0:0:0:1", True),
        ("2001:db8::1", "2001:db8::2", False),
        ("fe80::1%eth0", "fe80::1%eth1", True),
        ("fe80::1", "fe80::1%2", True),
        ("127.0.0.1", "::1", False),
        ("192.0.2.1", "192.0.2.1%eth0", False),
        ("192.0.2.1", "192.0.2.1:80", False),
        ("192.0.2.1", "192.0.2.01", False),
        ("192.0.2.1", "0xC0000201", False),
        ("192.0.2.1", "", False),
        ("192.0.2.1", "localhost", False),
        ("192.0.2.1", "192.0.2.1\0", False),
        ("192.0.2.1", "١٩٢.0.2.1", False),
    ],
)
def test_addresses_match_by_value_and_junk_matches_nothing(listed, asked, allowed):
    assert SourceAllowlist.enforce([listed]).allows(asked) is allowed


def test_list_counts_addresses_not_spellings():
    ips = ["192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1", "2001:db8:0::1"]
    sources = SourceAllowlist.enforce(ips)
    assert sources.count == 2
    assert repr(sources) == "<SourceAllowlist of 2 addresses>"


def test_list_is_a_value():
    assert SourceAllowlist.enforce(["::1"]) == SourceAllowlist.enforce({"0::1"})
    assert SourceAllowlist.enforce(()) != SourceAllowlist.bypass()
    assert len({SourceAllowlist.bypass(), SourceAllowlist.bypass()}) == 1
    with pytest.raises(FrozenInstanceError):
        SourceAllowlist.enforce(())._sources = None


@pytest.mark.parametrize(
    "ip", ["nowhere", "", "192.0.2.1/24", "1.2.3", "1.2.3.4.5", ":::"]
)
def test_list_with_something_else_than_addresses_is_refused(ip):
    with pytest.raises(ValueError, match="not an IP address"):
        SourceAllowlist.enforce(["192.0.2.1", ip])


@pytest.mark.parametrize("ips", ["192.0.2.1", b"\x7f\0\0\1"])
def test_one_text_is_not_a_list(ips):
    with pytest.raises(TypeError, match=r"must be a collection, not (str|bytes)"):
        SourceAllowlist.enforce(ips)


# --- LoginRateLimiter -----------------------------------------------------------------


def test_source_has_so_many_logins_in_any_window():
    limiter = LoginRateLimiter(3, window=60)
    assert [limiter.allow("192.0.2.1", t) for t in (0, 10, 20, 30, 59)] == [
        *(True, True, True, False, False)
    ]
    # The first one leaves the window exactly 60 s later, the next one 10 s on.
    assert limiter.allow("192.0.2.1", 60)
    assert not limiter.allow("192.0.2.1", 69.999)
    assert limiter.allow("192.0.2.1", 70)


def test_refused_logins_do_not_prolong_the_wait():
    limiter = LoginRateLimiter(1, window=60)
    assert limiter.allow("192.0.2.1", 0)
    assert not any(limiter.allow("192.0.2.1", t) for t in range(1, 60))
    assert limiter.allow("192.0.2.1", 60)


def test_sources_do_not_share_their_limit():
    limiter = LoginRateLimiter(1)
    assert limiter.allow("192.0.2.1", 0)
    assert limiter.allow("192.0.2.2", 0)
    assert limiter.allow("::1", 0)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff:ffff:ffff:ffff", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("0.0.0.0", "::", False),
    ],
)
def test_source_is_an_ipv4_address_or_an_ipv6_network(first, second, same):
    limiter = LoginRateLimiter(1)
    assert limiter.allow(first, 0)
    assert limiter.allow(second, 0) is not same


def test_tracked_sources_are_bounded_and_the_longest_quiet_is_forgotten():
    limiter = LoginRateLimiter(1, max_sources=3)
    for t, ip in enumerate(["192.0.2.1", "192.0.2.2", "192.0.2.3"]):
        assert limiter.allow(ip, t)
    # Its attempt is refused, and still makes it the latest.
    assert not limiter.allow("192.0.2.1", 3)
    assert limiter.allow("192.0.2.4", 4)
    assert len(limiter) == 3
    assert not limiter.allow("192.0.2.1", 5)
    assert limiter.allow("192.0.2.2", 6)


def test_flood_of_sources_does_not_help_the_one_that_is_limited():
    """20,000 addresses against a table of 10,000, while the limited one keeps on."""
    limiter = LoginRateLimiter(30, max_sources=10_000)
    attempts = [limiter.allow("127.0.0.1", 0) for _ in range(40)]
    assert attempts.count(True) == 30
    admitted = 0
    for number in range(1, 20_001):
        limiter.allow(f"127.{number >> 16}.{number >> 8 & 255}.{number & 255}", 1)
        if number % 5_000 == 0:
            admitted += limiter.allow("127.0.0.1", 1)
    assert admitted == 0
    assert len(limiter) == 10_000


def test_being_forgotten_costs_more_logins_than_it_gains():
    limiter = LoginRateLimiter(30, max_sources=1_000)
    for _ in range(31):
        limiter.allow("127.0.0.1", 0)
    spent = 0
    while not limiter.allow("127.0.0.1", 1):
        # The attempt above counted; stay quiet while a whole table of others comes.
        for number in range(1_000):
            assert limiter.allow(f"127.1.{number >> 8}.{number & 255}", 1)
            spent += 1
    assert spent >= 1_000


def test_quiet_sources_are_forgotten_when_told():
    limiter = LoginRateLimiter(5, window=60)
    limiter.allow("192.0.2.1", 0)
    limiter.allow("192.0.2.2", 1)
    limiter.allow("192.0.2.1", 30)
    limiter.expire(60.5)
    assert len(limiter) == 2
    limiter.expire(61)
    assert len(limiter) == 1
    limiter.expire(90)
    assert len(limiter) == 0
    limiter.expire(90)


@pytest.mark.parametrize("ip", ["", "nowhere", "192.0.2.1:80", "[::1]"])
def test_limiter_refuses_what_is_no_address(ip):
    limiter = LoginRateLimiter(1)
    with pytest.raises(ValueError, match="not an IP address"):
        limiter.allow(ip, 0)
    assert len(limiter) == 0


@pytest.mark.parametrize("arguments", [(0,), (1, 60, 0)])
def test_limits_of_the_limiter_are_at_least_one(arguments):
    with pytest.raises(ValueError, match="at least 1"):
        LoginRateLimiter(*arguments)


# --- NonceCache -----------------------------------------------------------------------


def test_nonce_is_good_once():
    cache = NonceCache(10, 300)
    cache.check_and_store(nonce(1), NOW, NOW)
    with pytest.raises(NonceReplayed, match="used before"):
        cache.check_and_store(nonce(1), NOW, NOW + 1)
    with pytest.raises(NonceReplayed, match="used before"):
        cache.check_and_store(nonce(1), NOW + 5, NOW + 1)
    cache.check_and_store(nonce(2), NOW, NOW + 1)
    assert len(cache) == 2


def test_upper_and_lower_case_are_the_same_nonce():
    cache = NonceCache(10, 300)
    cache.check_and_store("abcdef" + "0" * 26, NOW, NOW)
    with pytest.raises(NonceReplayed, match="used before"):
        cache.check_and_store("ABCdef" + "0" * 26, NOW, NOW)


@pytest.mark.parametrize("skew", [-60, -59, -1, 0, 1, 30, 299])
def test_there_is_no_moment_at_which_a_replay_is_fresh_but_forgotten(skew):
    """The age check ends at ``timestamp + 300``; the memory must not end before."""
    timestamp = NOW - skew
    for arrival in (NOW, NOW + 0.25, NOW + 0.999):
        cache = NonceCache(10, 300)
        cache.check_and_store(nonce(1), timestamp, arrival)
        for later in range(int(arrival), timestamp + 302):
            for fraction in (0, 0.001, 0.999):
                if later - timestamp >= 300:
                    continue
                with pytest.raises(NonceReplayed):
                    cache.check_and_store(nonce(1), timestamp, later + fraction)


def test_nonce_is_kept_for_its_age_and_no_longer():
    cache = NonceCache(10, 300)
    cache.check_and_store(nonce(1), NOW - 200, NOW)
    cache.check_and_store(nonce(2), NOW + 60, NOW)
    cache.expire(NOW + 299.9)
    assert len(cache) == 2
    cache.expire(NOW + 300)
    assert len(cache) == 1
    cache.expire(NOW + 359.9)
    assert len(cache) == 1
    cache.expire(NOW + 360)
    assert len(cache) == 0


def test_storing_forgets_what_is_due():
    cache = NonceCache(1, 300)
    cache.check_and_store(nonce(1), NOW, NOW)
    cache.check_and_store(nonce(2), NOW + 300, NOW + 300)
    assert len(cache) == 1


def test_full_of_live_nonces_new_logins_are_refused_and_old_ones_kept():
    cache = NonceCache(3, 300)
    for number in range(3):
        cache.check_and_store(nonce(number), NOW, NOW)
    with pytest.raises(NonceReplayed, match="no room for another nonce, 3 are live"):
        cache.check_and_store(nonce(3), NOW, NOW + 299)
    for number in range(3):
        with pytest.raises(NonceReplayed, match="used before"):
            cache.check_and_store(nonce(number), NOW, NOW + 299)
    cache.check_and_store(nonce(3), NOW + 299, NOW + 300)


def test_refused_nonce_is_not_spent():
    cache = NonceCache(1, 300)
    cache.check_and_store(nonce(1), NOW, NOW)
    with pytest.raises(NonceReplayed, match="no room"):
        cache.check_and_store(nonce(2), NOW, NOW)
    cache.check_and_store(nonce(2), NOW + 300, NOW + 300)


def test_clock_that_is_set_back_opens_no_window():
    cache = NonceCache(10, 300)
    cache.check_and_store(nonce(1), NOW, NOW)
    cache.expire(NOW + 86_400)
    assert len(cache) == 0
    with pytest.raises(NonceReplayed, match="not newer than"):
        cache.check_and_store(nonce(1), NOW, NOW + 1)
    # One second later is newer than all that was forgotten.
    cache.check_and_store(nonce(2), NOW + 1, NOW + 1)


def test_forgetting_never_refuses_a_login_that_is_fresh():
    cache = NonceCache(10, 300)
    cache.check_and_store(nonce(1), NOW + 60, NOW)
    cache.check_and_store(nonce(2), NOW - 299, NOW + 0.5)
    later = NOW + 360
    cache.expire(later)
    # The oldest timestamp that the age check lets through at that time.
    cache.check_and_store(nonce(3), later - 299, later)


def test_flood_of_nonces_stays_within_the_limit_and_its_memory():
    cache = NonceCache(50_000, 300)
    refused = 0
    tracemalloc.start()
    try:
        for number in range(60_000):
            try:
                cache.check_and_store(nonce(number * 7919), NOW, NOW + number / 1000)
            except NonceReplayed:
                refused += 1
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert refused == 10_000
    assert len(cache) == 50_000
    assert used < 50_000 * 150
    cache.expire(NOW + 400)
    assert len(cache) == 0
    assert not cache._by_expiry
    assert not cache._expiries


def test_malformed_nonce_is_not_stored():
    cache = NonceCache(10, 300)
    with pytest.raises(ValueError, match="hexadecimal"):
        cache.check_and_store("g" * 32, NOW, NOW)
    assert len(cache) == 0


# --- PermitSet ------------------------------------------------------------------------


def test_nobody_has_a_permit_before_the_first_answer():
    permits = PermitSet()
    assert "5A" not in permits
    assert len(permits) == 0
    assert permits.hotkeys == frozenset()


@pytest.mark.parametrize("kind", [set, frozenset, list, tuple])
def test_new_set_replaces_the_old_one_and_tells_who_left(kind):
    permits = PermitSet()
    assert permits.replace(kind(["5A", "5B"])) == set()
    assert permits.replace(kind(["5B", "5C"])) == {"5A"}
    assert "5A" not in permits
    assert "5C" in permits
    assert permits.hotkeys == {"5B", "5C"}
    assert len(permits) == 2
    assert permits.replace(kind([])) == {"5B", "5C"}


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (None, "not NoneType"),
        ("5B", "not str"),
        ({"5B": 1}, "not dict"),
        (iter(["5B"]), "not list_iterator"),
        (5, "not int"),
        (["5B", None], "not NoneType"),
        ({b"5B"}, "not bytes"),
        (["5B", ["5C"]], "not list"),
    ],
)
def test_unusable_answer_is_named_and_the_old_set_kept(answer, named):
    permits = PermitSet()
    permits.replace({"5A"})
    with pytest.raises(TypeError, match=named):
        permits.replace(answer)
    assert permits.hotkeys == {"5A"}


# --- ValidatorTable -------------------------------------------------------------------


class Connection:
    """Stands for a connection: compared by identity."""

    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return self.name


@pytest.fixture
def connections():
    return [Connection(f"c{number}") for number in range(6)]


def test_validator_is_found_by_hotkey_and_by_connection(connections):
    one, two, *_ = connections
    table = ValidatorTable(8)
    assert table.register("5A", one, "conn_a", NOW) is None
    session = table.session_of("5A")
    assert session is table.session(one)
    assert (session.connection, session.hotkey) == (one, "5A")
    assert (session.last_activity, session.logins["5A"].established_at) == (NOW, NOW)
    assert session.logins["5A"].connection_id == "conn_a"
    assert table.hotkeys_of(one) == ("5A",)
    assert list(table) == [session]
    assert list(table.hotkeys) == ["5A"]
    assert len(table) == 1
    assert table.session(two) is None
    assert table.session_of("5B") is None
    assert table.hotkeys_of(two) == ()


def test_repeated_login_renews_its_name_and_keeps_its_time(connections):
    one = connections[0]
    table = ValidatorTable(1)
    table.register("5A", one, "conn_1", NOW)
    assert table.register("5A", one, "conn_2", NOW + 5) is None
    session = table.session(one)
    assert session.logins["5A"].connection_id == "conn_2"
    assert session.logins["5A"].established_at == NOW
    assert session.last_activity == NOW + 5
    assert len(table) == 1


def test_full_table_refuses_a_new_validator_and_nothing_changes(connections):
    one, two, three, *_ = connections
    table = ValidatorTable(2)
    table.register("5A", one, "", NOW)
    table.register("5B", two, "", NOW)
    with pytest.raises(ServerFull, match="all 2 places are taken") as caught:
        table.register("5C", three, "", NOW)
    assert caught.value.hotkey == "5C"
    assert set(table.hotkeys) == {"5A", "5B"}
    assert table.session(three) is None


def test_known_validator_returns_from_a_new_connection_even_when_full(connections):
    one, two, three, *_ = connections
    table = ValidatorTable(2)
    table.register("5A", one, "", NOW)
    table.register("5B", two, "", NOW)
    assert table.register("5A", three, "", NOW + 1) is one
    assert table.session_of("5A").connection is three
    assert table.session_of("5A").logins["5A"].established_at == NOW + 1
    assert table.session(one) is None
    assert len(table) == 2
    # The end of the replaced connection, when it is noticed, frees nothing more.
    assert table.remove_connection(one) == ()
    assert table.session_of("5A").connection is three


def test_hotkeys_of_one_connection_share_its_place(connections):
    one, two, *_ = connections
    table = ValidatorTable(2)
    for number in range(5):
        assert table.register(f"5{number}", one, "", NOW) is None
    table.register("5A", two, "", NOW)
    assert len(table) == 2
    assert len(table.hotkeys) == 6


def test_place_is_free_again_with_its_connection(connections):
    """Whatever the number of hotkeys on it, and as often as one likes."""
    table = ValidatorTable(1)
    for connection in connections:
        for number in range(5):
            table.register(f"5{number}", connection, "", NOW)
        assert table.remove_connection(connection) == ("50", "51", "52", "53", "54")
        assert len(table) == 0
        assert not table.hotkeys
        assert table.remove_connection(connection) == ()


def test_replaced_connection_goes_with_all_its_hotkeys(connections):
    one, two, *_ = connections
    table = ValidatorTable(1)
    table.register("5A", one, "", NOW)
    table.register("5B", one, "", NOW)
    assert table.register("5A", two, "", NOW) is one
    assert list(table.hotkeys) == ["5A"]
    assert table.session_of("5B") is None


def test_validator_may_move_to_a_connection_that_has_another(connections):
    one, two, *_ = connections
    table = ValidatorTable(2)
    table.register("5A", one, "", NOW)
    table.register("5B", two, "", NOW)
    assert table.register("5A", two, "", NOW) is one
    assert table.hotkeys_of(two) == ("5B", "5A")
    assert len(table) == 1


def test_latest_login_speaks_for_the_connection(connections):
    one = connections[0]
    table = ValidatorTable(1)
    table.register("5A", one, "", NOW)
    table.register("5B", one, "", NOW)
    assert table.session(one).hotkey == "5B"
    table.register("5A", one, "", NOW)
    assert table.session(one).hotkey == "5A"
    assert table.hotkeys_of(one) == ("5B", "5A")


def test_hotkeys_of_one_connection_are_bounded(connections):
    one, two, *_ = connections
    table = ValidatorTable(2, max_hotkeys_per_connection=2)
    table.register("5A", one, "", NOW)
    table.register("5B", one, "", NOW)
    table.register("5C", two, "", NOW)
    for hotkey in ("5C", "5D"):
        with pytest.raises(ServerFull, match="2 hotkeys on this connection"):
            table.register(hotkey, one, "", NOW)
    assert table.hotkeys_of(one) == ("5A", "5B")
    assert table.session_of("5C").connection is two
    assert table.register("5A", one, "again", NOW) is None


def test_validator_can_be_logged_out_alone(connections):
    one = connections[0]
    table = ValidatorTable(1)
    table.register("5A", one, "", NOW)
    table.register("5B", one, "", NOW)
    assert table.remove_hotkey("5A") is None
    assert table.hotkeys_of(one) == ("5B",)
    assert table.remove_hotkey("5B") is one
    assert len(table) == 0
    assert table.remove_hotkey("5B") is None


def test_idle_connections_are_told(connections):
    one, two, three, *_ = connections
    table = ValidatorTable(8)
    table.register("5A", one, "", NOW)
    table.register("5B", two, "", NOW)
    table.touch(two, NOW + 50)
    table.touch(three, NOW + 50)
    assert table.stale(100, NOW + 100) == []
    assert table.stale(100, NOW + 100.5) == [one]
    assert set(table.stale(100, NOW + 151)) == {one, two}
    assert len(table) == 2


# --- protocols ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocol", "method", "arguments"),
    [
        (ValidatorPermitResolver, "resolve_permitted_validators", ()),
        (SourceAddressResolver, "resolve_allowed_sources", ()),
        (HandshakeObserver, "observe_successful_handshake", ("hotkey", "ip")),
    ],
)
def test_protocols_have_the_peers_method_names(protocol, method, arguments):
    signature = inspect.signature(getattr(protocol, method))
    assert tuple(signature.parameters) == ("self", *arguments)
