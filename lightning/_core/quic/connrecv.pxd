"""What a connection does with a datagram: packets opened, frames handed on.

Source: RFC 9000 sections 5, 8, 9, 12, 13 and 17; RFC 9001 sections 4 to 6.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t

from lightning._core.quic.connstate cimport Conn
from lightning._core.quic.paths cimport Address


# Take a datagram whose first packet is for this connection. It is decrypted in place.
cdef void conn_receive(
    Conn* c, uint8_t* data, size_t size, const Address* source, uint8_t ecn,
    int64_t now
) noexcept nogil
# Look again at the packets that came before their keys.
cdef void conn_unstash(Conn* c, int64_t now) noexcept nogil
# Act on the records that recovery hands back.
cdef void conn_settle(Conn* c, int64_t now) noexcept nogil
# Say if a datagram ends in a stateless reset token of the peer.
cdef bint conn_is_reset(const Conn* c, const uint8_t* data, size_t size) noexcept nogil
