"""What a node says about itself: one structure, one JSON.

The daemon keeps a `StatusBoard` up to date with plain assignments; `/status` and the `pyflannel
status` command render it. Shapes may grow, never shrink.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pyflannel


@dataclass(slots=True)
class StatusBoard:
    """The state of the daemon, as an operator asks for it. Written by the daemon's tasks only."""

    phase: str = "starting"
    """One line in words, the same as systemd's STATUS."""
    started: float = field(default_factory=time.time)
    ready_since: float | None = None
    """When `subnet.env` was first written; readiness never goes back."""
    waiting_for: str = ""
    """What is being waited for, empty if nothing."""
    config: Mapping[str, object] | None = None
    """The effective network config under upstream's key names."""
    underlay: Mapping[str, object] | None = None
    lease: Mapping[str, object] | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    """Each file we keep with its state: `written`, or why not."""
    files_restored: int = 0
    """How often one of them was written again because somebody had deleted it."""
    problems: dict[str, str] = field(default_factory=dict)
    """What is wrong right now, by subject; empty on a healthy node."""
    sources: dict[str, Callable[[], object]] = field(default_factory=dict)
    """Sections that are asked for when somebody looks: `network`, `driver`, `etcd`, `rules`."""

    @property
    def ready(self) -> bool:
        """Whether `/readyz` says so."""
        return self.ready_since is not None

    def problem(self, subject: str, text: str) -> None:
        """Records that something is wrong, or with an empty text that it is right again."""
        if text:
            self.problems[subject] = text
        else:
            self.problems.pop(subject, None)

    def as_json(self) -> dict[str, object]:
        """Plain JSON values."""
        report: dict[str, object] = {
            "version": pyflannel.__version__,
            "phase": self.phase,
            "ready": self.ready,
            "started": self.started,
            "ready_since": self.ready_since,
            "uptime_s": round(time.time() - self.started, 3),
            "waiting_for": self.waiting_for,
            "config": self.config,
            "underlay": self.underlay,
            "lease": self.lease,
            "files": dict(self.files),
            "files_restored": self.files_restored,
            "problems": dict(self.problems),
        }
        for name, source in self.sources.items():
            report[name] = source()
        return report
