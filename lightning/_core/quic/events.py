"""What an engine endpoint tells the layer above."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from lightning._core.quic.engine import Connection

__all__ = ["ConnectionEnd", "Event"]


class Event(NamedTuple):
    """Something that happened on a connection.

    Attributes:
        kind: ``connected``, ``closed``; of a stream ``opened`` by the peer,
            ``readable``, ``reset`` and ``stopped`` by the peer with a code,
            ``writable`` again, ``acked`` with its end; ``openable``: a stream may be
            opened again.
        connection: Where.
        stream_id: Of a stream's event, else 0.
        code: The peer's error code, or how ``closed`` it was.
    """

    kind: Literal[
        "connected",
        "closed",
        "opened",
        "readable",
        "reset",
        "stopped",
        "writable",
        "acked",
        "openable",
    ]
    connection: Connection
    stream_id: int
    code: int


@dataclass(frozen=True, slots=True)
class ConnectionEnd:
    """How a connection ended.

    Attributes:
        initiator: ``local`` or ``peer`` closed it; ``idle``, ``handshake_timeout``;
            ``reset`` by a peer that lost its state; ``version``, if the server speaks
            none of ours; ``path``, if no path was left; ``unreachable``, if an ICMP
            error answered the dial: the code is its errno; ``unresponsive``, if the
            peer owed an acknowledgement and was silent for too long.
        application: Whether the code is the application's or QUIC's.
        code: The error code.
        frame_type: The frame that QUIC's error was about, 0 for none.
        reason: What the initiator said.
    """

    initiator: Literal[
        "local",
        "peer",
        "idle",
        "handshake_timeout",
        "reset",
        "version",
        "path",
        "unreachable",
        "unresponsive",
    ]
    application: bool
    code: int
    frame_type: int
    reason: str

    @property
    def timed_out(self) -> bool:
        """Whether the peer was silent."""
        return self.initiator in ("idle", "handshake_timeout", "unresponsive")
