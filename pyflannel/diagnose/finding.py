"""What a check found, and the codes of all that checks can find."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pyflannel.report.model import Problem, Severity

NO_DAEMON: Final = "PF201"
FORWARDING_OFF: Final = "PF202"
FORWARD_POLICY: Final = "PF203"
OVERLAY_DROPPED: Final = "PF204"
UNDERLAY_DROPPED: Final = "PF205"
DEVICE: Final = "PF206"
BRIDGE: Final = "PF207"
MODULE: Final = "PF208"
OTHER_AGENT: Final = "PF209"
NO_LEASE: Final = "PF210"
NOT_SEEN: Final = "PF299"

CODES: Final = {
    NO_DAEMON: "no pyflanneld answers on this node",
    FORWARDING_OFF: "the kernel does not forward IPv4 packets",
    FORWARD_POLICY: "a forward chain's policy drops overlay packets, and no rule accepts them",
    OVERLAY_DROPPED: "a firewall rule drops overlay packets, or may",
    UNDERLAY_DROPPED: "a firewall rule drops packets between the nodes' daemons, or may",
    DEVICE: "the overlay's device is missing or down",
    BRIDGE: "docker0 is in another subnet than the leased one",
    MODULE: "the kernel has no module for the backend",
    OTHER_AGENT: "another network agent works on this node",
    NO_LEASE: "this node has no lease",
    NOT_SEEN: "something could not be looked at",
}
"""Every code of the doctor, with what it means in a phrase."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong, or may be. Severity `info` is no fault by itself."""

    code: str
    """`PF2…` of `CODES`, or a problem's that the daemon itself reports (`report.problems`)."""
    severity: Severity
    subject: str
    text: str
    """What is so."""
    evidence: tuple[str, ...] = ()
    """What it was seen by: a sysctl, a rule with its chain, a device."""
    consequence: str = ""
    remedy: str = ""


def of_problem(problem: Problem) -> Finding:
    """What the daemon says of itself, as a finding."""
    return Finding(
        code=problem.code,
        severity=problem.severity,
        subject=problem.subject,
        text=problem.text,
        evidence=("pyflannel status",),
        remedy=problem.remedy,
    )
