"""Numbers as people write them."""


def size_name(size: int | None) -> str:
    """Write a size as people do."""
    if size is None:
        return ""
    if size % 1048576 == 0:
        return f"{size // 1048576} MiB"
    return f"{size // 1024} KiB" if size % 1024 == 0 else f"{size} B"


def duration(microseconds: float) -> str:
    """Write a time with three digits or so."""
    if microseconds < 1000:
        return f"{microseconds:.0f} µs"
    return f"{microseconds / 1000:.{1 if microseconds >= 10_000 else 2}f} ms"


def round_duration(microseconds: float) -> str:
    """Write a time that has few digits."""
    if microseconds < 1000:
        return f"{microseconds:g} µs"
    return f"{microseconds / 1000:g} ms"


def thousands(number: float) -> str:
    """Write a large number."""
    return f"{number:,.0f}"
