"""bittensor's HTTP protocol without the HTTP: headers, bodies, and what they mean.

A request is ``POST /{name}`` with the whole synapse as JSON. Its headers say the name,
the timeout, and each field of both terminals that is not None, as
``bt_header_dendrite_{field}`` and ``bt_header_axon_{field}``; an answer has the same. A
signature, over the receiver, the time and the body hash, is among the dendrite's.

An answer's status is HTTP's. With 200 the body is the whole synapse, otherwise
``{"message": …}``. Where headers and body differ the headers win, so a status message
that no header can say, for its length or its control characters, is left to the body.

All here is pure: no I/O, no clock, and no need of aiohttp.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, cast

from lightning.dropin.codec import plan_of, set_terminals, terminal
from lightning.dropin.http_auth import signed_text

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

__all__ = [
    "PROTOCOL_VERSION",
    "RequestHead",
    "address_of",
    "clean_headers",
    "message_body",
    "process_response",
    "read_answer",
    "reply_body",
    "reply_headers",
    "request_body",
    "request_headers",
    "set_request_terminals",
    "signature_text",
    "terminal_fields",
    "url_of",
    "without_private",
]

PROTOCOL_VERSION: Final = 10_005_000
"""The version of bittensor whose protocol this is, as it says it: 10.5.0."""

MAX_HEADER_TEXT: Final = 4096
"""Bytes of a header's value that we write; clients take some 8000."""

_DENDRITE: Final = "bt_header_dendrite_"
_AXON: Final = "bt_header_axon_"
_INTEGERS: Final = frozenset({"status_code", "port", "version", "nonce"})
_FIELDS: Final = _INTEGERS | {
    "status_message",
    "process_time",
    "ip",
    "uuid",
    "hotkey",
    "signature",
}
# What an axon says of itself only where it refuses, or is asked before it answers.
_PRIVATE: Final = frozenset({"version", "nonce", "uuid", "signature"})
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]+")


def address_of(ip: Any, port: Any) -> str:
    """Return ``ip:port``, an IPv6 literal in brackets; the ip may be a host name."""
    text = str(ip)
    return f"[{text}]:{port}" if ":" in text and text[:1] != "[" else f"{text}:{port}"


def url_of(target: Any, name: str, external_ip: str | None = None) -> str:
    """Return the URL of a synapse at an axon.

    Args:
        target: Has ``ip`` and ``port``.
        name: The synapse's name.
        external_ip: Our own address on the internet, if it is known. An axon there is
            on this machine or in this network, and many routers do not lead back to
            it, so it is asked here.
    """
    ip = target.ip
    if external_ip is not None and str(ip) == external_ip:
        ip = "0.0.0.0"  # noqa: S104 - as a destination it is this machine.
    return f"http://{address_of(ip, target.port)}/{name}"


# Requests, at the dendrite.


def set_request_terminals(
    synapse: Any,
    target: Any,
    *,
    timeout: float | None,
    ip: str | None,
    nonce: int,
    uuid: str,
    hotkey: str,
) -> bytes:
    """Tell a synapse who asks whom, when, and for how long.

    Args:
        synapse: What is asked.
        target: The axon: has ``ip``, ``port`` and ``hotkey``.
        timeout: Seconds that we wait.
        ip: Our own address on the internet, if it is known.
        nonce: Unix nanoseconds.
        uuid: Our name for ourselves.
        hotkey: Ours.

    Returns:
        What is to be signed; ``synapse.dendrite.signature`` is due next.
    """
    kind = plan_of(type(synapse)).terminal_class
    dendrite = terminal(
        kind, ip=ip, version=PROTOCOL_VERSION, nonce=nonce, uuid=uuid, hotkey=hotkey
    )
    axon = terminal(
        kind, ip=str(target.ip), port=int(target.port), hotkey=target.hotkey
    )
    set_terminals(synapse, dendrite, axon)
    synapse.__dict__["timeout"] = None if timeout is None else float(timeout)
    synapse.__pydantic_fields_set__.add("timeout")
    return signed_text(nonce, hotkey, target.hotkey, uuid, synapse.body_hash)


def request_headers(synapse: Any) -> dict[str, str]:
    """Return the headers of a request: the synapse's, but for what no header can say.

    Raises:
        ValueError: A required field has a value that JSON cannot say.
    """
    return clean_headers(synapse.to_headers())


def request_body(synapse: Any) -> bytes:
    """Return the body of a request: the whole synapse.

    Values that are not JSON's own travel as pydantic writes them, if it can.

    Raises:
        TypeError: A value that neither can say; nothing was sent.
        ValueError: A value that contains itself.
    """
    return _to_json(synapse, by_alias=None)


def _to_json(synapse: Any, *, by_alias: bool | None) -> bytes:
    try:
        return json.dumps(synapse.model_dump(by_alias=by_alias)).encode()
    except TypeError:
        try:
            data = synapse.model_dump(mode="json", by_alias=by_alias)
            return json.dumps(data).encode()
        except ValueError:
            pass
        raise


# Requests, at the axon.


class RequestHead:
    """What the headers of a request say.

    Attributes:
        dendrite: Fields of the sender, as it says.
        axon: Fields of the receiver, as the sender says.
        claimed: The sender's ip and port, as it says.
        timeout: Seconds; None if it does not say.
        body_hash: None if it does not say.
        header_size: The same.
        total_size: The same.
    """

    __slots__ = (
        "axon",
        "body_hash",
        "claimed",
        "dendrite",
        "header_size",
        "timeout",
        "total_size",
    )

    def __init__(self, headers: Mapping[str, str]) -> None:
        """Read headers.

        Raises:
            ValueError: One that should be a number is none.
        """
        self.dendrite, self.axon = _terminals_of(headers)
        self.claimed = self.dendrite.get("ip"), self.dendrite.get("port")
        timeout = headers.get("timeout")
        # As Python writes None into a header.
        self.timeout = None if timeout in (None, "None") else float(timeout)
        self.body_hash = headers.get("computed_body_hash")
        self.header_size = _integer(headers.get("header_size"))
        self.total_size = _integer(headers.get("total_size"))

    def build(self, synapse_class: Any, data: Any) -> Any:
        """Make the synapse of a request.

        Everything about sender and receiver is taken from the headers, and the rest
        from the body.

        Args:
            synapse_class: Its class.
            data: The body, decoded; it is changed.

        Raises:
            ValueError: The class refuses it, or the body is not what was signed.
            TypeError: The body is no object.
        """
        if not isinstance(data, dict):
            raise TypeError(f"the body is no JSON object but {type(data).__name__}")
        for key, fields in (("dendrite", self.dendrite), ("axon", self.axon)):
            said = data.get(key)
            more = (
                {k: v for k, v in said.items() if k not in _FIELDS}
                if isinstance(said, dict)
                else {}
            )
            data[key] = {**more, **fields}
        data["timeout"] = self.timeout
        data["header_size"] = self.header_size
        data["total_size"] = self.total_size
        data["computed_body_hash"] = self.body_hash
        synapse = synapse_class(**data)
        if synapse.body_hash != (self.body_hash or ""):
            raise ValueError(
                f"the body hashes to {synapse.body_hash}, and its header says "
                f"{self.body_hash}"
            )
        return synapse


# Answers, at the axon.


def reply_headers(
    *,
    name: str,
    timeout: Any,
    body_hash: Any,
    dendrite: Mapping[str, Any],
    axon: Mapping[str, Any],
    size: int,
    has_body: bool,
) -> dict[str, str]:
    """Return the headers of an answer.

    Args:
        name: The synapse's.
        timeout: Of the request.
        body_hash: Of the request.
        dendrite: Fields of who asked; those that are None are left out.
        axon: Fields of ours; the same.
        size: Bytes of the body, or of the request where the answer is a stream.
        has_body: Whether the body says the status message too, so that one which
            cannot be told exactly is left out here.
    """
    headers = {"name": name}
    if timeout is not None:
        headers["timeout"] = str(timeout)
    for prefix, fields in ((_AXON, axon), (_DENDRITE, dendrite)):
        headers |= {prefix + k: str(v) for k, v in fields.items() if v is not None}
    headers["header_size"] = str(sum(map(len, headers)))
    headers["total_size"] = str(size)
    if body_hash:
        headers["computed_body_hash"] = str(body_hash)
    cleaned = clean_headers(headers)
    key = _AXON + "status_message"
    if has_body and key in headers and headers[key] != cleaned.get(key):
        del cleaned[key]
    return cleaned


def reply_body(
    synapse: Any, dendrite: Mapping[str, Any], axon: Mapping[str, Any]
) -> bytes:
    """Return the body of an answer: the whole synapse, with these as its terminals.

    Raises:
        TypeError: A value that JSON cannot say.
        ValueError: A value that contains itself.
    """
    held = synapse.dendrite, synapse.axon
    kind = plan_of(type(synapse)).terminal_class
    # For a moment: cheaper than a copy of the synapse.
    set_terminals(synapse, terminal(kind, **dendrite), terminal(kind, **axon))
    try:
        return _to_json(synapse, by_alias=True)
    finally:
        set_terminals(synapse, *held)


def signature_text(hotkey: Any, axon: Mapping[str, Any]) -> bytes:
    """Return what an axon signs where it refuses.

    Args:
        hotkey: Who asked.
        axon: Has ``nonce``, ``hotkey`` and ``uuid``.
    """
    text = f"{axon['nonce']}.{hotkey}.{axon['hotkey']}.{axon['uuid']}"
    return text.encode(errors="replace")


def message_body(message: str) -> bytes:
    """Return the body of an answer that is a refusal."""
    return json.dumps({"message": message}).encode()


# Answers, at the dendrite.


def read_answer(body: bytes) -> Any:
    """Decode the body of an answer; None if it is empty.

    Raises:
        ValueError: Not JSON.
    """
    return json.loads(body) if body.strip() else None


def process_response(response: Any, data: Any, synapse: Any) -> None:
    """Fill a synapse from an answer.

    With status 200 every field is taken from the answer, but for those that refuse to
    be set; otherwise only the status. Then what the headers say of the terminals wins.

    Args:
        response: Has ``status`` and ``headers``.
        data: The body, decoded.
        synapse: What was asked.

    Raises:
        TypeError: The body is no object.
        ValueError: The answer is not one that the synapse's class takes; nothing was
            changed.
    """
    if not isinstance(data, dict):
        raise TypeError(f"the answer is no JSON object but {type(data).__name__}")
    said_of_dendrite, said_of_axon = _terminals_of(response.headers)
    if response.status == 200:
        _fill(synapse, data)
    else:
        message = data.get("message")
        axon = _terminal(synapse, "axon")
        axon["status_code"] = response.status
        axon["status_message"] = message if message is None else str(message)
    dendrite, axon = _terminal(synapse, "dendrite"), _terminal(synapse, "axon")
    dendrite.update(said_of_dendrite)
    axon.update(said_of_axon)
    dendrite["status_code"] = axon.get("status_code")
    dendrite["status_message"] = axon.get("status_message")


def _fill(synapse: Any, data: dict[str, Any]) -> None:
    """Set every field that can be set to what an answer has for it."""
    answer = type(synapse)(**data).__dict__
    values = synapse.__dict__
    # Validated once, as a whole; setting each would do it again, for each.
    for field in _settable(cast("Hashable", type(synapse))):
        if field in answer:
            values[field] = answer[field]
            synapse.__pydantic_fields_set__.add(field)


@lru_cache(maxsize=1024)
def _settable(synapse_class: Any) -> tuple[str, ...]:
    """Return the names of the fields that are not frozen."""
    if synapse_class.model_config.get("frozen"):
        return ()
    fields = synapse_class.model_fields
    return tuple(name for name, field in fields.items() if not field.frozen)


def _terminal(synapse: Any, which: str) -> dict[str, Any]:
    """Return the fields of a terminal, to be changed; it is made if there is none."""
    end = getattr(synapse, which)
    if end is None:
        end = terminal(plan_of(type(synapse)).terminal_class)
        synapse.__dict__[which] = end
    fields: dict[str, Any] = end.__dict__
    return fields


# Both.


def terminal_fields(end: Any) -> dict[str, Any]:
    """Return the fields of a terminal that are not None; empty if there is none."""
    if end is None:
        return {}
    return {k: v for k, v in end.__dict__.items() if v is not None}


def without_private(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return an axon's fields as an answer has them."""
    return {k: v for k, v in fields.items() if k not in _PRIVATE}


def _terminals_of(headers: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what headers say of the dendrite and of the axon."""
    dendrite: dict[str, Any] = {}
    axon: dict[str, Any] = {}
    for name, value in headers.items():
        name = name.lower()
        if name.startswith(_DENDRITE):
            _read(dendrite, name[len(_DENDRITE) :], value)
        elif name.startswith(_AXON):
            _read(axon, name[len(_AXON) :], value)
    return dendrite, axon


def _read(fields: dict[str, Any], field: str, value: str) -> None:
    if field in _INTEGERS:
        fields[field] = int(value)
    elif field == "process_time":
        fields[field] = float(value)
    elif field in _FIELDS:
        if not value.isascii():
            value = _repaired(value)
        fields[field] = value


def _repaired(text: str) -> str:
    """Return text that was Latin-1 on the wire as such; aiohttp reads UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="surrogateescape").decode("latin-1")
    return text


def _integer(text: str | None) -> int | None:
    return None if text is None else int(text)


def clean_headers(headers: Mapping[str, Any]) -> dict[str, str]:
    """Return headers that can be sent: names that are ASCII, values of one line."""
    cleaned = {}
    for name, value in headers.items():
        if not _TOKEN.fullmatch(name):
            continue
        text = str(value)
        if not text.isprintable() or len(text) > MAX_HEADER_TEXT // 4:
            text = _CONTROL.sub(" ", text)
            encoded = text.encode(errors="replace")[:MAX_HEADER_TEXT]
            text = encoded.decode(errors="ignore")
        cleaned[name] = text.strip()
    return cleaned
