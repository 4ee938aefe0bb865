"""Frames, MessagePack and the six messages once more, slow and obvious.

Written from the wire specification and MessagePack's own alone; shares no code with the
package. Bounds on memory are not modelled: no small input comes near them.
"""

import struct

MAX_DEPTH = 1024


class Refused(Exception):
    """The input is not what it should be."""


# --- frames ---------------------------------------------------------------------------


def split_frames(stream, limit):
    """Return the whole frames of a stream, and what ended them.

    The end is None between frames, "unknown" or "too large" for a header that is
    refused, else the bytes received and expected of the part that is cut short.
    """
    frames = []
    while stream:
        if len(stream) < 5:
            return frames, (len(stream), 5)
        kind, length = struct.unpack(">BI", stream[:5])
        if kind not in range(1, 7):
            return frames, "unknown"
        if length > limit:
            return frames, "too large"
        payload = stream[5 : 5 + length]
        if len(payload) < length:
            return frames, (len(payload), length)
        frames.append((kind, payload))
        stream = stream[5 + length :]
    return frames, None


# --- MessagePack ----------------------------------------------------------------------


def encode(value):
    """Write a value in the smallest forms."""
    match value:
        case None:
            return b"\xc0"
        case bool():
            return b"\xc3" if value else b"\xc2"
        case int():
            return encode_int(value)
        case float():
            return b"\xcb" + struct.pack(">d", value)
        case str():
            body = value.encode()
            return head(len(body), (0xA0, 32), (0xD9, 0xDA, 0xDB)) + body
        case bytes():
            return head(len(value), None, (0xC4, 0xC5, 0xC6)) + value
        case list() | tuple():
            start = head(len(value), (0x90, 16), (None, 0xDC, 0xDD))
            return start + b"".join(map(encode, value))
        case dict():
            start = head(len(value), (0x80, 16), (None, 0xDE, 0xDF))
            return start + b"".join(encode(k) + encode(v) for k, v in value.items())
    raise Refused(type(value))


def encode_int(value):
    """Write an integer: unsigned forms unless it is negative."""
    if -32 <= value < 128:
        return struct.pack(">b", value)
    first, forms = (0xCC, "BHIQ") if value > 0 else (0xD0, "bhiq")
    for marker, form in enumerate(forms, first):
        try:
            return bytes([marker]) + struct.pack(">" + form, value)
        except struct.error:
            pass
    raise Refused(value)


def head(size, fix, markers):
    """Write a length in the marker itself, or in 1, 2 or 4 bytes after it."""
    if fix and size < fix[1]:
        return bytes([fix[0] + size])
    for marker, form in zip(markers, "BHI", strict=True):
        if marker is not None and size < 256 ** struct.calcsize(form):
            return struct.pack(">B" + form, marker, size)
    raise Refused(size)


def decode(data, depth=0):
    """Return the value that the data begins with, and the data after it."""
    kind, value, rest = token(data)
    if kind in ("array", "map"):
        if depth + 1 >= MAX_DEPTH:
            raise Refused("depth")
        return container(kind, value, rest, depth)
    if kind == "str":
        try:
            value = value.decode()
        except UnicodeDecodeError:
            pass
    return value, rest


def container(kind, size, data, depth):
    """Decode a list or a dict of so many elements."""
    if kind == "array":
        items = []
        for _ in range(size):
            item, data = decode(data, depth + 1)
            items.append(item)
        return items, data
    pairs = {}
    for _ in range(size):
        if token(data)[0] in ("array", "map"):
            raise Refused("key")
        key, data = decode(data, depth + 1)
        pairs[key], data = decode(data, depth + 1)
    return pairs, data


# Marker: kind, and the struct form of what follows it.
NUMBERS = {
    0xCA: "f",
    0xCB: "d",
    0xCC: "B",
    0xCD: "H",
    0xCE: "I",
    0xCF: "Q",
    0xD0: "b",
    0xD1: "h",
    0xD2: "i",
    0xD3: "q",
}
SIZED = {
    0xC4: ("bin", "B"),
    0xC5: ("bin", "H"),
    0xC6: ("bin", "I"),
    0xC7: ("ext", "B"),
    0xC8: ("ext", "H"),
    0xC9: ("ext", "I"),
    0xD9: ("str", "B"),
    0xDA: ("str", "H"),
    0xDB: ("str", "I"),
    0xDC: ("array", "H"),
    0xDD: ("array", "I"),
    0xDE: ("map", "H"),
    0xDF: ("map", "I"),
}
FIXEXT = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
SINGLE = {0xC0: ("nil", None), 0xC2: ("bool", False), 0xC3: ("bool", True)}


def token(data):
    """Return the kind and the value, or the size of a container, and what follows."""
    marker, rest = take(data, 1)
    marker = marker[0]
    if marker < 0x80 or marker >= 0xE0:
        return "int", struct.unpack(">b", data[:1])[0], rest
    if marker < 0x90:
        return "map", marker - 0x80, rest
    if marker < 0xA0:
        return "array", marker - 0x90, rest
    if marker < 0xC0:
        return "str", *take(rest, marker - 0xA0)
    if marker in SINGLE:
        return *SINGLE[marker], rest
    if marker in NUMBERS:
        number, rest = number_of(NUMBERS[marker], rest)
        return "float" if isinstance(number, float) else "int", number, rest
    if marker in SIZED:
        kind, form = SIZED[marker]
        size, rest = number_of(form, rest)
    elif marker in FIXEXT:
        kind, size = "ext", FIXEXT[marker]
    else:
        raise Refused("reserved")
    if kind in ("array", "map"):
        return kind, size, rest
    if kind == "ext":
        _, rest = take(rest, 1)
    return kind, *take(rest, size)


def number_of(form, data):
    """Return a big-endian number and what follows it."""
    raw, rest = take(data, struct.calcsize(form))
    return struct.unpack(">" + form, raw)[0], rest


def take(data, size):
    """Return the first bytes and the others."""
    if len(data) < size:
        raise Refused("end")
    return data[:size], data[size:]


# --- messages -------------------------------------------------------------------------

# Number of the frame's type: names and kinds of the fields, in their order.
MESSAGES = {
    1: {
        "validator_hotkey": "text",
        "timestamp": "uint",
        "nonce": "text",
        "signature": "text",
    },
    2: {
        "miner_hotkey": "text",
        "timestamp": "uint",
        "signature": "text",
        "accepted": "bool",
        "connection_id": "text",
        "cert_fingerprint": "text or nil",
    },
    3: {"synapse_type": "text", "data": "data", "timestamp": "uint"},
    4: {
        "success": "bool",
        "data": "data",
        "timestamp": "uint",
        "error": "text or nil",
    },
    5: {"data": "bytes"},
    6: {"success": "bool", "error": "text or nil"},
}


def message(number, payload):
    """Return the fields of a message, in their order."""
    fields = MESSAGES[number]
    kind, size, rest = token(payload)
    found = {}
    if kind == "array":
        if size != len(fields) and (number, size) != (2, 5):
            raise Refused("length")
        for name in list(fields)[:size]:
            found[name], rest = field(fields[name], rest)
    elif kind == "map":
        for _ in range(size):
            name, rest = field_name(list(fields), rest)
            if name is None:
                _, rest = decode(rest, 1)
            elif name in found:
                raise Refused("duplicate")
            else:
                found[name], rest = field(fields[name], rest)
    else:
        raise Refused("kind")
    for name, wanted in fields.items():
        if name not in found and wanted != "text or nil":
            raise Refused("missing")
    return tuple(found.get(name) for name in fields)


def field_name(names, data):
    """Return the name that a map's key means, None for none that is known."""
    kind, value, rest = token(data)
    if kind == "int" and value >= 0:
        return names[value] if value < len(names) else None, rest
    if kind not in ("str", "bin"):
        raise Refused("name")
    for name in names:
        if name.encode() == value:
            return name, rest
    return None, rest


def field(wanted, data):
    """Return a field's value and what follows it."""
    kind, value, rest = token(data)
    match wanted, kind:
        case "text or nil", "nil":
            return None, rest
        case "text" | "text or nil", "str" | "bin":
            return text(value), rest
        case "uint", "int" if value >= 0:
            return value, rest
        case "bool", "bool":
            return value, rest
        case "bytes", "str" | "bin":
            return value, rest
        case "bytes", "array":
            items, rest = container("array", value, rest, 1)
            if any(type(item) is not int or not 0 <= item < 256 for item in items):
                raise Refused("bytes")
            return bytes(items), rest
        case "data", "map":
            return data_map(value, rest)
    raise Refused("type")


def data_map(size, data):
    """Return the map at the top of `data`: its keys are text."""
    pairs = {}
    for _ in range(size):
        kind, key, data = token(data)
        if kind not in ("str", "bin"):
            raise Refused("key")
        pairs[text(key)], data = decode(data, 2)
    return pairs, data


def text(body):
    """Decode UTF-8."""
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise Refused("UTF-8") from error
