"""The six messages, and what a request needs of them in one call each."""

from libc.stdint cimport uint8_t, uint64_t

from lightning._core.wire.packer cimport Writer
from lightning._core.wire.unpacker cimport Reader


cdef class Layout:
    cdef:
        int frame_type
        readonly str name
        # Names of the fields in their order on the wire, and as UTF-8.
        readonly tuple fields
        list keys
        # Names of the fields in error texts, and what opens those.
        tuple paths
        str prefix
        int size
        # Fields that an array must have, and bits of those that a map must have.
        int least
        int required


cdef class Message:
    cdef Layout layout(self)
    cdef tuple values(self)
    cdef int read_field(self, int index, Reader *reader) except -1
    cdef int write_fields(self, Writer writer) except -1


cdef class HandshakeRequest(Message):
    cdef:
        readonly str validator_hotkey
        readonly uint64_t timestamp
        readonly str nonce
        readonly str signature


cdef class HandshakeResponse(Message):
    cdef:
        readonly str miner_hotkey
        readonly uint64_t timestamp
        readonly str signature
        readonly bint accepted
        readonly str connection_id
        readonly str cert_fingerprint


cdef class SynapsePacket(Message):
    cdef:
        readonly str synapse_type
        readonly object data
        readonly uint64_t timestamp


cdef class SynapseResponse(Message):
    cdef:
        readonly bint success
        readonly object data
        readonly uint64_t timestamp
        readonly str error


cdef class StreamChunk(Message):
    cdef readonly object data


cdef class StreamEnd(Message):
    cdef:
        readonly bint success
        readonly str error


cpdef bytes encode_synapse_packet(
    str synapse_type, object data, uint64_t timestamp, Py_ssize_t max_payload=*
)
cpdef bytes encode_synapse_response(
    bint success, object data, uint64_t timestamp, str error=*,
    Py_ssize_t max_payload=*
)
cpdef bytes encode_stream_chunk(object data, Py_ssize_t max_payload=*)
cpdef bytes encode_stream_end(bint success, str error=*, Py_ssize_t max_payload=*)
cpdef Message decode_message(int frame_type, object payload)
cdef Message decode_raw(int frame_type, const uint8_t *data, Py_ssize_t size)
