"""The processes of the contenders: all alive, and stopped but for the one whose turn it is.

A stopped process uses no processor time, whatever it does when idle, and its timers wait
with it. Linux only: memory is read from ``/proc``.
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.compare.contenders import ROOT, Contender

START_TIMEOUT = 60
ANSWER_TIMEOUT = 300


class End:
    """A process that plays one end, or both.

    Args:
        contender: Who.
        role: "server", "client" or "both".
        port: Where the server is.
    """

    def __init__(self, contender: Contender, role: str, port: int) -> None:
        self.name = f"{contender.name}, {role}"
        self._process = subprocess.Popen(
            contender.command(role, port),
            cwd=ROOT,
            env={**os.environ, **contender.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait_ready(self) -> None:
        """Return when it has started."""
        if self._line(START_TIMEOUT) != "ready":
            raise RuntimeError(f"{self.name}: did not start")

    def _line(self, timeout: float) -> str:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            raise RuntimeError(f"{self.name}: no answer in {timeout:g} s")
        return self._process.stdout.readline().strip()

    def ask(self, **operation: object) -> dict[str, Any]:
        """Have it do something; return what it measured."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(operation) + "\n")
            self._process.stdin.flush()
        line = self._line(ANSWER_TIMEOUT)
        if not line:
            raise RuntimeError(f"{self.name}: is gone; it was to do {operation}")
        while line and not line.startswith("{"):
            # A contender's own log.
            print(f"{self.name}: {line}", file=sys.stderr)
            line = self._process.stdout.readline().strip()
        try:
            return json.loads(line)
        except ValueError:
            raise RuntimeError(f"{self.name}: answered {line!r}") from None

    def forget_peak(self) -> None:
        """Have the peak of memory begin anew (proc(5), ``clear_refs``)."""
        self._proc("clear_refs").write_text("5")

    def peak(self) -> int:
        """Return the most memory that was resident, in KiB, since it was forgotten."""
        for line in self._proc("status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
        raise RuntimeError(f"{self.name}: its memory is not told")

    def _proc(self, name: str) -> Path:
        return Path(f"/proc/{self._process.pid}/{name}")

    def freeze(self) -> None:
        """Stop it until its next turn."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it."""
        self.thaw()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


class Ends:
    """One contender's client and server; they may be one process.

    Args:
        contender: Who.
        layout: "one process" or "two processes".
        server_port: Where the server listens.
        client_port: Where the client sends to; a relay's, say.

    Attributes:
        failure: Why they are gone before their time.
    """

    def __init__(
        self,
        contender: Contender,
        layout: str,
        server_port: int | None = None,
        client_port: int | None = None,
    ) -> None:
        port = server_port or free_port()
        self.contender = contender
        self.failure: str | None = None
        self._started: list[End] = []
        try:
            if layout == "one process":
                self.client = self.server = self._start("both", port)
            else:
                self.server = self._start("server", port)
                self.client = self._start("client", client_port or port)
        except BaseException:
            self.stop()
            raise

    def _start(self, role: str, port: int) -> End:
        end = End(self.contender, role, port)
        self._started.append(end)
        end.wait_ready()
        return end

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Let both go on for a while."""
        for end in self._started:
            end.thaw()
        try:
            yield
        finally:
            self.freeze()

    def freeze(self) -> None:
        """Stop both until their next turn."""
        for end in self._started:
            end.freeze()

    def fail(self, error: RuntimeError) -> None:
        """End both, and go on without them."""
        self.failure = str(error)
        print(f"{self.failure}: goes on without", file=sys.stderr)
        self.stop()

    def stop(self) -> None:
        """End both, the client first."""
        for end in reversed(self._started):
            end.stop()


@contextlib.contextmanager
def all_ends(contenders: Sequence[Contender], layout: str) -> Iterator[list[Ends]]:
    """Start everybody's ends, stopped until their turn."""
    started = []
    try:
        for contender in contenders:
            ends = Ends(contender, layout)
            started.append(ends)
            ends.freeze()
        yield started
    finally:
        for ends in started:
            ends.stop()


def free_port() -> int:
    """Return a port that is free, of UDP and of TCP."""
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.bind(("127.0.0.1", 0))
            port = udp.getsockname()[1]
            with socket.socket() as tcp, contextlib.suppress(OSError):
                tcp.bind(("127.0.0.1", port))
                return port
