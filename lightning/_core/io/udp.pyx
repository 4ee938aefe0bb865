"""A UDP socket: batches in and out, offloads, ECN, errors."""

cimport cython
from libc.errno cimport (
    EAGAIN, EINTR, EINVAL, EIO, ENOBUFS, ENOMEM, errno
)
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport abs, free, getenv, malloc
from libc.string cimport memcpy, memset

from lightning._core.quic.convert cimport address_from, address_to
from lightning._core.quic.paths cimport address_is

__all__ = ["Udp"]

# The structures of the system's interface differ in small ways; C reads them best.
cdef extern from * nogil:
    """
    #if defined(__APPLE__)
    #define __APPLE_USE_RFC_3542  /* Declares IPV6_RECVTCLASS. */
    #endif
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE  /* Declares struct in6_pktinfo. */
    #endif
    #include <errno.h>
    #include <netinet/in.h>
    #include <netinet/udp.h>
    #include <string.h>
    #include <sys/socket.h>
    #include <sys/uio.h>
    #include <unistd.h>
    #if defined(__linux__) && !defined(LIGHTNING_PORTABLE)
    #define UDP_LINUX 1
    #include <linux/errqueue.h>
    #ifndef SOL_UDP
    #define SOL_UDP 17
    #endif
    #ifndef UDP_SEGMENT
    #define UDP_SEGMENT 103
    #endif
    #ifndef UDP_GRO
    #define UDP_GRO 104
    #endif
    #endif

    #if defined(UDP_LINUX)
    #define UDP_IS_PLAIN 0
    #define udp_mmsghdr mmsghdr
    #else
    #define UDP_IS_PLAIN 1
    struct udp_mmsghdr {
        struct msghdr msg_hdr;
        unsigned int msg_len;
    };
    #endif

    union udp_address {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    };

    /* What a message's header points to. */
    struct udp_envelope {
        union udp_address address;
        struct iovec vec;
        alignas(struct cmsghdr) char control[128];
    };

    struct udp_batch {
        struct udp_mmsghdr messages[32];
        struct udp_envelope envelopes[32];
    };

    static int udp_set(int fd, int level, int name, int value) {
        return setsockopt(fd, level, name, &value, sizeof value);
    }

    static int udp_get(int fd, int level, int name) {
        int value = 0;
        socklen_t size = sizeof value;
        return getsockopt(fd, level, name, &value, &size) < 0 ? -1 : value;
    }

    /* 4 or 6, negative if it is bound to no address of its own; or 0 and errno. */
    static int udp_family(int fd) {
        union udp_address a;
        socklen_t size = sizeof a;
        if (getsockname(fd, &a.any, &size) < 0) return 0;
        errno = EPROTOTYPE;
        if (udp_get(fd, SOL_SOCKET, SO_TYPE) != SOCK_DGRAM) return 0;
        if (a.any.sa_family == AF_INET6)
            return IN6_IS_ADDR_UNSPECIFIED(&a.v6.sin6_addr) ? -6 : 6;
        errno = EAFNOSUPPORT;
        if (a.any.sa_family != AF_INET) return 0;
        return a.v4.sin_addr.s_addr == 0 ? -4 : 4;
    }

    /* What QUIC needs of the socket; returns whether ECN works. */
    static int udp_set_options(int fd, int v6, int any) {
        int ecn = 1;
        /* The engine searches the path's MTU itself (RFC 8899): no fragments. */
    #if defined(IP_MTU_DISCOVER) && defined(IP_PMTUDISC_PROBE)
        udp_set(fd, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE);
        if (v6) udp_set(fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PMTUDISC_PROBE);
    #elif defined(IP_DONTFRAG) && defined(IPV6_DONTFRAG)
        udp_set(fd, IPPROTO_IP, IP_DONTFRAG, 1);
        if (v6) udp_set(fd, IPPROTO_IPV6, IPV6_DONTFRAG, 1);
    #endif
    #if defined(UDP_LINUX)
        udp_set(fd, IPPROTO_IP, IP_RECVERR, 1);
        if (v6) udp_set(fd, IPPROTO_IPV6, IPV6_RECVERR, 1);
    #endif
        if (v6) {
            ecn = udp_set(fd, IPPROTO_IPV6, IPV6_RECVTCLASS, 1) == 0;
            udp_set(fd, IPPROTO_IP, IP_RECVTOS, 1);  /* Of mapped addresses. */
        } else {
            ecn = udp_set(fd, IPPROTO_IP, IP_RECVTOS, 1) == 0;
        }
        /* To which address a datagram came. For a mapped one the system uses that of
           IPv6, too. */
        if (any && v6) udp_set(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1);
    #if defined(IP_PKTINFO)
        if (any && !v6) udp_set(fd, IPPROTO_IP, IP_PKTINFO, 1);
    #endif
        return ecn;
    }

    static int udp_probe_gso(int fd) {
    #if defined(UDP_LINUX)
        return udp_get(fd, SOL_UDP, UDP_SEGMENT) >= 0;
    #else
        return 0;
    #endif
    }

    static int udp_set_gro(int fd, int value) {
    #if defined(UDP_LINUX)
        return udp_set(fd, SOL_UDP, UDP_GRO, value) == 0;
    #else
        return 0;
    #endif
    }

    static struct udp_batch *udp_inbox_new(unsigned char *data, int count,
                                           size_t slot) {
        struct udp_batch *b = (struct udp_batch *) calloc(1, sizeof *b);
        int i;
        if (b == NULL) return NULL;
        for (i = 0; i < count; i++) {
            struct msghdr *m = &b->messages[i].msg_hdr;
            struct udp_envelope *e = &b->envelopes[i];
            e->vec.iov_base = data + i * slot;
            e->vec.iov_len = slot;
            m->msg_name = &e->address;
            m->msg_iov = &e->vec;
            m->msg_iovlen = 1;
            m->msg_control = e->control;
        }
        return b;
    }

    /* `used` slots have been filled since they were made ready. */
    static int udp_receive_batch(int fd, struct udp_batch *b, int used, int count,
                                 int plain) {
        int i, n = 0;
        for (i = 0; i < used; i++) {
            struct msghdr *m = &b->messages[i].msg_hdr;
            m->msg_namelen = sizeof b->envelopes[i].address;
            m->msg_controllen = sizeof b->envelopes[i].control;
        }
    #if defined(UDP_LINUX)
        if (!plain) {
            n = recvmmsg(fd, b->messages, count, MSG_DONTWAIT, NULL);
            return n < 0 ? -errno : n;
        }
    #endif
        for (; n < count; n++) {
            ssize_t size = recvmsg(fd, &b->messages[n].msg_hdr, MSG_DONTWAIT);
            if (size < 0) break;
            b->messages[n].msg_len = (unsigned int) size;
        }
        return n ? n : -errno;
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

    /* Returns 0 if it is none of ours. Without GRO, all of it is one segment. */
    static int udp_inbox_read(struct udp_batch *b, int i, unsigned char **data,
                              size_t *size, size_t *segment, unsigned char *ecn,
                              unsigned char *family, unsigned short *port,
                              unsigned int *scope, unsigned char *ip,
                              unsigned char *local) {
        struct msghdr *m = &b->messages[i].msg_hdr;
        struct cmsghdr *c;
        struct in6_pktinfo info6;
        int value;
        *data = (unsigned char *) b->envelopes[i].vec.iov_base;
        *segment = *size = b->messages[i].msg_len;
        *ecn = 0;
        memset(local, 0, 16);
        for (c = CMSG_FIRSTHDR(m); c != NULL; c = CMSG_NXTHDR(m, c)) {
            if (c->cmsg_level == IPPROTO_IP && (c->cmsg_type == IP_TOS
    #if defined(IP_RECVTOS)
                || c->cmsg_type == IP_RECVTOS
    #endif
                )) {
                *ecn = *(unsigned char *) CMSG_DATA(c) & 3;
            } else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_TCLASS) {
                memcpy(&value, CMSG_DATA(c), sizeof value);
                *ecn = value & 3;
            } else if (c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO) {
                memcpy(&info6, CMSG_DATA(c), sizeof info6);
                memcpy(local, &info6.ipi6_addr, 16);
    #if defined(IP_PKTINFO)
            } else if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO) {
                struct in_pktinfo info;
                memcpy(&info, CMSG_DATA(c), sizeof info);
                /* Ours even if it came to all; not every system fills it in. */
                if (info.ipi_spec_dst.s_addr == 0) info.ipi_spec_dst = info.ipi_addr;
                memcpy(local, &info.ipi_spec_dst, 4);
    #endif
    #if defined(UDP_LINUX)
            } else if (c->cmsg_level == SOL_UDP && c->cmsg_type == UDP_GRO) {
                memcpy(&value, CMSG_DATA(c), sizeof value);
                if (value > 0) *segment = (size_t) value;
    #endif
            }
        }
        /* With a header missing, the segments' size may be. */
        if (m->msg_flags & (MSG_TRUNC | MSG_CTRUNC)) return 0;
        return udp_read_address(&b->envelopes[i].address, family, port, scope, ip);
    }

    /* Makes a message ready; it must not be moved. Returns 0 or -errno. */
    static int udp_batch_put(struct udp_batch *b, int i, unsigned char *data,
                             size_t size, size_t segment, int ecn, int v6,
                             unsigned char family, unsigned short port,
                             unsigned int scope, const unsigned char *ip,
                             const unsigned char *local) {
        struct udp_envelope *e = &b->envelopes[i];
        struct msghdr *m = &b->messages[i].msg_hdr;
        struct cmsghdr *c = (struct cmsghdr *) e->control;
        union udp_address *to = &e->address;
        size_t used = 0;
        if (family != (v6 ? 6 : 4)) return -EAFNOSUPPORT;
        memset(to, 0, sizeof *to);
        memset(m, 0, sizeof *m);
        e->vec.iov_base = data;
        e->vec.iov_len = size;
        m->msg_name = to;
        m->msg_iov = &e->vec;
        m->msg_iovlen = 1;
        if (v6) {
            to->v6.sin6_family = AF_INET6;
            to->v6.sin6_port = htons(port);
            to->v6.sin6_scope_id = scope;
            memcpy(&to->v6.sin6_addr, ip, 16);
            m->msg_namelen = sizeof to->v6;
        } else {
            to->v4.sin_family = AF_INET;
            to->v4.sin_port = htons(port);
            memcpy(&to->v4.sin_addr, ip, 4);
            m->msg_namelen = sizeof to->v4;
        }
        if (ecn) {
            int mapped = v6 && IN6_IS_ADDR_V4MAPPED(&to->v6.sin6_addr);
            c->cmsg_level = v6 && !mapped ? IPPROTO_IPV6 : IPPROTO_IP;
            c->cmsg_type = v6 && !mapped ? IPV6_TCLASS : IP_TOS;
            c->cmsg_len = CMSG_LEN(sizeof ecn);
            memcpy(CMSG_DATA(c), &ecn, sizeof ecn);
            used += CMSG_SPACE(sizeof ecn);
            c = (struct cmsghdr *) (e->control + used);
        }
        if (local && v6) {
            struct in6_pktinfo info;
            memset(&info, 0, sizeof info);
            memcpy(&info.ipi6_addr, local, 16);
            c->cmsg_level = IPPROTO_IPV6;
            c->cmsg_type = IPV6_PKTINFO;
            c->cmsg_len = CMSG_LEN(sizeof info);
            memcpy(CMSG_DATA(c), &info, sizeof info);
            used += CMSG_SPACE(sizeof info);
            c = (struct cmsghdr *) (e->control + used);
        }
    #if defined(IP_PKTINFO)
        if (local && !v6) {
            struct in_pktinfo info;
            memset(&info, 0, sizeof info);
            memcpy(&info.ipi_spec_dst, local, 4);
            c->cmsg_level = IPPROTO_IP;
            c->cmsg_type = IP_PKTINFO;
            c->cmsg_len = CMSG_LEN(sizeof info);
            memcpy(CMSG_DATA(c), &info, sizeof info);
            used += CMSG_SPACE(sizeof info);
            c = (struct cmsghdr *) (e->control + used);
        }
    #endif
    #if defined(UDP_LINUX)
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
            m->msg_control = e->control;
            m->msg_controllen = used;
        }
        return 0;
    }

    /* Returns how many left, or -errno of the first one. */
    static int udp_batch_send(int fd, struct udp_batch *b, int count, int plain) {
    #if defined(UDP_LINUX)
        if (count > 1 && !plain) {
            count = sendmmsg(fd, b->messages, count, MSG_DONTWAIT);
            return count < 0 ? -errno : count;
        }
    #endif
        return sendmsg(fd, &b->messages[0].msg_hdr, MSG_DONTWAIT) < 0 ? -errno : 1;
    }

    /* Takes one entry of the error queue; 0 if there is none. */
    static int udp_read_error(int fd, int *error, unsigned char *family,
                              unsigned short *port, unsigned int *scope,
                              unsigned char *ip) {
    #if defined(UDP_LINUX)
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
    cdef struct udp_batch:
        pass
    enum: UDP_IS_PLAIN
    enum: SOL_SOCKET
    enum: SO_RCVBUF
    enum: SO_SNDBUF
    int udp_get(int fd, int level, int name)
    int udp_family(int fd)
    bint udp_set_options(int fd, bint v6, bint is_any)
    bint udp_probe_gso(int fd)
    bint udp_set_gro(int fd, bint value)
    udp_batch* udp_inbox_new(uint8_t* data, int count, size_t slot)
    int udp_receive_batch(int fd, udp_batch* b, int used, int count, bint plain)
    bint udp_inbox_read(
        udp_batch* b, int i, uint8_t** data, size_t* size, size_t* segment,
        uint8_t* ecn, uint8_t* family, uint16_t* port, uint32_t* scope, uint8_t* ip,
        uint8_t* local
    )
    int udp_batch_put(
        udp_batch* b, int i, uint8_t* data, size_t size, size_t segment, int ecn,
        bint v6, uint8_t family, uint16_t port, uint32_t scope, const uint8_t* ip,
        const uint8_t* local
    )
    int udp_batch_send(int fd, udp_batch* b, int count, bint plain)
    bint udp_read_error(
        int fd, int* error, uint8_t* family, uint16_t* port, uint32_t* scope,
        uint8_t* ip
    )
    int close(int fd)


# --- The socket -------------------------------------------------------------------

cdef int udp_adopt(UdpSocket* s, int fd, uint32_t options) noexcept nogil:
    cdef int family = udp_family(fd)
    if family == 0:
        return -errno
    memset(s, 0, sizeof(UdpSocket))
    s.fd = fd
    s.is_ipv6 = abs(family) == 6
    s.is_any = family < 0
    # For people, too, whose system's offloads are in doubt.
    if UDP_IS_PLAIN or getenv("LIGHTNING_PLAIN_UDP") is not NULL:
        options |= UDP_PLAIN
    if options & UDP_PLAIN:
        options |= UDP_NO_GSO | UDP_NO_GRO
    s.plain = options & UDP_PLAIN
    s.ecn = udp_set_options(fd, s.is_ipv6, s.is_any) and not options & UDP_NO_ECN
    s.gso = not options & UDP_NO_GSO and udp_probe_gso(fd)
    s.gro = not options & UDP_NO_GRO and udp_set_gro(fd, True)
    s.receive_buffer = udp_get(fd, SOL_SOCKET, SO_RCVBUF)
    s.send_buffer = udp_get(fd, SOL_SOCKET, SO_SNDBUF)
    return 0


cdef void udp_close(UdpSocket* s) noexcept nogil:
    if s.fd >= 0:
        close(s.fd)
        s.fd = -1


# --- Receiving --------------------------------------------------------------------

cdef int udp_inbox_init(UdpInbox* box, UdpSocket* s) noexcept nogil:
    cdef size_t slot = UDP_RUN_SLOT if s.gro else UDP_SLOT
    memset(box, 0, sizeof(UdpInbox))
    box.socket = s
    box.capacity = box.count = UDP_RUNS if s.gro else UDP_BATCH
    box.next = box.count
    # Pages that nothing was received in take no memory.
    box.data = <uint8_t*> malloc(box.capacity * slot)
    if box.data is NULL:
        return -ENOMEM
    box.batch = udp_inbox_new(box.data, box.capacity, slot)
    return 0 if box.batch is not NULL else -ENOMEM


cdef void udp_inbox_free(UdpInbox* box) noexcept nogil:
    free(box.data)
    free(box.batch)
    box.data = NULL
    box.batch = NULL


cdef int udp_receive(UdpInbox* box) noexcept nogil:
    cdef UdpSocket* s = box.socket
    cdef int count = -s.fail_receive
    box.left = 0
    if count:
        s.fail_receive = 0
        box.next = box.count
    else:
        count = udp_receive_batch(
            s.fd, <udp_batch*> box.batch, box.count, box.capacity, s.plain
        )
        box.next = 0
        box.count = max(count, 0)
    if s.gro and (count == -EIO or count == -EINVAL):
        udp_set_gro(s.fd, False)
        s.gro = False
        s.gro_failed = True
    s.receive_calls += 1
    return count


cdef bint udp_next(
    UdpInbox* box, uint8_t** data, size_t* size, const Address** source, uint8_t* ecn
) noexcept nogil:
    cdef Address* a = &box.source
    while True:
        while box.left == 0:
            if box.next == box.count:
                return False
            box.next += 1
            # One that was cut, or is from nowhere, is none of ours.
            if not udp_inbox_read(
                <udp_batch*> box.batch, box.next - 1, &box.at, &box.left, &box.segment,
                &box.ecn, &a.family, &a.port, &a.scope, a.ip, a.local,
            ):
                box.left = 0
        data[0] = box.at
        size[0] = min(box.left, box.segment)
        box.at += size[0]
        box.left -= size[0]
        box.socket.received += 1
        if size[0] <= UDP_SLOT:
            source[0] = a
            ecn[0] = box.ecn
            return True


# --- Sending ----------------------------------------------------------------------

cdef int udp_outbox_init(UdpOutbox* box) noexcept nogil:
    memset(box, 0, sizeof(UdpOutbox))
    box.data = <uint8_t*> malloc(UDP_OUT_SIZE)
    return 0 if box.data is not NULL else -ENOMEM


cdef void udp_outbox_free(UdpOutbox* box) noexcept nogil:
    free(box.data)
    box.data = NULL
    box.count = box.first = box.used = 0


cdef uint8_t* udp_room(UdpOutbox* box, size_t* capacity) noexcept nogil:
    cdef size_t left = UDP_OUT_SIZE - box.used
    if box.count == UDP_OUT or left < UDP_ROOM_MIN:
        return NULL
    capacity[0] = min(left, <size_t> UDP_SEND_MAX)
    return box.data + box.used


cdef void udp_commit(
    UdpOutbox* box, size_t size, size_t segment, const Address* to, uint8_t ecn
) noexcept nogil:
    cdef UdpOut* o = &box.items[box.count]
    box.count += 1
    o.to = to[0]
    o.ecn = ecn
    o.data = box.data + box.used
    o.size = size
    o.segment = segment
    box.used += <uint32_t> size


cdef inline size_t piece_size(const UdpSocket* s, const UdpOut* o) noexcept nogil:
    """Return how much of it one message takes."""
    if o.size <= o.segment:
        return o.size
    # Full segments, so that a rest begins with one.
    return min(o.size, o.segment * UDP_SEGMENTS) if s.gso else o.segment


cdef inline bint has_local(const Address* a) noexcept nogil:
    cdef uint64_t[2] halves
    memcpy(halves, a.local, 16)
    return (halves[0] | halves[1]) != 0


cdef int fill(UdpSocket* s, UdpOutbox* box, udp_batch* batch) noexcept nogil:
    """Make messages of what is next; how many, or -errno of the first."""
    cdef UdpOut o
    cdef const uint8_t* local
    cdef uint32_t i
    cdef size_t piece
    cdef int count = 0
    cdef int status
    cdef int most = 1 if s.plain else UDP_BATCH
    for i in range(box.first, box.count):
        o = box.items[i]
        while o.size:
            if count == most:
                return count
            piece = piece_size(s, &o)
            local = NULL
            if s.is_any and has_local(&o.to):
                local = o.to.local
            status = udp_batch_put(
                batch, count, o.data, piece, o.segment, o.ecn if s.ecn else 0,
                s.is_ipv6, o.to.family, o.to.port, o.to.scope, o.to.ip,
                local,
            )
            if status:
                return count if count else status
            count += 1
            o.data += piece
            o.size -= piece
    return count


cdef int send(UdpSocket* s, udp_batch* batch, int count) noexcept nogil:
    """Send messages; how many left, or -errno of the first."""
    cdef int status = -EAGAIN
    cdef int attempts = 2
    if s.fail_next:
        count = min(count, s.fail_after)
        if count == 0:
            status = -s.fail_next
            s.fail_next = 0
            return status
    while attempts:
        attempts -= 1
        s.send_calls += 1
        status = udp_batch_send(s.fd, batch, count, s.plain)
        # The first error may be that of an earlier datagram: Linux reports it once.
        if status > 0 or status == -EAGAIN or status == -EINTR:
            break
    if s.fail_next and status > 0:
        s.fail_after -= status
    return status


cdef size_t take_piece(UdpSocket* s, UdpOutbox* box) noexcept nogil:
    """Drop the next message's bytes; how many datagrams those are."""
    cdef UdpOut* o = &box.items[box.first]
    cdef size_t piece = piece_size(s, o)
    o.data += piece
    o.size -= piece
    if o.size == 0:
        box.first += 1
    return (piece + o.segment - 1) // o.segment


cdef int udp_flush(UdpSocket* s, UdpOutbox* box) noexcept nogil:
    cdef udp_batch batch
    cdef UdpOut* o
    cdef int status
    while box.first < box.count:
        status = fill(s, box, &batch)
        if status > 0:
            status = send(s, &batch, status)
        if status == -EAGAIN:
            return status
        if status == -EINTR:
            continue
        while status > 0:
            status -= 1
            s.sent += take_piece(s, box)
        if status == 0:
            continue
        # Only the first one of a call can fail; what is behind it has not been tried.
        o = &box.items[box.first]
        if status == -EINVAL and has_local(&o.to):
            # That address may be gone: as the system has it.
            memset(o.to.local, 0, 16)
            continue
        if piece_size(s, o) > o.segment and (status == -EIO or status == -EINVAL):
            # The driver cannot, whatever it said before: one by one, for good.
            s.gso = False
            s.gso_failed = True
            continue
        # These say nothing about the peer: the datagram is lost, no more.
        if status != -ENOBUFS and status != -ENOMEM:
            remember(s, o, -status)
        s.not_sent += take_piece(s, box)
    box.first = box.count = box.used = 0
    return 0


cdef void remember(UdpSocket* s, const UdpOut* o, int error) noexcept nogil:
    cdef uint32_t last = s.bounce_count - 1
    cdef size_t size = min(o.size, o.segment)
    # A train of datagrams that are too large is told once.
    if (
        s.bounce_count and s.bounces[last] == error and s.bounce_sizes[last] == size
        and address_is(&s.bounced[last], &o.to)
    ):
        return
    if s.bounce_count < UDP_ERRORS:
        s.bounced[s.bounce_count] = o.to
        s.bounces[s.bounce_count] = error
        s.bounce_sizes[s.bounce_count] = size
        s.bounce_count += 1


cdef bint udp_next_bounce(
    UdpSocket* s, Address* peer, int* error, size_t* size
) noexcept nogil:
    if s.bounce_count == 0:
        return False
    s.bounce_count -= 1
    peer[0] = s.bounced[s.bounce_count]
    error[0] = s.bounces[s.bounce_count]
    size[0] = s.bounce_sizes[s.bounce_count]
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

    def __init__(
        self, int fd, *, bint gso=True, bint gro=True, bint ecn=True, bint plain=False
    ):
        """Take over a socket.

        Args:
            fd: Its file descriptor, which belongs to this object from now on.
            gso: Whether the kernel may cut up what is sent.
            gro: Whether the kernel may hand over what arrives uncut.
            ecn: Whether ECN bits are sent.
            plain: Whether to do without all that only some systems have.

        Raises:
            OSError: It is no UDP socket.
        """
        cdef int status = udp_adopt(
            &self.socket, fd,
            (0 if gso else UDP_NO_GSO) | (0 if gro else UDP_NO_GRO)
            | (0 if ecn else UDP_NO_ECN) | (UDP_PLAIN if plain else 0),
        )
        if status:
            raise OSError(-status, "not a UDP socket")
        if udp_inbox_init(&self.inbox, &self.socket) or udp_outbox_init(&self.outbox):
            raise MemoryError

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
        address_from(address, &to)
        return self.queue(&to, data, segment, ecn)

    def answer(
        self, const uint8_t[::1] data not None, *, size_t segment=0, uint8_t ecn=0
    ):
        """Do so for the source of what was received last, from where it came to."""
        return self.queue(&self.inbox.source, data, segment, ecn)

    cdef bint queue(
        self, const Address* to, const uint8_t[::1] data, size_t segment, uint8_t ecn
    ) except -1:
        cdef size_t capacity = 0
        cdef size_t size = data.shape[0]
        cdef uint8_t* room = udp_room(&self.outbox, &capacity)
        if not 0 < size <= UDP_SEND_MAX:
            raise ValueError(f"data must have from 1 to {UDP_SEND_MAX} bytes")
        if room is NULL or size > capacity:
            return False
        memcpy(room, &data[0], size)
        udp_commit(&self.outbox, size, segment or size, to, ecn)
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
        cdef int count = udp_receive(&self.inbox)
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
        cdef size_t size = 0
        cdef list found = []
        memset(&peer, 0, sizeof(peer))
        while (
            udp_next_bounce(&self.socket, &peer, &error, &size)
            or udp_next_error(&self.socket, &peer, &error)
        ):
            found.append((address_to(&peer) if peer.family else None, error))
        return found

    def fail_next(self, int error, int after=0):
        """Have a send fail with an errno, when ``after`` more messages have left."""
        self.socket.fail_next = error
        self.socket.fail_after = after

    def fail_receive(self, int error):
        """Have the next receive fail with an errno."""
        self.socket.fail_receive = error

    def stats(self):
        """Return what works, and counters."""
        cdef UdpSocket* s = &self.socket
        return {
            "gso": bool(s.gso), "gso_failed": bool(s.gso_failed),
            "gro": bool(s.gro), "gro_failed": bool(s.gro_failed),
            "plain": bool(s.plain), "ecn": bool(s.ecn),
            "receive_buffer": s.receive_buffer, "send_buffer": s.send_buffer,
            "received": s.received, "sent": s.sent, "not_sent": s.not_sent,
            "receive_calls": s.receive_calls, "send_calls": s.send_calls,
        }
