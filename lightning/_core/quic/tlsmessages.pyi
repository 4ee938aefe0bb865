from types import TracebackType
from typing import final

from aioquic._buffer import Buffer
from aioquic.tls import (
    Certificate,
    CertificateVerify,
    ClientHello,
    EncryptedExtensions,
    Finished,
    ServerHello,
)

from lightning._core.quic.keyschedule import KeySchedule, Offer

__all__ = [
    "Hashing",
    "pull_certificate",
    "pull_certificate_verify",
    "pull_client_hello",
    "pull_encrypted_extensions",
    "pull_finished",
    "pull_server_hello",
    "push_certificate",
    "push_certificate_verify",
    "push_client_hello",
    "push_encrypted_extensions",
    "push_finished",
    "push_server_hello",
]

def pull_client_hello(buf: Buffer) -> ClientHello: ...
def pull_server_hello(buf: Buffer) -> ServerHello: ...
def pull_encrypted_extensions(buf: Buffer) -> EncryptedExtensions: ...
def pull_certificate(buf: Buffer) -> Certificate: ...
def pull_certificate_verify(buf: Buffer) -> CertificateVerify: ...
def pull_finished(buf: Buffer) -> Finished: ...
def push_client_hello(buf: Buffer, hello: ClientHello) -> None: ...
def push_server_hello(buf: Buffer, hello: ServerHello) -> None: ...
def push_encrypted_extensions(buf: Buffer, extensions: EncryptedExtensions) -> None: ...
def push_certificate(buf: Buffer, certificate: Certificate) -> None: ...
def push_certificate_verify(buf: Buffer, verify: CertificateVerify) -> None: ...
def push_finished(buf: Buffer, finished: Finished) -> None: ...

@final
class Hashing:
    def __init__(self, key_schedule: KeySchedule | Offer, buf: Buffer) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
