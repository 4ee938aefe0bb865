"""Peers that are no axon: what they say to whoever connects."""

import contextlib
import socket
import struct
import threading
from typing import Self

_RESET = struct.pack("ii", 1, 0)


def _http(status: str, body: bytes, kind: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\nConnection: close\r\n\r\n" + body


# None resets the connection; b"" closes it; "silent" says nothing until it is stopped.
SAYINGS: dict[str, bytes | str | None] = {
    "html": _http("200 OK", b"<html>it works</html>", "text/html"),
    "a gateway's page": _http("502 Bad Gateway", b"<html>bad</html>", "text/html"),
    "a limiter's page": _http("429 Too Many Requests", b"<html>no</html>", "text/html"),
    "no JSON": _http("200 OK", b"{nearly"),
    "a list": _http("200 OK", b"[1, 2]"),
    "an empty object": _http("200 OK", b"{}"),
    "an error with a message": _http("418 Teapot", b'{"message": "short and stout"}'),
    "an error without message": _http("418 Teapot", b"{}"),
    "half an answer": _http("200 OK", b'{"text": "x"}')[:-5],
    "not HTTP": b"SSH-2.0-OpenSSH_9.2p1\r\n",
    "closes": b"",
    "resets": None,
    "is silent": "silent",
}


class Stub:
    """A TCP server that reads a request and says always the same."""

    def __init__(self, saying: bytes | str | None) -> None:
        self._saying = saying
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._held: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._socket.getsockname()[1]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)
        for held in self._held:
            held.close()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._socket.accept()
            except OSError:
                return
            self._held.append(peer)
            if self._saying == "silent":
                continue
            with contextlib.suppress(OSError):
                self._answer(peer)

    def _answer(self, peer: socket.socket) -> None:
        peer.settimeout(5)
        request = b""
        while b"\r\n\r\n" not in request:
            more = peer.recv(65536)
            if not more:
                return
            request += more
        head, _, body = request.partition(b"\r\n\r\n")
        length = next(
            int(line.partition(b":")[2])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length:")
        )
        while len(body) < length:
            body += peer.recv(65536)
        if self._saying is None:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        else:
            peer.sendall(self._saying)
        peer.close()
