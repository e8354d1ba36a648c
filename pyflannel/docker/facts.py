"""Gathers what `docker.checks` judges: docker's unit and files, its process, the kernel's part.

Reads only. Everything that is missing, or that we may not see, is a fact as well (`None`).
"""

from __future__ import annotations

import contextlib
import re
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from typing import Final

from pyflannel.core import subnetenv
from pyflannel.core.errors import CommandError, FlannelError
from pyflannel.docker import options as docker_options
from pyflannel.docker import unitfile
from pyflannel.docker.dockerd import Direct, direct_routing
from pyflannel.docker.model import AGENT, DROP_IN, DockerFacts
from pyflannel.docker.unitfile import Unit
from pyflannel.kernel.base import Netlink
from pyflannel.kernel.files import inside
from pyflannel.kernel.lock import upstream_daemons
from pyflannel.kernel.process import run

UNIT: Final = "docker.service"
BRIDGE: Final = "docker0"
DOCKERD: Final = ("dockerd", "dockerd-current")
"""The daemon's program; the second is that of CentOS's own packages."""
CHILD_S: Final = 5.0
"""iptables waits for its lock, but not that long."""
_POLICY: Final = re.compile(r"^-P FORWARD (\w+)$", re.MULTILINE)


def read_unit(root: Path, name: str = UNIT, *, without_ours: bool = False) -> Unit | None:
    """A unit with its drop-ins, from the files below `root`; `None` if there is none.

    Args:
        root: `/`, or where another machine's tree is.
        name: of the unit.
        without_ours: leave the drop-in out that `docker-setup` writes.

    Raises:
        KernelError: symbolic links in the tree go round in a circle.
    """
    paths = [f"{directory}/{name}" for directory in unitfile.SEARCH_PATH]
    main = next((path for path in paths if inside(root, path).is_file()), None)
    if main is None:
        return None
    texts = [(main, read_text(inside(root, main)) or "")]
    listed = [inside(root, f"{path}.d") for path in paths]
    names = [[p.name for p in d.iterdir()] if d.is_dir() else [] for d in listed]
    for index, entry in unitfile.drop_ins(names):
        path = f"{paths[index]}.d/{entry}"
        # A link to /dev/null switches a drop-in off: empty text.
        if not (without_ours and entry == DROP_IN):
            texts.append((path, read_text(inside(root, path)) or ""))
    return unitfile.merge([(str(root / path.lstrip("/")), text) for path, text in texts])


def is_enabled(root: Path, name: str = AGENT) -> bool | None:
    """Whether something starts a unit by itself; `None` if there is no such unit.

    As `systemctl is-enabled` tells it: by the links that its `[Install]` section makes.
    """
    if not any(inside(root, f"{d}/{name}").is_file() for d in unitfile.SEARCH_PATH):
        return None
    wanting = inside(root, "etc/systemd/system").glob("*.wants")
    return any((directory / name).is_symlink() for directory in wanting)


async def gather(
    netlink: Netlink,
    root: Path = Path("/"),
    *,
    options_file: str = docker_options.DOCKER_ENV,
    subnet_file: str = docker_options.FLANNEL_ENV,
) -> DockerFacts:
    """All facts about docker on this node, or about the tree of another one.

    Args:
        netlink: of the network namespace that docker0 is in.
        root: where files are looked for. Processes and kernel are this machine's.
        options_file: as the daemon's `-docker-opts-file`.
        subnet_file: as its `-subnet-file`.
    """
    subnet = read_text(inside(root, subnet_file))
    env = None if subnet is None else subnetenv.parse(subnet)
    addresses, mtu = await _bridge(netlink)
    forwarding = await _rules("FORWARD")
    policy = _POLICY.search("\n".join(forwarding))
    forward = read_text(Path("/proc/sys/net/ipv4/ip_forward"))
    unit = read_unit(root)
    files = {path: read_text(inside(root, path)) for path in unit.environment_files} if unit else {}
    return DockerFacts(
        unit=unit,
        environment_files={path: text for path, text in files.items() if text is not None},
        enabled=is_enabled(root),
        upstream_pids=tuple(upstream_daemons()),
        options_file=options_file,
        options_text=read_text(inside(root, options_file)),
        subnet=env,
        subnet_file=subnet_file,
        daemon_json=read_text(inside(root, "etc/docker/daemon.json")),
        arguments=_dockerd(),
        bridge=addresses,
        bridge_mtu=mtu,
        bridges=await _bridges(netlink, env.subnet if env is not None else None),
        direct=direct_routing(root, unit.command_line) if unit is not None else Direct.NOTHING,
        own_nftables=bool(await _printed("nft", "list", "table", "ip", "docker-bridges")),
        forward_policy=policy[1] if policy else None,
        forward_rules=any("FLANNEL-FWD" in rule for rule in forwarding),
        docker_rules=(
            *await _rules("PREROUTING", "raw"),
            *forwarding,
            *await _rules("DOCKER-USER"),
            *await _rules("DOCKER"),
        ),
        ip_forward=None if forward is None else forward.strip() == "1",
    )


def read_text(path: Path) -> str | None:
    """A file's content; `None` if it is not there, or not to be read."""
    try:
        # A FIFO or a device in another machine's tree may never end.
        return path.read_text(errors="replace") if path.is_file() else None
    except OSError:
        return None


async def _bridge(netlink: Netlink) -> tuple[tuple[IPv4Interface, ...] | None, int | None]:
    try:
        link = next((link for link in await netlink.links() if link.name == BRIDGE), None)
        if link is None:
            return None, None
        mine = [a.interface for a in await netlink.addresses() if a.index == link.index]
    except FlannelError:
        return None, None
    return tuple(a for a in mine if isinstance(a, IPv4Interface)), link.mtu


async def _bridges(netlink: Netlink, subnet: IPv4Network | None) -> tuple[str, ...]:
    """Devices with an address whose prefix is the leased subnet."""
    if subnet is None:
        return ()
    try:
        names = {link.index: link.name for link in await netlink.links()}
        found = [a.index for a in await netlink.addresses() if a.interface.network == subnet]
    except FlannelError:
        return ()
    return tuple(names[index] for index in found if index in names)


def _dockerd() -> tuple[str, ...] | None:
    """The command line of the dockerd in our network namespace."""
    ours = Path("/proc/self/ns/net")
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if (directory / "comm").read_text().strip() not in DOCKERD:
                continue
            if not (directory / "ns/net").samefile(ours):
                continue
            words = (directory / "cmdline").read_bytes().split(b"\0")
            return tuple(word.decode(errors="replace") for word in words[:-1])
    return None


async def _rules(chain: str, table: str = "filter") -> tuple[str, ...]:
    """The rules of an IPv4 chain; none if there is no such chain, or iptables does not tell."""
    return await _printed("iptables", "-w", "2", "-t", table, "-S", chain)


async def _printed(*command: str) -> tuple[str, ...]:
    """The lines that a command prints; none if it fails, or takes too long."""
    try:
        done = await run(command, timeout_s=CHILD_S)
    except CommandError:
        return ()
    return tuple(done.stdout.decode(errors="replace").splitlines()) if done.returncode == 0 else ()
