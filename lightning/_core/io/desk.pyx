"""What is asked and answered on the connections of one socket."""

from libc.stddef cimport size_t
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memset

from lightning._core.quic.buffer cimport OK, OUT_OF_MEMORY
from lightning._core.quic.connection cimport (
    connection_open_stream, connection_refer, connection_release,
    connection_reset, connection_send, connection_stop, connection_stream
)
from lightning._core.quic.connstate cimport (
    CONNS_EVENTS, CONNS_SEND, Conn, conn_is_alive, conn_list, conn_unlist
)
from lightning._core.quic.endpoint cimport (
    EndpointCore, endpoint_touch, pthread_mutex_destroy, pthread_mutex_init,
    pthread_mutex_lock, pthread_mutex_unlock
)
from lightning._core.quic.sendbuf cimport sendbuf_size
from lightning._core.quic.streams cimport (
    STREAMS_LIMIT, streams_release, streams_resume, streams_send, streams_stop
)
from lightning._core.quic.streamtable cimport (
    BIDI, EVENT_OPENED, EVENT_RESET, EVENT_STOPPED, LIST_EVENTS, SEND_SEND, Stream,
    list_remove
)
from lightning._core.wire.framing cimport HEADER_SIZE, frame_length, is_frame_type
from lightning._core.wire.pages cimport expect_pages

cdef extern from * nogil:
    """
    #include <stdint.h>
    #include <time.h>
    #include <unistd.h>
    #if defined(__linux__) && !defined(LIGHTNING_PORTABLE)
    #include <linux/futex.h>
    #include <sys/syscall.h>

    static void word_sleep(uint32_t *word, int64_t micros) {
        struct timespec limit, *timeout = 0;
        if (micros >= 0) {
            limit.tv_sec = micros / 1000000;
            limit.tv_nsec = micros % 1000000 * 1000;
            timeout = &limit;
        }
        syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, 0, timeout, 0, 0);
    }
    static void word_wake(uint32_t *word) {
        syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0);
    }
    #else
    /* No system call for it everywhere: look twice a millisecond. */
    static void word_sleep(uint32_t *word, int64_t micros) {
        struct timespec slice = {0, 500000};
        if (micros >= 0 && micros < 500) slice.tv_nsec = micros * 1000;
        nanosleep(&slice, 0);
    }
    static void word_wake(uint32_t *word) { (void)word; }
    #endif
    static void bell_ring(int fd) {
        uint64_t one = 1;
        ssize_t written = write(fd, &one, sizeof(one));
        (void)written;  /* It fails only when it is full of rings already. */
    }
    #define leading_zeros(v) __builtin_clzll(v)
    #define word_or(p, v) __atomic_fetch_or((p), (v), __ATOMIC_SEQ_CST)
    #define word_and(p, v) __atomic_fetch_and((p), (v), __ATOMIC_SEQ_CST)
    """
    void word_sleep(uint32_t* word, int64_t micros)
    void word_wake(uint32_t* word)
    void bell_ring(int fd)
    int leading_zeros(uint64_t v)
    uint32_t word_or(uint32_t* word, uint32_t bits)
    uint32_t word_and(uint32_t* word, uint32_t bits)

cdef enum:
    # A payload up to this size is allocated at once; a longer one as it comes, by
    # doubling, whatever the header says.
    ONE_SHOT_SIZE = 65536
    SECOND = 1000000  # in microseconds
    LOOK_MIN = 5000  # between two looks at a call, in microseconds
    LOOKS = 4  # calls looked at in a microsecond, in the long run


cdef void waiter_wake(Waiter* w, uint32_t bits) noexcept nogil:
    # The waiter may be gone as soon as it sees the bits; waking an address where
    # nobody sleeps does nothing.
    word_or(&w.state, bits)
    word_wake(&w.state)


cdef uint32_t waiter_clear(Waiter* w, uint32_t bits) noexcept nogil:
    return word_and(&w.state, ~bits) & bits


cdef void waiter_sleep(Waiter* w, int64_t now, int64_t until) noexcept nogil:
    word_sleep(&w.state, -1 if until == INT64_MAX else max(until - now, <int64_t> 0))


# --- Frames ---------------------------------------------------------------------------

cdef void frame_free(Frame* f) noexcept nogil:
    free(f.data)
    f.data = NULL


cdef int frame_feed(
    Frame* f, const uint8_t* data, size_t size, size_t limit, size_t* taken
) noexcept nogil:
    """Take bytes up to the end of the frame: CALL_WAITS, CALL_ANSWERED, or why not."""
    cdef size_t count
    cdef size_t capacity
    cdef uint8_t* grown
    count = min(size, <size_t> HEADER_SIZE - f.header_size)
    if count:
        memcpy(f.header + f.header_size, data, count)
        f.header_size += <uint32_t> count
        if f.header_size == HEADER_SIZE:
            f.length = frame_length(f.header)
            if not is_frame_type(f.header[0]):
                return CALL_BAD_TYPE
            if f.length > limit:
                return CALL_TOO_LARGE
    taken[0] = count
    if f.header_size < HEADER_SIZE:
        return CALL_WAITS
    count = min(size - count, f.length - f.size)
    if count > f.capacity - f.size:
        capacity = f.length
        if capacity > ONE_SHOT_SIZE:
            capacity = min(capacity, max(2 * (f.size + count), <size_t> ONE_SHOT_SIZE))
        grown = <uint8_t*> realloc(f.data, capacity)
        if grown is NULL:
            return CALL_NO_MEMORY
        expect_pages(grown, capacity)
        f.data = grown
        f.capacity = capacity
    if count:
        memcpy(f.data + f.size, data + taken[0], count)
        f.size += count
        taken[0] += count
    return CALL_ANSWERED if f.size == f.length else CALL_WAITS


# --- Life -----------------------------------------------------------------------------

cdef void desk_init(Desk* d, EndpointCore* core) noexcept nogil:
    memset(d, 0, sizeof(Desk))
    d.core = core
    d.until = INT64_MAX
    pthread_mutex_init(&d.mutex, NULL)


cdef void desk_free(Desk* d) noexcept nogil:
    cdef Request* r
    cdef Line* line
    if d.core is NULL:
        return
    while True:
        r = desk_next_ready(d)
        if r is NULL:
            break
        request_free(r)
    while d.lines is not NULL:
        line = d.lines
        d.lines = line.after
        while line.requests is not NULL:
            r = line.requests
            line.requests = r.after
            request_free(r)
        free(line)
    d.core = NULL
    pthread_mutex_destroy(&d.mutex)


cdef Line* desk_open(Desk* d, Conn* c, size_t max_payload, bint serves) noexcept nogil:
    cdef Line* line = <Line*> calloc(1, sizeof(Line))
    if line is NULL:
        return NULL
    line.desk = d
    line.c = c
    line.max_payload = max_payload
    line.serves = serves
    line.after = d.lines
    if d.lines is not NULL:
        d.lines.before = line
    d.lines = line
    c.user = line
    return line


cdef void desk_count_failed(Line* line) noexcept nogil:
    line.tally.failed += 1
    line.desk.tally.failed += 1


cdef inline void count_begun(Line* line) noexcept nogil:
    line.tally.begun += 1
    line.desk.tally.begun += 1


cdef inline void count_answered(Line* line, int64_t micros) noexcept nogil:
    cdef int which = 64 - leading_zeros(<uint64_t> micros) if micros > 0 else 0
    which = min(which, <int> LATENCIES - 1)
    line.tally.latencies[which] += 1
    line.desk.tally.latencies[which] += 1


cdef void desk_close(Line* line, Tally* tally) noexcept nogil:
    cdef Desk* d = line.desk
    cdef Call* call
    cdef Request* r
    while line.calls is not NULL:
        call = line.calls
        call.stream.user = NULL
        call.stream.sink = ignore
        call.stream = NULL
        unlist(call)
        settle(call, CALL_LOST, 0)
    while line.held_first is not NULL:
        call = line.held_first
        unlist(call)
        settle(call, CALL_LOST, 0)
    while line.requests is not NULL:
        r = line.requests
        leave(r)
        desk_count_failed(line)
        request_free(r)
    tally[0] = line.tally
    if line.before is NULL:
        d.lines = line.after
    else:
        line.before.after = line.after
    if line.after is not NULL:
        line.after.before = line.before
    line.c.user = NULL
    free(line)


cdef uint32_t desk_count(const Line* line) noexcept nogil:
    cdef const Call* call = line.calls
    cdef const Request* r = line.requests
    cdef uint32_t count = 0
    while call is not NULL:
        count += 1
        call = call.after
    call = line.held_first
    while call is not NULL:
        count += 1
        call = call.after
    while r is not NULL:
        count += 1
        r = r.after
    return count


cdef size_t ignore(
    void* context, Stream* s, const uint8_t* data, size_t size, bint fin
) noexcept nogil:
    """Take what nobody reads: the sink of a stream whose frame is complete."""
    return size


# --- Calls ----------------------------------------------------------------------------

cdef int desk_call(Call* call, int64_t now) noexcept nogil:
    cdef Line* line = call.line
    cdef int status
    call.began = now
    # Whoever waits already has its turn first.
    status = STREAMS_LIMIT if line.held_first is not NULL else begin(call, now)
    if status == STREAMS_LIMIT:
        hold_last(call)
        if call.timeout:
            # Even before it has a stream: whoever asks does not wait for ever.
            watch(call, now + call.timeout)
        status = OK
    if status != OK:
        call.line = NULL
    else:
        count_begun(line)
        store32(&line.desk.calls, line.desk.calls + 1)
    endpoint_touch(line.desk.core, line.c, now)
    return status


cdef int64_t desk_budget(size_t size) noexcept nogil:
    # Sizes are of frames: far from an overflow.
    return min(5 + <int64_t> ((size + 1048575) >> 20), <int64_t> 60)


cdef inline void watch(Call* call, int64_t until) noexcept nogil:
    """Have a call looked at."""
    cdef Desk* d = call.line.desk
    call.until = until
    if call.watched:
        d.until = min(d.until, max(until, d.rests_until))


cdef int begin(Call* call, int64_t now) noexcept nogil:
    """Open a stream for a call, and send the request."""
    cdef Line* line = call.line
    cdef uint64_t stream_id = 0
    cdef int status = connection_open_stream(line.c, False, now, &stream_id)
    if status != OK:
        return status
    if call.owner is NULL:
        status = connection_send(
            line.c, stream_id, call.request, call.request_size, True
        )
    else:
        status = connection_refer(
            line.c, stream_id, call.request, call.request_size, call.owner, True
        )
    if status != OK:
        connection_release(line.c, stream_id, now)
        return status
    call.owner = NULL
    call.stream = connection_stream(line.c, stream_id)
    call.stream.user = call
    call.stream.sink = take_answer
    call.opened = now
    watch(call, first_look(call))
    call.before = NULL
    call.after = line.calls
    if line.calls is not NULL:
        line.calls.before = call
    line.calls = call
    return OK


cdef void begin_held(Line* line, int64_t now) noexcept nogil:
    """Begin the calls that waited for a stream, as far as the peer allows."""
    cdef Call* call = line.held_first
    cdef int status
    while call is not NULL:
        unlist(call)
        status = begin(call, now)
        if status == STREAMS_LIMIT:
            hold_first(call)
            break
        if status != OK:
            settle(call, CALL_NO_MEMORY if status == OUT_OF_MEMORY else CALL_LOST, 0)
        call = line.held_first


cdef void hold_last(Call* call) noexcept nogil:
    cdef Line* line = call.line
    call.held = True
    call.after = NULL
    call.before = line.held_last
    if line.held_last is NULL:
        line.held_first = call
    else:
        line.held_last.after = call
    line.held_last = call


cdef void hold_first(Call* call) noexcept nogil:
    cdef Line* line = call.line
    call.held = True
    call.before = NULL
    call.after = line.held_first
    if line.held_first is NULL:
        line.held_last = call
    else:
        line.held_first.before = call
    line.held_first = call


cdef void unlist(Call* call) noexcept nogil:
    """Take a call out of its line's lists."""
    cdef Line* line = call.line
    if call.before is not NULL:
        call.before.after = call.after
    elif call.held:
        line.held_first = call.after
    else:
        line.calls = call.after
    if call.after is not NULL:
        call.after.before = call.before
    elif call.held:
        line.held_last = call.before
    call.held = False
    call.before = call.after = NULL


cdef void settle(Call* call, int outcome, uint64_t code) noexcept nogil:
    """Say how a call has ended that is in no list any more."""
    cdef Desk* d = call.line.desk
    call.outcome = outcome
    call.code = code
    call.ended = d.core.now
    if outcome == CALL_ANSWERED:
        count_answered(call.line, call.ended - call.began)
    else:
        desk_count_failed(call.line)
    store32(&d.calls, d.calls - 1)
    call.line = NULL
    call.after = NULL
    if call.group is not NULL:
        rouse_group(d, call)
    elif call.wakes:
        call.waiter.next_roused = d.roused
        d.roused = &call.waiter
    else:
        if d.ended_last is NULL:
            d.ended_first = call
        else:
            d.ended_last.after = call
        d.ended_last = call


cdef void rouse_group(Desk* d, Call* call) noexcept nogil:
    cdef Group* g = call.group
    if g.ended_last is NULL:
        g.ended_first = call
    else:
        g.ended_last.after = call
    g.ended_last = call
    if not g.roused:
        g.roused = True
        g.waiter.next_roused = d.roused
        d.roused = &g.waiter


cdef Call* group_take(Group* g) noexcept nogil:
    cdef Call* call = g.ended_first
    if call is not NULL:
        g.ended_first = call.after
        if call.after is NULL:
            g.ended_last = NULL
        call.after = NULL
    return call


cdef void detach(Call* call) noexcept nogil:
    """Want nothing more of a call's stream, which is let go of."""
    cdef Conn* c = call.line.c
    cdef Stream* s = call.stream
    cdef int64_t now = call.line.desk.core.now
    call.stream = NULL
    s.user = NULL
    s.sink = ignore
    # Without effect where the end has come (RFC 9000 section 3.5).
    streams_stop(&c.streams, s, 0, now)
    streams_release(&c.streams, s, now)
    if conn_is_alive(c):
        conn_list(c, CONNS_SEND)


cdef void finish(Call* call, int outcome, uint64_t code) noexcept nogil:
    """End a call that has a stream."""
    detach(call)
    unlist(call)
    settle(call, outcome, code)


cdef size_t take_answer(
    void* context, Stream* s, const uint8_t* data, size_t size, bint fin
) noexcept nogil:
    """Put an answer together: the sink of a call's stream."""
    cdef Call* call = <Call*> s.user
    cdef size_t taken = 0
    cdef int outcome = frame_feed(
        &call.answer, data, size, call.limit or call.line.max_payload, &taken
    )
    if outcome == CALL_WAITS:
        if fin and not call.answer.header_size and call.refused:
            # The peer refused the request before it was sent in full.
            finish(call, CALL_REFUSED, call.code)
        elif fin and not call.answer.header_size and s.events & EVENT_STOPPED:
            # The same, and both came since the last look at what happened.
            finish(call, CALL_REFUSED, s.stop_code)
        elif fin:
            finish(call, CALL_ENDED_EARLY, 0)
    else:
        # What follows the frame is of no interest.
        finish(call, outcome, call.answer.header[0])
    return size


cdef void desk_cancel(Call* call, int64_t now) noexcept nogil:
    cdef Line* line = call.line
    cdef Conn* c
    if line is NULL:
        return  # It has ended.
    c = line.c
    if call.stream is not NULL:
        # A request that the peer has in full is not called back by this.
        connection_reset(c, call.stream.id, 0)
        detach(call)
    unlist(call)
    desk_count_failed(line)
    store32(&line.desk.calls, line.desk.calls - 1)
    call.line = NULL
    call.outcome = CALL_CANCELLED
    endpoint_touch(line.desk.core, c, now)


cdef inline int64_t first_look(const Call* call) noexcept nogil:
    """Return when a call is looked at first, whose stream was just opened."""
    cdef int64_t until = call.opened + desk_budget(call.request_size) * SECOND
    if call.timeout:
        until = min(until, (call.began if call.total else call.opened) + call.timeout)
    return until


cdef int desk_look(Call* call, int64_t now) noexcept nogil:
    cdef int64_t due
    cdef Stream* s = call.stream
    if s is NULL:
        # It has ended, or waits for a stream.
        if call.line is NULL or not call.timeout:
            call.until = 0
            return CALL_WAITS
        due = call.began + call.timeout
    elif s.send_state > SEND_SEND:
        if not call.timeout:
            call.until = 0
            return CALL_WAITS
        # Of a request that the peer refused half-way the rest is never sent.
        if not s.sent_at:
            s.sent_at = now
        due = (call.began if call.total else s.sent_at) + call.timeout
    else:
        due = call.opened + desk_budget(call.request_size) * SECOND
        if due <= now:
            call.code = sendbuf_size(&s.send)
            return CALL_NOT_SENT
        if call.total:
            due = min(due, call.began + call.timeout)
        elif call.timeout:
            # If it is sent at once, its answer is not late before.
            due = min(due, now + max(call.timeout, <int64_t> LOOK_MIN))
    if due <= now:
        call.code = 0
        return CALL_TIMED_OUT
    call.until = due
    return CALL_WAITS


cdef void desk_time_out(Desk* d, int64_t now) noexcept nogil:
    cdef Line* line = d.lines
    cdef uint32_t calls = d.calls
    if d.until > now:
        return
    d.until = INT64_MAX
    d.rests_until = now + calls // LOOKS
    while line is not NULL:
        if line.calls is not NULL or line.held_first is not NULL:
            time_out(d, line.calls, now)
            time_out(d, line.held_first, now)
            endpoint_touch(d.core, line.c, now)
        line = line.after


cdef void time_out(Desk* d, Call* call, int64_t now) noexcept nogil:
    cdef Call* after
    cdef int outcome
    while call is not NULL:
        after = call.after
        if call.watched and call.until:
            outcome = CALL_WAITS
            if call.until <= now:
                outcome = desk_look(call, now)
            if outcome != CALL_WAITS:
                if call.stream is not NULL:
                    connection_reset(call.line.c, call.stream.id, 0)
                    detach(call)
                unlist(call)
                settle(call, outcome, call.code)
            elif call.until:
                d.until = min(d.until, max(call.until, d.rests_until))
        call = after


cdef Call* desk_next_ended(Desk* d) noexcept nogil:
    cdef Call* call = d.ended_first
    if call is not NULL:
        d.ended_first = call.after
        if call.after is NULL:
            d.ended_last = NULL
        call.after = NULL
    return call


cdef Waiter* desk_take_roused(Desk* d) noexcept nogil:
    cdef Waiter* first = d.roused
    d.roused = NULL
    return first


cdef void desk_rouse(Waiter* first) noexcept nogil:
    cdef Waiter* after
    while first is not NULL:
        after = first.next_roused
        if first.bell:
            # Before it is let go of: the bell is there until then.
            if not load32(&first.state) & WAITER_LOOKS:
                bell_ring(first.bell - 1)
            word_or(&first.state, <int> WAITER_DONE | <int> WAITER_ROUSED)
        else:
            waiter_wake(first, <int> WAITER_DONE | <int> WAITER_ROUSED)
        first = after


# --- Requests -------------------------------------------------------------------------

cdef void request_free(Request* r) noexcept nogil:
    frame_free(&r.frame)
    free(r)


cdef void leave(Request* r) noexcept nogil:
    """Take a request that is not complete out of its line."""
    if r.before is NULL:
        r.line.requests = r.after
    else:
        r.before.after = r.after
    if r.after is not NULL:
        r.after.before = r.before
    r.before = r.after = NULL
    r.stream.user = NULL
    r.stream.sink = ignore


cdef void refuse(Request* r) noexcept nogil:
    """End a stream without an answer: there was no request to answer."""
    cdef Conn* c = r.line.c
    cdef Stream* s = r.stream
    cdef int64_t now = r.line.desk.core.now
    leave(r)
    desk_count_failed(r.line)
    streams_send(&c.streams, s, NULL, 0, True)
    streams_stop(&c.streams, s, 0, now)
    streams_release(&c.streams, s, now)
    if conn_is_alive(c):
        conn_list(c, CONNS_SEND)
    request_free(r)


cdef void expect(Line* line, Stream* s, uint8_t events, int64_t now) noexcept nogil:
    """Have what the peer sends on a new stream put together."""
    cdef Request* r = NULL
    count_begun(line)
    if not events & (EVENT_RESET | EVENT_STOPPED):
        r = <Request*> calloc(1, sizeof(Request))
    if r is NULL:
        # Given up already, or no memory for it.
        desk_count_failed(line)
        streams_send(&line.c.streams, s, NULL, 0, True)
        streams_stop(&line.c.streams, s, 0, now)
        streams_release(&line.c.streams, s, now)
        if conn_is_alive(line.c):
            conn_list(line.c, CONNS_SEND)
        return
    r.line = line
    r.stream = s
    r.number = line.c.number
    r.stream_id = s.id
    r.began = now
    r.after = line.requests
    if line.requests is not NULL:
        line.requests.before = r
    line.requests = r
    s.user = r
    s.sink = take_request
    # What came with the stream's first frame was kept. It may be all: then `r` and
    # the stream are gone.
    streams_resume(&line.c.streams, s, now)


cdef size_t take_request(
    void* context, Stream* s, const uint8_t* data, size_t size, bint fin
) noexcept nogil:
    """Put a request together: the sink of a stream that the peer opened."""
    cdef Request* r = <Request*> s.user
    cdef Desk* d = r.line.desk
    cdef size_t taken = 0
    cdef int outcome = frame_feed(&r.frame, data, size, r.line.max_payload, &taken)
    if outcome == CALL_ANSWERED:
        # Whatever follows the first frame is ignored, as the peer does.
        leave(r)
        r.line = NULL
        r.stream = NULL
        pthread_mutex_lock(&d.mutex)
        if d.ready_last is NULL:
            d.ready_first = r
        else:
            d.ready_last.after = r
        d.ready_last = r
        store32(&d.ready, d.ready + 1)
        pthread_mutex_unlock(&d.mutex)
    elif outcome != CALL_WAITS or fin:
        refuse(r)
    return size


cdef Request* desk_next_ready(Desk* d) noexcept nogil:
    cdef Request* r
    pthread_mutex_lock(&d.mutex)
    r = d.ready_first
    if r is not NULL:
        d.ready_first = r.after
        if r.after is NULL:
            d.ready_last = NULL
        r.after = NULL
        store32(&d.ready, d.ready - 1)
    pthread_mutex_unlock(&d.mutex)
    return r


cdef uint32_t desk_expire(Desk* d, int64_t before, int64_t now) noexcept nogil:
    cdef Line* line = d.lines
    cdef Request* r
    cdef Request* after
    cdef uint32_t count = 0
    cdef bint some
    while line is not NULL:
        r = line.requests
        some = False
        while r is not NULL:
            after = r.after
            if r.began < before:
                refuse(r)
                count += 1
                some = True
            r = after
        if some:
            endpoint_touch(d.core, line.c, now)
        line = line.after
    return count


cdef int desk_respond(
    Desk* d, Conn* c, uint64_t stream_id, const uint8_t* data, size_t size,
    void* owner, bint fin, int64_t now
) noexcept nogil:
    cdef int status
    if owner is NULL:
        status = connection_send(c, stream_id, data, size, fin)
    else:
        status = connection_refer(c, stream_id, data, size, owner, fin)
    if fin:
        # The stream's time is over, whatever became of the answer.
        connection_stop(c, stream_id, 0, now)
        connection_release(c, stream_id, now)
    endpoint_touch(d.core, c, now)
    return status


# --- What happened --------------------------------------------------------------------

cdef void desk_sift(Desk* d, int64_t now) noexcept nogil:
    cdef Conn* c = d.core.shared.first[<int> CONNS_EVENTS]
    cdef Conn* following
    while c is not NULL:
        following = c.after[<int> CONNS_EVENTS]
        if c.user is not NULL:
            sift(<Line*> c.user, now)
        c = following


cdef void sift(Line* line, int64_t now) noexcept nogil:
    cdef Conn* c = line.c
    cdef Stream* s = c.streams.first[<int> LIST_EVENTS]
    cdef Stream* after
    cdef uint8_t events
    while s is not NULL:
        after = s.after[<int> LIST_EVENTS]
        events = s.events
        if s.user is not NULL:
            s.events = 0
            list_remove(&c.streams, LIST_EVENTS, s)
            if line.serves:
                on_request_events(<Request*> s.user, events)
            else:
                on_call_events(<Call*> s.user, events)
        elif line.serves and events & EVENT_OPENED and not s.id & 3:
            s.events = 0
            list_remove(&c.streams, LIST_EVENTS, s)
            expect(line, s, events, now)
        s = after
    if c.streams.openable & (1 << <int> BIDI) and line.held_first is not NULL:
        begin_held(line, now)
    endpoint_touch(line.desk.core, c, now)
    if c.streams.first[<int> LIST_EVENTS] is NULL and not c.events and (
        not c.streams.openable
    ):
        conn_unlist(c, CONNS_EVENTS)


cdef void on_call_events(Call* call, uint8_t events) noexcept nogil:
    cdef uint64_t code
    if events & EVENT_RESET:
        code = call.stream.peer_reset_code
        # Refused before it was sent in full: the peer stops us and resets its answer.
        finish(call, CALL_RESET, code)
    elif events & EVENT_STOPPED:
        # Mostly a server that has read all it needs; what it answers decides.
        call.code = call.stream.stop_code
        call.refused = True


cdef void on_request_events(Request* r, uint8_t events) noexcept nogil:
    if events & (EVENT_RESET | EVENT_STOPPED):
        refuse(r)
