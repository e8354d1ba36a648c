"""`pyflannel bundle`: what a bug report needs, in one archive, without secrets."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import pyflannel
from pyflannel.cli import doctor, status
from pyflannel.cli.parsers import Branch, Parser
from pyflannel.cli.shapes import BundleJson
from pyflannel.core.errors import EXIT_OK, CommandError, DeviceUnavailable, FlannelError
from pyflannel.foreign import MOST_IN_LOG, shown
from pyflannel.kernel import process
from pyflannel.records import dataclass
from pyflannel.report.scrub import scrubbed

ABOUT: Final = """\
Inside are the daemon's status, what pyflannel doctor finds, devices, addresses, routes,
neighbours, firewall rules, sysctls, the unit with its journal, and the files that flannel writes.

Passwords, tokens and private keys are removed; addresses, MACs and names stay, because without
them a fault in a network is not found. MANIFEST.txt in the archive lists what is inside and what
could not be read. Look into it before you send it. Changes nothing."""
CHILD_S: Final = 20.0
MOST: Final = 4_000_000
"""Bytes of one member: the rules of a node with 10,000 services."""
LINES: Final = "5000"
"""Of the journal: some days of a node that is well, an hour of one that is not."""
UNITS: Final = ("pyflannel.service", "docker.service")
COMMANDS: Final = (
    ("uname", "uname -a"),
    ("ip-link", "ip -d -s link"),
    ("ip-address", "ip address"),
    ("ip-rule", "ip rule"),
    ("ip-rule6", "ip -6 rule"),
    ("ip-route", "ip route show table all"),
    ("ip-route6", "ip -6 route show table all"),
    ("ip-neigh", "ip neigh"),
    ("bridge-fdb", "bridge fdb show"),
    ("bridge-link", "bridge -d link"),
    ("nft-ruleset", "nft list ruleset"),
    ("iptables-save", "iptables-save -c"),
    ("ip6tables-save", "ip6tables-save -c"),
    ("ss-udp", "ss -uanp"),
    (
        "sysctl-net",
        "sysctl net.ipv4 net.ipv6.conf.all net.ipv6.conf.default net.bridge net.netfilter",
    ),
    ("systemctl-status", f"systemctl --no-pager status {' '.join(UNITS)}"),
    ("systemctl-cat", f"systemctl --no-pager cat {' '.join(UNITS)}"),
    ("journal", f"journalctl --no-pager -o short-iso -n {LINES} -u pyflannel.service"),
    ("journal-docker", "journalctl --no-pager -o short-iso -n 500 -u docker.service"),
    ("leases", "pyflannel leases --json"),
)
"""Each member with its command. None of them changes anything: iptables-save of the nftables
variant makes no tables, and of legacy only those that are there already are listed by `doctor`."""
FILES: Final = (
    "/etc/os-release",
    "/etc/default/pyflannel",
    "/etc/sysconfig/flanneld",
    "/run/flannel/subnet.env",
    "/run/docker_opts.env",
    "/etc/docker/daemon.json",
    "/proc/net/snmp",
    "/proc/net/netstat",
    "/proc/net/softnet_stat",
    "/proc/modules",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One file of the archive."""

    name: str
    source: str
    """The command or the path that it is from."""
    text: str = ""
    missing: str = ""
    """Why it could not be read."""


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    given = branch().parser.parse_args(argv)
    host = os.uname().nodename
    when = time.strftime("%Y%m%d-%H%M%S")
    path = Path(given.file or f"pyflannel-{host}-{when}.tar.gz")
    members = asyncio.run(gather(given.status_socket))
    write(path, members)
    if given.json:
        answer: BundleJson = {
            "file": str(path),
            "members": [
                {"name": m.name, "source": m.source, "missing": m.missing} for m in members
            ],
        }
        print(json.dumps(answer, indent=2))
    else:
        print(manifest(members), end="")
        print(f"wrote {path}")
    return EXIT_OK


def branch() -> Branch:
    """The command line."""
    parser = Parser(
        "pyflannel bundle",
        "what a bug report needs, without secrets",
        ABOUT,
        examples=("pyflannel bundle", "pyflannel bundle /tmp/node1.tar.gz"),
    )
    parser.add_argument(
        "file",
        nargs="?",
        metavar="FILE",
        help="the archive (default: pyflannel-HOST-TIME.tar.gz here)",
    )
    parser.add_argument("--json", action="store_true", help="print what is inside as JSON")
    status.add_socket_option(parser)
    return Branch(parser)


async def gather(socket: str) -> list[Member]:
    """All members, without secrets, whatever of them there is."""
    found = [_status(socket), *await _doctor(socket)]
    for name, line in COMMANDS:
        found.append(await _command(name, line.split()))
    found += _files()
    return [
        Member(name=m.name, source=m.source, text=scrubbed(m.text)[:MOST], missing=m.missing)
        for m in found
    ]


def _status(socket: str) -> Member:
    try:
        answer = status.ask(socket, status.subnet_file())
    except FlannelError as error:
        return Member(name="status.json", source="status socket", missing=str(error))
    return Member(name="status.json", source="status socket", text=json.dumps(answer, indent=2))


async def _doctor(socket: str) -> list[Member]:
    source = "pyflannel doctor"
    try:
        found = await doctor.examine(socket, status.subnet_file())
    except FlannelError as error:
        return [Member(name="doctor.json", source=source, missing=str(error))]
    text = json.dumps({"findings": [asdict(one) for one in found]}, indent=2)
    return [Member(name="doctor.json", source=source, text=text)]


async def _command(name: str, words: list[str]) -> Member:
    source = " ".join(words)
    if words[0] == "pyflannel":
        words = [sys.executable, "-m", "pyflannel.cli.pyflannel", *words[1:]]
    try:
        done = await process.run(words, timeout_s=CHILD_S)
    except CommandError as error:
        return Member(name=f"{name}.txt", source=source, missing=str(error))
    return Member(name=f"{name}.txt", source=source, text=done.stdout.decode(errors="replace"))


def _files() -> Iterator[Member]:
    own = str(Path(status.subnet_file()))
    for path in dict.fromkeys([*FILES, own]):
        name = "files" + path
        try:
            yield Member(name=name, source=path, text=Path(path).read_text(errors="replace"))
        except OSError as error:
            yield Member(name=name, source=path, missing=error.strerror or str(error))


def manifest(members: Sequence[Member]) -> str:
    """What is inside, and what could not be had."""
    lines = [f"pyflannel {pyflannel.__version__}, {os.uname().nodename}, {time.strftime('%c %Z')}"]
    lines += ["Passwords, tokens and private keys were replaced by ***.", "", "inside:"]
    lines += [f"  {m.name}  ({m.source})" for m in members if not m.missing]
    lines += ["", "not there:"]
    lines += [f"  {m.source}: {shown(m.missing, MOST_IN_LOG)}" for m in members if m.missing]
    return "\n".join(lines) + "\n"


def write(path: Path, members: Sequence[Member]) -> None:
    """Makes the archive, readable by its owner alone; an existing file is not overwritten.

    Raises:
        DeviceUnavailable: it cannot be written.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as raw, tarfile.open(fileobj=raw, mode="w:gz") as archive:
            _add(archive, "MANIFEST.txt", manifest(members))
            for member in members:
                if not member.missing:
                    _add(archive, member.name, member.text)
    except OSError as error:
        hint = "name another FILE" if isinstance(error, FileExistsError) else ""
        raise DeviceUnavailable("write", str(path), error.errno or 0, hint) from error


def _add(archive: tarfile.TarFile, name: str, text: str) -> None:
    data = text.encode(errors="backslashreplace")
    info = tarfile.TarInfo(f"pyflannel-bundle/{name}")
    info.size, info.mode, info.mtime = len(data), 0o600, int(time.time())
    archive.addfile(info, io.BytesIO(data))
