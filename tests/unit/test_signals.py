"""SIGTERM stops a server that is served for ever, in processes of their own."""

import asyncio
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lightning import signals
from lightning.signals import on_sigterm, on_sigterm_in

ROOT = Path(__file__).parents[2]

PRELUDE = """
import asyncio, signal, sys, threading, time
from lightning import *
from tests.support.identities import *

begun = threading.Event()
def slow(data):
    begun.set()
    time.sleep(data["s"])
    return {"slow": True}

def ask(address, seconds):
    answers = []
    def run():
        with Lightning(VALIDATOR_HOTKEY, signer=VALIDATOR) as client:
            axon = QuicAxonInfo(MINER_HOTKEY, *address)
            client.initialize_connections([axon])
            request = {"synapse_type": "slow", "data": {"s": seconds}}
            try:
                answers.append(client.query_axon(axon, request, 20)["data"])
            except ConnectionError as error:
                answers.append(type(error).__name__)
    thread = threading.Thread(target=run)
    thread.start()
    return thread, answers

def announce():
    begun.wait(20)
    print("begun", flush=True)

threading.Thread(target=announce, daemon=True).start()
def check():
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "restored"
"""

BLOCKING = """
server = LightningServer(MINER_HOTKEY, "127.0.0.1", 0, signer=MINER)
server.register_synapse_handler("slow", slow)
server.start()
thread, answers = ask(server.local_addr(), SECONDS)
server.serve_forever(drain=DRAIN)
assert not server.is_started
check()
thread.join(10)
print(answers, flush=True)
"""

ASYNC = """
async def main():
    server = AsyncLightningServer(MINER_HOTKEY, "127.0.0.1", 0, signer=MINER)
    server.register_synapse_handler("slow", slow)
    other = AsyncLightningServer(MINER_HOTKEY, "127.0.0.1", 0, signer=MINER)
    async with server, other:
        thread, answers = ask(server.local_addr(), SECONDS)
        await asyncio.gather(
            server.serve_forever(drain=DRAIN), other.serve_forever(drain=DRAIN)
        )
        assert not server.is_started and not other.is_started
        check()
    await asyncio.to_thread(thread.join, 10)
    print(answers, flush=True)

asyncio.run(main())
"""


def run(code: str, *signals: int) -> tuple[int, str, str, float]:
    """Run code, and send signals once it has printed a line.

    Returns:
        Exit code, output, errors, and the seconds from the first signal to the end.
    """
    with subprocess.Popen(
        [sys.executable, "-X", "dev", "-c", PRELUDE + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        try:
            assert process.stdout.readline() == "begun\n", process.stderr.read()
            began = time.monotonic()
            for number in signals:
                process.send_signal(number)
                threading.Event().wait(0.3)
            out, errors = process.communicate(timeout=30)
            return process.returncode, out, errors, time.monotonic() - began
        finally:
            process.kill()


@pytest.mark.parametrize("code", [BLOCKING, ASYNC], ids=["blocking", "asyncio"])
def test_sigterm_lets_a_running_handler_finish_and_answer(code):
    code = code.replace("SECONDS", "1").replace("DRAIN", "10")
    status, out, errors, took = run(code, signal.SIGTERM)
    assert (status, out, errors) == (0, "[{'slow': True}]\n", "")
    assert took < 8


@pytest.mark.parametrize("code", [BLOCKING, ASYNC], ids=["blocking", "asyncio"])
def test_a_second_sigterm_cuts_it_short(code):
    code = code.replace("SECONDS", "5").replace("DRAIN", "30")
    status, out, errors, took = run(code, signal.SIGTERM, signal.SIGTERM)
    assert (status, out, errors) == (0, "['ConnectionClosed']\n", "")
    assert took < 15


def test_ctrl_c_still_ends_it():
    code = BLOCKING.replace("SECONDS", "0").replace("DRAIN", "1")
    code = code.replace("server.serve", "try: server.serve", 1).replace(
        "assert not server.is_started",
        "except KeyboardInterrupt: server.stop()\nassert not server.is_started",
    )
    status, out, errors, _ = run(code, signal.SIGINT)
    assert (status, out, errors) == (0, "[{'slow': True}]\n", "")


def test_whoever_handles_it_already_goes_on(monkeypatch):
    def handler(*args: object) -> None: ...

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with on_sigterm(lambda: None):
            assert signal.getsignal(signal.SIGTERM) is handler

        async def main() -> None:
            with on_sigterm_in(asyncio.get_running_loop(), lambda: None):
                assert signal.getsignal(signal.SIGTERM) is handler

        asyncio.run(main())
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not signals._wishes
    assert not signals._loops


def test_other_threads_leave_it_alone():
    def enter() -> None:
        with on_sigterm(lambda: None):
            seen.append(signal.getsignal(signal.SIGTERM))

    seen: list[object] = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join(10)
    assert seen == [signal.SIG_DFL]


async def test_a_loop_that_cannot_is_left_alone(monkeypatch):
    class Loop:
        def add_signal_handler(self, *args: object) -> None:
            raise NotImplementedError

    with on_sigterm_in(Loop(), lambda: None):
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert not signals._wishes
