"""The login once more, slow and obvious, to compare ``lightning`` with.

Written from the wire specification alone; shares no code with the package but the
signature check, which is a third party's.
"""

import base64
import hashlib
import ipaddress
import math

ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
HEX = "0123456789abcdefABCDEF"


def decode_address(text, registered):
    """Return the key of a canonical address, None for everything else."""
    number = 0
    for character in text:
        if character not in ALPHABET:
            return None
        number = number * 58 + ALPHABET.index(character)
    zeros = len(text) - len(text.lstrip("1"))
    data = bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")
    for head_size in (1, 2):
        if len(data) != head_size + 34:
            continue
        head, key, checksum = data[:head_size], data[head_size:-2], data[-2:]
        if head_size == 1:
            prefix = head[0]
            well_formed = prefix < 64
        else:
            bits = f"{head[0]:08b}{head[1]:08b}"
            # Read "01aaaaaa bbcccccc" as "cccccc aaaaaa bb".
            prefix = int(bits[10:] + bits[2:8] + bits[8:10], 2)
            well_formed = bits.startswith("01") and prefix >= 64
        expected = hashlib.blake2b(b"SS58PRE" + head + key).digest()[:2]
        if well_formed and prefix in registered and checksum == expected:
            return key
    return None


def request_text(hotkey, timestamp, nonce, fingerprint):
    return ":".join(["handshake", hotkey, str(timestamp), nonce, fingerprint]).encode()


def response_text(validator, miner, timestamp, nonce, fingerprint):
    fields = [
        "handshake_response",
        validator,
        miner,
        str(timestamp),
        nonce,
        fingerprint,
    ]
    return ":".join(fields).encode()


def signature_verdict(hotkey, signature, text, registered, verify):
    if signature == "":
        return "SignatureInvalid: empty"
    key = decode_address(hotkey, registered)
    if key is None:
        return "SignatureInvalid: address"
    try:
        raw = base64.b64decode(signature)
    except ValueError:
        return "SignatureInvalid: base64"
    if base64.b64encode(raw).decode() != signature:
        return "SignatureInvalid: base64"
    if len(raw) != 64:
        return "SignatureInvalid: length"
    if not verify(key, text(), raw):
        return "SignatureInvalid: verification"
    return "accepted"


def request_verdict(fields, fingerprint, now, max_age, registered, verify):
    """Judge (hotkey, timestamp, nonce, signature) as the server does."""
    hotkey, timestamp, nonce, signature = fields
    if now - timestamp >= max_age:
        return "TimestampOutOfRange: old"
    if timestamp > now + 60:
        return "TimestampOutOfRange: ahead"
    if len(nonce) != 32 or any(digit not in HEX for digit in nonce):
        return "NonceInvalid"
    return signature_verdict(
        hotkey,
        signature,
        lambda: request_text(hotkey, timestamp, nonce, fingerprint),
        registered,
        verify,
    )


def response_verdict(fields, login, registered, verify):
    """Judge a response as the client does; login is what the client asked with."""
    miner, timestamp, signature, accepted, _, fingerprint = fields
    validator, wanted, own_fingerprint, _, nonce = login
    if not accepted:
        return "HandshakeRejected"
    if miner != wanted:
        return "HotkeyMismatch"
    if fingerprint is None or fingerprint != own_fingerprint:
        return "FingerprintMismatch"
    return signature_verdict(
        miner,
        signature,
        lambda: response_text(validator, miner, timestamp, nonce, own_fingerprint),
        registered,
        verify,
    )


class NonceModel:
    """Remembers every nonce for ever, and computes which of them still count."""

    def __init__(self, max_entries, max_age):
        self.max_entries = max_entries
        self.max_age = max_age
        self.all = []

    def live(self, now):
        return [
            nonce
            for nonce, timestamp, arrival in self.all
            if max(timestamp, arrival) + self.max_age > now
        ]

    def store(self, nonce, timestamp, now):
        live = self.live(now)
        if nonce.lower() in live:
            return "used"
        if len(live) >= self.max_entries:
            return "full"
        # Arrival counts in whole seconds, rounded up.
        self.all.append((nonce.lower(), timestamp, math.ceil(now)))
        return "stored"


class RateModel:
    """Keeps all attempts of all tracked sources in one list."""

    def __init__(self, max_attempts, window, max_sources):
        self.max_attempts = max_attempts
        self.window = window
        self.max_sources = max_sources
        self.order = []
        self.admitted = []

    def allow(self, ip, now):
        source = ipaddress.ip_address(ip)
        if source.version == 6 and source.ipv4_mapped:
            source = source.ipv4_mapped
        elif source.version == 6:
            source = ipaddress.ip_network((source, 64), strict=False)
        if source in self.order:
            self.order.remove(source)
        elif len(self.order) == self.max_sources:
            forgotten = self.order.pop(0)
            self.admitted = [one for one in self.admitted if one[0] != forgotten]
        self.order.append(source)
        recent = [t for s, t in self.admitted if s == source and now - t < self.window]
        if len(recent) >= self.max_attempts:
            return False
        self.admitted.append((source, now))
        return True


class TableModel:
    """Keeps (hotkey, connection) pairs in the order of login."""

    def __init__(self, max_connections, max_hotkeys):
        self.max_connections = max_connections
        self.max_hotkeys = max_hotkeys
        self.pairs = []

    def connections(self):
        return {connection for _, connection in self.pairs}

    def register(self, hotkey, connection):
        """Return the replaced connection, None, or "full"."""
        old = dict(self.pairs).get(hotkey)
        known = connection in self.connections()
        if (
            not known
            and old is None
            and len(self.connections()) >= self.max_connections
        ):
            return "full"
        here = [pair for pair in self.pairs if pair[1] == connection]
        if old != connection and len(here) >= self.max_hotkeys:
            return "full"
        replaced = old if old != connection else None
        if replaced is not None:
            self.pairs = [pair for pair in self.pairs if pair[1] != replaced]
        self.pairs = [pair for pair in self.pairs if pair[0] != hotkey]
        self.pairs.append((hotkey, connection))
        return replaced

    def remove_connection(self, connection):
        gone = tuple(h for h, c in self.pairs if c == connection)
        self.pairs = [pair for pair in self.pairs if pair[1] != connection]
        return gone

    def remove_hotkey(self, hotkey):
        connection = dict(self.pairs).get(hotkey)
        self.pairs = [pair for pair in self.pairs if pair[0] != hotkey]
        return connection if connection not in self.connections() else None
