"""The rules in iptables: upstream's chains, comments and order; each recognises the other's.

Three chains of our own hold the rules, one jump each leads there; the last is not upstream's:

| table | chain | jump from | comment |
|---|---|---|---|
| nat | FLANNEL-POSTRTG | POSTROUTING | `flanneld masq` |
| filter | FLANNEL-FWD | FORWARD | `flanneld forward` |
| raw | FLANNEL-GUARD | PREROUTING | `flanneld guard` |

The present state is read with `iptables-save` of the one table; if it differs, the chain is
rewritten and a missing jump appended in one `iptables-restore --noflush`, which replaces a
table's rules in one step. A jump that is there stays where it is: it is appended, never moved to
the front, so rules that an operator placed before it keep winning.

Where the chain holds rules that are not ours (see `traffic.base`) it is not rewritten: our rules
are taken out of it, one by one, and appended, in the same single step. The rule about the mark
names no network; it is the same for every daemon, and there once. A second jump does no harm then
and stays: two daemons that both remove the surplus would remove both.

Between two looks nothing is spawned. With the nft flavour of iptables the kernel announces changes
(`traffic.monitor`); with the legacy one the size of the table is asked for through getsockopt(2);
a full look is taken every few minutes in any case, so that it costs one child process per minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shlex
from collections.abc import Collection
from itertools import pairwise
from typing import Final

from pyflannel.core.errors import CommandError, FlannelError
from pyflannel.core.ip import Family, IPNetwork
from pyflannel.core.rules import KUBE_PROXY_MARK, Action, FamilyRules, Rule, RuleSet
from pyflannel.kernel import firewall, process
from pyflannel.logs import get_logger
from pyflannel.records import dataclass
from pyflannel.traffic.base import RulesApplied
from pyflannel.traffic.monitor import ChangeMonitor

log = get_logger(__name__)

DEADLINE_S: Final = 10.0
"""For one iptables command; with --wait it may stand behind another holder of the xtables lock."""
BINARY: Final = {Family.V4: "iptables", Family.V6: "ip6tables"}
FULLY_RANDOM_SINCE: Final = (1, 6, 2)
RESTORE_WAIT_SINCE: Final = (1, 6, 2)


@dataclass(frozen=True, slots=True)
class Chain:
    """One chain of ours, with the built-in chain that leads to it."""

    table: str
    name: str
    parent: str
    comment: str
    match: str = ""
    """What the jump asks first, so that other packets cost no more than this; ends with a space."""

    @property
    def jump(self) -> str:
        """The rule in the parent chain, as `iptables-save` prints it."""
        return f'-A {self.parent} {self.match}-m comment --comment "{self.comment}" -j {self.name}'


MASQUERADE: Final = Chain("nat", "FLANNEL-POSTRTG", "POSTROUTING", "flanneld masq")
FORWARD: Final = Chain("filter", "FLANNEL-FWD", "FORWARD", "flanneld forward")
GUARD: Final = Chain("raw", "FLANNEL-GUARD", "PREROUTING", "flanneld guard", "-p udp ")
CHAINS: Final = (MASQUERADE, FORWARD, GUARD)


def rules_of(part: FamilyRules, chain: Chain) -> tuple[Rule, ...]:
    """The rules that belong into a chain."""
    return {MASQUERADE: part.masquerade, FORWARD: part.forward, GUARD: part.guard}[chain]


@dataclass(frozen=True, slots=True)
class Flavour:
    """What the installed iptables can do."""

    version: tuple[int, int, int]
    nft: bool

    @property
    def fully_random(self) -> bool:
        """Whether MASQUERADE knows --random-fully."""
        return self.version >= FULLY_RANDOM_SINCE

    @property
    def restore_wait(self) -> tuple[str, ...]:
        """The option with which `iptables-restore` waits for the lock."""
        return ("--wait",) if self.version >= RESTORE_WAIT_SINCE else ()


def parse_version(text: str) -> Flavour:
    """Reads `iptables v1.8.9 (nf_tables)`; an unreadable answer counts as a very old one."""
    match = re.search(r"v(\d+)\.(\d+)\.(\d+)", text)
    version = (int(match[1]), int(match[2]), int(match[3])) if match else (0, 0, 0)
    return Flavour(version, "nf_tables" in text)


def render(rule: Rule, chain: Chain, *, fully_random: bool) -> str:
    """One rule as `iptables-save` prints it, which `iptables-restore` reads."""
    parts = [f"-A {chain.name}"]
    if rule.source is not None:
        parts.append(f"{'! ' if rule.source_is_not else ''}-s {rule.source}")
    if rule.destination is not None:
        parts.append(f"{'! ' if rule.destination_is_not else ''}-d {rule.destination}")
    if rule.mark is not None:
        parts.append(f"-m mark --mark {rule.mark:#x}/{rule.mark:#x}")
    if rule.udp_port is not None:
        parts.append(f"-p udp -m udp --dport {rule.udp_port}")
    parts.append(f'-m comment --comment "{chain.comment}"')
    parts.append(f"-j {rule.action.value}")
    if rule.action is Action.MASQUERADE and fully_random:
        parts.append("--random-fully")
    return " ".join(parts)


MARK_RULE: Final = render(
    Rule(mark=KUBE_PROXY_MARK, action=Action.RETURN), MASQUERADE, fully_random=False
)
"""The one rule that names no network."""


@dataclass(frozen=True, slots=True)
class Present:
    """What a table holds of ours."""

    exists: bool
    """Whether the chain is there."""
    rules: tuple[str, ...]
    """The chain's rules, as printed."""
    jumps: tuple[str, ...]
    """Every jump to the chain, as printed."""


def read_table(saved: str, chain: Chain) -> Present:
    """Picks out of `iptables-save` what concerns one chain of ours."""
    exists, rules, jumps = False, [], []
    target = f"-j {chain.name}"
    for line in saved.splitlines():
        if line.startswith(f":{chain.name} "):
            exists = True
        elif line.startswith(f"-A {chain.name} "):
            rules.append(line)
        elif line.startswith("-A ") and (line.endswith(target) or f"{target} " in line):
            jumps.append(line)
    return Present(exists, tuple(rules), tuple(jumps))


def names(line: str, networks: Collection[IPNetwork]) -> bool:
    """Whether a printed rule names one of some networks as source or destination."""
    words = shlex.split(line)
    texts = {str(network) for network in networks}
    return any(option in ("-s", "-d") and value in texts for option, value in pairwise(words))


def difference(
    chain: Chain,
    wanted: tuple[str, ...],
    present: Present,
    networks: Collection[IPNetwork] | None = None,
) -> str:
    """What `iptables-restore --noflush` must be fed, empty if all is as wanted.

    No rules wanted means that ours go, and chain and jump with the last rule.

    Args:
        chain: which.
        wanted: its rules, ours.
        present: what the table holds.
        networks: by which rules of ours are recognised; `None` if all in the chain is ours.
    """
    lines: list[str] = []
    common = {_words(line) for line in (MARK_RULE, *wanted) if not names(line, networks or ())}
    theirs = networks is not None and any(
        not names(line, networks) and _words(line) not in common for line in present.rules
    )
    if theirs and networks is not None:
        lines = _beside_others(wanted, present, networks)
        if wanted and not _leading(chain, present):
            lines.append(chain.jump)
        if not lines:
            return ""
    elif wanted:
        same = [*map(_words, present.rules)] == [*map(_words, wanted)]
        ours = _leading(chain, present)
        if present.exists and same and len(ours) == 1:
            return ""
        lines.append(f":{chain.name} - [0:0]")
        lines += wanted
        lines += [f"-D {line.removeprefix('-A ')}" for line in ours[1:]]
        if not ours:
            lines.append(chain.jump)
    else:
        if not present.exists and not present.jumps:
            return ""
        lines += [f"-D {line.removeprefix('-A ')}" for line in present.jumps]
        if present.exists:
            lines += [f"-F {chain.name}", f"-X {chain.name}"]
    return "\n".join([f"*{chain.table}", *lines, "COMMIT", ""])


def _beside_others(
    wanted: tuple[str, ...], present: Present, networks: Collection[IPNetwork]
) -> list[str]:
    """Lines that make our rules so in a chain that holds others' as well."""
    own = [line for line in wanted if names(line, networks)]
    common = [line for line in wanted if line not in own]
    there = [_words(line) for line in present.rules]
    mine = [line for line in present.rules if names(line, networks)]
    theirs = [line for line in present.rules if line not in mine]
    if not wanted and not any("-j MASQUERADE" in line for line in theirs):
        # Nothing is masqueraded any more, so nothing needs an exception.
        mine += [line for line in theirs if _words(line) == _words(MARK_RULE)]
    first = there.index(_words(mine[0])) if mine else len(there)
    leads = all(_words(line) in there[:first] for line in common)
    if leads and [*map(_words, mine)] == [*map(_words, own)]:
        return []
    lines = [f"-D {line.removeprefix('-A ')}" for line in mine]
    lines += [line for line in common if _words(line) not in there]
    return lines + own


def _leading(chain: Chain, present: Present) -> list[str]:
    """The jumps from where they belong."""
    return [line for line in present.jumps if line.startswith(f"-A {chain.parent} ")]


def _words(line: str) -> tuple[str, ...]:
    return tuple(shlex.split(line))


class IptablesManager:
    """The `TrafficManager` over the iptables commands.

    Args:
        fully_random: `False` with `--ip-masq-fully-random-disable`.
        resync_s: `--iptables-resync`.
    """

    def __init__(self, *, fully_random: bool = True, resync_s: float = 5.0) -> None:
        self._want_fully_random = fully_random
        self._flavours: dict[Family, Flavour] = {}
        self._applied: dict[tuple[Family, Chain], tuple[Rule, ...]] = {}
        self._networks: frozenset[IPNetwork] = frozenset()
        self._unguarded: dict[Family, str] = {}
        self._asking, self._restoring = asyncio.Lock(), asyncio.Lock()
        self._monitor = ChangeMonitor(resync_s, tables=tuple(chain.table for chain in CHAINS))

    async def ensure(self, rules: RuleSet, *, previous: RuleSet | None = None) -> RulesApplied:
        """As in `TrafficManager`."""
        self._networks |= rules.networks | (previous.networks if previous is not None else set())
        changed = repaired = False
        for family in Family:
            part = rules.of(family)
            concerned = {
                chain: wanted
                for chain in CHAINS
                if (wanted := rules_of(part, chain)) or (family, chain) in self._applied
            }
            # Beside each other, for they are several children each, and a start waits for them.
            answers = await asyncio.gather(
                *(
                    self._ensure_chain(family, chain, wanted, self._networks)
                    for chain, wanted in concerned.items()
                ),
                return_exceptions=True,
            )
            for (chain, wanted), answer in zip(concerned.items(), answers, strict=True):
                if isinstance(answer, CommandError) and chain is GUARD:
                    self._do_without_guard(family, str(answer))
                    continue
                if isinstance(answer, BaseException):
                    raise answer
                if answer:
                    changed = True
                    same = bool(wanted) and self._applied.get((family, chain)) == wanted
                    repaired = repaired or same
                if wanted:
                    self._applied[family, chain] = wanted
                else:
                    self._applied.pop((family, chain), None)
        self._monitor.arm(
            legacy=tuple(
                (family, chain.table)
                for family, chain in sorted(self._applied, key=str)
                if not self._flavours[family].nft
            ),
            processes=len(self._applied),
        )
        return RulesApplied(changed=changed, repaired=repaired)

    async def changed(self) -> bool:
        """As in `TrafficManager`."""
        return await self._monitor.wait()

    def close(self) -> None:
        """As in `TrafficManager`."""
        self._monitor.close()

    async def leftovers(self, ours: Collection[IPNetwork] | None = None) -> list[str]:
        """As in `TrafficManager`."""
        found = []
        for family, chain in await self._listable():
            saved = await self._command(f"{BINARY[family]}-save", "-t", chain.table)
            if difference(chain, (), read_table(saved, chain), ours):
                found.append(f"{BINARY[family]} chain {chain.name} of table {chain.table}")
        return found

    async def remove(
        self, *, but: RuleSet | None = None, ours: Collection[IPNetwork] | None = None
    ) -> None:
        """As in `TrafficManager`; a missing binary means that there is nothing of ours."""
        for family, chain in await self._listable():
            part = (but or RuleSet()).of(family)
            if rules_of(part, chain):
                continue
            try:
                await self._ensure_chain(family, chain, (), ours)
            except FlannelError as error:
                log.debug("chain not removed", chain=chain.name, family=family, error=error)

    def _do_without_guard(self, family: Family, reason: str) -> None:
        """Legacy iptables may lack table raw (iptable_raw); pods are served without it as well."""
        if self._unguarded.get(family) != reason:
            log.warning("pods can reach the nodes' tunnel ports", family=family.name, reason=reason)
        self._unguarded[family] = reason

    async def _listable(self) -> list[tuple[Family, Chain]]:
        """Where iptables is there and can be asked without making a table by that."""
        found = []
        for family in Family:
            try:
                nft = (await self._flavour(family)).nft
            except CommandError as error:
                log.debug("iptables is not there", family=family, error=error)
                continue
            there = () if nft else firewall.legacy_tables(family)
            found += [(family, c) for c in CHAINS if nft or c.table in there]
        return found

    async def _ensure_chain(
        self,
        family: Family,
        chain: Chain,
        wanted: tuple[Rule, ...],
        networks: Collection[IPNetwork] | None,
    ) -> bool:
        saving = asyncio.create_task(
            self._command(f"{BINARY[family]}-save", "-t", chain.table), name="iptables-save"
        )
        try:
            flavour = await self._flavour(family)
            saved = await saving
        finally:
            saving.cancel()
            await asyncio.gather(saving, return_exceptions=True)
        fully_random = self._want_fully_random and flavour.fully_random
        lines = tuple(render(rule, chain, fully_random=fully_random) for rule in wanted)
        payload = difference(chain, lines, read_table(saved, chain), networks)
        if not payload:
            return False
        # What cannot wait for the lock is not to meet another child of ours there.
        async with contextlib.nullcontext() if flavour.restore_wait else self._restoring:
            await self._command(
                f"{BINARY[family]}-restore", "--noflush", *flavour.restore_wait, stdin=payload
            )
        return True

    async def _flavour(self, family: Family) -> Flavour:
        async with self._asking:
            if family not in self._flavours:
                answer = await self._command(BINARY[family], "--version")
                self._flavours[family] = parse_version(answer)
        return self._flavours[family]

    async def _command(self, *argv: str, stdin: str = "") -> str:
        done = await process.run(argv, stdin=stdin.encode(), timeout_s=DEADLINE_S)
        if done.returncode != 0:
            answer = done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"
            raise CommandError(f"{' '.join(argv)}: {answer}")
        return done.stdout.decode(errors="replace")
