"""What ``bench/micro`` runs without Python in between: nothing else uses it."""

from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stddef cimport size_t
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from lightning._core.quic.buffer cimport OK, Writer, writer_init, writer_size
from lightning._core.quic.connection cimport (
    connection_open_stream, connection_refer, connection_release, connection_send,
    connection_stream
)
from lightning._core.quic.connstate cimport Conn, RecvSpace
from lightning._core.quic.endpoint cimport (
    Completion, EndpointCore, endpoint_lock, endpoint_next_completion,
    endpoint_next_deadline, endpoint_next_release, endpoint_poll_transmit,
    endpoint_receive, endpoint_timeout, endpoint_touch, endpoint_unlock
)
from lightning._core.quic.engine cimport Connection, Endpoint
from lightning._core.quic.frames cimport frame_begin_stream, frame_write_ack
from lightning._core.quic.packet cimport Cid, PacketBuild, packet_begin_short
from lightning._core.quic.paths cimport Address, Path
from lightning._core.quic.protection cimport Keys
from lightning._core.quic.ranges cimport (
    RANGES_DROP_LOWEST, RANGES_PACKETS, Ranges, ranges_add, ranges_free, ranges_init
)
from lightning._core.quic.recovery cimport Recovery
from lightning._core.quic.sendbuf cimport SEND_COPY_MAX
from lightning._core.quic.streams cimport (
    stream_is_at_end, streams_consume, streams_peek
)
from lightning._core.quic.streamtable cimport EVENT_READABLE, Stream, StreamTable

__all__ = ["build_packets", "run_exchanges", "struct_sizes"]

cdef enum:
    DATAGRAM_MAX = 65536
    STEPS_MAX = 100_000  # of one exchange: then it hangs


# Two ends at the one address that there is, and the body that goes both ways.
cdef struct Pair:
    EndpointCore* near
    EndpointCore* far
    uint8_t* buffer
    const uint8_t* body
    size_t size
    void* owner
    int64_t now
    uint64_t datagrams
    uint64_t taken  # references to the owner that the engine gave back
    int done


cdef int send_body(Pair* p, Conn* c, uint64_t id) noexcept nogil:
    if p.size > SEND_COPY_MAX:
        return connection_refer(c, id, p.body, p.size, p.owner, True)
    return connection_send(c, id, p.body, p.size, True)


cdef void serve(Pair* p, EndpointCore* e) noexcept nogil:
    """Read what has come; at its end, answer it, or count it as done."""
    cdef Completion event
    cdef Stream* s
    cdef const uint8_t* view = NULL
    cdef size_t size
    endpoint_lock(e)
    while endpoint_next_completion(e, &event):
        if event.kind != EVENT_READABLE:
            continue
        s = connection_stream(event.conn, event.stream_id)
        if s is NULL:
            continue
        while True:
            size = streams_peek(s, &view)
            streams_consume(&event.conn.streams, s, size, p.now)
            if size == 0:
                break
        if stream_is_at_end(s):
            if event.conn.is_client:
                p.done += 1
            else:
                send_body(p, event.conn, event.stream_id)
            connection_release(event.conn, event.stream_id, p.now)
        endpoint_touch(e, event.conn, p.now)
    while endpoint_next_release(e) is not NULL:
        p.taken += 1
    endpoint_unlock(e)


cdef bint carry(Pair* p, EndpointCore* source, EndpointCore* target) noexcept nogil:
    """Move what one end has to send, one system call's worth after the other."""
    cdef Address to
    cdef uint8_t ecn = 0
    cdef size_t segment = 0
    cdef size_t size, pos, piece
    cdef bint moved = False
    while True:
        endpoint_lock(source)
        size = endpoint_poll_transmit(
            source, p.buffer, DATAGRAM_MAX, &to, &ecn, &segment, p.now
        )
        endpoint_unlock(source)
        if size == 0:
            return moved
        moved = True
        endpoint_lock(target)
        pos = 0
        while pos < size:
            piece = min(segment, size - pos)
            endpoint_receive(target, p.buffer + pos, piece, &to, ecn, p.now)
            pos += piece
            p.datagrams += 1
        endpoint_unlock(target)
        serve(p, target)


cdef bint advance(Pair* p) noexcept nogil:
    """Let time pass until something is due; False if nothing ever is."""
    cdef int64_t deadline
    endpoint_lock(p.near)
    deadline = endpoint_next_deadline(p.near)
    endpoint_unlock(p.near)
    endpoint_lock(p.far)
    deadline = min(deadline, endpoint_next_deadline(p.far))
    endpoint_unlock(p.far)
    if deadline == INT64_MAX:
        return False
    p.now = max(p.now, deadline)
    endpoint_lock(p.near)
    endpoint_timeout(p.near, p.now)
    endpoint_unlock(p.near)
    endpoint_lock(p.far)
    endpoint_timeout(p.far, p.now)
    endpoint_unlock(p.far)
    return True


cdef bint exchange(Pair* p, Conn* c) noexcept nogil:
    """Run one; False if it does not come to its end."""
    cdef uint64_t id = 0
    cdef int before = p.done
    cdef int steps = 0
    cdef int status
    cdef bint moved
    p.now += 100
    endpoint_lock(p.near)
    status = connection_open_stream(c, False, p.now, &id)
    if status == OK:
        status = send_body(p, c, id)
    endpoint_touch(p.near, c, p.now)
    endpoint_unlock(p.near)
    if status != OK:
        return False
    while p.done == before:
        moved = carry(p, p.near, p.far)
        moved |= carry(p, p.far, p.near)
        steps += 1
        if steps > STEPS_MAX or (not moved and not advance(p)):
            return False
    return True


def run_exchanges(Connection client, Endpoint server, bytes body not None, int count):
    """Send a body there and back ``count`` times, one after the other.

    Both ends know each other by the same address. Time passes only while both wait, as
    for the pacer; a body over 16 KiB is referred to, not copied, as in real life.

    Returns:
        The exchanges done, and the datagrams that they took.
    """
    cdef Pair p
    cdef Conn* c = client.c
    cdef uint64_t references = 0
    memset(&p, 0, sizeof(Pair))
    p.near = &client.endpoint.core
    p.far = &server.core
    p.body = <const uint8_t*> <const char*> body
    p.size = len(body)
    p.owner = <void*> body
    p.now = max(client.endpoint.core.now, server.core.now)
    p.buffer = <uint8_t*> malloc(DATAGRAM_MAX)
    if p.buffer is NULL:
        raise MemoryError
    # A reference for each time that the engine may give one back.
    while p.size > SEND_COPY_MAX and references < 2 * <uint64_t> max(count, 0):
        Py_INCREF(body)
        references += 1
    with nogil:
        while p.done < count and exchange(&p, c):
            pass
    free(p.buffer)
    while p.taken:
        Py_DECREF(body)
        p.taken -= 1
    return p.done, p.datagrams


def build_packets(unsigned int count, size_t size):
    """Write a short header, an ACK of two ranges and a STREAM frame, ``count`` times.

    Returns:
        The bytes of one such packet, neither sealed nor with room for a tag.
    """
    cdef uint8_t[1500] packet
    cdef uint8_t* data = NULL
    cdef Writer w
    cdef PacketBuild build
    cdef Cid cid
    cdef Ranges received
    cdef size_t written = 0
    if size > 1400:
        raise ValueError("a packet holds 1400 bytes here")
    memset(&cid, 7, sizeof(Cid))
    cid.size = 8
    ranges_init(&received, RANGES_PACKETS, RANGES_DROP_LOWEST)
    ranges_add(&received, 10, 20)
    ranges_add(&received, 30, 400)
    with nogil:
        while count:
            writer_init(&w, packet, sizeof(packet))
            packet_begin_short(&w, &build, &cid, False, 1000 + count, 2)
            frame_write_ack(&w, &received, 25, NULL)
            if frame_begin_stream(&w, 4, 100000, size, True, False, &data) == OK:
                memset(data, 7, size)
            written = writer_size(&w)
            count -= 1
    ranges_free(&received)
    return written


def struct_sizes():
    """Return the bytes of the records that a connection consists of."""
    return {
        "Conn": sizeof(Conn), "Keys": sizeof(Keys), "Path": sizeof(Path),
        "Recovery": sizeof(Recovery), "RecvSpace": sizeof(RecvSpace),
        "Stream": sizeof(Stream), "StreamTable": sizeof(StreamTable),
    }
