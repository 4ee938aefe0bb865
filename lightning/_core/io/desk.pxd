"""What is asked and answered on the connections of one socket: no Python, no GIL.

A client's `Call` is one request and its answer, a server's `Request` what came of one.
Both put frames together as their bytes come in. Every function is called with the
endpoint's mutex held, unless it says otherwise; what the peer does is found by
`desk_sift`, after each batch of datagrams.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from lightning._core.quic.connstate cimport Conn
from lightning._core.quic.endpoint cimport EndpointCore, pthread_mutex_t
from lightning._core.quic.streamtable cimport Stream


# Words that threads share without a lock.
cdef extern from * nogil:
    """
    #define ln_load(p) __atomic_load_n((p), __ATOMIC_SEQ_CST)
    #define ln_store(p, v) __atomic_store_n((p), (v), __ATOMIC_SEQ_CST)
    """
    uint32_t load32 "ln_load"(const uint32_t* p)
    void store32 "ln_store"(uint32_t* p, uint32_t v)


# How a call ended.
cdef enum Outcome:
    CALL_WAITS = 0
    CALL_ANSWERED = 1
    CALL_RESET = 2  # by the peer, with a code
    CALL_ENDED_EARLY = 3  # inside a frame, or before it
    CALL_REFUSED = 4  # the peer wanted none of the request, with a code
    CALL_BAD_TYPE = 5
    CALL_TOO_LARGE = 6
    CALL_NO_MEMORY = 7
    CALL_LOST = 8  # with its connection
    CALL_CANCELLED = 9
    CALL_TIMED_OUT = 10
    CALL_NOT_SENT = 11  # within its write budget; the code is the bytes that were left


cdef enum TallySizes:
    # What the histogram counts: below 1 microsecond, below 2, 4 and so on; the last are
    # 67 seconds and more.
    LATENCIES = 28


# What became of exchanges. Whoever asks counts answers by the time they took.
cdef struct Tally:
    uint64_t begun
    uint64_t failed  # ended without an answer
    uint64_t latencies[28]


# A frame under construction: header, then payload.
cdef struct Frame:
    uint8_t* data  # of `capacity` bytes, grown as they come
    size_t size
    size_t capacity
    uint32_t length  # of the payload, once the header is complete
    uint32_t header_size
    uint8_t header[5]


# Somebody's sleep; see `pump_wait`.
cdef struct Waiter:
    uint32_t state  # of WaiterBits, an atomic
    Waiter* after
    Waiter* before
    bint listed
    Waiter* next_roused
    # A descriptor and 1: written to instead of waking a thread; 0 is none.
    int bell


cdef enum WaiterBits:
    WAITER_DONE = 1
    WAITER_LEADS = 2  # is to move the datagrams
    WAITER_ROUSED = 4  # by the desk, which has let go of it
    WAITER_LOOKS = 8  # will look without the bell


# Calls that one thread waits for together: woken when some have ended, which are taken
# with `group_take`. The record is in use while it has calls, and while it is roused and
# the waiter lacks WAITER_ROUSED.
cdef struct Group:
    Waiter waiter
    Call* ended_first
    Call* ended_last
    bint roused


cdef struct Call:
    Waiter waiter
    Line* line
    Call* after  # of the line's, or of the ended ones
    Call* before
    Stream* stream  # NULL while the peer allows none
    # The request: the caller's bytes, good until the call has ended. With an owner
    # they are referenced, and the owner is NULL from then on.
    const uint8_t* request
    size_t request_size
    void* owner
    void* user
    bint wakes  # whoever waits is woken; otherwise it is taken with `desk_next_ended`
    Group* group  # whose waiter it is that is woken; NULL for the call's own
    bint held  # waits for a stream
    bint refused  # the peer stopped the request, with `code`
    int outcome
    uint64_t code
    int64_t timeout  # microseconds for the answer, once the request is sent; 0 is none
    bint total  # that is from when it was begun instead
    size_t limit  # of the answer's payload; 0 is the line's
    bint watched  # by the desk; otherwise whoever waits calls `desk_look`
    int64_t began  # in microseconds
    int64_t opened  # when its stream was
    int64_t ended
    int64_t until  # when to look if it has taken too long; 0 is never
    Frame answer


cdef struct Request:
    Line* line
    Request* after  # of the line's, or of those that are complete
    Request* before
    Stream* stream
    uint64_t number  # the connection's
    uint64_t stream_id
    int64_t began
    Frame frame


# The desk's record of one connection, its `Conn.user`.
cdef struct Line:
    Desk* desk
    Conn* c
    Line* after
    Line* before
    size_t max_payload  # of frames that begin from now on
    bint serves
    Call* calls
    Call* held_first  # those that wait for a stream, in order
    Call* held_last
    Request* requests  # not complete
    Tally tally


cdef struct Desk:
    EndpointCore* core
    Line* lines
    Call* ended_first  # for `desk_next_ended`
    Call* ended_last
    Waiter* roused  # for `desk_take_roused`
    uint32_t calls  # under way, an atomic
    # No call is to be looked at before; INT64_MAX if none ever is.
    int64_t until
    int64_t rests_until  # nor are all, for that takes long where they are many
    # Complete requests, oldest first, under a mutex of their own, that is held for a
    # few instructions: whoever has the GIL may take it.
    pthread_mutex_t mutex
    Request* ready_first
    Request* ready_last
    uint32_t ready  # their number, an atomic
    Tally tally  # of all lines that there were


cdef void desk_init(Desk* d, EndpointCore* core) noexcept nogil
# When nobody will use its connections any more; no call is under way.
cdef void desk_free(Desk* d) noexcept nogil

# Take charge of a connection's streams, all of a server's and those of `desk_call`;
# NULL is out of memory.
cdef Line* desk_open(Desk* d, Conn* c, size_t max_payload, bint serves) noexcept nogil
# Its connection has ended, or is nobody's any more: so do its calls. The tally is
# copied out.
cdef void desk_close(Line* line, Tally* tally) noexcept nogil
# Count an exchange that ends without an answer, and of which the desk does not hear.
cdef void desk_count_failed(Line* line) noexcept nogil
# How many calls, and requests that are not complete.
cdef uint32_t desk_count(const Line* line) noexcept nogil

# Start a call: `line`, `request`, `request_size`, `owner`, `user`, `wakes`, `group`,
# `timeout`, `total`, `limit` and `watched` are set, the rest is zero. OK, or a status
# of the connection's verbs: then nothing was begun.
cdef int desk_call(Call* call, int64_t now) noexcept nogil
# End a call that nobody waits for any more; fine if it has ended.
cdef void desk_cancel(Call* call, int64_t now) noexcept nogil
# Take an ended call that does not wake anybody, or NULL.
cdef Call* desk_next_ended(Desk* d) noexcept nogil
# Take all who wait for calls that have ended; `desk_rouse` them without the mutex.
cdef Waiter* desk_take_roused(Desk* d) noexcept nogil
cdef void desk_rouse(Waiter* first) noexcept nogil
# Take an ended call of a group, or NULL.
cdef Call* group_take(Group* g) noexcept nogil
# Forget bits of a waiter's state; returns those that it had before. No mutex.
cdef uint32_t waiter_clear(Waiter* w, uint32_t bits) noexcept nogil

# Seconds that a request of so many bytes may take to be sent: the peer's rule.
cdef int64_t desk_budget(size_t size) noexcept nogil
# Say if a call has taken too long: CALL_WAITS, with `until` for the next look, or how
# it is to end, with its `code`.
cdef int desk_look(Call* call, int64_t now) noexcept nogil
# See what happened on the streams.
cdef void desk_sift(Desk* d, int64_t now) noexcept nogil
# End the calls that have taken too long.
cdef void desk_time_out(Desk* d, int64_t now) noexcept nogil
# Give up on requests that began earlier and are not complete; returns their number.
cdef uint32_t desk_expire(Desk* d, int64_t before, int64_t now) noexcept nogil
# Answer a request whose stream is known, or a part of the answer. OK, or as
# `connection_send`. `owner` as there.
cdef int desk_respond(
    Desk* d, Conn* c, uint64_t stream_id, const uint8_t* data, size_t size,
    void* owner, bint fin, int64_t now
) noexcept nogil

# Take a complete request, or NULL; without the endpoint's mutex. The caller frees it
# with `request_free`.
cdef Request* desk_next_ready(Desk* d) noexcept nogil
cdef void request_free(Request* r) noexcept nogil
cdef void frame_free(Frame* f) noexcept nogil

# Wake a waiter, which has no bell.
cdef void waiter_wake(Waiter* w, uint32_t bits) noexcept nogil
# Sleep while the state is zero, until a time in microseconds or INT64_MAX; may return
# early for any reason, a signal among them.
cdef void waiter_sleep(Waiter* w, int64_t now, int64_t until) noexcept nogil
