"""Looking inside of clients and servers: what is alive, what is still in flight."""

from collections.abc import Iterator

from lightning import AsyncLightning, AsyncLightningServer, Lightning, LightningServer
from lightning._core.io.transport import Connection

Face = AsyncLightning | AsyncLightningServer | Lightning | LightningServer


def connections(*faces: Face) -> Iterator[Connection]:
    """Yield every connection that is not closed."""
    for face in faces:
        if isinstance(face, Lightning):
            face = face._client
        elif isinstance(face, LightningServer):
            face = face._server
        if isinstance(face, AsyncLightning):
            found = {session.connection for session in face._sessions.values()}
        else:
            endpoint = face._endpoint
            found = set() if endpoint is None else set(endpoint.connections.values())
        yield from (connection for connection in found if connection.is_alive)


def in_flight(*faces: Face) -> int:
    """Return how many exchanges their connections know."""
    return sum(connection.under_way for connection in connections(*faces))
