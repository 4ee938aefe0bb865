"""The key log: TLS secrets for programs that decrypt captures.

Whoever has the file reads everything that was said. It is opened for each line, so that
no descriptor is held and a file that was moved away is begun anew.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from lightning.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["KeyLog"]

log = logging.getLogger("lightning.keylog")

# Without O_NONBLOCK a pipe that nobody reads would hold us up.
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK


class KeyLog:
    """Appends lines in NSS's key log format to a file.

    Args:
        path: The file; created for its owner alone.
        also: Called with each line, too.

    Raises:
        ConfigError: It cannot be opened for writing.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        also: Callable[[str], object] | None = None,
    ) -> None:
        self._path: str | None = os.path.abspath(path)
        self._also = also
        try:
            os.close(os.open(self._path, _FLAGS, 0o600))
        except OSError as error:
            raise ConfigError(f"keylog_file cannot be written: {error}") from error

    def __call__(self, line: str) -> None:
        """Append a line. The first failure is logged and ends the log."""
        if self._also is not None:
            self._also(line)
        if self._path is None:
            return
        try:
            descriptor = os.open(self._path, _FLAGS, 0o600)
            try:
                # One call a line: other threads' and processes' lines stay whole.
                os.write(descriptor, line.encode() + b"\n")
            finally:
                os.close(descriptor)
        except OSError as error:
            log.warning("the key log ends here: %s", error)
            self._path = None
