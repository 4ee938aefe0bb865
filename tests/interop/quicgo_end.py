"""quic-go as the other end: a process that is told what to do (quicgo/main.go)."""

import itertools
import json
import subprocess
import threading
from concurrent.futures import Future
from typing import Any

from tests.interop.ours import Address


class OtherEndError(Exception):
    """The other end could not do as told; `end` says how its connection ended."""

    def __init__(self, text: str, end: dict | None = None):
        super().__init__(text)
        self.end = end


class QuicGo:
    """One process, client and server; every verb gives a future."""

    name = "quic-go"

    def __init__(self, program: str):
        self._process = subprocess.Popen(
            [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Future] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _tell(self, verb: str, **fields: Any) -> Future:
        number = next(self._numbers)
        self._waiting[number] = future = Future()
        line = json.dumps({"id": number, "do": verb, **fields})
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return future

    def _read(self) -> None:
        for line in self._process.stdout:
            found = json.loads(line)
            future = self._waiting.pop(found.pop("id"))
            if "error" in found:
                future.set_exception(OtherEndError(found["error"], found["end"]))
            else:
                future.set_result(found)
        for future in self._waiting.values():
            future.set_exception(OtherEndError("the process has ended"))

    def listen(self, address: Address = ("127.0.0.1", 0), **how: Any) -> Address:
        host, port = address
        found = self._tell("listen", address=f"{host}:{port}", **how).result(30)
        return host, found["port"]

    def accept(self) -> Future:
        return self._tell("accept")

    def dial(self, address: Address, **how: Any) -> Future:
        how.pop("token", None)
        return self._tell("dial", address="{}:{}".format(*address), **how)

    def echo(self, connection: dict, size: int, count: int = 1) -> Future:
        return self._tell("echo", conn=connection["conn"], size=size, count=count)

    def state(self, connection: dict) -> Future:
        return self._tell("state", conn=connection["conn"])

    def token(self, connection: dict) -> Future:
        """Wait until the token of a connection is there; the program keeps it."""
        return self._tell("token", conn=connection["conn"])

    def migrate(self, connection: dict, cid: int) -> Future:
        return self._tell("migrate", conn=connection["conn"], cid=cid)

    def close(self, connection: dict, code: int = 0, reason: str = "") -> Future:
        return self._tell("close", conn=connection["conn"], code=code, reason=reason)

    def ended(self, connection: dict) -> Future:
        return self._tell("ended", conn=connection["conn"])

    def vanish(self) -> None:
        """Stop without a word to the peers."""
        self._process.kill()
        self._process.wait(10)
        self._reader.join(10)
        self._process.stdin.close()
        self._process.stdout.close()
