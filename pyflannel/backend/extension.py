"""extension: the operator's own commands set up and tear down what peers need.

| command | run | told in the environment | standard input |
|---|---|---|---|
| PreStartupCommand | before the lease | - | a newline |
| PostStartupCommand | with the lease, again with another subnet | about us, NETWORK | a newline |
| SubnetAddCommand | a peer is there | about the peer | its data, newline |
| SubnetRemoveCommand | a peer is gone | about the peer | its data, newline |

"About" is SUBNET, IPV6SUBNET, PUBLIC_IP and PUBLIC_IPV6; what does not exist is the empty string.
The daemon's environment is inherited. What PreStartupCommand prints is published as our backend
data, a JSON string. (Standard output only; upstream mixes standard error in.)

*No shell.* A command line is split into words as a shell would, quotes and backslashes heeded; then
`$NAME` and `${NAME}` are replaced inside each word, unknown names by nothing, and a value with
blanks stays one word. Nothing else of a shell is there: `;`, `|`, `>`, `$(…)` are plain characters.
For those write `sh -c "… ; …"`. (Upstream has no shell either since v0.28.2, but does not
understand quotes, which its own samples use.)

Per peer there is a desired lease and the one the commands were last run for. A changed lease is
a removal with the old values and then an addition with the new ones. The commands of one peer run
one after the other, those of different peers side by side, `MOST_CHILDREN` at a time; each is
killed after `DEADLINE_S`. One that fails is reported and not repeated, as with upstream: only
the operator knows whether that would be safe. After a restart every peer is added anew.

The public addresses are those of the interface, as with upstream.

Source: upstream `pkg/backend/extension/`.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import ClassVar, Final

from pyflannel.backend.base import Applied, BackendContext, BackendKind
from pyflannel.backend.peers import public_address, type_problem
from pyflannel.core.config import NetworkConfig
from pyflannel.core.errors import CommandError
from pyflannel.core.fields import Problem, string
from pyflannel.core.ip import Family, IPNetwork, SubnetKey, format_network
from pyflannel.core.lease import Lease, LeaseAdded, LeaseAttrs, LeaseEvent
from pyflannel.core.settings import Settings, setting
from pyflannel.core.underlay import ExternalInterface
from pyflannel.foreign import shown
from pyflannel.kernel.base import Notification
from pyflannel.kernel.process import Completed, run
from pyflannel.logs import get_logger
from pyflannel.records import dataclass
from pyflannel.report.model import NetworkReport

log = get_logger(__name__)

BACKEND_TYPE: Final = "extension"


# What the operator may set.


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtensionSettings(Settings):
    """`Backend` of the network config. An empty command is not run."""

    RUNS_COMMANDS: ClassVar[bool] = True
    UNUSED: ClassVar[Mapping[str, str]] = {
        "ShutdownCommand": "flannel runs no command when it stops"
    }

    pre_startup_command: str = setting(
        "PreStartupCommand",
        string,
        default="",
        effect="run before the lease; its output is published as the lease's backend data",
    )
    post_startup_command: str = setting(
        "PostStartupCommand", string, default="", effect="run once the lease is there"
    )
    subnet_add_command: str = setting(
        "SubnetAddCommand", string, default="", effect="run for every peer that comes or changes"
    )
    subnet_remove_command: str = setting(
        "SubnetRemoveCommand", string, default="", effect="run for every peer that goes"
    )

    def problems(self) -> Iterable[Problem]:
        """As in `Settings`: command lines that cannot be split."""
        for key, command in self.encode().items():
            try:
                split_command(str(command))
            except ValueError as error:
                name = f"Backend.{key}"
                yield Problem.error(name, f"{name} {command!r} cannot be split: {error}")


def split_command(command: str) -> tuple[str, ...]:
    """The words of a command line, variables not yet replaced; empty if there is no command.

    Raises:
        ValueError: a quote is not closed, or there is a backslash at the end.
    """
    return tuple(shlex.split(command))


# What it does.

OVERHEAD: Final = {Family.V4: 0, Family.V6: 0}
"""The commands know better what they add."""
DEADLINE_S: Final = 60.0
"""Seconds a command may take: long enough for a call to a cloud's API with its own retries."""
MOST_CHILDREN: Final = 8
"""Commands at a time. A start with 1,000 peers must not become 1,000 processes; eight keep a few
CPUs busy, and one that hangs takes an eighth of the throughput until its deadline."""
LOGGED_OUTPUT: Final = 2000
"""Characters of a command's output that go into a log line."""

Runner = Callable[[Sequence[str], bytes, Mapping[str, str]], Awaitable[Completed]]
"""Runs a program: arguments, standard input, whole environment. Raises `CommandError`."""


async def run_child(argv: Sequence[str], stdin: bytes, env: Mapping[str, str]) -> Completed:
    """The real `Runner`."""
    return await run(argv, stdin=stdin, timeout_s=DEADLINE_S, env=env)


_VARIABLE: Final = re.compile(r"\$(?:\{([^}]*)\}|([A-Za-z_][A-Za-z0-9_]*))")


def expand(words: Sequence[str], env: Mapping[str, str]) -> tuple[str, ...]:
    """The words with `$NAME` and `${NAME}` replaced, unknown ones by nothing."""
    return tuple(_VARIABLE.sub(lambda m: env.get(m[1] or m[2] or "", ""), word) for word in words)


def peer_environment(lease: Lease) -> dict[str, str]:
    """What a peer's commands find in their environment."""
    v4, v6 = lease.subnet(Family.V4), lease.subnet(Family.V6)
    return {
        "SUBNET": format_network(v4) if v4 is not None else "",
        "IPV6SUBNET": format_network(v6) if v6 is not None else "",
        "PUBLIC_IP": str(public_address(lease, Family.V4) or ""),
        "PUBLIC_IPV6": str(public_address(lease, Family.V6) or ""),
    }


def own_environment(
    config: NetworkConfig, lease: Lease, external: ExternalInterface
) -> dict[str, str]:
    """What PostStartupCommand finds in its environment."""
    return {
        **peer_environment(lease),
        "NETWORK": format_network(config.network) if config.network is not None else "",
        "PUBLIC_IP": str(external.address or ""),
        "PUBLIC_IPV6": str(external.address6 or ""),
    }


def peer_data(lease: Lease) -> str:
    """What a peer's PreStartupCommand printed.

    Raises:
        ValueError: its backend data is something else than a JSON string.
    """
    text = lease.attrs.backend_data
    if text is None:
        return ""
    if text == "null":
        return ""
    if not text.startswith('"'):  # not decoded first: that fails on deep nesting
        raise ValueError(f"its backend data is not a JSON string: {shown(text, 80)}")
    return str(json.loads(text))


def problem_of(lease: Lease) -> str:
    """Why no command is run for a peer; empty if none."""
    problem = type_problem(lease, BACKEND_TYPE)
    if not problem:
        try:
            peer_data(lease)
        except ValueError as error:
            problem = str(error)
    return problem


class Commands:
    """The operator's commands, ready to run."""

    def __init__(
        self, settings: ExtensionSettings, runner: Runner, environ: Mapping[str, str]
    ) -> None:
        self._runner = runner
        self._environ = environ
        self.pre = split_command(settings.pre_startup_command)
        self.post = split_command(settings.post_startup_command)
        self.add = split_command(settings.subnet_add_command)
        self.remove = split_command(settings.subnet_remove_command)

    async def run(
        self, name: str, words: Sequence[str], values: Mapping[str, str], data: str = ""
    ) -> str:
        """Runs one, logs what it said, and gives what it printed.

        Raises:
            CommandError: it cannot be started, fails, or does not end.
        """
        env = {**self._environ, **values}
        argv = expand(words, env)
        done = await self._runner(argv, f"{data}\n".encode(), env)
        printed = done.stdout.decode(errors="replace").strip()
        complaint = done.stderr.decode(errors="replace").strip()
        said = "\n".join(text for text in (printed, complaint) if text)
        if done.returncode != 0:
            how = f"exit status {done.returncode}"
            if done.returncode < 0:
                how = f"killed by signal {-done.returncode}"
            text = f"{name} ({shlex.join(argv)}): {how}"
            raise CommandError(f"{text}: {said[:LOGGED_OUTPUT]}" if said else text)
        log.info("command run", command=name, output=said[:LOGGED_OUTPUT] or None, **values)
        return printed


class ExtensionNetwork:
    """Runs a command for every peer that comes or goes; see `Network` for the contract."""

    def __init__(
        self,
        commands: Commands,
        config: NetworkConfig,
        external: ExternalInterface,
        data: str | None,
    ) -> None:
        self._commands = commands
        self._config = config
        self._external = external
        self._data = data
        self._desired: dict[SubnetKey, Lease] = {}
        self._applied: dict[SubnetKey, Lease] = {}
        self._changed: dict[SubnetKey, None] = {}
        self._ignored: dict[SubnetKey, str] = {}
        self._failed: dict[SubnetKey, str] = {}
        self._own_failure = ""
        self._workers: dict[SubnetKey, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(MOST_CHILDREN)

    @property
    def mtu(self) -> int:
        """As in `Network`: the external interface's; the commands know better what they add."""
        return self._external.mtu

    @property
    def near(self) -> Sequence[IPNetwork] | None:
        """As in `Network`."""
        return ()

    @property
    def neighbours_of(self) -> frozenset[int]:
        """As in `Network`."""
        return frozenset()

    def update(self, events: Sequence[LeaseEvent]) -> None:
        """As in `Network`."""
        for event in events:
            lease = event.lease
            problem = problem_of(lease) if isinstance(event, LeaseAdded) else ""
            if problem and self._ignored.get(lease.key) != problem:
                log.warning("peer ignored", peer=lease.key.describe(), reason=problem)
            if isinstance(event, LeaseAdded) and not problem:
                self._desired[lease.key] = lease
            else:
                self._desired.pop(lease.key, None)
            self._ignored.pop(lease.key, None)
            if problem:
                self._ignored[lease.key] = problem
            self._changed[lease.key] = None

    def synced(self) -> None:
        """As in `Network`: nothing of an earlier run can be recognised, so nothing is swept."""

    def notice(self, notification: Notification) -> bool:
        """As in `Network`: what the commands made is unknown to us."""
        del notification
        return False

    async def apply(self, *, full: bool) -> Applied:
        """As in `Network`, but that it only *starts* the commands: a child may take a minute."""
        del full
        changed, self._changed = self._changed, {}
        for key in changed:
            if key not in self._workers:
                work = self._work(key)
                self._workers[key] = asyncio.create_task(work, name=f"commands for {key}")
        return Applied(changed=len(changed))

    async def idle(self) -> None:
        """Waits until no command is running or waiting."""
        while self._workers:
            await asyncio.wait(self._workers.values())

    async def post_startup(self, lease: Lease) -> None:
        """Runs PostStartupCommand.

        Raises:
            CommandError: it failed.
        """
        if self._commands.post:
            values = own_environment(self._config, lease, self._external)
            await self._commands.run("PostStartupCommand", self._commands.post, values)

    async def rebase(self, underlay: ExternalInterface, lease: Lease | None = None) -> LeaseAttrs:
        """As in `Network`: with another lease runs PostStartupCommand again.

        What it has made is for the former subnet. (Upstream ends when it loses its lease, and runs
        the command when it is started anew.)
        """
        self._external = underlay
        if lease is not None:
            self._own_failure = ""
            try:
                await self.post_startup(lease)
            except CommandError as error:
                self._own_failure = str(error)
                log.warning("command failed", reason=str(error))
        return self.own_attrs()

    def own_attrs(self) -> LeaseAttrs:
        """As in `Network`."""
        return attrs(self._external, self._data)

    def report(self) -> NetworkReport:
        """As in `Network`."""
        failing = {f"peer {key.describe()}": text for key, text in self._failed.items()}
        if self._own_failure:
            failing["this node"] = self._own_failure
        return NetworkReport(
            backend=BACKEND_TYPE,
            mtu=self.mtu,
            underlay=self._external.name,
            peers=len(self._desired),
            commands_running=len(self._workers),
            ignored={key.describe(): text for key, text in self._ignored.items()},
            failing=failing,
        )

    def peer_counters(self, lease: Lease) -> Mapping[str, int] | None:
        """As in `Network`: nothing."""
        del lease
        return None

    async def detach(self) -> None:
        """Kills what is running; like upstream no command is run for the end."""
        workers = list(self._workers.values())
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, key: SubnetKey) -> None:
        """Runs commands for one peer until it is as desired."""
        try:
            while (wanted := self._desired.get(key)) != (there := self._applied.get(key)):
                async with self._slots:
                    if there is not None:
                        del self._applied[key]
                        await self._run("SubnetRemoveCommand", self._commands.remove, there)
                    elif wanted is not None:
                        self._applied[key] = wanted
                        await self._run("SubnetAddCommand", self._commands.add, wanted)
        finally:
            del self._workers[key]

    async def _run(self, name: str, words: Sequence[str], lease: Lease) -> None:
        if not words:
            return
        try:
            await self._commands.run(name, words, peer_environment(lease), peer_data(lease))
        except CommandError as error:
            self._failed[lease.key] = str(error)
            log.warning("command failed", peer=lease.key.describe(), reason=str(error))
        else:
            self._failed.pop(lease.key, None)


def attrs(external: ExternalInterface, data: str | None) -> LeaseAttrs:
    """What an extension node publishes.

    Args:
        external: its addresses on the interface are published, whatever `--public-ip` says.
        data: what PreStartupCommand printed; `None` if there is no such command.
    """
    return LeaseAttrs(
        public_ip=external.address,
        public_ipv6=external.address6,
        backend_type=BACKEND_TYPE,
        backend_data=json.dumps(data, ensure_ascii=False) if data is not None else None,
    )


class ExtensionBackend:
    """The extension backend; see `Backend` for the contract.

    Args:
        context: as for every backend.
        runner: runs the programs; a test hands in a fake.
        environ: the environment that children inherit; by default our own.
    """

    def __init__(
        self,
        context: BackendContext,
        *,
        runner: Runner = run_child,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        settings = context.config.settings(ExtensionSettings)
        self._commands = Commands(settings, runner, environ)
        self._config = context.config
        self._external = context.underlay
        self._data: str | None = None

    async def prepare(self, previous: LeaseAttrs | None) -> LeaseAttrs:
        """As in `Backend`: runs PreStartupCommand.

        Raises:
            CommandError: it failed.
        """
        del previous
        if self._commands.pre:
            self._data = await self._commands.run("PreStartupCommand", self._commands.pre, {})
        return attrs(self._external, self._data)

    async def attach(self, lease: Lease) -> ExtensionNetwork:
        """As in `Backend`: runs PostStartupCommand.

        Raises:
            CommandError: it failed.
        """
        network = ExtensionNetwork(self._commands, self._config, self._external, self._data)
        await network.post_startup(lease)
        return network


KIND: Final = BackendKind(
    name=BACKEND_TYPE,
    summary="the operator's own commands make the way to each peer",
    settings=ExtensionSettings,
    overhead=OVERHEAD,
    moves_packets=False,
    route_per_peer=False,
    title="",
    create=ExtensionBackend,
)
