"""Moves datagrams between sockets and connections."""
