"""How far a start has come. What is not needed to be ready waits its turn here."""

from __future__ import annotations

import asyncio
from dataclasses import field
from typing import Final

from pyflannel.records import dataclass

PROGRAM_FIRST_S: Final = 1.0
"""Deferred work (imports, the status server, cleaning up after the other traffic manager) starts
when the first leases are programmed, at the latest after this; run earlier it halves that speed."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a start has come, for work that waits its turn."""

    started: asyncio.Event = field(default_factory=asyncio.Event)
    """The node is up: lease, devices, rules, files."""
    programmed: asyncio.Event = field(default_factory=asyncio.Event)
    """The first leases are programmed, or that has taken too long."""
