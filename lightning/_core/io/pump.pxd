"""What moves one socket's datagrams: receive, run timers, send. No Python, no GIL.

Any thread may call these functions, at any time and without a lock; who finds another
at the same work leaves it to that one. The lock order is `receiving` or `sending`
before the endpoint's mutex.

Some sockets have an owner, an event loop, that steps them when they are readable or a
timer is due. The pump is a native thread that never touches Python and stands in where
the owner is late: acknowledgements, keep-alives and retransmissions go on while
somebody holds the GIL. It sleeps while nothing happens, looks 200 times a second while
something does, and leaves the work to an owner that does it.

Other sockets have none. Threads that wait for something there (`pump_wait`) take turns:
one leads, which is to say that it moves the datagrams until what it waits for has come,
and the others sleep. While nobody waits, the pump's thread does the work.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from lightning._core.io.desk cimport Desk, Waiter
from lightning._core.io.udp cimport UdpInbox, UdpOutbox, UdpSocket
from lightning._core.quic.endpoint cimport EndpointCore, pthread_mutex_t


cdef extern from "pthread.h" nogil:
    ctypedef unsigned long pthread_t


cdef enum PumpLimits:
    # Microseconds that work may wait for the owner. Below what delays acknowledgements
    # (max_ack_delay is 25 ms), above the time slices of a busy machine.
    PATIENCE = 5000
    RETRY_AFTER = 1000  # microseconds before a full socket buffer is tried again
    DATAGRAMS = 256  # that one step receives, or a batch more, before it sends
    # Microseconds for which a lone waiter looks at the socket again and again, where
    # what it waits for mostly came so soon; to be woken takes as long as the answer.
    SPIN = 150
    SPIN_AFTER = 4  # waits in a row that were as short
    TRACED = 65536  # bytes of a trace for which the owner is told to write them
    SLICES = 40  # of PATIENCE, after which the thread lets a leader be


cdef enum WaitResult:
    WAIT_DONE = 0
    WAIT_TIMEOUT = 1
    WAIT_INTERRUPTED = 2  # by a signal


cdef struct Pump:
    EndpointCore* core
    Desk* desk
    UdpSocket socket
    UdpInbox inbox
    UdpOutbox outbox
    pthread_mutex_t receiving  # guards `inbox`
    pthread_mutex_t sending  # guards `outbox`
    pthread_t thread
    bint is_started
    bint is_owned  # by an event loop
    uint32_t traces  # there may be a trace to be written
    pthread_mutex_t turns  # guards the list of waiters
    Waiter* first  # who follows the leader, the longest first
    Waiter* last
    int wake_fd  # wakes the thread
    int lead_fd  # wakes the leader
    int lead_end
    int notify_fd  # readable when the owner should look for completions
    # Where these are written to: an eventfd is one, a pipe has two ends.
    int wake_end
    int notify_end
    # Read and written by many threads, as atomics.
    uint64_t attended  # steps of the owner, or of leaders
    uint32_t led  # somebody leads
    uint32_t overrun  # requests wait, and nobody who serves is free
    uint32_t dozing  # the thread sleeps until the leader leaves
    uint32_t quick  # waits in a row that were short
    uint32_t waiting  # length of the list
    uint64_t lingered  # lingers in which something came
    int64_t flushed_at  # the owner's: when it sent with nothing else to do
    int64_t wake_at  # when the thread means to wake up
    uint32_t stopping
    uint32_t notified  # notify_fd has been written to and not been read since
    uint32_t unsent  # somebody wants to have something sent
    uint32_t blocked  # the socket takes no more for now
    uint64_t stand_ins  # steps of the thread


# The time in microseconds, on the clock of time.monotonic().
cdef int64_t pump_clock() noexcept nogil

# Take over a bound, non-blocking socket, closed by `pump_close`. 0 or -errno.
cdef int pump_open(
    Pump* p, EndpointCore* core, Desk* desk, int fd, uint32_t options, bint is_owned
) noexcept nogil
# Start the thread. 0 or -errno.
cdef int pump_start(Pump* p) noexcept nogil
# Stop the thread, if this process has it, and close everything. Idempotent.
cdef void pump_close(Pump* p, bint join) noexcept nogil

# Receive, run timers and send, as the owner.
cdef void pump_attend(Pump* p) noexcept nogil
# After a flush of an owner that only waits for one answer, or one question: look at the
# socket for a moment, if what comes mostly comes so soon. Says if something has.
cdef bint pump_linger(Pump* p) noexcept nogil
# Do once what a leader does, for somebody who waits elsewhere, the socket among what it
# waits for; nothing if somebody leads.
cdef void pump_assist(Pump* p) noexcept nogil
# Look at the socket again and again for a moment; says if something has come.
cdef bint pump_spin(Pump* p, int64_t began) noexcept nogil
# Open something that is readable from when it is rung until it is drained. 0 or -errno.
cdef int bell_open(Pump* p, int* reads, int* writes) noexcept nogil
cdef void bell_ring(int writes) noexcept nogil
cdef void bell_drain(int reads) noexcept nogil
cdef void bell_close(int reads, int writes) noexcept nogil
# Send what is due; says if there are events or work for TLS.
cdef bint pump_flush(Pump* p) noexcept nogil
# When to attend next; INT64_MAX is never.
cdef int64_t pump_deadline(Pump* p) noexcept nogil
# Copy the socket's counters, and those of who made the steps; waits for a step's end.
cdef void pump_stats(
    Pump* p, UdpSocket* socket, uint64_t* attended, uint64_t* stand_ins
) noexcept nogil
# Sleep, or lead, until a waiter is done, a time in microseconds (or INT64_MAX) has come
# or a signal. With `serves` it is done when a request is complete. A WaitResult.
cdef int pump_wait(
    Pump* p, Waiter* w, bint serves, int64_t until
) noexcept nogil
# Have another waiter lead, if there is one and nobody does.
cdef bint pump_pass(Pump* p) noexcept nogil
# Wake whose calls have ended, the leader too.
cdef void pump_rouse(Pump* p, Waiter* first) noexcept nogil
# Have a waiter look, who may be leading.
cdef void pump_poke(Pump* p, Waiter* w) noexcept nogil
# Let nobody wait any more.
cdef void pump_dismiss(Pump* p) noexcept nogil
# Wake somebody who serves, if requests wait. False if nobody is free: whoever is busy
# looks when it is through, which may take it long.
cdef bint pump_summon(Pump* p) noexcept nogil
# Say, once each time, if that was so when the thread looked.
cdef bint pump_is_overrun(Pump* p) noexcept nogil
# Take note that `notify_fd` was seen.
cdef void pump_acknowledge(Pump* p) noexcept nogil
