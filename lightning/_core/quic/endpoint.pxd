"""Many connections behind one socket: routing, timers, admission, and answers to none.

An ``EndpointCore`` is everything that one UDP socket needs, client or server. Every
function is called between ``endpoint_lock`` and ``endpoint_unlock``. Nobody waits for
the mutex holding the GIL, and nobody takes the GIL holding the mutex.

After any call: run TLS for the connections that ``endpoint_next_tls`` gives, take the
completions, transmit, and read the next deadline.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from lightning._core.quic.connstate cimport CONNS_TLS, Conn, Settings, Shared
from lightning._core.quic.gate cimport Gate
from lightning._core.quic.paths cimport Address


cdef extern from "pthread.h" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t* mutex, const void* attributes)
    int pthread_mutex_destroy(pthread_mutex_t* mutex)
    int pthread_mutex_lock(pthread_mutex_t* mutex)
    int pthread_mutex_trylock(pthread_mutex_t* mutex)
    int pthread_mutex_unlock(pthread_mutex_t* mutex)


# With LIGHTNING_DEBUG, whoever breaks one of the two lock rules is aborted: modules
# that lock also have their taking of the GIL checked. A thread that forgot to unlock
# is caught when it locks again.
cdef extern from *:
    """
    #ifdef LIGHTNING_DEBUG
    #include <stdio.h>
    #include <stdlib.h>
    #ifdef __cplusplus
    inline thread_local int lightning_locks = 0;  // One for all modules.
    #else
    static _Thread_local int lightning_locks = 0;
    #endif
    static inline void lightning_require(int kept, const char* rule) {
        if (!kept) {
            fprintf(stderr, "lock rule broken: %s\\n", rule);
            abort();
        }
    }
    static inline void lightning_locking(void) {
        lightning_require(!lightning_locks, "the mutex is taken twice");
        lightning_require(
            !PyGILState_Check(), "the mutex is waited for with the GIL held");
    }
    static inline void lightning_count_lock(int change) { lightning_locks += change; }
    static inline void lightning_taking_gil(void) {
        lightning_require(
            !lightning_locks, "the GIL is waited for with the mutex held");
    }
    #define PyEval_RestoreThread(state) \\
        (lightning_taking_gil(), PyEval_RestoreThread(state))
    #define PyGILState_Ensure() (lightning_taking_gil(), PyGILState_Ensure())
    #define LIGHTNING_LOCK_RULES 1
    #else
    #define lightning_locking() ((void)0)
    #define lightning_count_lock(change) ((void)0)
    #define LIGHTNING_LOCK_RULES 0
    #endif
    """
    void lightning_locking() noexcept nogil
    void lightning_count_lock(int change) noexcept nogil
    int LIGHTNING_LOCK_RULES


cdef enum EndpointLimits:
    REPLY_SIZE = 256
    REPLIES = 64  # answers without a connection that wait to be sent; more are dropped
    # Such answers a second, in the long run and at once: stateless resets, version
    # negotiations, refusals (RFC 9000 10.3.3, 21.11). Retries are not counted: an
    # honest client needs its own.
    REPLY_RATE = 200
    REPLY_BURST = 100
    # A stateless reset is shorter than what it answers, so that two ends cannot answer
    # each other for ever (RFC 9000 10.3.3).
    RESET_SIZE_MAX = 42
    INITIAL_CID_MIN = 8  # of what a client chooses (RFC 9000 7.2)


cdef struct Reply:
    Address to
    uint16_t size
    uint8_t data[256]


cdef struct EndpointStats:
    uint64_t datagrams_received
    uint64_t datagrams_dropped  # of no connection, and not answered
    uint64_t retries_sent
    uint64_t resets_sent
    uint64_t negotiations_sent
    uint64_t refused
    # Dropped without an answer, see `sources`: their source has too many connections
    # that nobody vouches for (or no entry is free), or begins too many.
    uint64_t sources_full
    uint64_t sources_fast


cdef struct EndpointCore:
    Shared shared
    pthread_mutex_t mutex
    uint32_t forks  # of this process's ancestors, when it was made
    # The latest time that a call gave. Threads that read the clock before they waited
    # for the mutex may come in another order; to the engine, time never goes back.
    int64_t now
    Gate gate  # who may begin a connection
    # Timers: a binary heap by deadline, from index 1.
    Conn** heap
    uint32_t heap_count
    uint32_t heap_capacity
    # Answers that belong to no connection.
    Reply* replies
    uint32_t reply_first
    uint32_t reply_count
    int64_t reply_refilled
    int64_t reply_tokens  # in millionths
    EndpointStats stats


# Besides the StreamEventKinds.
cdef enum CompletionKind:
    COMPLETION_CONNECTED = 256
    COMPLETION_CLOSED = 257


cdef struct Completion:
    Conn* conn
    void* user  # the connection's
    void* stream_user  # the stream's
    uint64_t number  # the connection's
    uint64_t stream_id
    uint64_t code
    uint16_t kind


# --- Life -------------------------------------------------------------------------

# `seed` is 32 random bytes, `secret` 32 bytes for tokens. OK or OUT_OF_MEMORY.
cdef int endpoint_init(
    EndpointCore* e, const Settings* settings, const uint8_t* seed,
    const uint8_t* secret, int64_t retry_lifetime, int64_t token_lifetime
) noexcept nogil
# End all connections that nobody else refers to; what they referred to is to be taken
# with `endpoint_next_release` before the endpoint is freed.
cdef void endpoint_clear(EndpointCore* e) noexcept nogil
cdef void endpoint_free(EndpointCore* e) noexcept nogil
# Say if this is the child of a fork and the endpoint its parent's: its mutex may be
# held by a thread that is not there, and its keys are the parent's to use.
cdef bint endpoint_is_inherited(const EndpointCore* e) noexcept nogil


cdef inline void endpoint_lock(EndpointCore* e) noexcept nogil:
    lightning_locking()
    pthread_mutex_lock(&e.mutex)
    lightning_count_lock(1)


cdef inline bint endpoint_trylock(EndpointCore* e) noexcept nogil:
    """Lock if nobody has it: that is no waiting, and fine with the GIL."""
    if pthread_mutex_trylock(&e.mutex) != 0:
        return False
    lightning_count_lock(1)
    return True


cdef inline void endpoint_unlock(EndpointCore* e) noexcept nogil:
    lightning_count_lock(-1)
    pthread_mutex_unlock(&e.mutex)


cdef inline void endpoint_lock_to_read(EndpointCore* e) noexcept nogil:
    """Lock, unless this is the child of a fork.

    There the mutex may be held for ever, by a thread that is not there, and nobody
    changes anything.
    """
    if not endpoint_is_inherited(e):
        endpoint_lock(e)


cdef inline void endpoint_unlock_read(EndpointCore* e) noexcept nogil:
    if not endpoint_is_inherited(e):
        endpoint_unlock(e)


cdef inline bint endpoint_has_work(const EndpointCore* e) noexcept nogil:
    """Say if TLS is to be run or references are to be given up."""
    return (
        e.shared.first[<int> CONNS_TLS] is not NULL
        or e.shared.memory.releases.count != 0
    )


# --- Datagrams and time -----------------------------------------------------------

# `data` is decrypted in place. `ecn` is the two bits of the IP header.
cdef void endpoint_receive(
    EndpointCore* e, uint8_t* data, size_t size, const Address* source, uint8_t ecn,
    int64_t now
) noexcept nogil
# Write datagrams for one address into `out`, all of `segment` bytes but the last, which
# may be shorter. Returns the bytes written, 0 if there is nothing to send.
cdef size_t endpoint_poll_transmit(
    EndpointCore* e, uint8_t* out, size_t capacity, Address* to, uint8_t* ecn,
    size_t* segment, int64_t now
) noexcept nogil
# An ICMP error came for an address: dials there that have heard nothing fail. What is
# established goes on, for anybody can make up such an error (RFC 9000 14.2.1).
cdef void endpoint_unreachable(
    EndpointCore* e, const Address* peer, int error
) noexcept nogil
# The socket refused a datagram of that size for an address (EMSGSIZE).
cdef void endpoint_refused(
    EndpointCore* e, const Address* to, size_t size, int64_t now
) noexcept nogil
# INT64_MAX is none.
cdef int64_t endpoint_next_deadline(const EndpointCore* e) noexcept nogil
cdef void endpoint_timeout(EndpointCore* e, int64_t now) noexcept nogil

# --- Connections -------------------------------------------------------------------

# Start a client's connection; NULL is out of memory. `token` is one that the server
# gave in NEW_TOKEN before; empty takes the one that is kept, if there is one. The
# caller has a reference, and is the one to run its TLS first, as if `endpoint_next_tls`
# had given it: nobody hears of the connection before `endpoint_tls_done`.
cdef Conn* endpoint_connect(
    EndpointCore* e, const Address* remote, const uint8_t* token, size_t token_size,
    int64_t now
) noexcept nogil
# After a verb: timers and lists follow.
cdef void endpoint_touch(EndpointCore* e, Conn* c, int64_t now) noexcept nogil
# Give back a reference.
cdef void endpoint_release(EndpointCore* e, Conn* c) noexcept nogil
# Take an owner of referenced bytes that is not needed any more, or NULL.
cdef void* endpoint_next_release(EndpointCore* e) noexcept nogil
cdef bint endpoint_next_completion(EndpointCore* e, Completion* out) noexcept nogil

# --- TLS, which runs without the mutex ---------------------------------------------

# Take a connection with work for TLS, with a reference, or NULL. Nobody else gets it
# until it is done.
cdef Conn* endpoint_next_tls(EndpointCore* e) noexcept nogil
# Copy out CRYPTO bytes of a level, in order; returns their number.
cdef size_t endpoint_take_crypto(
    EndpointCore* e, Conn* c, int space, uint8_t* out, size_t capacity
) noexcept nogil
cdef void endpoint_tls_done(EndpointCore* e, Conn* c, int64_t now) noexcept nogil
