"""Stream bytes to messages and back: frames, msgpack, the six messages, exchanges."""
