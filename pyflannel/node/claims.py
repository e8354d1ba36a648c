"""What only one daemon of a node may have, claimed before anything else is done."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from pyflannel.core.errors import DeviceUnavailable
from pyflannel.core.options import DaemonOptions
from pyflannel.kernel.lock import SingleInstance, upstream_daemons
from pyflannel.logs import get_logger

log = get_logger(__name__)


def claim(options: DaemonOptions, stack: contextlib.AsyncExitStack) -> tuple[DaemonOptions, str]:
    """Claims `subnet.env` until the stack is closed, and the file for docker if it is free.

    Returns:
        The options to go by, and why docker's are not written, in words; empty if they are.

    Raises:
        DeviceUnavailable: another daemon has `subnet.env`.
    """
    SingleInstance(options.subnet_file).hold(stack)
    for pid in upstream_daemons():
        # Not refused: it may be about to end, and which of the two to stop is for the operator.
        log.warning("flanneld runs on this node too; two daemons fight, stop one", pid=pid)
    not_ours = claim_docker_file(options.docker_opts_file, stack)
    return (replace(options, docker_opts_file="") if not_ours else options), not_ours


def claim_docker_file(path: str, stack: contextlib.AsyncExitStack) -> str:
    """Makes docker's options this daemon's, until the stack is closed, if they are free.

    Not having them is no reason to end: two daemons with a subnet file each are what upstream
    documents, and docker can be in one subnet only.

    Returns:
        Why none are to be written, in words; empty if they are ours, or none are wanted.
    """
    if path:
        try:
            SingleInstance(path, flag="--docker-opts-file").hold(stack)
        except DeviceUnavailable as error:
            log.warning("docker's options are another daemon's, none are written", reason=error)
            return f"none are written: {error}; give this daemon another --docker-opts-file"
    return ""
