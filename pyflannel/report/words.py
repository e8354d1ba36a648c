"""Times and durations in words, for people."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

_DAY_S: Final = 86_400


def clock_time(at: float, now: float) -> str:
    """A time as a clock on this machine shows it: `14:05:09`, with the date unless it is today's.

    Args:
        at: seconds since the epoch.
        now: the same, to tell what day it is.
    """
    there, here = _local(at), _local(now)
    return there.strftime("%H:%M:%S" if there.date() == here.date() else "%Y-%m-%d %H:%M:%S")


def _local(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC).astimezone()


def duration(seconds: float) -> str:
    """A stretch of time with its two largest units: `42 s`, `3 min 5 s`, `23 h 59 min`, `2 d 1 h`.

    Less than a second is `0 s`; a negative one counts as none.
    """
    whole = max(0, int(seconds))
    units = ((_DAY_S, "d"), (3600, "h"), (60, "min"), (1, "s"))
    for position, (size, name) in enumerate(units):
        if whole >= size or size == 1:
            count, rest = divmod(whole, size)
            text = f"{count} {name}"
            if position + 1 < len(units):
                smaller, smaller_name = units[position + 1]
                if rest // smaller:
                    text += f" {rest // smaller} {smaller_name}"
            return text
    raise AssertionError("the last unit takes everything")


def left(until: float, now: float) -> str:
    """How long it is until a time: `in 23 h 59 min`, or `3 min 5 s ago`."""
    return f"in {duration(until - now)}" if until > now else f"{duration(now - until)} ago"


def since(start: float | None, now: float) -> str:
    """Since when something is so: `since 14:05:09 (3 min 5 s)`; empty if that is not known."""
    if start is None:
        return ""
    return f"since {clock_time(start, now)} ({duration(now - start)})"
