"""Persistent authenticated QUIC between Bittensor validators and miners."""
