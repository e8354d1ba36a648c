"""What a start looks at, looked at without starting: for `systemctl reload` and before a change.

The options have been read; here they meet the machine. Everything that is wrong is found, not the
first of it. Nothing is made, opened for writing or changed, and what a running daemon holds (its
lock, its port, its device) is no obstacle, because a restart gives it back first.
"""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from pyflannel.backend.base import BackendContext
from pyflannel.backend.kinds import KINDS, create
from pyflannel.core.config import NetworkConfig
from pyflannel.core.errors import (
    ConfigError,
    DatapathError,
    DeviceUnavailable,
    FlannelError,
    NotPermitted,
)
from pyflannel.core.options import DaemonOptions
from pyflannel.core.trust import ConfigOrigin, check_commands
from pyflannel.kernel import unixsocket
from pyflannel.kernel.base import Netlink
from pyflannel.kernel.lookup import find_interface
from pyflannel.store import record

COMMANDS = ("PreStartupCommand", "PostStartupCommand", "SubnetAddCommand", "SubnetRemoveCommand")


def of_machine(options: DaemonOptions) -> Iterator[FlannelError]:
    """What the options ask for and this machine does not have, whatever the network config says."""
    yield from _directories(options)
    yield from _status_socket(options.status_socket)
    yield from _health(options)


async def of_config(
    config: NetworkConfig, options: DaemonOptions, netlink: Netlink, origin: ConfigOrigin
) -> list[FlannelError]:
    """What the network config asks for and this node cannot do with these options."""
    found: list[FlannelError] = []
    try:
        check_commands(config, origin, allowed=options.allow_extension)
    except ConfigError as error:
        found.append(error)
    if config.backend.RUNS_COMMANDS:
        found += _commands(config)
    if config.backend_type == "udp" and options.datapath != "auto":
        found += _datapath(options.datapath)
    try:
        selection = await find_interface(netlink, options, config.families, ours=KINDS.is_device)
        create(
            BackendContext(
                config=config,
                underlay=selection.interface,
                netlink=netlink,
                state_dir=options.state_dir,
                datapath=options.datapath,
            )
        )
    except FlannelError as error:
        found.append(error)
    return found


def _directories(options: DaemonOptions) -> Iterator[FlannelError]:
    """Files are replaced by a rename, so it is their directories that must be writable."""
    files = {
        "subnet-file": options.subnet_file,
        "docker-opts-file": options.docker_opts_file,
        "status-socket": options.status_socket,
        "cni-conflist": options.kube.cni_conflist,
    }
    wanted = {flag: Path(path).parent for flag, path in files.items() if path}
    for flag, directory in (wanted | {"state-dir": Path(options.state_dir)}).items():
        there = _nearest(directory)
        if not there.is_dir():
            what = f"-{flag}: {there} is not a directory"
            yield DeviceUnavailable("use", what, errno.ENOTDIR, "name another path")
        elif not os.access(there, os.W_OK | os.X_OK):
            code = errno.EROFS if os.access(there, os.X_OK) and os.geteuid() == 0 else errno.EACCES
            way_out = (
                "choose another path, or give the unit a ReadWritePaths= (below /run BindPaths=)"
            )
            yield NotPermitted("write into", f"{there} (-{flag})", code, way_out)
    yield from _obstacles(options)


def _nearest(path: Path) -> Path:
    """The path, or its nearest ancestor that exists: what is missing is made."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _obstacles(options: DaemonOptions) -> Iterator[FlannelError]:
    """What stands where a file is wanted and is none."""
    files = {
        "subnet-file": options.subnet_file,
        "docker-opts-file": options.docker_opts_file,
        "state-dir": f"{options.state_dir}/{record.FILE_NAME}",
    }
    for flag, path in files.items():
        if path and Path(path).is_dir():
            what = f"{path} (-{flag})"
            yield DeviceUnavailable("write", what, errno.EISDIR, "a directory is in its place")


def _status_socket(path: str) -> Iterator[FlannelError]:
    if not path:
        return
    try:
        standing = unixsocket.look(path)
    except OSError as error:
        yield DeviceUnavailable("look at", path, error.errno or 0, "choose another -status-socket")
        return
    # One that answers is the running daemon's, which a restart ends first.
    if standing in {unixsocket.Standing.OTHER_SOCKET, unixsocket.Standing.NO_SOCKET}:
        yield DeviceUnavailable(
            "listen on", path, errno.EADDRINUSE, f"{standing.value}: choose another -status-socket"
        )


def _health(options: DaemonOptions) -> Iterator[FlannelError]:
    """Whether this host has the address; whether the port is free a restart will tell."""
    if options.healthz_port <= 0:
        return
    family = socket.AF_INET6 if ":" in options.healthz_ip else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((options.healthz_ip, 0))
    except OSError as error:
        way_out = "give -healthz-ip an address of this host"
        yield DeviceUnavailable("listen on", options.healthz_ip, error.errno or 0, way_out)


def _datapath(kind: str) -> Iterator[FlannelError]:
    from pyflannel.datapath import select

    try:
        select.create(kind)
    except DatapathError as error:
        yield error


def _commands(config: NetworkConfig) -> Iterator[FlannelError]:
    """Programs of backend extension that are not there."""
    commands = config.backend.encode()
    for key in COMMANDS:
        line = commands.get(key)
        if not isinstance(line, str) or not line.strip():
            continue
        try:
            program = shlex.split(line)[0]
        except (ValueError, IndexError) as error:
            yield ConfigError(f"Backend.{key}: {error}")
            continue
        if shutil.which(program) is None:
            yield ConfigError(f"Backend.{key}: no program {program} here (found through PATH)")
