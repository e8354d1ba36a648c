"""The seam to the firewall: masquerade and forward rules, kept by one of two traffic managers.

Chains and tables have upstream's names, and a node may run several daemons, each with a network of
its own. So what is in them is not ours just because it is in them: ours is a rule that names our
network, or the one that an earlier run of ours had (`subnet.env`). The rest is another daemon's, or
an operator's, and stays; chains and tables go with the last rule.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from pyflannel.core.ip import IPNetwork
from pyflannel.core.rules import RuleSet
from pyflannel.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RulesApplied:
    """What one pass did."""

    changed: bool = False
    """Whether anything was written."""
    repaired: bool = False
    """Whether what was written had been there before and was removed by another program."""


class TrafficManager(Protocol):
    """Keeps an abstract rule list in the kernel through iptables or nftables.

    One task owns it; no two methods run at once.
    """

    async def ensure(self, rules: RuleSet, *, previous: RuleSet | None = None) -> RulesApplied:
        """Makes the firewall hold exactly these rules; atomic per table, and only on difference.

        Args:
            rules: what must be there; empty parts are removed.
            previous: what an earlier run (of ours or upstream's) left: its rules go.

        Raises:
            FlannelError: naming the binary or rule that failed, and the way out.
        """
        ...

    async def changed(self) -> bool:
        """Waits until the rules should be looked at again.

        Returns:
            `True` if another program changed them, `False` if it is just time.
        """
        ...

    def close(self) -> None:
        """Stops listening for changes; the rules stay."""
        ...

    async def leftovers(self, ours: Collection[IPNetwork] | None = None) -> list[str]:
        """What `remove` would remove, in words; empty if there is nothing of ours."""
        ...

    async def remove(
        self, *, but: RuleSet | None = None, ours: Collection[IPNetwork] | None = None
    ) -> None:
        """Removes rules and chains of ours in this manager, best-effort.

        Args:
            ours: the networks by which rules are recognised; `None` takes all of flannel's, for
                a node on which no daemon runs any more.
            but: without it this is for the manager that is not in use. With it, for the one that
                is: parts of an earlier run go which these rules do not have. `ensure` does not
                look for those, because looking costs a process each, before the node is ready.
        """
        ...
