"""SIGTERM as a wish to stop, for as long as a server is served for ever."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

__all__ = ["on_sigterm", "on_sigterm_in"]

# Whoever is served now: with several servers, one signal is for all of them.
_wishes: list[Callable[[], object]] = []


def _notify(*_: Any) -> None:
    for wish in _wishes:
        wish()


def _is_free() -> bool:
    """Say if SIGTERM would end the process, and may be handled here."""
    return (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )


@contextlib.contextmanager
def on_sigterm(wish: Callable[[], object]) -> Iterator[None]:
    """Have a function called at each SIGTERM, if nobody else handles it.

    It is called between two lines of the main thread, so it must not block. Does
    nothing in other threads.
    """
    if not _is_free():
        yield
        return
    _wishes.append(wish)
    signal.signal(signal.SIGTERM, _notify)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _wishes.remove(wish)


@contextlib.contextmanager
def on_sigterm_in(
    loop: asyncio.AbstractEventLoop, wish: Callable[[], object]
) -> Iterator[None]:
    """Do as `on_sigterm`, with calls by an event loop, which several may share."""
    installs = _is_free()
    if installs:
        try:
            loop.add_signal_handler(signal.SIGTERM, _notify)
        except (NotImplementedError, RuntimeError, ValueError):
            # Some loops, and some systems, have no such thing.
            yield
            return
        _loops.append(loop)
    elif loop not in _loops:
        yield
        return
    _wishes.append(wish)
    try:
        yield
    finally:
        _wishes.remove(wish)
        if not _wishes:
            _loops.remove(loop)
            loop.remove_signal_handler(signal.SIGTERM)


# The event loop that has the signal, if one has.
_loops: list[asyncio.AbstractEventLoop] = []
