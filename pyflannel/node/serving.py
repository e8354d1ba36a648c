"""What a node answers: its status on a socket, its health on a port."""

from __future__ import annotations

import asyncio
import contextlib

from pyflannel.aio.clock import SystemClock
from pyflannel.core.options import DaemonOptions
from pyflannel.node.agent import Agent
from pyflannel.node.statussocket import keep_socket
from pyflannel.node.trouble import Trouble


async def serve_status(agent: Agent, options: DaemonOptions) -> None:
    """Keeps the status socket until cancelled; what goes wrong stands in the agent's report."""
    if not options.status_socket:
        await asyncio.Event().wait()
    trouble = agent.failing["status socket"] = Trouble(SystemClock())
    path, group = options.status_socket, options.status_group
    await keep_socket(agent, path, agent.progress, trouble.set, group=group)


async def serve_health(
    agent: Agent, options: DaemonOptions, stack: contextlib.AsyncExitStack
) -> None:
    """Answers on the health port until the stack is closed, if there is one.

    Raises:
        DeviceUnavailable: the address or the port is not available.
    """
    if options.healthz_port <= 0:
        return
    # Imported where it is asked for: aiohttp's server would cost each start time.
    from pyflannel.api import health

    served = await health.serve_health(
        lambda: agent.ready,
        agent if options.metrics else None,
        options.healthz_ip,
        options.healthz_port,
        agent.trouble if options.strict_health else health.no_trouble,
    )
    stack.push_async_callback(served.cleanup)
