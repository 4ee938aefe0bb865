"""Cuts an input into numbers and pieces; past its end everything is zero or empty."""


class Cutter:
    """Reads an input from its start."""

    def __init__(self, data):
        self._data = data
        self._pos = 0

    def __bool__(self):
        return self._pos < len(self._data)

    def byte(self):
        """Take a number from 0 to 255."""
        return self.number(1)

    def number(self, size):
        """Take a number of that many bytes."""
        return int.from_bytes(self.take(size))

    def take(self, size):
        """Take up to `size` bytes."""
        piece = self._data[self._pos : self._pos + size]
        self._pos += size
        return piece

    def rest(self):
        """Take all that is left."""
        return self.take(len(self._data))
