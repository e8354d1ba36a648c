"""The composition root: builds everything, orders the start, and takes it down again.

No policy of its own; what goes on while a node runs is in `node/agent.py`. In this order: claims,
status socket, health server, the agent's start, and when the node is up the watchdog.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
from collections.abc import Sequence
from functools import partial
from typing import Final

import pyflannel
from pyflannel import logs
from pyflannel.aio.clock import SystemClock
from pyflannel.aio.tasks import finish, first_cause, forever
from pyflannel.backend.base import BackendContext
from pyflannel.backend.kinds import KINDS, create
from pyflannel.core.options import DaemonOptions
from pyflannel.kernel import ndisc
from pyflannel.kernel.claim import DeviceClaims
from pyflannel.kernel.lookup import find_interface, follow_interface
from pyflannel.kernel.netlink import KernelNetlink
from pyflannel.kernel.surroundings import look_for_obstacles
from pyflannel.logs import get_logger
from pyflannel.node import edges, process
from pyflannel.node.agent import Agent
from pyflannel.node.claims import claim
from pyflannel.node.envfiles import EnvFiles, read_former
from pyflannel.node.parts import Parts, Settings
from pyflannel.node.restart import is_restart
from pyflannel.node.serving import serve_health, serve_status
from pyflannel.node.starttimeout import while_starting
from pyflannel.node.trouble import Trouble
from pyflannel.node.watchdog import feed_watchdog
from pyflannel.probe.checksums import LostChecksums
from pyflannel.store.open import open_store
from pyflannel.systemd import FdStore, Notifier, watchdog_interval_s
from pyflannel.traffic import select

log = get_logger(__name__)

STATUS_END_S: Final = 1.0
"""For the status socket to close: requests in flight are answered in milliseconds."""


def run_daemon(options: DaemonOptions, warnings: Sequence[str]) -> int:
    """Runs until asked to stop; returns the exit code.

    Raises:
        FlannelError: it could not start, or could not go on; carries its exit code.
    """
    logs.set_up(options.log_format, verbosity=options.v)
    for warning in warnings:
        log.warning(warning)
    try:
        return process.run(partial(_run, options))
    except BaseExceptionGroup as group:
        raise first_cause(group) from group


async def _run(options: DaemonOptions) -> None:
    """Starts, serves, and when cancelled takes down what does not outlive the daemon."""
    about = {"version": pyflannel.__version__, "pid": os.getpid(), "options": options.describe()}
    log.info("pyflanneld starts", **about)
    async with contextlib.AsyncExitStack() as stack:
        options, not_ours = claim(options, stack)
        notifier = Notifier.from_environment()
        agent = Agent(_parts(options, notifier, stack), Settings.of(options))
        agent.failing["docker options"] = docker_trouble = Trouble(SystemClock())
        docker_trouble.set(not_ours)
        async with while_starting(notifier):
            status = asyncio.create_task(serve_status(agent, options), name="status socket")
            stack.push_async_callback(finish, status, within=STATUS_END_S)
            await serve_health(agent, options, stack)
            node = await agent.start(stack)
        gc.collect()
        gc.freeze()  # what was made so far stays; later collections need not look at it
        try:
            async with asyncio.TaskGroup() as group:
                forever(group, "agent", agent.run(node))
                forever(group, "status socket", asyncio.shield(status))
                if (interval := watchdog_interval_s()) is not None:
                    forever(group, "watchdog", feed_watchdog(notifier, interval, SystemClock()))
        except asyncio.CancelledError:  # asked to stop; a failure is a group of exceptions
            await agent.leave()
            raise


def _parts(options: DaemonOptions, notifier: Notifier, stack: contextlib.AsyncExitStack) -> Parts:
    clock, netlink, fd_store = SystemClock(), KernelNetlink(), FdStore.from_environment()
    stack.push_async_callback(netlink.close)
    claims = DeviceClaims()
    stack.callback(claims.close)
    waiting, former = Trouble(clock), read_former(options.subnet_file)

    def tell(what: str) -> None:
        if waiting.set(what) and what:
            notifier.status(what)

    checksums = LostChecksums()
    obstacles = partial(look_for_obstacles, netlink, ours=KINDS.is_device)
    store = open_store(options, KINDS, former.previous_subnet, clock, tell, obstacles)
    stack.push_async_callback(store.close)
    return Parts(
        store=store,
        netlink=netlink,
        find_underlay=partial(find_interface, netlink, options, ours=KINDS.is_device),
        follow_underlay=partial(follow_interface, netlink, options, ours=KINDS.is_device),
        announce=ndisc.tell_neighbours,
        kinds=KINDS,
        backend=lambda config, underlay, prescribed, held: create(
            BackendContext(
                config=config,
                underlay=underlay,
                prescribed=prescribed,
                netlink=netlink,
                state_dir=options.state_dir,
                datapath=options.datapath,
                accept_any_port=options.udp_accept == "any-port",
                accept_any=options.udp_accept == "any",
                checksums_lost=lambda: checksums.text,
                fd_store=fd_store,
                store_addresses=store.addresses,
                is_own_device=KINDS.is_device,
                claim_device=claims.take,
                held=held,
            )
        ),
        firewall=lambda config: select.managers(config, options),
        files=EnvFiles(clock),
        clock=clock,
        notifier=notifier,
        former=former,
        waiting=waiting,
        is_restart=is_restart,
        open_echoes=edges.open_echoes,
        open_knock=edges.open_knock,
        checksums=checksums,
        attached=fd_store.drop_rest,
    )
