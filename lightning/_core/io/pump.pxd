"""What moves one socket's datagrams: receive, run timers, send. No Python, no GIL.

Any thread may call these functions, at any time and without a lock; who finds another
at the same work leaves it to that one. The lock order is `receiving` or `sending`
before the endpoint's mutex.

The owner of a socket (an event loop, say) steps it when the socket is readable or a
timer is due. The pump is a native thread that never touches Python and stands in where
the owner is late: acknowledgements, keep-alives and retransmissions go on while
somebody holds the GIL. It sleeps while nothing happens, looks 200 times a second while
something does, and leaves the work to an owner that does it.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from lightning._core.io.udp cimport UdpInbox, UdpOutbox, UdpSocket
from lightning._core.quic.endpoint cimport EndpointCore, pthread_mutex_t


cdef extern from "pthread.h" nogil:
    ctypedef unsigned long pthread_t


cdef enum PumpLimits:
    # Microseconds that work may wait for the owner. Below what delays acknowledgements
    # (max_ack_delay is 25 ms), above the time slices of a busy machine.
    PATIENCE = 5000
    RETRY_AFTER = 1000  # microseconds before a full socket buffer is tried again
    BATCHES = 8  # of datagrams that one step receives before it sends


cdef struct Pump:
    EndpointCore* core
    UdpSocket socket
    UdpInbox inbox
    UdpOutbox outbox
    pthread_mutex_t receiving  # guards `inbox`
    pthread_mutex_t sending  # guards `outbox`
    pthread_t thread
    bint is_started
    int wake_fd  # wakes the thread
    int notify_fd  # readable when the owner should look for completions
    # Where these are written to: an eventfd is one, a pipe has two ends.
    int wake_end
    int notify_end
    # Read and written by many threads, as atomics.
    uint64_t attended  # steps of the owner
    int64_t wake_at  # when the thread means to wake up
    uint32_t stopping
    uint32_t notified  # notify_fd has been written to and not been read since
    uint32_t unsent  # somebody wants to have something sent
    uint32_t blocked  # the socket takes no more for now
    uint64_t stand_ins  # steps of the thread


# The time in microseconds, on the clock of time.monotonic().
cdef int64_t pump_clock() noexcept nogil

# Take over a bound, non-blocking socket, closed by `pump_close`. 0 or -errno.
cdef int pump_open(Pump* p, EndpointCore* core, int fd, uint32_t options) noexcept nogil
# Start the thread. 0 or -errno.
cdef int pump_start(Pump* p) noexcept nogil
# Stop the thread, if this process has it, and close everything. Idempotent.
cdef void pump_close(Pump* p, bint join) noexcept nogil

# Receive, run timers and send, as the owner.
cdef void pump_attend(Pump* p) noexcept nogil
# Send what is due; says if there are events or work for TLS.
cdef bint pump_flush(Pump* p) noexcept nogil
# When to attend next; INT64_MAX is never.
cdef int64_t pump_deadline(Pump* p) noexcept nogil
# Copy the socket's counters, and those of who made the steps; waits for a step's end.
cdef void pump_stats(
    Pump* p, UdpSocket* socket, uint64_t* attended, uint64_t* stand_ins
) noexcept nogil
# Take note that `notify_fd` was seen.
cdef void pump_acknowledge(Pump* p) noexcept nogil
