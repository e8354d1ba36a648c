"""`pyflannel cleanup`: removes every trace of a stopped daemon on this node, and nothing else.

Devices, host-gw routes, the blackhole route, firewall rules of both managers, eBPF programs, files,
and what `pyflannel docker-setup` added: the rule in DOCKER-USER and docker's drop-in.
A file is removed only if its content shows that it is ours; what is left is named with the reason.
The lease in etcd is left: it runs out by itself, or is used again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import stat
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from pyflannel.backend.kinds import KINDS
from pyflannel.cli.parsers import Branch, Parser
from pyflannel.cli.shapes import CleanupJson
from pyflannel.core import subnetenv, traces
from pyflannel.core.commandline import instance_files, is_instance
from pyflannel.core.errors import (
    EXIT_OK,
    EXIT_UNAVAILABLE,
    ConfigError,
    DeviceUnavailable,
    FlannelError,
    NotPermitted,
    UsageError,
)
from pyflannel.core.ip import Family
from pyflannel.core.kind import Kind, Kinds
from pyflannel.core.options import DaemonOptions
from pyflannel.docker import dropin, options, userchain
from pyflannel.foreign import MOST_IN_LOG, shown
from pyflannel.kernel import unixsocket
from pyflannel.kernel.base import Delete, Netlink, Route
from pyflannel.kernel.files import FileText, FileUnreadable, read_text_if_exists
from pyflannel.kernel.lock import (
    SingleInstance,
    is_held,
    is_lock_content,
    our_daemons,
    upstream_daemons,
)
from pyflannel.kernel.netlink import KernelNetlink
from pyflannel.kernel.ownership import is_left_by
from pyflannel.records import dataclass
from pyflannel.store import record
from pyflannel.traffic import select
from pyflannel.traffic.iptables import IptablesManager
from pyflannel.traffic.nftables import NftablesManager


@dataclass(frozen=True, slots=True)
class Trace:
    """One thing that was left behind, and how it is removed."""

    what: str
    remove: Callable[[], Awaitable[None]]


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns 69 if something could not be removed."""
    given = parse(argv)
    if os.geteuid() != 0:
        raise NotPermitted("clean up", "this node", 1, "run it as root")
    upstream = [] if given.dry_run else upstream_daemons()
    if upstream:
        raise _in_use(f"flanneld runs (pid {upstream[0]}) and uses it")
    lock = SingleInstance(given.subnet_file)
    locked_before = lock.path.exists()
    with _undisturbed(lock, dry_run=given.dry_run):
        kinds = loadable(KINDS)
        files = own_files(given, kinds)
        if locked_before:
            files.append(OwnFile(str(lock.path), is_lock_content))
        found, failed, left = asyncio.run(
            _run(given.subnet_file, files, kinds, given.state_dir, dry_run=given.dry_run)
        )
        if not locked_before and not given.dry_run:
            lock.path.unlink(missing_ok=True)  # our own trace
    removed = [what for what in found if what not in failed]
    if given.json:
        report: CleanupJson = {
            "dry_run": given.dry_run,
            "found": found,
            "failed": failed,
            "left": left,
        }
        print(json.dumps(report, indent=2))
    else:
        verb = "would remove" if given.dry_run else "removed"
        for what in removed:
            print(shown(f"{verb} {what}", MOST_IN_LOG))
        for what, why in failed.items():
            print(shown(f"NOT removed: {what}: {why}", MOST_IN_LOG))
        for what, why in left.items():
            print(shown(f"left alone: {what}: {why}", MOST_IN_LOG))
        if not found:
            print("nothing of flannel's is here")
    return EXIT_UNAVAILABLE if failed else EXIT_OK


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments; those of an instance have its paths where they name none.

    Raises:
        UsageError: the name of an instance is none.
    """
    parser = branch().parser
    given = parser.parse_args(argv)
    if not given.instance:
        return given
    if not is_instance(given.instance):
        raise UsageError(f"--instance {shown(given.instance)}: this is not the name of one")
    files = instance_files(given.instance)
    parser.set_defaults(**{name.replace("-", "_"): path for name, path in files.items()})
    return parser.parse_args(argv)


def branch() -> Branch:
    """The command line."""
    parser = Parser(
        "pyflannel cleanup",
        "remove every trace of a stopped daemon",
        (__doc__ or "").partition("\n")[2],
        examples=(
            "pyflannel cleanup --dry-run",
            "pyflannel cleanup",
            "pyflannel cleanup --instance storage",
        ),
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--instance",
        metavar="NAME",
        default="",
        help="of pyflannel@NAME: its files, where the options below name none",
    )
    defaults = DaemonOptions()
    for name in ("subnet-file", "docker-opts-file", "status-socket", "state-dir"):
        default = getattr(defaults, name.replace("-", "_"))
        parser.add_argument(f"--{name}", metavar="PATH", default=default, help="the daemon's")
    return Branch(parser)


def loadable(kinds: Kinds) -> list[Kind]:
    """All kinds of backend whose traces can be told; says which cannot."""
    found: list[Kind] = []
    for name in kinds.names():
        try:
            kind = kinds.get(name)
        except ConfigError as error:
            why = shown(str(error), MOST_IN_LOG)
            print(f"pyflannel cleanup: what it left is not looked for: {why}", file=sys.stderr)
        else:
            found += [kind] if kind is not None else []
    return found


@contextlib.contextmanager
def _undisturbed(lock: SingleInstance, *, dry_run: bool) -> Iterator[None]:
    """Keeps daemons out meanwhile. Only looking makes no file, and needs no daemon to be away."""
    if dry_run:
        if is_held(lock.subnet_file):
            raise _in_use(f"a pyflanneld with subnet file {lock.subnet_file} runs")
        yield
        return
    with lock if lock.path.parent.is_dir() else contextlib.nullcontext():
        # Devices and rules are told by their names, so those of a daemon with another subnet file
        # would go as well.
        others = our_daemons()
        if others:
            raise _in_use(f"pyflanneld runs (pid {others[0]}) with another subnet file")
        yield


def _in_use(why: str) -> DeviceUnavailable:
    return DeviceUnavailable("clean up", "this node", 0, f"{why}: stop it first")


async def _run(
    subnet_file: str,
    files: Sequence[OwnFile | OwnLink],
    kinds: Sequence[Kind],
    state_dir: str,
    *,
    dry_run: bool,
) -> tuple[list[str], dict[str, str], dict[str, str]]:
    """What was found, what of that could not be removed and why, what was left alone and why."""
    content = read_text_if_exists(subnet_file)
    former = subnetenv.parse(content.text if isinstance(content, FileText) else "")
    netlink = KernelNetlink()
    failed: dict[str, str] = {}
    try:
        found = await _find(netlink, former, kinds, state_dir)
        files_found, left = file_traces(files)
        found += files_found
        if not dry_run:
            for trace in found:
                try:
                    await trace.remove()
                except (FlannelError, OSError) as error:
                    failed[trace.what] = str(error)
    finally:
        await netlink.close()
    return [trace.what for trace in found], failed, left


async def _find(
    netlink: Netlink, former: subnetenv.SubnetEnv, kinds: Sequence[Kind], state_dir: str
) -> list[Trace]:
    devices = [
        link
        for link in await netlink.links()
        if any(kind.leaves(link.name, link.kind) for kind in kinds)
    ]
    ours = {link.index for link in devices}
    found = [
        *_bpf_traces(),
        *(
            Trace(f"device {link.name}", partial(netlink.delete_link, link.index))
            for link in devices
        ),
    ]
    for family in Family:
        found += [
            Trace(str(route), partial(_delete, netlink, route))
            for route in await netlink.routes(family)
            if is_left_by(route, former, ours)
        ]
    # Rules of another network are another daemon's, also if that is stopped for now.
    rules = select.former_rules(former)
    networks = rules.networks if rules is not None else None
    for manager in (IptablesManager(), NftablesManager()):
        left = await manager.leftovers(networks)
        # One removal takes all rules of a manager along; the others of its list are then gone.
        found += [Trace(what, partial(manager.remove, ours=networks)) for what in left]
    found += await _docker_traces(state_dir)
    return found


async def _docker_traces(state_dir: str) -> list[Trace]:
    """What docker-setup left: the rules of this state directory, and the drop-in of its record."""
    chain = userchain.UserChain(state_dir)
    found = [Trace(rule, chain.remove) for rule in await chain.leftovers()]
    done = userchain.load(state_dir)
    if done is not None and done.drop_in:
        file = OwnFile(done.drop_in, lambda text: text.startswith(dropin.MARK))
        if os.path.lexists(file.path) and not file.obstacle():
            what = f"file {file.path} (docker notices at systemctl daemon-reload)"
            found.append(Trace(what, partial(_remove_drop_in, file)))
    return found


async def _remove_drop_in(file: OwnFile) -> None:
    await file.remove()
    with contextlib.suppress(OSError):  # drop-ins of others are in it
        Path(file.path).parent.rmdir()


def _bpf_traces() -> list[Trace]:
    from pyflannel.datapath.ebpf import survey as ebpf

    async def remove() -> None:
        ebpf.remove_leftovers()

    # One removal takes all of them along; the others are then gone.
    return [Trace(what, remove) for what in ebpf.leftovers()]


async def _delete(netlink: Netlink, route: Route) -> None:
    for error in (await netlink.apply([Delete(route)])).values():
        raise error


@dataclass(frozen=True, slots=True)
class OwnFile:
    """A path at which a daemon may have left a file, and how that file is recognised."""

    path: str
    is_ours: Callable[[str], bool] | None
    """Takes the content; `None` for a socket."""

    def obstacle(self) -> str:
        """Why what stands there is not removed; empty if it is ours.

        Raises:
            FileNotFoundError: nothing stands there.
            OSError: it cannot be looked at.
        """
        mode = os.lstat(self.path).st_mode
        if self.is_ours is None:
            standing = unixsocket.look(self.path)
            return "" if standing is unixsocket.Standing.DEAD else standing.value
        if not stat.S_ISREG(mode):
            return "not a regular file"
        content = read_text_if_exists(self.path)
        if isinstance(content, FileUnreadable):
            return content.reason
        ours = isinstance(content, FileText) and self.is_ours(content.text)
        return "" if ours else "its content is not flannel's"

    async def remove(self) -> None:
        """Removes it, if it is still ours."""
        if not self.obstacle():
            Path(self.path).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class OwnLink:
    """The link to docker's options that the unit makes, because its daemon may not write there."""

    path: str

    def obstacle(self) -> str:
        """As in `OwnFile`."""
        ours = str(Path(self.path).readlink()) == options.UNIT_LINK
        return "" if ours else "a link to somewhere else"

    async def remove(self) -> None:
        """As in `OwnFile`."""
        if not self.obstacle():
            Path(self.path).unlink(missing_ok=True)


def own_files(given: argparse.Namespace, kinds: Sequence[Kind]) -> list[OwnFile | OwnLink]:
    """What a daemon with these paths may have left, whichever kind of backend it ran."""
    written = Path(given.docker_opts_file)
    docker: list[OwnFile | OwnLink] = []
    if written.is_symlink() and str(written.readlink()) == options.UNIT_LINK:
        docker.append(OwnLink(str(written)))
        written = written.parent / options.UNIT_LINK
    if given.docker_opts_file:
        docker += [
            OwnFile(str(written), options.is_written_here),
            # The unit's daemon locks the file itself, one without the unit what may be a link.
            *(
                OwnFile(str(SingleInstance(path).path), is_lock_content)
                for path in dict.fromkeys((given.docker_opts_file, str(written)))
            ),
        ]
    records = {record.FILE_NAME: traces.LEASE_RECORD, userchain.RECORD: traces.DOCKER_RECORD}
    records |= {file.name: file.members for kind in kinds for file in kind.state_files}
    return [
        OwnFile(given.subnet_file, subnetenv.is_flannels),
        *docker,
        OwnFile(given.status_socket, None),
        *(
            OwnFile(f"{given.state_dir}/{name}", partial(traces.is_record, members=members))
            for name, members in records.items()
        ),
    ]


def file_traces(files: Sequence[OwnFile | OwnLink]) -> tuple[list[Trace], dict[str, str]]:
    """The files that are ours, and those that are not, each with the reason."""
    found: list[Trace] = []
    left: dict[str, str] = {}
    for file in files:
        if not file.path:
            continue
        try:
            reason = file.obstacle()
        except FileNotFoundError:
            continue
        except OSError as error:
            reason = str(error)
        if reason:
            left[f"file {file.path}"] = reason
        else:
            found.append(Trace(f"file {file.path}", file.remove))
    return found, left
