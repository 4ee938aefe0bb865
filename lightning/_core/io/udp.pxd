"""A UDP socket: batches in and out, offloads, ECN, errors. No engine, no Python.

Every function returns 0 or a count, or -errno. Sockets are non-blocking and are made
above; addresses are the engine's.

On Linux a step receives with one `recvmmsg` and sends with one `sendmmsg`. Datagrams of
one size for one peer leave as one message that the kernel cuts up (UDP_SEGMENT), and
arrive as one that it did not (UDP_GRO). What the kernel does not do it is not asked
again: a driver may say EIO or EINVAL at any time. Elsewhere, and where
LIGHTNING_PLAIN_UDP is set in the environment, `recvmsg` and `sendmsg` do.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from lightning._core.quic.paths cimport Address


cdef enum UdpLimits:
    UDP_BATCH = 32  # messages of one call
    UDP_SLOT = 2048  # bytes of a datagram; longer ones are none of ours
    # With GRO, a message may be a run of datagrams. Slots that begin at various places
    # of a page do not meet in the caches.
    UDP_RUNS = 8
    UDP_RUN_SLOT = 67584
    UDP_OUT = 32  # sends that are collected before they leave
    UDP_OUT_SIZE = 131072  # and their bytes
    UDP_SEND_MAX = 65000  # bytes of one send, below the largest UDP payload
    UDP_ROOM_MIN = 16384  # bytes below which what is collected leaves first
    UDP_SEGMENTS = 64  # datagrams of one send (the kernel's UDP_MAX_SEGMENTS)
    UDP_ERRORS = 16  # bounced sends remembered; older ones go


cdef enum UdpOptions:
    UDP_NO_GSO = 1
    UDP_NO_ECN = 2
    UDP_NO_GRO = 4
    UDP_PLAIN = 8  # only what every system has


cdef struct UdpSocket:
    int fd
    bint is_ipv6
    bint is_any  # bound to all of the host's addresses
    bint plain
    bint ecn
    bint gso
    bint gso_failed  # was on and had to be dropped
    bint gro
    bint gro_failed
    # For tests: fails a send with this errno, after so many messages.
    int fail_next
    int fail_after
    int fail_receive
    int receive_buffer  # bytes that the kernel granted
    int send_buffer
    uint64_t received
    uint64_t sent
    uint64_t receive_calls
    uint64_t send_calls
    uint64_t not_sent  # datagrams that the system refused
    # Where sends were refused at once.
    Address bounced[16]
    int bounces[16]
    size_t bounce_sizes[16]
    uint32_t bounce_count


cdef struct UdpInbox:
    UdpSocket* socket
    uint8_t* data  # a slot for each message
    void* batch  # what the system fills
    int capacity
    int count
    int next
    # What is left of the message in turn.
    uint8_t* at
    size_t left
    size_t segment
    uint8_t ecn
    Address source


# One send: bytes that are cut into segments.
cdef struct UdpOut:
    Address to
    uint8_t ecn
    uint8_t* data
    size_t size  # 0 when all has left
    size_t segment


cdef struct UdpOutbox:
    uint8_t* data
    UdpOut items[32]
    uint32_t used  # bytes of data
    uint32_t count
    uint32_t first  # the next one to leave


# Set the options of a socket that the caller has bound.
cdef int udp_adopt(UdpSocket* s, int fd, uint32_t options) noexcept nogil
cdef void udp_close(UdpSocket* s) noexcept nogil

# For a socket that has been adopted: 64 KiB, with GRO 528 KiB at most.
cdef int udp_inbox_init(UdpInbox* box, UdpSocket* s) noexcept nogil
cdef void udp_inbox_free(UdpInbox* box) noexcept nogil
# Receive up to a batch; -EAGAIN if there is nothing, another -errno if a datagram of
# ours bounced.
cdef int udp_receive(UdpInbox* box) noexcept nogil
# Take the next datagram; the caller may change its bytes. Good until the next receive.
cdef bint udp_next(
    UdpInbox* box, uint8_t** data, size_t* size, const Address** source, uint8_t* ecn
) noexcept nogil

cdef int udp_outbox_init(UdpOutbox* box) noexcept nogil
cdef void udp_outbox_free(UdpOutbox* box) noexcept nogil
# Return where to put the next send's bytes, NULL if a flush must come first.
cdef uint8_t* udp_room(UdpOutbox* box, size_t* capacity) noexcept nogil
cdef void udp_commit(
    UdpOutbox* box, size_t size, size_t segment, const Address* to, uint8_t ecn
) noexcept nogil
# Send what was committed. -EAGAIN keeps the rest; a send that fails otherwise is lost
# like a datagram on its way, and counted.
cdef int udp_flush(UdpSocket* s, UdpOutbox* box) noexcept nogil

# Take a peer that the system would not send to at once, the errno, and the datagram's
# size; for whoever flushes. With EMSGSIZE, it is the size that was too large.
cdef bint udp_next_bounce(
    UdpSocket* s, Address* peer, int* error, size_t* size
) noexcept nogil
# Take an ICMP error from the system's queue, likewise; for whoever receives. A socket
# with such an error polls as readable until it is taken.
cdef bint udp_next_error(UdpSocket* s, Address* peer, int* error) noexcept nogil
