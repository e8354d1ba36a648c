"""The overlay's packets past docker's own rules: an accept in its chain DOCKER-USER.

Since version 28 docker ends its chain for each bridge with a drop of whatever comes from elsewhere,
and its jump stands before ours to FLANNEL-FWD. DOCKER-USER comes before both, and docker leaves its
contents to others. So `pyflannel docker-setup` asks for one rule there,

    -A DOCKER-USER -s NETWORK -d SUBNET -m comment --comment "pyflannel STATE-DIR" -j ACCEPT

and leaves a record of that in the state directory. The daemon keeps the rule from then on, whatever
makes, flushes or fills the chain; without the record it does not even look. The comment names the
state directory, because daemons of several networks on one node share the chain: each knows its own
rules by it. The chain itself is docker's: where there is none, nothing is done.

The rule stands at the end, before a `RETURN` for all: what an operator wrote before it keeps
winning. From pods of the overlay to pods of this node alone is accepted, not what strangers route
here, which docker means to drop.
"""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Final

from pyflannel.core.config import NetworkConfig
from pyflannel.core.errors import CommandError, FlannelError
from pyflannel.core.ip import Family, IPNetwork, SubnetKey
from pyflannel.core.subnetenv import SubnetEnv
from pyflannel.kernel import firewall, process
from pyflannel.kernel.files import write_atomically
from pyflannel.logs import get_logger
from pyflannel.records import dataclass
from pyflannel.traffic.iptables import BINARY, Flavour, parse_version
from pyflannel.traffic.monitor import ChangeMonitor

log = get_logger(__name__)

CHAIN: Final = "DOCKER-USER"
TABLE: Final = "filter"
RECORD: Final = "docker-setup.json"
"""In the state directory: that docker-setup was run, and what it wrote."""
MOST_COMMENT: Final = 255
"""XT_MAX_COMMENT_LEN less the final zero (linux/netfilter/xt_comment.h)."""
DEADLINE_S: Final = 10.0
"""For one iptables command, which may stand behind another holder of the xtables lock."""
RETRY_S: Final = 5.0
"""After a failure, as for the other rules."""


@dataclass(frozen=True, slots=True)
class Overlay:
    """One family's cluster network and this node's part of it."""

    network: IPNetwork
    subnet: IPNetwork


@dataclass(frozen=True, slots=True, kw_only=True)
class SetUp:
    """What docker-setup has done on this node."""

    drop_in: str = ""
    """The drop-in that it wrote; empty if it wrote none."""


def load(state_dir: str | Path) -> SetUp | None:
    """What docker-setup left; `None` if it was not run. A damaged record counts as run."""
    try:
        entry = json.loads((Path(state_dir) / RECORD).read_bytes())
        drop_in = entry["drop_in"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return SetUp()
    return SetUp(drop_in=drop_in if isinstance(drop_in, str) else "")


def save(state_dir: str | Path, done: SetUp) -> None:
    """Leaves the record.

    Raises:
        FlannelError: it cannot be written.
    """
    directory = Path(state_dir)
    if not directory.exists():
        directory.mkdir(mode=0o700, parents=True)
    content = json.dumps({"drop_in": done.drop_in}) + "\n"
    write_atomically(directory / RECORD, content.encode(), default_mode=0o600)


def overlays(config: NetworkConfig, key: SubnetKey) -> dict[Family, Overlay]:
    """What is to be accepted for a lease: the enabled families that have a network and a subnet."""
    found = {}
    for family in config.families:
        network, subnet = config.network_of(family), key.subnet(family)
        if network is not None and subnet is not None:
            found[family] = Overlay(network, subnet)
    return found


def overlays_of_file(env: SubnetEnv) -> dict[Family, Overlay]:
    """The same out of `subnet.env`."""
    found = {}
    if env.network is not None and env.subnet is not None:
        found[Family.V4] = Overlay(env.network, env.subnet)
    if env.ipv6_network is not None and env.ipv6_subnet is not None:
        found[Family.V6] = Overlay(env.ipv6_network, env.ipv6_subnet)
    return found


def comment(state_dir: str | Path) -> str:
    """What our rule is known by; cut to what xt_comment takes."""
    return f"pyflannel {state_dir}"[:MOST_COMMENT]


def render(overlay: Overlay, mark: str) -> str:
    """The rule as `iptables-save` prints it."""
    return (
        f"-A {CHAIN} -s {overlay.network} -d {overlay.subnet}"
        f" -m comment --comment {json.dumps(mark)} -j ACCEPT"
    )


def _is_ours(words: list[str], mark: str) -> bool:
    return any(pair == ("--comment", mark) for pair in pairwise(words))


def own_rules(saved: str, mark: str) -> list[str]:
    """Our rules in what `iptables-save` prints, however many there are."""
    return [
        line
        for line in saved.splitlines()
        if line.startswith(f"-A {CHAIN} ") and _is_ours(shlex.split(line), mark)
    ]


def difference(saved: str, wanted: Overlay | None, mark: str) -> str:
    """What `iptables-restore --noflush` must be fed; empty if all is as wanted.

    Args:
        saved: the filter table as `iptables-save` prints it.
        wanted: what is to be accepted; `None`: nothing, our rules go.
        mark: the comment that makes a rule ours.
    """
    if not any(line.startswith(f":{CHAIN} ") for line in saved.splitlines()):
        return ""
    chain = [line for line in saved.splitlines() if line.startswith(f"-A {CHAIN} ")]
    ours = own_rules(saved, mark)
    rest = [line for line in chain if line not in ours]
    end = f"-A {CHAIN} -j RETURN"
    place = rest.index(end) if end in rest else len(rest)
    want = [] if wanted is None else [render(wanted, mark)]
    reached = end not in chain or all(chain.index(line) < chain.index(end) for line in ours)
    if [shlex.split(line) for line in ours] == [shlex.split(line) for line in want] and reached:
        return ""
    lines = [f"-D {line.removeprefix('-A ')}" for line in ours]
    lines += [line.replace(f"-A {CHAIN}", f"-I {CHAIN} {place + 1}", 1) for line in want]
    return "\n".join([f"*{TABLE}", *lines, "COMMIT", ""])


class UserChain:
    """Our rule in docker's chain, of both families.

    Args:
        state_dir: the daemon's; says which rules are ours.
    """

    def __init__(self, state_dir: str | Path) -> None:
        self._mark = comment(state_dir)
        self._flavours: dict[Family, Flavour | None] = {}

    @property
    def legacy(self) -> tuple[Family, ...]:
        """Families whose rules are those of the legacy iptables, as far as looked at."""
        return tuple(
            f for f, known in self._flavours.items() if known is not None and not known.nft
        )

    async def ensure(self, wanted: dict[Family, Overlay]) -> list[Overlay]:
        """Makes our rules so; returns what had to be written.

        Raises:
            CommandError: iptables' own words.
        """
        written = []
        for family, flavour in (await self._families()).items():
            overlay = wanted.get(family)
            payload = difference(await _saved(family), overlay, self._mark)
            if payload:
                wait = flavour.restore_wait
                await _command(f"{BINARY[family]}-restore", "--noflush", *wait, stdin=payload)
            if payload and overlay is not None:
                written.append(overlay)
        return written

    async def leftovers(self) -> list[str]:
        """Our rules that are there, in words."""
        found = []
        for family in await self._families():
            rules = own_rules(await _saved(family), self._mark)
            found += [f"{BINARY[family]} rule {rule}" for rule in rules]
        return found

    async def remove(self) -> None:
        """Takes our rules away.

        Raises:
            CommandError: iptables' own words.
        """
        await self.ensure({})

    async def _families(self) -> dict[Family, Flavour]:
        """Where iptables is there and can be asked without making a table by that."""
        for family in Family:
            if family not in self._flavours:
                try:
                    answer = await _command(BINARY[family], "--version")
                except CommandError as error:
                    log.debug("iptables is not there", family=family, error=error)
                    self._flavours[family] = None
                else:
                    self._flavours[family] = parse_version(answer)
        return {
            family: flavour
            for family, flavour in self._flavours.items()
            if flavour is not None and (flavour.nft or TABLE in firewall.legacy_tables(family))
        }


async def keep_accepted(
    state_dir: str,
    wanted: Callable[[], dict[Family, Overlay]],
    *,
    resync_s: float,
    report: Callable[[str], object],
) -> None:
    """Keeps the rule as long as there is a record of docker-setup. Runs until cancelled.

    Args:
        state_dir: where the record is.
        wanted: what is to be accepted now; it changes with the lease.
        resync_s: `--iptables-resync`.
        report: told what is wrong, and the empty text when it is right again.
    """
    chain = UserChain(state_dir)
    monitor = ChangeMonitor(resync_s, tables=(TABLE,))
    failing = ""
    try:
        while True:
            problem = ""
            if load(state_dir) is not None:
                try:
                    for overlay in await chain.ensure(wanted()):
                        network, subnet = overlay.network, overlay.subnet
                        log.info("accepted in docker's chain", network=network, subnet=subnet)
                except FlannelError as error:
                    problem = str(error)
            if problem != failing:
                if problem:
                    log.error(f"rule in {CHAIN} not in place, retrying: {problem}")
                report(problem)
            failing = problem
            if failing:
                await asyncio.sleep(RETRY_S)
                continue
            legacy = tuple((family, TABLE) for family in chain.legacy)
            monitor.arm(legacy=legacy, processes=len(Family))
            await monitor.wait()
    finally:
        monitor.close()


async def _saved(family: Family) -> str:
    return await _command(f"{BINARY[family]}-save", "-t", TABLE)


async def _command(*argv: str, stdin: str = "") -> str:
    done = await process.run(argv, stdin=stdin.encode(), timeout_s=DEADLINE_S)
    if done.returncode != 0:
        answer = done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"
        raise CommandError(f"{' '.join(argv)}: {answer}")
    return done.stdout.decode(errors="replace")
