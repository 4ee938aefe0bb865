"""A UDP socket: batches in and out, offloads, ECN, errors."""

cimport cython
from libc.errno cimport (
    EAGAIN, EINTR, EINVAL, EIO, EMSGSIZE, ENOBUFS, ENOMEM, errno
)
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from lightning._core.quic.convert cimport address_from, address_to

__all__ = ["Udp"]

# The structures of the system's interface differ in small ways; C reads them best.
cdef extern from * nogil:
    """
    #include <errno.h>
    #include <netinet/in.h>
    #include <netinet/udp.h>
    #include <string.h>
    #include <sys/socket.h>
    #include <sys/uio.h>
    #include <unistd.h>
    #if defined(__linux__)
    #include <linux/errqueue.h>
    #ifndef SOL_UDP
    #define SOL_UDP 17
    #endif
    #ifndef UDP_SEGMENT
    #define UDP_SEGMENT 103
    #endif
    #endif

    union udp_address {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    };

    struct udp_header {
    #if defined(__linux__)
        struct mmsghdr message;
    #else
        struct { struct msghdr msg_hdr; unsigned int msg_len; } message;
    #endif
        union udp_address from;
        struct iovec vec;
        alignas(struct cmsghdr) char control[64];
    };

    static int udp_set(int fd, int level, int name, int value) {
        return setsockopt(fd, level, name, &value, sizeof value);
    }

    static int udp_get(int fd, int level, int name) {
        int value = 0;
        socklen_t size = sizeof value;
        return getsockopt(fd, level, name, &value, &size) < 0 ? -1 : value;
    }

    static int udp_family(int fd) {
        union udp_address a;
        socklen_t size = sizeof a;
        if (getsockname(fd, &a.any, &size) < 0) return -errno;
        if (udp_get(fd, SOL_SOCKET, SO_TYPE) != SOCK_DGRAM) return -EPROTOTYPE;
        if (a.any.sa_family == AF_INET6) return 6;
        return a.any.sa_family == AF_INET ? 4 : -EAFNOSUPPORT;
    }

    /* What QUIC needs of the socket; returns whether ECN works. */
    static int udp_set_options(int fd, int v6) {
        int ecn = 1;
        /* The engine searches the path's MTU itself (RFC 8899): no fragments. */
    #if defined(IP_MTU_DISCOVER) && defined(IP_PMTUDISC_PROBE)
        udp_set(fd, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE);
        if (v6) udp_set(fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_PROBE);
    #endif
    #if defined(IP_RECVERR)
        udp_set(fd, IPPROTO_IP, IP_RECVERR, 1);
        if (v6) udp_set(fd, IPPROTO_IPV6, IPV6_RECVERR, 1);
    #endif
        if (v6) {
            ecn = udp_set(fd, IPPROTO_IPV6, IPV6_RECVTCLASS, 1) == 0;
            udp_set(fd, IPPROTO_IP, IP_RECVTOS, 1);  /* Of mapped addresses. */
        } else {
            ecn = udp_set(fd, IPPROTO_IP, IP_RECVTOS, 1) == 0;
        }
        return ecn;
    }

    static int udp_probe_gso(int fd) {
    #if defined(__linux__)
        return udp_get(fd, SOL_UDP, UDP_SEGMENT) >= 0;
    #else
        return 0;
    #endif
    }

    static void *udp_headers_new(unsigned char *data, int count, size_t slot) {
        struct udp_header *h = (struct udp_header *) calloc(count, sizeof *h);
        if (h == NULL) return NULL;
        for (int i = 0; i < count; i++) {
            h[i].vec.iov_base = data + i * slot;
            h[i].vec.iov_len = slot;
        }
        return h;
    }

    static void udp_header_reset(struct udp_header *h) {
        struct msghdr *m = &h->message.msg_hdr;
        m->msg_name = &h->from;
        m->msg_namelen = sizeof h->from;
        m->msg_iov = &h->vec;
        m->msg_iovlen = 1;
        m->msg_control = h->control;
        m->msg_controllen = sizeof h->control;
        m->msg_flags = 0;
    }

    static int udp_receive_batch(int fd, void *headers, int count) {
        struct udp_header *h = (struct udp_header *) headers;
        int i, n = 0;
    #if defined(__linux__)
        struct mmsghdr batch[32];
        for (i = 0; i < count; i++) {
            udp_header_reset(&h[i]);
            batch[i] = h[i].message;
        }
        n = recvmmsg(fd, batch, count, MSG_DONTWAIT, NULL);
        for (i = 0; i < n; i++) h[i].message = batch[i];
    #else
        for (i = 0; i < count; i++) {
            udp_header_reset(&h[i]);
            ssize_t size = recvmsg(fd, &h[i].message.msg_hdr, MSG_DONTWAIT);
            if (size < 0) break;
            h[i].message.msg_len = (unsigned int) size;
            n++;
        }
        if (n == 0) n = -1;
    #endif
        return n < 0 ? -errno : n;
    }

    /* Fills family, port, scope and address; 0 if it is of no family of ours. */
    static int udp_read_address(const union udp_address *a, unsigned char *family,
                                unsigned short *port, unsigned int *scope,
                                unsigned char *ip) {
        memset(ip, 0, 16);
        *scope = 0;
        if (a->any.sa_family == AF_INET) {
            *family = 4;
            *port = ntohs(a->v4.sin_port);
            memcpy(ip, &a->v4.sin_addr, 4);
        } else if (a->any.sa_family == AF_INET6) {
            *family = 6;
            *port = ntohs(a->v6.sin6_port);
            *scope = a->v6.sin6_scope_id;
            memcpy(ip, &a->v6.sin6_addr, 16);
        } else {
            return 0;
        }
        return 1;
    }

    static int udp_header_read(void *headers, int i, unsigned char **data, size_t *size,
                               unsigned char *ecn, unsigned char *family,
                               unsigned short *port, unsigned int *scope,
                               unsigned char *ip) {
        struct udp_header *h = (struct udp_header *) headers + i;
        struct msghdr *m = &h->message.msg_hdr;
        struct cmsghdr *c;
        *data = (unsigned char *) h->vec.iov_base;
        *size = h->message.msg_len;
        *ecn = 0;
        for (c = CMSG_FIRSTHDR(m); c != NULL; c = CMSG_NXTHDR(m, c)) {
            if (c->cmsg_level == IPPROTO_IP && (c->cmsg_type == IP_TOS
    #if defined(IP_RECVTOS)
                || c->cmsg_type == IP_RECVTOS
    #endif
                )) {
                *ecn = *(unsigned char *) CMSG_DATA(c) & 3;
            } else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_TCLASS) {
                int value;
                memcpy(&value, CMSG_DATA(c), sizeof value);
                *ecn = value & 3;
            }
        }
        if (m->msg_flags & MSG_TRUNC) return 0;
        return udp_read_address(&h->from, family, port, scope, ip);
    }

    static int udp_send_one(int fd, unsigned char *data, size_t size, size_t segment,
                            int ecn, int v6, unsigned char family, unsigned short port,
                            unsigned int scope, const unsigned char *ip) {
        union udp_address to;
        struct iovec vec = {data, size};
        struct msghdr m;
        alignas(struct cmsghdr) char control[64];
        struct cmsghdr *c;
        size_t used = 0;
        memset(&to, 0, sizeof to);
        memset(&m, 0, sizeof m);
        m.msg_name = &to;
        m.msg_iov = &vec;
        m.msg_iovlen = 1;
        if (v6) {
            if (family != 6) { errno = EAFNOSUPPORT; return -1; }
            to.v6.sin6_family = AF_INET6;
            to.v6.sin6_port = htons(port);
            to.v6.sin6_scope_id = scope;
            memcpy(&to.v6.sin6_addr, ip, 16);
            m.msg_namelen = sizeof to.v6;
        } else {
            if (family != 4) { errno = EAFNOSUPPORT; return -1; }
            to.v4.sin_family = AF_INET;
            to.v4.sin_port = htons(port);
            memcpy(&to.v4.sin_addr, ip, 4);
            m.msg_namelen = sizeof to.v4;
        }
        memset(control, 0, sizeof control);
        c = (struct cmsghdr *) control;
        if (ecn) {
            int mapped = v6 && IN6_IS_ADDR_V4MAPPED(&to.v6.sin6_addr);
            c->cmsg_level = v6 && !mapped ? IPPROTO_IPV6 : IPPROTO_IP;
            c->cmsg_type = v6 && !mapped ? IPV6_TCLASS : IP_TOS;
            c->cmsg_len = CMSG_LEN(sizeof ecn);
            memcpy(CMSG_DATA(c), &ecn, sizeof ecn);
            used += CMSG_SPACE(sizeof ecn);
            c = (struct cmsghdr *) (control + used);
        }
    #if defined(__linux__)
        if (size > segment) {
            unsigned short cut = (unsigned short) segment;
            c->cmsg_level = SOL_UDP;
            c->cmsg_type = UDP_SEGMENT;
            c->cmsg_len = CMSG_LEN(sizeof cut);
            memcpy(CMSG_DATA(c), &cut, sizeof cut);
            used += CMSG_SPACE(sizeof cut);
        }
    #endif
        if (used) {
            m.msg_control = control;
            m.msg_controllen = used;
        }
        return (int) sendmsg(fd, &m, MSG_DONTWAIT);
    }

    /* Takes one entry of the error queue; 0 if there is none. */
    static int udp_read_error(int fd, int *error, unsigned char *family,
                              unsigned short *port, unsigned int *scope,
                              unsigned char *ip) {
    #if defined(MSG_ERRQUEUE) && defined(IP_RECVERR)
        union udp_address to;
        char data[1];
        alignas(struct cmsghdr) char control[512];
        struct iovec vec = {data, sizeof data};
        struct msghdr m;
        struct cmsghdr *c;
        memset(&m, 0, sizeof m);
        m.msg_name = &to;
        m.msg_namelen = sizeof to;
        m.msg_iov = &vec;
        m.msg_iovlen = 1;
        m.msg_control = control;
        m.msg_controllen = sizeof control;
        if (recvmsg(fd, &m, MSG_ERRQUEUE | MSG_DONTWAIT) < 0) return 0;
        *error = 0;
        for (c = CMSG_FIRSTHDR(&m); c != NULL; c = CMSG_NXTHDR(&m, c)) {
            if ((c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_RECVERR)
                || (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_RECVERR)) {
                struct sock_extended_err e;
                memcpy(&e, CMSG_DATA(c), sizeof e);
                *error = (int) e.ee_errno;
            }
        }
        if (!udp_read_address(&to, family, port, scope, ip)) *family = 0;
        return 1;
    #else
        return 0;
    #endif
    }
    """
    enum: SOL_SOCKET
    enum: SO_RCVBUF
    enum: SO_SNDBUF
    int udp_get(int fd, int level, int name)
    int udp_family(int fd)
    bint udp_set_options(int fd, bint v6)
    bint udp_probe_gso(int fd)
    void* udp_headers_new(uint8_t* data, int count, size_t slot)
    int udp_receive_batch(int fd, void* headers, int count)
    bint udp_header_read(
        void* headers, int i, uint8_t** data, size_t* size, uint8_t* ecn,
        uint8_t* family, uint16_t* port, uint32_t* scope, uint8_t* ip
    )
    int udp_send_one(
        int fd, uint8_t* data, size_t size, size_t segment, int ecn, bint v6,
        uint8_t family, uint16_t port, uint32_t scope, const uint8_t* ip
    )
    bint udp_read_error(
        int fd, int* error, uint8_t* family, uint16_t* port, uint32_t* scope,
        uint8_t* ip
    )
    int close(int fd)


# --- The socket -------------------------------------------------------------------

cdef int udp_adopt(UdpSocket* s, int fd, uint32_t options) noexcept nogil:
    cdef int family = udp_family(fd)
    if family < 0:
        return family
    memset(s, 0, sizeof(UdpSocket))
    s.fd = fd
    s.is_ipv6 = family == 6
    s.ecn = udp_set_options(fd, s.is_ipv6) and not options & UDP_NO_ECN
    s.gso = udp_probe_gso(fd) and not options & UDP_NO_GSO
    s.receive_buffer = udp_get(fd, SOL_SOCKET, SO_RCVBUF)
    s.send_buffer = udp_get(fd, SOL_SOCKET, SO_SNDBUF)
    return 0


cdef void udp_close(UdpSocket* s) noexcept nogil:
    if s.fd >= 0:
        close(s.fd)
        s.fd = -1


# --- Receiving --------------------------------------------------------------------

cdef int udp_inbox_init(UdpInbox* box) noexcept nogil:
    memset(box, 0, sizeof(UdpInbox))
    box.data = <uint8_t*> malloc(UDP_BATCH * UDP_SLOT)
    if box.data is NULL:
        return -ENOMEM
    box.headers = udp_headers_new(box.data, UDP_BATCH, UDP_SLOT)
    box.capacity = UDP_BATCH
    return 0 if box.headers is not NULL else -ENOMEM


cdef void udp_inbox_free(UdpInbox* box) noexcept nogil:
    free(box.data)
    free(box.headers)
    box.data = NULL
    box.headers = NULL


cdef int udp_receive(UdpSocket* s, UdpInbox* box) noexcept nogil:
    cdef int count = udp_receive_batch(s.fd, box.headers, box.capacity)
    s.receive_calls += 1
    box.next = 0
    box.count = max(count, 0)
    s.received += <uint64_t> box.count
    return count


cdef bint udp_next(
    UdpInbox* box, uint8_t** data, size_t* size, const Address** source, uint8_t* ecn
) noexcept nogil:
    cdef Address* a = &box.source
    while box.next < box.count:
        box.next += 1
        # One that was cut, or is from nowhere, is none of ours.
        if udp_header_read(
            box.headers, box.next - 1, data, size, ecn, &a.family, &a.port, &a.scope,
            a.ip,
        ) and size[0]:
            source[0] = a
            return True
    return False


# --- Sending ----------------------------------------------------------------------

cdef int udp_outbox_init(UdpOutbox* box) noexcept nogil:
    memset(box, 0, sizeof(UdpOutbox))
    box.data = <uint8_t*> malloc(UDP_OUT * UDP_ROOM)
    return 0 if box.data is not NULL else -ENOMEM


cdef void udp_outbox_free(UdpOutbox* box) noexcept nogil:
    free(box.data)
    box.data = NULL
    box.count = box.first = 0


cdef uint8_t* udp_room(UdpOutbox* box, size_t* capacity) noexcept nogil:
    if box.count == UDP_OUT:
        return NULL
    # Of the largest UDP payload that the system takes in one go.
    capacity[0] = 65000
    return box.data + <size_t> box.count * UDP_ROOM


cdef void udp_commit(
    UdpOutbox* box, size_t size, size_t segment, const Address* to, uint8_t ecn
) noexcept nogil:
    cdef UdpOut* o = &box.items[box.count]
    box.count += 1
    o.to = to[0]
    o.ecn = ecn
    o.size = size
    o.segment = segment
    o.offset = 0


cdef int send_piece(
    UdpSocket* s, uint8_t* data, size_t size, const UdpOut* o
) noexcept nogil:
    """Send it; 0 or -errno."""
    cdef int error = s.fail_next
    cdef int attempts = 2
    s.fail_next = 0
    if error:
        return -error
    while attempts:
        attempts -= 1
        s.send_calls += 1
        if udp_send_one(
            s.fd, data, size, o.segment, o.ecn if s.ecn else 0, s.is_ipv6, o.to.family,
            o.to.port, o.to.scope, o.to.ip,
        ) >= 0:
            return 0
        error = errno
        # The first error may be that of an earlier datagram: Linux reports it once.
        if error == EAGAIN or error == EINTR:
            break
    return -error


cdef int udp_flush(UdpSocket* s, UdpOutbox* box) noexcept nogil:
    cdef UdpOut* o
    cdef uint8_t* data
    cdef size_t piece
    cdef int status
    while box.first < box.count:
        o = &box.items[box.first]
        data = box.data + <size_t> box.first * UDP_ROOM
        while o.offset < o.size:
            piece = o.size - o.offset
            if piece > o.segment:
                # Full segments, so that a rest begins with one.
                piece = min(piece, o.segment * UDP_SEGMENTS) if s.gso else o.segment
            status = send_piece(s, data + o.offset, piece, o)
            if status == -EAGAIN:
                return status
            if status == -EINTR:
                continue
            if piece > o.segment and (status == -EIO or status == -EINVAL):
                # The driver cannot, whatever it said before: one by one, for good.
                s.gso = False
                s.gso_failed = True
                continue
            o.offset += piece
            if status == 0:
                s.sent += (piece + o.segment - 1) // o.segment
            else:
                s.not_sent += (piece + o.segment - 1) // o.segment
                # Others say nothing about the peer: the datagram is lost, no more.
                if status != -EMSGSIZE and status != -ENOBUFS and status != -ENOMEM:
                    remember(s, &o.to, -status)
        box.first += 1
    box.first = box.count = 0
    return 0


cdef void remember(UdpSocket* s, const Address* to, int error) noexcept nogil:
    if s.bounce_count < UDP_ERRORS:
        s.bounced[s.bounce_count] = to[0]
        s.bounces[s.bounce_count] = error
        s.bounce_count += 1


cdef bint udp_next_bounce(UdpSocket* s, Address* peer, int* error) noexcept nogil:
    if s.bounce_count == 0:
        return False
    s.bounce_count -= 1
    peer[0] = s.bounced[s.bounce_count]
    error[0] = s.bounces[s.bounce_count]
    return True


cdef bint udp_next_error(UdpSocket* s, Address* peer, int* error) noexcept nogil:
    return udp_read_error(
        s.fd, error, &peer.family, &peer.port, &peer.scope, peer.ip
    )


# --- For tests and tools ----------------------------------------------------------

@cython.final
@cython.auto_pickle(False)
cdef class Udp:
    """One bound, non-blocking UDP socket, for tests and tools."""

    cdef UdpSocket socket
    cdef UdpInbox inbox
    cdef UdpOutbox outbox

    def __cinit__(self):
        self.socket.fd = -1
        if udp_inbox_init(&self.inbox) or udp_outbox_init(&self.outbox):
            raise MemoryError

    def __init__(self, int fd, *, bint gso=True, bint ecn=True):
        """Take over a socket.

        Args:
            fd: Its file descriptor, which belongs to this object from now on.
            gso: Whether the kernel may cut up what is sent.
            ecn: Whether ECN bits are sent.

        Raises:
            OSError: It is no UDP socket.
        """
        cdef int status = udp_adopt(
            &self.socket, fd, (0 if gso else UDP_NO_GSO) | (0 if ecn else UDP_NO_ECN)
        )
        if status:
            raise OSError(-status, "not a UDP socket")

    def __dealloc__(self):
        udp_close(&self.socket)
        udp_inbox_free(&self.inbox)
        udp_outbox_free(&self.outbox)

    def send(
        self, const uint8_t[::1] data not None, address, *, size_t segment=0,
        uint8_t ecn=0,
    ):
        """Queue bytes for an address, as datagrams of ``segment`` bytes; 0 is one.

        Returns:
            False if `flush` must come first.
        """
        cdef Address to
        cdef size_t capacity = 0
        cdef size_t size = data.shape[0]
        cdef uint8_t* room = udp_room(&self.outbox, &capacity)
        address_from(address, &to)
        if room is NULL:
            return False
        if not 0 < size <= capacity:
            raise ValueError(f"data must have from 1 to {capacity} bytes")
        memcpy(room, &data[0], size)
        udp_commit(&self.outbox, size, segment or size, &to, ecn)
        return True

    def flush(self):
        """Send what is queued; False if the socket takes no more for now."""
        return udp_flush(&self.socket, &self.outbox) == 0

    def receive(self):
        """Return a batch of datagrams: bytes, source address, ECN bits.

        Raises:
            OSError: A datagram of ours bounced; `errors` tells which.
        """
        cdef uint8_t* data = NULL
        cdef size_t size = 0
        cdef const Address* source = NULL
        cdef uint8_t ecn = 0
        cdef int count = udp_receive(&self.socket, &self.inbox)
        cdef list found = []
        if count == -EAGAIN:
            return found
        if count < 0:
            raise OSError(-count, "a datagram bounced")
        while udp_next(&self.inbox, &data, &size, &source, &ecn):
            found.append(((<const char*> data)[:size], address_to(source), ecn))
        return found

    def errors(self):
        """Return the addresses that could not be reached, each with its errno."""
        cdef Address peer
        cdef int error = 0
        cdef list found = []
        memset(&peer, 0, sizeof(peer))
        while (
            udp_next_bounce(&self.socket, &peer, &error)
            or udp_next_error(&self.socket, &peer, &error)
        ):
            found.append((address_to(&peer) if peer.family else None, error))
        return found

    def fail_next(self, int error):
        """Have the next send fail with an errno."""
        self.socket.fail_next = error

    def stats(self):
        """Return what works, and counters."""
        cdef UdpSocket* s = &self.socket
        return {
            "gso": bool(s.gso), "gso_failed": bool(s.gso_failed), "ecn": bool(s.ecn),
            "receive_buffer": s.receive_buffer, "send_buffer": s.send_buffer,
            "received": s.received, "sent": s.sent, "not_sent": s.not_sent,
            "receive_calls": s.receive_calls, "send_calls": s.send_calls,
        }
