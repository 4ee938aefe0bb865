"""Datagrams to ordered stream bytes and back: QUIC version 1."""
