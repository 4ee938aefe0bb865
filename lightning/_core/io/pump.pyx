"""What moves one socket's datagrams, and the thread that stands in for its owner."""

from libc.errno cimport EAGAIN, EMSGSIZE
from libc.stddef cimport size_t
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from lightning._core.io.udp cimport (
    udp_adopt, udp_close, udp_commit, udp_flush, udp_inbox_free, udp_inbox_init,
    udp_next, udp_next_bounce, udp_next_error, udp_outbox_free, udp_outbox_init,
    udp_receive, udp_room
)
from lightning._core.quic.connstate cimport CONNS_EVENTS, CONNS_TLS
from lightning._core.quic.endpoint cimport (
    endpoint_lock, endpoint_next_deadline, endpoint_poll_transmit, endpoint_receive,
    endpoint_timeout, endpoint_unlock, endpoint_unreachable, pthread_mutex_destroy,
    pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock
)
from lightning._core.quic.paths cimport Address

# Atomics of the compiler: C11's cannot be members of a struct that Cython declares.
cdef extern from * nogil:
    """
    #include <poll.h>
    #include <pthread.h>
    #include <signal.h>
    #include <stdint.h>
    #include <time.h>
    #include <unistd.h>
    #include <errno.h>
    #include <fcntl.h>
    #if defined(__linux__) && !defined(LIGHTNING_PORTABLE)
    #define PUMP_LINUX 1
    #include <sys/eventfd.h>
    #endif
    #if defined(__APPLE__)
    #define PUMP_CLOCK CLOCK_UPTIME_RAW  /* That of time.monotonic(). */
    #else
    #define PUMP_CLOCK CLOCK_MONOTONIC
    #endif

    #define ln_load(p) __atomic_load_n((p), __ATOMIC_SEQ_CST)
    #define ln_store(p, v) __atomic_store_n((p), (v), __ATOMIC_SEQ_CST)
    #define ln_exchange(p, v) __atomic_exchange_n((p), (v), __ATOMIC_SEQ_CST)
    #define ln_add(p, v) __atomic_fetch_add((p), (v), __ATOMIC_SEQ_CST)

    /* A thread without Python, deaf to signals: they are the main thread's. */
    static int pump_thread_start(pthread_t *thread, void *(*run)(void *), void *arg) {
        sigset_t all, before;
        pthread_attr_t attr;
        int error;
        sigfillset(&all);
        pthread_attr_init(&attr);
        pthread_attr_setstacksize(&attr, 1 << 19);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        error = pthread_create(thread, &attr, run, arg);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        pthread_attr_destroy(&attr);
        return error;
    }

    /* Something that is readable from when it is written to until it is drained. */
    static int pump_signal_open(int *reads, int *writes, int plain) {
        int fds[2], i;
    #if defined(PUMP_LINUX)
        if (!plain) {
            *reads = *writes = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
            return *reads < 0 ? -errno : 0;
        }
    #endif
        if (pipe(fds) < 0) return -errno;
        for (i = 0; i < 2; i++) {
            fcntl(fds[i], F_SETFL, O_NONBLOCK);
            fcntl(fds[i], F_SETFD, FD_CLOEXEC);
        }
        *reads = fds[0];
        *writes = fds[1];
        return 0;
    }

    static void pump_signal_close(int reads, int writes) {
        if (reads >= 0) close(reads);
        if (writes >= 0 && writes != reads) close(writes);
    }

    /* Microseconds; below 0 is for ever. */
    static int pump_poll(struct pollfd *fds, int count, int64_t timeout, int plain) {
    #if defined(PUMP_LINUX)
        if (!plain) {
            struct timespec limit;
            limit.tv_sec = timeout / 1000000;
            limit.tv_nsec = timeout % 1000000 * 1000;
            return ppoll(fds, count, timeout < 0 ? NULL : &limit, NULL);
        }
    #endif
        /* It sleeps in milliseconds; a timer must be due when it is looked at. */
        if (timeout > 1000000000) timeout = 1000000000;
        return poll(fds, count, timeout < 0 ? -1 : (int) ((timeout + 999) / 1000));
    }
    """
    uint64_t load "ln_load"(const uint64_t* p)
    uint32_t load32 "ln_load"(const uint32_t* p)
    int64_t load64 "ln_load"(const int64_t* p)
    void store32 "ln_store"(uint32_t* p, uint32_t v)
    void store64 "ln_store"(int64_t* p, int64_t v)
    uint32_t exchange "ln_exchange"(uint32_t* p, uint32_t v)
    uint64_t add "ln_add"(uint64_t* p, uint64_t v)
    int pump_thread_start(
        pthread_t* thread, void* (*run)(void*) noexcept nogil, void* arg
    )
    int pthread_join(pthread_t thread, void** result)
    int pthread_mutex_trylock(pthread_mutex_t* mutex)

    cdef struct timespec:
        long tv_sec
        long tv_nsec
    enum: PUMP_CLOCK
    int clock_gettime(int clock, timespec* now)
    cdef struct pollfd:
        int fd
        short events
        short revents
    enum: POLLIN
    int pump_poll(pollfd* fds, int count, int64_t timeout, bint plain)
    int pump_signal_open(int* reads, int* writes, bint plain)
    void pump_signal_close(int reads, int writes)
    ssize_t read(int fd, void* data, size_t size)
    ssize_t write(int fd, const void* data, size_t size)


cdef int64_t pump_clock() noexcept nogil:
    cdef timespec now
    clock_gettime(PUMP_CLOCK, &now)
    return <int64_t> now.tv_sec * 1000000 + now.tv_nsec // 1000


cdef inline void signal_fd(int fd) noexcept nogil:
    cdef uint64_t one = 1
    # It fails only when it is full of signals already.
    write(fd, &one, sizeof(one))


cdef inline void drain_fd(int fd) noexcept nogil:
    cdef uint8_t signals[512]
    read(fd, signals, sizeof(signals))  # Maybe another thread was first.


# --- Life -------------------------------------------------------------------------

cdef int pump_open(
    Pump* p, EndpointCore* core, int fd, uint32_t options
) noexcept nogil:
    cdef int status
    memset(p, 0, sizeof(Pump))
    p.core = core
    p.socket.fd = p.wake_fd = p.wake_end = p.notify_fd = p.notify_end = -1
    pthread_mutex_init(&p.receiving, NULL)
    pthread_mutex_init(&p.sending, NULL)
    status = udp_outbox_init(&p.outbox)
    if status == 0:
        status = udp_adopt(&p.socket, fd, options)
    if status == 0:
        status = udp_inbox_init(&p.inbox, &p.socket)
    if status == 0:
        status = pump_signal_open(&p.wake_fd, &p.wake_end, p.socket.plain)
    if status == 0:
        status = pump_signal_open(&p.notify_fd, &p.notify_end, p.socket.plain)
    if status != 0:
        # The socket stays the caller's.
        p.socket.fd = -1
        pump_close(p, False)
    return status


cdef int pump_start(Pump* p) noexcept nogil:
    cdef int error = pump_thread_start(&p.thread, run, p)
    if error == 0:
        p.is_started = True
    return -error


cdef void pump_close(Pump* p, bint join) noexcept nogil:
    if p.core is NULL:
        return
    if p.is_started:
        p.is_started = False
        store32(&p.stopping, 1)
        if join:
            signal_fd(p.wake_end)
            pthread_join(p.thread, NULL)
    p.core = NULL
    if p.socket.fd >= 0:
        udp_close(&p.socket)
    pump_signal_close(p.wake_fd, p.wake_end)
    pump_signal_close(p.notify_fd, p.notify_end)
    udp_inbox_free(&p.inbox)
    udp_outbox_free(&p.outbox)
    pthread_mutex_destroy(&p.receiving)
    pthread_mutex_destroy(&p.sending)


# --- The work ---------------------------------------------------------------------

cdef void receive(Pump* p, int64_t now) noexcept nogil:
    """Take what has arrived."""
    cdef uint8_t* data = NULL
    cdef size_t size = 0
    cdef const Address* source = NULL
    cdef Address peer
    cdef uint8_t ecn = 0
    cdef int error = 0
    cdef int count
    cdef int left = BATCHES
    if pthread_mutex_trylock(&p.receiving) != 0:
        return
    while left:
        left -= 1
        count = udp_receive(&p.inbox)
        endpoint_lock(p.core)
        while udp_next(&p.inbox, &data, &size, &source, &ecn):
            endpoint_receive(p.core, data, size, source, ecn, now)
        # No datagram woke us, so perhaps an error did.
        while count <= 0 and udp_next_error(&p.socket, &peer, &error):
            # A path's MTU is the engine's own to find.
            if peer.family and error != EMSGSIZE:
                endpoint_unreachable(p.core, &peer, error)
        endpoint_unlock(p.core)
        if count == -EAGAIN or 0 <= count < p.inbox.capacity:
            break
    pthread_mutex_unlock(&p.receiving)


cdef void transmit(Pump* p, int64_t now) noexcept nogil:
    # Whoever is at it looks once more for those that find it taken.
    store32(&p.unsent, 1)
    while load32(&p.unsent):
        if pthread_mutex_trylock(&p.sending) != 0:
            return
        store32(&p.unsent, 0)
        send_all(p, now)
        pthread_mutex_unlock(&p.sending)


cdef void send_all(Pump* p, int64_t now) noexcept nogil:
    cdef uint8_t* room
    cdef size_t capacity = 0
    cdef size_t size
    cdef size_t segment = 0
    cdef Address to
    cdef uint8_t ecn = 0
    cdef int error = 0
    cdef bint is_full = True
    if load32(&p.blocked) and udp_flush(&p.socket, &p.outbox) == -EAGAIN:
        return
    store32(&p.blocked, 0)
    while is_full:
        endpoint_lock(p.core)
        while True:
            room = udp_room(&p.outbox, &capacity)
            is_full = room is NULL
            if is_full:
                break
            size = endpoint_poll_transmit(
                p.core, room, capacity, &to, &ecn, &segment, now
            )
            if size == 0:
                break
            udp_commit(&p.outbox, size, segment, &to, ecn)
        endpoint_unlock(p.core)
        if udp_flush(&p.socket, &p.outbox) == -EAGAIN:
            store32(&p.blocked, 1)
            is_full = False
        while udp_next_bounce(&p.socket, &to, &error):
            endpoint_lock(p.core)
            endpoint_unreachable(p.core, &to, error)
            endpoint_unlock(p.core)


cdef bint has_work(Pump* p) noexcept nogil:
    """Say if there are events, or CRYPTO bytes for TLS."""
    cdef bint result
    endpoint_lock(p.core)
    result = (
        p.core.shared.first[CONNS_EVENTS] is not NULL
        or p.core.shared.first[CONNS_TLS] is not NULL
    )
    endpoint_unlock(p.core)
    return result


cdef int64_t pump_deadline(Pump* p) noexcept nogil:
    cdef int64_t deadline
    endpoint_lock(p.core)
    deadline = endpoint_next_deadline(p.core)
    endpoint_unlock(p.core)
    if load32(&p.blocked):
        deadline = min(deadline, pump_clock() + RETRY_AFTER)
    return deadline


cdef void step(Pump* p) noexcept nogil:
    cdef int64_t now = pump_clock()
    receive(p, now)
    endpoint_lock(p.core)
    if endpoint_next_deadline(p.core) <= now:
        endpoint_timeout(p.core, now)
    endpoint_unlock(p.core)
    transmit(p, now)


cdef void pump_attend(Pump* p) noexcept nogil:
    add(&p.attended, 1)
    step(p)
    rouse(p)


cdef bint pump_flush(Pump* p) noexcept nogil:
    transmit(p, pump_clock())
    rouse(p)
    return has_work(p)


cdef void rouse(Pump* p) noexcept nogil:
    """Have the thread look in time, if it means to sleep for longer."""
    cdef int64_t deadline
    if not p.is_started:
        return
    deadline = pump_deadline(p)
    if deadline != INT64_MAX and deadline + PATIENCE < load64(&p.wake_at):
        # Once is enough.
        store64(&p.wake_at, deadline + PATIENCE)
        signal_fd(p.wake_end)


cdef void pump_acknowledge(Pump* p) noexcept nogil:
    drain_fd(p.notify_fd)
    store32(&p.notified, 0)


cdef void pump_stats(
    Pump* p, UdpSocket* socket, uint64_t* attended, uint64_t* stand_ins
) noexcept nogil:
    # Each half of the socket's record belongs to one of the two.
    pthread_mutex_lock(&p.receiving)
    pthread_mutex_lock(&p.sending)
    socket[0] = p.socket
    pthread_mutex_unlock(&p.sending)
    pthread_mutex_unlock(&p.receiving)
    attended[0] = load(&p.attended)
    stand_ins[0] = load(&p.stand_ins)


# --- The thread -------------------------------------------------------------------

cdef void notify(Pump* p) noexcept nogil:
    """Tell the owner, if there is something that needs Python."""
    if has_work(p) and exchange(&p.notified, 1) == 0:
        signal_fd(p.notify_end)


cdef bint wait(Pump* p, bint for_socket, int64_t until) noexcept nogil:
    """Sleep until then, a wake-up or a datagram; say if there is a datagram."""
    cdef pollfd fds[2]
    cdef int64_t left = -1
    if until != INT64_MAX:
        left = max(until - pump_clock(), <int64_t> 0)
    fds[0].fd, fds[1].fd = p.wake_fd, p.socket.fd
    fds[0].events = fds[1].events = POLLIN
    fds[0].revents = fds[1].revents = 0
    if pump_poll(fds, 2 if for_socket else 1, left, p.socket.plain) <= 0:
        return False
    if fds[0].revents:
        drain_fd(p.wake_fd)
    return fds[1].revents != 0


cdef void* run(void* context) noexcept nogil:
    cdef Pump* p = <Pump*> context
    cdef bint in_charge = False
    cdef bint readable
    cdef uint64_t seen
    cdef int64_t deadline, until
    while not load32(&p.stopping):
        deadline = pump_deadline(p)
        until = deadline
        if not in_charge and deadline != INT64_MAX:
            until += PATIENCE
        seen = load(&p.attended)
        store64(&p.wake_at, until)
        # The owner may have moved the deadline before it could see that.
        if pump_deadline(p) < deadline:
            continue
        readable = wait(p, True, until)
        if load32(&p.stopping):
            break
        if not in_charge:
            if readable:
                # The owner's turn: it is told by the same socket.
                store64(&p.wake_at, 0)
                wait(p, False, pump_clock() + PATIENCE)
            elif pump_deadline(p) + PATIENCE > pump_clock():
                continue
            if load(&p.attended) != seen:
                continue
            in_charge = True
        elif load(&p.attended) != seen:
            in_charge = False
            continue
        add(&p.stand_ins, 1)
        step(p)
        notify(p)
    return NULL
