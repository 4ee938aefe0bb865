"""What moves one socket's datagrams, and the thread that stands in for its owner."""

from libc.errno cimport EAGAIN, EINTR, EMSGSIZE, errno
from libc.stddef cimport size_t
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from lightning._core.io.desk cimport (
    WAITER_DONE, WAITER_LEADS, Desk, Waiter, desk_rouse, desk_sift,
    desk_take_roused, desk_time_out, load32, store32, waiter_sleep, waiter_wake
)
from lightning._core.io.udp cimport (
    udp_adopt, udp_close, udp_commit, udp_flush, udp_inbox_free, udp_inbox_init,
    udp_next, udp_next_bounce, udp_next_error, udp_outbox_free, udp_outbox_init,
    udp_receive, udp_room
)
from lightning._core.quic.connstate cimport CONNS_EVENTS, CONNS_TLS
from lightning._core.quic.endpoint cimport (
    endpoint_lock, endpoint_next_deadline, endpoint_poll_transmit, endpoint_receive,
    endpoint_refused, endpoint_timeout, endpoint_unlock, endpoint_unreachable,
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock,
    pthread_mutex_trylock, pthread_mutex_unlock
)
from lightning._core.quic.paths cimport Address
from lightning._core.quic.trace cimport Trace

# Atomics of the compiler: C11's cannot be members of a struct that Cython declares.
cdef extern from * nogil:
    """
    #include <poll.h>
    #include <pthread.h>
    #include <sched.h>
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

    #define ln_exchange(p, v) __atomic_exchange_n((p), (v), __ATOMIC_SEQ_CST)
    #define ln_clear(p, v) __atomic_fetch_and((p), ~(uint32_t)(v), __ATOMIC_SEQ_CST)
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
    int64_t load64 "ln_load"(const int64_t* p)
    void store64 "ln_store"(int64_t* p, int64_t v)
    uint32_t exchange "ln_exchange"(uint32_t* p, uint32_t v)
    uint64_t add "ln_add"(uint64_t* p, uint64_t v)
    uint32_t clear "ln_clear"(uint32_t* p, uint32_t bits)
    int sched_yield()
    int pump_thread_start(
        pthread_t* thread, void* (*run)(void*) noexcept nogil, void* arg
    )
    int pthread_join(pthread_t thread, void** result)

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
    Pump* p, EndpointCore* core, Desk* desk, int fd, uint32_t options, bint is_owned
) noexcept nogil:
    cdef int status
    memset(p, 0, sizeof(Pump))
    p.core = core
    p.desk = desk
    p.is_owned = is_owned
    p.traces = core.shared.trace is not NULL
    p.socket.fd = p.wake_fd = p.wake_end = p.notify_fd = p.notify_end = -1
    p.lead_fd = p.lead_end = -1
    pthread_mutex_init(&p.receiving, NULL)
    pthread_mutex_init(&p.sending, NULL)
    pthread_mutex_init(&p.turns, NULL)
    status = udp_outbox_init(&p.outbox)
    if status == 0:
        status = udp_adopt(&p.socket, fd, options)
    if status == 0:
        status = udp_inbox_init(&p.inbox, &p.socket)
    if status == 0:
        status = pump_signal_open(&p.wake_fd, &p.wake_end, p.socket.plain)
    if status == 0:
        status = pump_signal_open(&p.notify_fd, &p.notify_end, p.socket.plain)
    if status == 0:
        status = pump_signal_open(&p.lead_fd, &p.lead_end, p.socket.plain)
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
    pump_signal_close(p.lead_fd, p.lead_end)
    udp_inbox_free(&p.inbox)
    udp_outbox_free(&p.outbox)
    pthread_mutex_destroy(&p.receiving)
    pthread_mutex_destroy(&p.sending)
    pthread_mutex_destroy(&p.turns)


# --- The work ---------------------------------------------------------------------

cdef void receive(Pump* p, int64_t now, bint leads) noexcept nogil:
    """Take what has arrived."""
    cdef uint8_t* data = NULL
    cdef size_t size = 0
    cdef const Address* source = NULL
    cdef Address peer
    cdef uint8_t ecn = 0
    cdef int error = 0
    cdef int count
    cdef int left = DATAGRAMS
    cdef Waiter* roused
    if pthread_mutex_trylock(&p.receiving) != 0:
        return
    while left > 0:
        left -= 1
        count = udp_receive(&p.inbox)
        endpoint_lock(p.core)
        while udp_next(&p.inbox, &data, &size, &source, &ecn):
            left -= 1
            endpoint_receive(p.core, data, size, source, ecn, now)
        # No datagram woke us, so perhaps an error did.
        while count <= 0 and udp_next_error(&p.socket, &peer, &error):
            # A path's MTU is the engine's own to find.
            if peer.family and error != EMSGSIZE:
                endpoint_unreachable(p.core, &peer, error)
        desk_sift(p.desk, now)
        roused = desk_take_roused(p.desk)
        endpoint_unlock(p.core)
        if leads:
            desk_rouse(roused)
        else:
            pump_rouse(p, roused)
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
    cdef size_t size = 0
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
        while udp_next_bounce(&p.socket, &to, &error, &size):
            endpoint_lock(p.core)
            if error == EMSGSIZE:
                endpoint_refused(p.core, &to, size, now)
            else:
                endpoint_unreachable(p.core, &to, error)
            endpoint_unlock(p.core)


cdef bint has_work(Pump* p) noexcept nogil:
    """Say if there is something for Python to do."""
    cdef bint result
    endpoint_lock(p.core)
    result = (
        p.core.shared.first[CONNS_EVENTS] is not NULL
        or p.core.shared.first[CONNS_TLS] is not NULL
        or p.desk.ended_first is not NULL
        or (p.is_owned and load32(&p.desk.ready) != 0)
    )
    endpoint_unlock(p.core)
    return result


cdef bint has_traced(Pump* p) noexcept nogil:
    """Say if there is much to be written of what was traced."""
    cdef Trace* trace
    cdef bint result
    if not load32(&p.traces):
        return False
    endpoint_lock(p.core)
    trace = p.core.shared.trace
    result = trace is not NULL and trace.written - trace.taken >= TRACED
    endpoint_unlock(p.core)
    return result


cdef int64_t pump_deadline(Pump* p) noexcept nogil:
    cdef int64_t deadline
    endpoint_lock(p.core)
    deadline = min(endpoint_next_deadline(p.core), p.desk.until)
    endpoint_unlock(p.core)
    if load32(&p.blocked):
        deadline = min(deadline, pump_clock() + RETRY_AFTER)
    return deadline


cdef void step(Pump* p, bint leads) noexcept nogil:
    cdef int64_t now = pump_clock()
    cdef Waiter* roused
    receive(p, now, leads)
    endpoint_lock(p.core)
    if endpoint_next_deadline(p.core) <= now:
        endpoint_timeout(p.core, now)
    desk_time_out(p.desk, now)
    roused = desk_take_roused(p.desk)
    endpoint_unlock(p.core)
    if roused is not NULL:
        if leads:
            desk_rouse(roused)
        else:
            pump_rouse(p, roused)
    transmit(p, now)


cdef void pump_attend(Pump* p) noexcept nogil:
    cdef int64_t now
    # Without an owner at the socket, this is no sign that the thread may rest.
    if p.is_owned:
        add(&p.attended, 1)
    if p.flushed_at:
        now = pump_clock()
        store32(&p.quick, p.quick + 1 if now - p.flushed_at < SPIN else 0)
        p.flushed_at = 0
    step(p, False)
    rouse(p)


cdef bint pump_linger(Pump* p) noexcept nogil:
    cdef int64_t began = pump_clock()
    p.flushed_at = began
    if load32(&p.quick) < SPIN_AFTER:
        return False
    if pump_spin(p, began):
        add(&p.lingered, 1)
        return True
    store32(&p.quick, 0)
    return False


cdef void pump_assist(Pump* p) noexcept nogil:
    if load32(&p.led):
        return
    add(&p.attended, 1)
    step(p, False)
    rouse(p)
    notify(p)


cdef bint pump_spin(Pump* p, int64_t began) noexcept nogil:
    cdef pollfd fd
    fd.fd = p.socket.fd
    fd.events = POLLIN
    fd.revents = 0
    while pump_clock() - began < SPIN:
        if pump_poll(&fd, 1, 0, p.socket.plain) != 0:
            return True
        sched_yield()
    return False


cdef int bell_open(Pump* p, int* reads, int* writes) noexcept nogil:
    return pump_signal_open(reads, writes, p.socket.plain)


cdef void bell_ring(int writes) noexcept nogil:
    signal_fd(writes)


cdef void bell_drain(int reads) noexcept nogil:
    drain_fd(reads)


cdef void bell_close(int reads, int writes) noexcept nogil:
    pump_signal_close(reads, writes)


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


cdef bint pump_is_overrun(Pump* p) noexcept nogil:
    return exchange(&p.overrun, 0) != 0


cdef bint pump_summon(Pump* p) noexcept nogil:
    if not load32(&p.desk.ready):
        return True
    if load32(&p.led):
        signal_fd(p.lead_end)
        return True
    return pump_pass(p)


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

cdef bint notify(Pump* p) noexcept nogil:
    """Tell the owner, if there is something that needs Python; say if there is."""
    if not has_work(p) and not has_traced(p):
        return False
    if exchange(&p.notified, 1) == 0:
        signal_fd(p.notify_end)
    return True


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


cdef bint watch(Pump* p) noexcept nogil:
    """Stand by for an owner that is late; say if it is time to step in."""
    cdef uint64_t seen = load(&p.attended)
    cdef int64_t deadline = pump_deadline(p)
    cdef int64_t until = deadline
    if deadline != INT64_MAX:
        until += PATIENCE
    store64(&p.wake_at, until)
    # The owner may have moved the deadline before it could see that.
    if pump_deadline(p) < deadline:
        return False
    if wait(p, True, until):
        # The owner's turn: it is told by the same socket.
        store64(&p.wake_at, 0)
        wait(p, False, pump_clock() + PATIENCE)
    elif pump_deadline(p) + PATIENCE > pump_clock():
        return False
    return load(&p.attended) == seen


cdef bint let_lead(Pump* p) noexcept nogil:
    """Stand by while waiters lead; say if none does any more."""
    cdef uint64_t seen = load(&p.attended)
    cdef int64_t deadline
    cdef int slices = 0
    while not load32(&p.stopping):
        deadline = pump_deadline(p)
        if deadline != INT64_MAX:
            deadline += PATIENCE
        if deadline <= pump_clock():
            # The leader sleeps until another time.
            return True
        if slices < SLICES:
            store64(&p.wake_at, 0)
            wait(p, False, pump_clock() + PATIENCE)
        else:
            store32(&p.dozing, 1)
            store64(&p.wake_at, deadline)
            # The leader may have moved the deadline before it could see that.
            if load32(&p.led) and pump_deadline(p) >= deadline - PATIENCE:
                wait(p, False, deadline)
            store32(&p.dozing, 0)
            slices = 0
        if load(&p.attended) != seen:
            seen = load(&p.attended)
            slices = 0
        elif not load32(&p.led):
            return True
        slices += 1
    return False


cdef void* run(void* context) noexcept nogil:
    cdef Pump* p = <Pump*> context
    cdef bint in_charge = not p.is_owned
    cdef uint64_t seen
    cdef int64_t deadline
    while not load32(&p.stopping):
        if not in_charge:
            if not (watch(p) if p.is_owned else let_lead(p)):
                continue
            in_charge = True
        else:
            seen = load(&p.attended)
            deadline = pump_deadline(p)
            if not p.is_owned and load32(&p.desk.ready):
                # Somebody has to serve them, should those who do be stuck.
                deadline = min(deadline, pump_clock() + PATIENCE)
            store64(&p.wake_at, deadline)
            if pump_deadline(p) < deadline:
                continue
            wait(p, True, deadline)
            if load(&p.attended) != seen or load32(&p.led):
                in_charge = False
                continue
        if load32(&p.stopping):
            break
        add(&p.stand_ins, 1)
        step(p, False)
        if not p.is_owned and not pump_summon(p):
            store32(&p.overrun, 1)
            if exchange(&p.notified, 1) == 0:
                signal_fd(p.notify_end)
        notify(p)
    return NULL


# --- Taking turns -----------------------------------------------------------------

cdef void enlist(Pump* p, Waiter* w) noexcept nogil:
    pthread_mutex_lock(&p.turns)
    if not w.listed:
        w.listed = True
        w.after = NULL
        w.before = p.last
        if p.last is NULL:
            p.first = w
        else:
            p.last.after = w
        p.last = w
        store32(&p.waiting, p.waiting + 1)
    pthread_mutex_unlock(&p.turns)


cdef void delist(Pump* p, Waiter* w) noexcept nogil:
    """Take a waiter out of the list; `turns` is held."""
    if not w.listed:
        return
    w.listed = False
    if w.before is NULL:
        p.first = w.after
    else:
        w.before.after = w.after
    if w.after is NULL:
        p.last = w.before
    else:
        w.after.before = w.before
    store32(&p.waiting, p.waiting - 1)


cdef bint pump_pass(Pump* p) noexcept nogil:
    cdef Waiter* w
    if load32(&p.led):
        return True
    pthread_mutex_lock(&p.turns)
    w = p.first
    if w is not NULL:
        # Out of the list, so that the next to be chosen is another one.
        delist(p, w)
        waiter_wake(w, WAITER_LEADS)
    pthread_mutex_unlock(&p.turns)
    return w is not NULL


cdef void pump_dismiss(Pump* p) noexcept nogil:
    cdef Waiter* w
    store32(&p.stopping, 1)
    pthread_mutex_lock(&p.turns)
    w = p.first
    while w is not NULL:
        waiter_wake(w, WAITER_DONE)
        w = w.after
    pthread_mutex_unlock(&p.turns)
    signal_fd(p.lead_end)


cdef void pump_rouse(Pump* p, Waiter* first) noexcept nogil:
    if first is not NULL:
        desk_rouse(first)
        if load32(&p.led):
            signal_fd(p.lead_end)


cdef void pump_poke(Pump* p, Waiter* w) noexcept nogil:
    waiter_wake(w, WAITER_DONE)
    if load32(&p.led):
        signal_fd(p.lead_end)


cdef inline bint is_done(Pump* p, Waiter* w, bint serves) noexcept nogil:
    return load32(&w.state) & WAITER_DONE or (serves and load32(&p.desk.ready))


cdef int pump_wait(Pump* p, Waiter* w, bint serves, int64_t until) noexcept nogil:
    cdef int result = WAIT_DONE
    cdef int64_t now
    cdef bint was_listed = False
    while not is_done(p, w, serves):
        if load32(&p.stopping):
            break
        if exchange(&p.led, 1) == 0:
            clear(&w.state, WAITER_LEADS)
            result = lead(p, w, serves, until)
            store32(&p.led, 0)
            if load32(&p.dozing):
                signal_fd(p.wake_end)
            # Whoever serves is back in a moment, or has somebody else lead.
            if not serves:
                pump_pass(p)
            break
        enlist(p, w)
        was_listed = True
        now = pump_clock()
        if now >= until:
            result = WAIT_TIMEOUT
            break
        # The leader may have left before it could see us.
        if load32(&p.led) or load32(&w.state):
            waiter_sleep(w, now, until)
            if load32(&w.state) == 0 and pump_clock() < until:
                # Woken for no reason but a signal.
                result = WAIT_INTERRUPTED
                break
        if load32(&w.state) & WAITER_LEADS:
            clear(&w.state, WAITER_LEADS)
            if load32(&p.led):
                continue
    if was_listed:
        # Whoever has taken it out of the list has let go of it after this.
        pthread_mutex_lock(&p.turns)
        delist(p, w)
        pthread_mutex_unlock(&p.turns)
    if load32(&w.state) & WAITER_LEADS:
        # Chosen, but with no need to any more.
        clear(&w.state, WAITER_LEADS)
        pump_pass(p)
    return result


cdef int lead(Pump* p, Waiter* w, bint serves, int64_t until) noexcept nogil:
    """Move the datagrams until a waiter is done."""
    cdef int64_t began = pump_clock()
    cdef int64_t now = began
    cdef int readable
    while True:
        if is_done(p, w, serves) or load32(&p.stopping):
            return WAIT_DONE
        if now >= until:
            return WAIT_TIMEOUT
        readable = await_socket(p, serves, began, min(until, pump_deadline(p)))
        if readable < 0:
            return WAIT_INTERRUPTED
        add(&p.attended, 1)
        step(p, True)
        if notify(p):
            # Another thread has something to do: it needs the processor more.
            store32(&p.quick, 0)
        now = pump_clock()
        if is_done(p, w, serves):
            store32(&p.quick, p.quick + 1 if now - began < SPIN else 0)
            return WAIT_DONE


cdef int await_socket(
    Pump* p, bint serves, int64_t began, int64_t until
) noexcept nogil:
    """Wait for a datagram or a time; -1 if there was a signal."""
    cdef pollfd fds[2]
    cdef int64_t now = pump_clock()
    cdef int count
    fds[0].fd, fds[1].fd = p.socket.fd, p.lead_fd
    fds[0].events = fds[1].events = POLLIN
    fds[0].revents = fds[1].revents = 0
    if load32(&p.quick) >= SPIN_AFTER and (serves or not load32(&p.waiting)):
        while now - began < SPIN and now < until:
            if pump_poll(fds, 1, 0, p.socket.plain) != 0:
                return 1
            sched_yield()
            now = pump_clock()
    count = pump_poll(
        fds, 2, -1 if until == INT64_MAX else max(until - now, <int64_t> 0),
        p.socket.plain
    )
    if count < 0 and errno == EINTR:
        return -1
    if fds[1].revents:
        drain_fd(p.lead_fd)
    return count
