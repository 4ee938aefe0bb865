"""Makes the calls of `cases`, between any two ends."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.dropin.calls import (  # noqa: F401 - they register themselves
    answers,
    dendrites,
    refusals,
    streams,
    trouble,
)
from tests.dropin.cases import MAKERS, Case, Here
from tests.dropin.faces import Face, free_port, info, make_axon, make_dendrite, start
from tests.dropin.observing import observe
from tests.dropin.stubs import SAYINGS, Stub
from tests.support.identities import signer

RECORDED = Path(__file__).with_name("recorded.json")


@dataclass(frozen=True)
class Pairing:
    """Who asks whom, and over what.

    Attributes:
        dendrite: Whose dendrite and synapses ask.
        axon: Whose axon and synapses answer.
        transport: "http" or "quic".
    """

    dendrite: Face
    axon: Face
    transport: str


@dataclass
class Miner:
    """An axon that has attached all cases, and others to ask."""

    axon: Any
    dead: int
    stubs: dict[str, int]


def cases_of(face: Face) -> dict[str, Case]:
    """Make all cases with the classes of one library."""
    return {name: make(face) for name, make in MAKERS.items()}


@contextlib.contextmanager
def mining(face: Face) -> Iterator[Miner]:
    """Start an axon with all cases, and the peers that are none."""
    with contextlib.ExitStack() as stack:
        # Held, and so nobody else's; TCP refuses, as it does not listen.
        held = stack.enter_context(socket.socket())
        port = free_port()
        held.bind(("127.0.0.1", port))
        stubs = {
            name: stack.enter_context(Stub(saying)).port
            for name, saying in SAYINGS.items()
        }
        axon = make_axon(face)
        for made in cases_of(face).values():
            if made.attach is not None:
                axon.attach(**made.attach)
        start(axon)
        stack.callback(axon.stop)
        yield Miner(axon, port, stubs)


def result(name: str, pairing: Pairing, miner: Miner) -> Any:
    """Make one call; return what the caller sees."""
    made = MAKERS[name](pairing.dendrite)
    face, port = pairing.dendrite, miner.axon.external_port
    here = Here(
        face=face,
        miner=info(face, port),
        dead=info(face, miner.dead),
        nowhere=info(face, port, ip="nowhere.invalid"),
        unserved=info(face, 0, ip="0.0.0.0"),
        other=info(face, port, hotkey=signer(77).ss58_address),
        stub={saying: info(face, at) for saying, at in miner.stubs.items()},
        derived=lambda kind: make_dendrite(face, pairing.transport, kind),
    )
    dendrite = make_dendrite(face, pairing.transport)
    if made.is_plain:
        return observe(made.ask(dendrite, here))

    async def asking() -> Any:
        try:
            return await made.ask(dendrite, here)
        finally:
            await dendrite.aclose_session()

    return observe(asyncio.run(asking()))
