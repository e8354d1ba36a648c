"""Forward and masquerade rules as values, one list for both traffic managers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSet:
    """All rules this node should have."""
