"""What a connection sends: datagrams filled with packets, packets with frames.

Source: RFC 9000 sections 8, 10, 12 to 14 and 17; RFC 9001 sections 4 to 6.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t

from lightning._core.quic.connstate cimport Conn
from lightning._core.quic.paths cimport Address


cdef enum SendLimits:
    # No datagram is written into less room.
    SEND_ROOM_MIN = 1200
    FRAMES_MAX = 32  # stream frames of one packet


# Write one datagram, at most `capacity` bytes (SEND_ROOM_MIN at least), for `to`, to be
# marked with `ecn`. Returns its size, 0 if there is nothing to send now: then the
# connection's deadlines tell when to ask again.
cdef size_t conn_write(
    Conn* c, uint8_t* out, size_t capacity, int64_t now, Address* to, uint8_t* ecn
) noexcept nogil
