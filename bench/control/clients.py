"""Many nodes' store clients in one process: what `bench.control.load` puts upon an etcd.

Each has the product's own client and lease store, and asks for what a daemon asks for, in the same
order: config, former lease, a lease; then it watches leases and config and keeps its lease. What a
daemon does beside (devices, files, rules) costs etcd nothing and is left out.

Lines on stdout: `there` when all clients exist, then after a line on stdin they start; a JSON
object for each node that has its lease, with the time; `waiting` when all wait for one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from ipaddress import IPv4Address
from pathlib import Path

from pyflannel.aio.clock import SystemClock
from pyflannel.backend.kinds import KINDS
from pyflannel.core.errors import NetworkConfigChanged, StoreError
from pyflannel.core.lease import LeaseAttrs
from pyflannel.core.options import EtcdOptions
from pyflannel.store.etcd.manager import EtcdLeaseStore
from pyflannel.store.etcd.store import EtcdStore
from pyflannel.store.record import LeaseRecord

FIRST_ADDRESS = int(IPv4Address("172.16.0.1"))


class Client:
    """One node's way to etcd."""

    def __init__(self, number: int, options: EtcdOptions, directory: Path) -> None:
        self._number = number
        state = directory / str(number)
        state.mkdir()
        self._store = EtcdStore(options)
        self._leases = EtcdLeaseStore(
            self._store,
            options.prefix,
            kinds=KINDS,
            clock=SystemClock(),
            record=LeaseRecord(str(state), options.prefix),
        )
        mac = f"02:00:00:00:{number >> 8:02x}:{number % 256:02x}"
        self._attrs = LeaseAttrs(
            public_ip=IPv4Address(FIRST_ADDRESS + number),
            backend_type="vxlan",
            backend_data=f'{{"VNI":1,"VtepMAC":"{mac}"}}',
        )

    async def run(self) -> None:
        """For good."""
        while True:
            await self._leases.network_config()
            with contextlib.suppress(StoreError):
                await self._leases.previous(self._attrs)
            try:
                lease = await self._leases.acquire(self._attrs)
            except NetworkConfigChanged:
                continue
            break
        said = {"node": self._number, "at": time.time(), "subnet": lease.key.describe()}
        print(json.dumps(said), flush=True)
        async with asyncio.TaskGroup() as group:
            group.create_task(_drain(self._leases.watch_leases()))
            group.create_task(_drain(self._leases.keep()))
            group.create_task(_drain(self._leases.watch_config()))


async def _drain(stream: AsyncIterator[object]) -> None:
    async for _ in stream:
        pass


async def _main(given: argparse.Namespace, directory: Path) -> None:
    options = EtcdOptions(
        endpoints=tuple(given.endpoints.split(",")),
        username=given.username,
        password_file=given.password_file,
    )
    clients = [Client(given.first + n, options, directory) for n in range(given.count)]
    print("there", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(client.run())


def main() -> None:
    """Runs until it is killed."""
    parser = argparse.ArgumentParser(prog="python -m bench.control.clients", description=__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--endpoints", required=True)
    parser.add_argument("--username", default="")
    parser.add_argument("--password-file", default="")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as directory, contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main(given, Path(directory)))


if __name__ == "__main__":
    main()
