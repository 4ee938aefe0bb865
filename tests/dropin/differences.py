"""What is meant to differ from bittensor: each is a row of the table in docs/migrate.md."""

from dataclasses import dataclass
from typing import Any

from tests.dropin.observing import matches
from tests.dropin.running import Pairing

BOTH = ("http", "quic")
OUTCOME = (
    "*dendrite.status_code",
    "*dendrite.status_message",
    "*axon.status_code",
    "*axon.status_message",
    "*.process_time",
    "*is_success",
    "*is_failure",
)
STATUS = ("dendrite.status_code", "dendrite.status_message", "is_*")


@dataclass(frozen=True)
class Difference:
    """Something that a caller sees, and bittensor's does not see or otherwise.

    Attributes:
        row: The first cell of its row.
        cases: Calls that show it, as patterns.
        paths: What is different of the result, as patterns.
        end: Which end has to be ours: "dendrite" or "axon".
        over: What the call must be made over.
        is_certain: Whether two ends of ours always show it; else it takes one of
            bittensor's, or which of two timers is first.
    """

    row: str
    cases: tuple[str, ...]
    paths: tuple[str, ...]
    end: str
    over: tuple[str, ...] = BOTH
    is_certain: bool = True

    def explains(self, name: str, pairing: Pairing, path: str) -> bool:
        """Tell whether it is why something differs."""
        return (
            (pairing.dendrite if self.end == "dendrite" else pairing.axon).is_ours
            and pairing.transport in self.over
            and matches(name, self.cases)
            and matches(path, self.paths)
        )


DIFFERENCES = (
    Difference(
        "A request over QUIC is not signed",
        ("*",),
        ("*dendrite.signature",),
        "dendrite",
        ("quic",),
    ),
    Difference(
        "A miner that does not serve is not asked",
        ("nobody_serves",),
        ("dendrite.signature",),
        "dendrite",
        ("http",),
    ),
    Difference(
        "What a refusal says of both ends",
        ("*",),
        (
            "*axon.version",
            "*axon.nonce",
            "*axon.uuid",
            "*axon.signature",
            "*dendrite.ip",
            "*dendrite.port",
        ),
        "axon",
    ),
    Difference(
        "A synapse of another class is returned",
        ("another_class_returned", "frozen_fields"),
        ("axon.*", "dendrite.*", "timeout"),
        "axon",
        ("quic",),
    ),
    Difference(
        "What is asked before the forward function",
        ("blacklist_sees",),
        ("fields.seen.text",),
        "axon",
    ),
    Difference(
        "Required fields with constraints",
        ("required_and_constrained",),
        (*OUTCOME, "fields.number"),
        "axon",
    ),
    Difference(
        "Where the sender is",
        ("forward_sees",),
        ("fields.seen.ip", "fields.seen.has port"),
        "axon",
    ),
    Difference(
        "Texts of statuses",
        ("forward_sets_any_message",),
        (*OUTCOME, "fields.text"),
        "axon",
    ),
    Difference(
        "Texts of statuses",
        ("blacklisted_by_a_coroutine",),
        ("*.status_message",),
        "axon",
    ),
    Difference(
        "Texts of statuses",
        ("blacklisted_by_a_coroutine",),
        ("*.status_message",),
        "dendrite",
        ("http",),
    ),
    Difference(
        "Pages of gateways",
        # What bittensor's axon says when its answer's headers cannot be written.
        ("forward_sets_any_message",),
        STATUS,
        "dendrite",
        ("http",),
        is_certain=False,
    ),
    Difference(
        "A stream that fails",
        ("stream_that_fails_*",),
        (*OUTCOME, "last.fields.completion", "texts", "kinds*"),
        "axon",
    ),
    Difference(
        "Leaving a stream early",
        ("stream_that_is_left",),
        ("left", "left.raised"),
        "dendrite",
    ),
    Difference(
        "Names and connections that fail",
        ("nobody_knows_the_name", "a_peer_that_says_resets"),
        STATUS,
        "dendrite",
    ),
    Difference(
        "Pages of gateways",
        ("a_peer_that_says_a_gateways_page", "a_peer_that_says_a_limiters_page"),
        STATUS,
        "dendrite",
        ("http",),
    ),
    Difference(
        "A miner that is somebody else",
        ("wrong_hotkey",),
        ("dendrite.*", "axon.*", "is_*", "failed_verification"),
        "dendrite",
        ("quic",),
    ),
    Difference(
        "Bytes, dates and the like",
        ("no_json",),
        (*OUTCOME, "fields.raw"),
        "axon",
        ("quic",),
    ),
    Difference(
        "What does not validate",
        ("answer_does_not_validate",),
        ("dendrite.status_message",),
        "dendrite",
        ("quic",),
    ),
    Difference(
        "A call whose time is over",
        ("too_slow",),
        ("axon.*", "dendrite.process_time", "dendrite.status_message"),
        "axon",
        ("quic",),
        is_certain=False,
    ),
    Difference(
        "One dendrite, many loops and threads",
        ("after_aquery", "several_loops"),
        ("1", "2"),
        "dendrite",
    ),
    Difference(
        "One dendrite, many loops and threads",
        ("query_inside_a_loop",),
        ("raised", "status"),
        "dendrite",
    ),
    Difference(
        "What `axons` may be",
        ("not_an_axon",),
        ("0.*", "1.raised"),
        "dendrite",
    ),
    Difference(
        "`timeout=None`",
        ("timeouts",),
        ("none.*",),
        "dendrite",
    ),
    Difference(
        "The history of a dendrite",
        ("history",),
        ("codes.*",),
        "dendrite",
    ),
)


def unexplained(
    name: str, pairing: Pairing, found: dict[str, tuple[Any, Any]]
) -> dict[str, tuple[Any, Any]]:
    """Return what differs though no row says so."""
    return {
        path: values
        for path, values in found.items()
        if not any(each.explains(name, pairing, path) for each in DIFFERENCES)
    }
