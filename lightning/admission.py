"""Who may log in: the server's gates, as policy without I/O and without a clock.

In the order in which a connection meets them: the allowlist of source addresses
(:class:`SourceAllowlist`), the limit of logins per source (:class:`LoginRateLimiter`),
the memory of used nonces (:class:`NonceCache`), the permits (:class:`PermitSet`) and
the table of places (:class:`ValidatorTable`). Each is bounded, and fails closed.

None of these classes locks: use each from one thread.
"""

from __future__ import annotations

import heapq
import ipaddress
import math
import socket
from collections import OrderedDict, deque
from collections.abc import Awaitable, Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, Self, TypeVar

from lightning.errors import NonceReplayed, ServerFull

__all__ = [
    "HandshakeObserver",
    "Login",
    "LoginRateLimiter",
    "NonceCache",
    "PermitSet",
    "Session",
    "SourceAddressResolver",
    "SourceAllowlist",
    "ValidatorPermitResolver",
    "ValidatorTable",
]

_MAPPED_IPV4 = bytes(10) + b"\xff\xff"


def _parse_ip(ip: str) -> bytes:
    """Return an address as 4 or 16 bytes; an IPv4-mapped one as 4.

    Raises:
        ValueError: Not an IP address.
    """
    # inet_pton is several times faster than ipaddress, and as strict.
    try:
        if ":" not in ip:
            return socket.inet_pton(socket.AF_INET, ip)
        packed = socket.inet_pton(socket.AF_INET6, ip.partition("%")[0])
    except (OSError, ValueError):
        raise ValueError(f"not an IP address: {ip!r}") from None
    return packed[12:] if packed.startswith(_MAPPED_IPV4) else packed


@dataclass(frozen=True, slots=True)
class SourceAllowlist:
    """Which source addresses may open a connection.

    The list to begin with, until a resolver has answered, is ``enforce(())``: nobody.
    """

    _sources: frozenset[bytes] | None

    def __repr__(self) -> str:
        text = "bypass" if self.is_bypass else f"of {self.count} addresses"
        return f"<{type(self).__name__} {text}>"

    @classmethod
    def bypass(cls) -> Self:
        """Return the list that lets every address through."""
        return cls(None)

    @classmethod
    def enforce(cls, ips: Iterable[str]) -> Self:
        """Return the list that lets these addresses through and no others.

        Args:
            ips: IPv4 and IPv6 addresses. An IPv4-mapped IPv6 address is the IPv4
                address; the scope of a link-local one is ignored.

        Raises:
            ValueError: One of them is not an IP address.
            TypeError: One text, or something else than texts.
        """
        if isinstance(ips, str | bytes):
            raise TypeError(f"addresses must be a collection, not {type(ips).__name__}")
        return cls(frozenset(map(_parse_ip, ips)))

    @property
    def is_bypass(self) -> bool:
        """Whether every address may pass."""
        return self._sources is None

    @property
    def count(self) -> int:
        """Number of addresses on the list, 0 if it is not enforced."""
        return 0 if self._sources is None else len(self._sources)

    @property
    def addresses(self) -> frozenset[str] | None:
        """The addresses as texts, None if every address may pass."""
        if self._sources is None:
            return None
        return frozenset(str(ipaddress.ip_address(ip)) for ip in self._sources)

    def allows(self, ip: str) -> bool:
        """Tell whether a connection from this address may be opened."""
        if self._sources is None:
            return True
        try:
            return _parse_ip(ip) in self._sources
        except ValueError:
            return False


class LoginRateLimiter:
    """Limits logins per source: at most so many in any window of time.

    A source is an IPv4 address, or the /64 of an IPv6 address, since that is what one
    host is given. Good and bad logins count alike; refused ones do not, so that a
    client which retries too fast gets through again.

    At the cap of tracked sources the one whose latest attempt, refused or not, is the
    oldest is forgotten. To be forgotten on purpose, a limited source must stay quiet
    while ``max_sources`` others log in; each of these could have brought the same
    number of logins itself, so nothing is gained. Refusing new sources instead would
    let one network lock out everybody.

    Cost: constant. Memory: at most ``max_sources`` x ``max_attempts`` numbers.
    """

    __slots__ = ("_sources", "max_attempts", "max_sources", "window")

    def __init__(
        self, max_attempts: int, window: float = 60, max_sources: int = 10_000
    ) -> None:
        """Start with nobody tracked.

        Args:
            max_attempts: Logins that one source has in any window; at least 1.
            window: Seconds.
            max_sources: Sources tracked; at least 1.
        """
        if max_attempts < 1 or max_sources < 1:
            raise ValueError("max_attempts and max_sources must be at least 1")
        self.max_attempts = max_attempts
        self.window = window
        self.max_sources = max_sources
        # By source, its latest attempts; the source with the latest attempt last.
        self._sources: OrderedDict[bytes, deque[float]] = OrderedDict()

    def allow(self, ip: str, now: float) -> bool:
        """Count a login and tell whether it may go on.

        Args:
            ip: The source address.
            now: Seconds of a clock that never steps, as ``time.monotonic``.

        Raises:
            ValueError: Not an IP address.
        """
        source = _parse_ip(ip)[:8]
        attempts = self._sources.get(source)
        if attempts is None:
            if len(self._sources) >= self.max_sources:
                self._sources.popitem(last=False)
            attempts = self._sources[source] = deque()
        else:
            self._sources.move_to_end(source)
            while attempts and now - attempts[0] >= self.window:
                attempts.popleft()
        if len(attempts) >= self.max_attempts:
            return False
        attempts.append(now)
        return True

    def expire(self, now: float) -> None:
        """Forget the sources without a login in the window; to give back memory."""
        while self._sources:
            source, attempts = next(iter(self._sources.items()))
            if now - attempts[-1] < self.window:
                break
            del self._sources[source]

    def __len__(self) -> int:
        """Return the number of sources tracked."""
        return len(self._sources)


class NonceCache:
    """Remembers the nonces of logins for as long as the logins could be replayed.

    A login stays fresh until its timestamp is ``max_age`` old, so its nonce is kept
    until then, counted from the later of timestamp and arrival. A nonce that is still
    fresh is never given up: when the cache is full of them, new logins are refused.

    A clock that is set back opens no window either: logins that are not newer than a
    nonce given up before are refused.

    Cost: constant, spread over the calls. Memory: about 130 bytes a nonce.
    """

    __slots__ = (
        "_by_expiry",
        "_expiries",
        "_forgotten",
        "_nonces",
        "max_age",
        "max_entries",
    )

    def __init__(self, max_entries: int, max_age: int) -> None:
        """Start empty.

        Args:
            max_entries: Most nonces kept.
            max_age: Seconds after which a login is too old, as for
                :func:`~lightning.handshake.verify_request`.
        """
        self.max_entries = max_entries
        self.max_age = max_age
        self._nonces: set[bytes] = set()
        # By the second in which they expire: the nonces; and these seconds as a heap.
        self._by_expiry: dict[int, list[bytes]] = {}
        self._expiries: list[int] = []
        # No login with this timestamp or an older one is remembered for certain.
        self._forgotten: float = -math.inf

    def check_and_store(self, nonce: str, timestamp: int, now: float) -> None:
        """Spend a nonce.

        Call it for logins whose signature is valid only: else anybody could spend
        the nonces of others, or fill the cache.

        Args:
            nonce: 32 hexadecimal digits; upper and lower case are the same nonce.
            timestamp: Of the login, Unix seconds.
            now: Unix seconds.

        Raises:
            NonceReplayed: Spent before, or it cannot be told, or no room.
        """
        self.expire(now)
        # Bytes, not numbers: the hash of a number could be made to collide.
        key = bytes.fromhex(nonce)
        if key in self._nonces:
            raise NonceReplayed("nonce was used before")
        if timestamp <= self._forgotten:
            raise NonceReplayed("login is not newer than nonces already forgotten")
        if len(self._nonces) >= self.max_entries:
            raise NonceReplayed(
                f"no room for another nonce, {self.max_entries} are live"
            )
        expiry = max(math.ceil(now), timestamp) + self.max_age
        bucket = self._by_expiry.get(expiry)
        if bucket is None:
            bucket = self._by_expiry[expiry] = []
            heapq.heappush(self._expiries, expiry)
        bucket.append(key)
        self._nonces.add(key)

    def expire(self, now: float) -> None:
        """Forget the nonces whose logins are too old by now; to give back memory."""
        while self._expiries and self._expiries[0] <= now:
            expiry = heapq.heappop(self._expiries)
            self._nonces.difference_update(self._by_expiry.pop(expiry))
            # It only ever grows: what was stored since is newer.
            self._forgotten = expiry - self.max_age

    def __len__(self) -> int:
        """Return the number of nonces kept."""
        return len(self._nonces)


class PermitSet:
    """The hotkeys that hold a validator permit; none before the first answer."""

    __slots__ = ("_hotkeys",)

    def __init__(self) -> None:
        """Start with no permits."""
        self._hotkeys: frozenset[str] = frozenset()

    def replace(self, hotkeys: Collection[str]) -> frozenset[str]:
        """Take a new set in place of the old one, or fail and keep the old one.

        Args:
            hotkeys: A set, frozenset, list or tuple of addresses.

        Returns:
            Those who held a permit before and do not any more.

        Raises:
            TypeError: Another type, or something else than texts in it.
        """
        if not isinstance(hotkeys, set | frozenset | list | tuple):
            raise TypeError(
                f"permits must be a set of hotkeys, not {type(hotkeys).__name__}"
            )
        for hotkey in hotkeys:
            if not isinstance(hotkey, str):
                raise TypeError(f"a hotkey must be a str, not {type(hotkey).__name__}")
        new = frozenset(hotkeys)
        lost = self._hotkeys - new
        self._hotkeys = new
        return lost

    @property
    def hotkeys(self) -> frozenset[str]:
        """The current set."""
        return self._hotkeys

    def __contains__(self, hotkey: object) -> bool:
        return hotkey in self._hotkeys

    def __len__(self) -> int:
        return len(self._hotkeys)


ConnectionT = TypeVar("ConnectionT", bound=Hashable)


@dataclass(slots=True)
class Login:
    """One validator's login on a connection."""

    connection_id: str
    """Name given to it in the handshake."""

    established_at: float
    """When this validator first logged in on this connection, Unix seconds."""


@dataclass(slots=True, eq=False)
class Session(Generic[ConnectionT]):
    """One connection on which at least one validator is logged in."""

    connection: ConnectionT
    """The connection."""

    last_activity: float
    """When it was last used, Unix seconds; whoever handles a request sets it."""

    logins: dict[str, Login] = field(default_factory=dict)
    """By hotkey, the latest login last."""

    @property
    def hotkey(self) -> str:
        """The validator that logged in last, for whom requests are answered."""
        return next(reversed(self.logins))


class ValidatorTable(Generic[ConnectionT]):
    """Which validators are logged in, on which connections.

    A place is taken by a connection, however many hotkeys log in on it, and is free
    again with it. A hotkey is logged in on one connection at a time: its login on
    another replaces the first connection as a whole, also when the table is full.
    """

    __slots__ = (
        "_by_connection",
        "_by_hotkey",
        "max_connections",
        "max_hotkeys_per_connection",
    )

    def __init__(
        self, max_connections: int, max_hotkeys_per_connection: int = 64
    ) -> None:
        """Start empty.

        Args:
            max_connections: Places.
            max_hotkeys_per_connection: Hotkeys that may log in on one connection.
        """
        self.max_connections = max_connections
        self.max_hotkeys_per_connection = max_hotkeys_per_connection
        self._by_hotkey: dict[str, Session[ConnectionT]] = {}
        self._by_connection: dict[ConnectionT, Session[ConnectionT]] = {}

    def register(
        self, hotkey: str, connection: ConnectionT, connection_id: str, now: float
    ) -> ConnectionT | None:
        """Log a validator in.

        A login that is repeated on the same connection renews its name and keeps the
        time of the first.

        Args:
            hotkey: The validator; its login has passed every check.
            connection: Where it did.
            connection_id: Name given to the login.
            now: Unix seconds.

        Returns:
            The connection that is replaced, to be closed; it is no longer in the
            table, with none of its hotkeys. None if there was none.

        Raises:
            ServerFull: No place is left, or too many hotkeys on this connection.
                Nothing has changed.
        """
        old = self._by_hotkey.get(hotkey)
        session = self._by_connection.get(connection)
        if session is None:
            if old is None and len(self._by_connection) >= self.max_connections:
                raise ServerFull(
                    f"all {self.max_connections} places are taken", hotkey=hotkey
                )
            session = Session(connection, now)
        elif (
            old is not session
            and len(session.logins) >= self.max_hotkeys_per_connection
        ):
            raise ServerFull(
                f"{self.max_hotkeys_per_connection} hotkeys on this connection",
                hotkey=hotkey,
            )
        replaced = None
        if old is not None and old is not session:
            replaced = old.connection
            self.remove_connection(replaced)
        login = session.logins.pop(hotkey, None)
        if login is None:
            login = Login(connection_id, now)
        login.connection_id = connection_id
        session.logins[hotkey] = login
        session.last_activity = now
        self._by_hotkey[hotkey] = session
        self._by_connection[connection] = session
        return replaced

    def remove_connection(self, connection: ConnectionT) -> tuple[str, ...]:
        """Free the place of a connection; fine if it has none.

        Returns:
            The hotkeys that were logged in on it.
        """
        session = self._by_connection.pop(connection, None)
        if session is None:
            return ()
        for hotkey in session.logins:
            del self._by_hotkey[hotkey]
        return tuple(session.logins)

    def remove_hotkey(self, hotkey: str) -> ConnectionT | None:
        """Log a validator out, as when it has lost its permit.

        Returns:
            Its connection if nobody is logged in on it any more, to be closed; it is
            no longer in the table. Else None.
        """
        session = self._by_hotkey.pop(hotkey, None)
        if session is None:
            return None
        del session.logins[hotkey]
        if session.logins:
            return None
        del self._by_connection[session.connection]
        return session.connection

    def touch(self, connection: ConnectionT, now: float) -> None:
        """Note that a connection is in use; fine if nobody is logged in on it."""
        session = self._by_connection.get(connection)
        if session is not None:
            session.last_activity = now

    def stale(self, max_idle: float, now: float) -> list[ConnectionT]:
        """Return the connections that were not used for longer than this.

        Args:
            max_idle: Seconds.
            now: Unix seconds.
        """
        return [
            session.connection
            for session in self
            if now - session.last_activity > max_idle
        ]

    def hotkeys_of(self, connection: ConnectionT) -> tuple[str, ...]:
        """Return who is logged in on a connection, the latest last."""
        session = self._by_connection.get(connection)
        return () if session is None else tuple(session.logins)

    def session(self, connection: ConnectionT) -> Session[ConnectionT] | None:
        """Return what is known of a connection, None if nobody is logged in on it."""
        return self._by_connection.get(connection)

    def session_of(self, hotkey: str) -> Session[ConnectionT] | None:
        """Return where a validator is logged in, None if it is not."""
        return self._by_hotkey.get(hotkey)

    @property
    def hotkeys(self) -> Collection[str]:
        """The validators that are logged in."""
        return self._by_hotkey.keys()

    def __iter__(self) -> Iterator[Session[ConnectionT]]:
        return iter(self._by_connection.values())

    def __len__(self) -> int:
        """Return the number of places taken."""
        return len(self._by_connection)


class ValidatorPermitResolver(Protocol):
    """Knows which hotkeys hold a validator permit, as a metagraph does."""

    def resolve_permitted_validators(
        self,
    ) -> Collection[str] | Awaitable[Collection[str]]:
        """Return their addresses: a set, frozenset, list or tuple.

        Called now and then, never twice at a time. An exception keeps the old set.
        """


class SourceAddressResolver(Protocol):
    """Knows which source addresses may connect."""

    def resolve_allowed_sources(self) -> SourceAllowlist | Awaitable[SourceAllowlist]:
        """Return the list.

        Called now and then, never twice at a time. An exception keeps the old list.
        """


class HandshakeObserver(Protocol):
    """Is told of every login that succeeded."""

    def observe_successful_handshake(
        self, hotkey: str, ip: str
    ) -> Awaitable[None] | None:
        """Take note.

        Args:
            hotkey: The validator.
            ip: Its source address.
        """
