"""The lab itself: makes what `topology` describes, and removes all of it again.

```python
with Lab(LabSpec(nodes=3, backend="udp")) as lab:
    assert lab.ping_all().ok
    lab.node(1).stop_daemon()
```

Order of `up`: state directory, namespaces (all at once), underlay, etcd (which starts while the
nodes are being cabled), network config, daemons, wait until each has written its files, bridges and
pods from those files. Each step is a method of its own, so that a caller can stop in between.

`down` needs only the state file: it ends every process of the lab, and with the last of them the
kernel removes the namespaces, devices, rules and mounts. It can run after a crash at any point,
more than once, and in another process than the one that made the lab.

Everything here blocks, which suits tests and a command line. asyncio code calls it in a thread.
"""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypedDict

from pyflannel.core.errors import UsageError
from pyflannel.lab import rootless, topology
from pyflannel.lab.errors import LabError, LabTimeout, NoSuchLab
from pyflannel.lab.etcd import LabEtcd, find_etcd
from pyflannel.lab.nodes import GRACE_S, READY_S, Node
from pyflannel.lab.ping import PingMatrix, ping_all
from pyflannel.lab.processes import ProcessRef, abandon, end_all, marked_with, wait_gone
from pyflannel.lab.spaces import Space, SpacePlan, ip_batch, need, open_spaces
from pyflannel.lab.state import LabState, StateDirectory
from pyflannel.lab.topology import LabSpec

_POLL_S: Final = 0.01
_DUMP_LINES: Final = 60
"""Lines of each log that `Lab.dump` shows."""


class Lab:
    """A cluster in a box.

    Args:
        spec: its description.
        base: directory of the labs' state, instead of the default.
    """

    def __init__(self, spec: LabSpec | None = None, *, base: Path | None = None) -> None:
        self.spec = spec if spec is not None else LabSpec()
        self._directory = StateDirectory(self.spec.name, base)
        self._holders: list[subprocess.Popen[str]] = []
        self._state: LabState | None = None
        self._switch: Space | None = None
        self._etcd: LabEtcd | None = None
        self.nodes: list[Node] = []

    @classmethod
    def open(cls, name: str = "default", *, base: Path | None = None) -> Lab:
        """The lab of this name that another process has made.

        Raises:
            NoSuchLab: if there is none.
            LabError: if it is only half made; `down` removes it.
        """
        directory = StateDirectory(name, base)
        state = directory.load()
        lab = cls(state.spec, base=base)
        lab._adopt(state)
        return lab

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception):
            error.add_note(self.dump())
        self.down()

    @property
    def path(self) -> Path:
        """The directory with the state and the nodes' files."""
        return self._directory.path

    @property
    def state(self) -> LabState:
        """The content of the state file."""
        if self._state is None:
            raise LabError("the lab is not up")
        return self._state

    @property
    def switch(self) -> Space:
        """The namespace of the underlay's switch, where etcd runs: the place to capture packets."""
        if self._switch is None:
            raise LabError("the lab is not up")
        return self._switch

    @property
    def etcd(self) -> LabEtcd:
        """The lab's etcd."""
        if self._state is None:
            raise LabError("the lab is not up")
        if self._etcd is None:
            raise LabError(f"the lab has no etcd: its leases are those of a {self.spec.store} file")
        return self._etcd

    def node(self, number: int) -> Node:
        """A node, counted from 1."""
        for node in self.nodes:
            if node.number == number:
                return node
        raise UsageError(f"node {number}: the lab {self.spec.name!r} has {len(self.nodes)} nodes")

    def up(self) -> None:
        """Makes the whole lab. If a step fails, all of it is removed again."""
        self.create()
        try:
            with self._directory.locked():
                self.build()
                self.configure()
                if self.spec.start_daemons:
                    self.start_daemons()
                    self.wait_ready()
                    self.attach_pods()
        except BaseException as error:
            if isinstance(error, LabError):
                error.add_note(self.logs())
            self.down()
            raise

    def create(self) -> None:
        """Claims the name. From here on `down` has something to remove.

        Raises:
            LabExists: if the name is taken.
            LabNotPermitted: if this process may not make namespaces.
        """
        rootless.require_rights()
        self._state = self._directory.create(self.spec)

    def build(self) -> None:
        """Makes namespaces, underlay and etcd."""
        numbers = range(1, self.spec.nodes + 1)
        plans = [SpacePlan(name="switch")]
        for number in numbers:
            plans += self._plans(number)
        spaces = open_spaces(plans, self.state.lab_id, self._holders)
        for space in spaces:
            self.state.processes[space.name] = space.holder
        self._save()
        self._switch = spaces[0]
        address = topology.underlay_address(topology.SWITCH_HOST)
        ip_batch(self._switch, topology.switch_setup(address))
        # A switch has no firewall. With the module br_netfilter loaded, each packet would pass one.
        zero = [f"{name}=0" for name in topology.SWITCH_SYSCTLS]
        self._switch.run(["sysctl", "-q", "-e", "-w", *zero])
        if self.spec.store == "etcd":
            self._etcd = self._make_etcd()
            self._etcd.start(wait=False)
        for number in numbers:
            self._cable(Node(self, number, spaces[2 * number - 1], spaces[2 * number]))
        if self._etcd is not None:
            self._etcd.wait_healthy()

    def configure(self) -> None:
        """Puts the network config into etcd, or the static network file on every node."""
        if self.spec.store == "static":
            self.write_static(topology.static_file(self.spec, (n.number for n in self.nodes)))
        else:
            self.etcd.put_config(self.spec.config_text())

    def write_static(self, text: str) -> None:
        """Replaces the static network file of every node by a rename."""
        for node in self.nodes:
            target = node.path(topology.STATIC_FILE)
            fresh = target.with_name(f"{target.name}.new")
            fresh.write_text(text, encoding="utf-8")
            fresh.rename(target)

    def start_daemons(self) -> None:
        """Starts every node's daemon, without waiting."""
        for node in self.nodes:
            node.start_daemon()

    def wait_ready(self, deadline: float = READY_S) -> None:
        """Waits until every daemon has its lease and has written its files.

        Raises:
            LabError: if one of them ends instead; at once.
            LabTimeout: if they are not ready after `deadline` seconds.
        """
        waiting = {node.number: node for node in self.nodes}

        def all_ready() -> bool:
            for number, node in list(waiting.items()):
                if node.is_ready():
                    del waiting[number]
            return not waiting

        self.wait(all_ready, deadline, what="every daemon's subnet.env")

    def attach_pods(self) -> None:
        """Sets up bridge and pod of every node from its `docker_opts.env`."""
        for node in self.nodes:
            node.attach_pod()

    def add_node(self, *, command: str = "", start: bool = True) -> Node:
        """Adds a node to the running lab; with `start`, returns when its pod is in the overlay."""
        number = max((node.number for node in self.nodes), default=0) + 1
        if number > topology.MAX_NODES:
            raise UsageError(f"node {number}: a lab holds {topology.MAX_NODES}")
        if command:
            commands = {**self.spec.node_commands, number: command}
            self.spec = topology.with_node_commands(self.spec, commands)
            self.state.spec = self.spec
        spaces = open_spaces(self._plans(number), self.state.lab_id, self._holders)
        node = Node(self, number, *spaces)
        self._cable(node)
        for space in spaces:
            self.remember(space.name, space.holder)
        if self.spec.store == "static":
            self.configure()
        if start:
            node.start_daemon()
            self.wait(node.is_ready, READY_S, what=f"{node.name}'s subnet.env")
            node.attach_pod()
        return node

    def ping_all(
        self,
        nodes: Sequence[int] | None = None,
        *,
        count: int = 3,
        deadline: float = 5.0,
        version: int = 4,
    ) -> PingMatrix:
        """Pings between all pairs of pods (or those of `nodes`), in parallel.

        Args:
            nodes: numbers of the nodes whose pods take part.
            count: answers wanted of each pair.
            deadline: seconds for which pods that do not answer are pinged again.
            version: of IP, 4 or 6.
        """
        chosen = self.nodes if nodes is None else [self.node(number) for number in nodes]
        pods: dict[str, tuple[Space, str]] = {}
        for node in chosen:
            address = node.pod_address(version)
            if address is None:
                raise LabError(f"{node.pod.name} has no IPv{version} address")
            pods[node.pod.name] = (node.pod, address)
        return ping_all(pods, count=count, deadline_s=deadline)

    def wait(
        self,
        predicate: Callable[[], bool],
        deadline: float = READY_S,
        *,
        what: str = "",
    ) -> None:
        """Waits until `predicate` is true.

        Raises:
            LabTimeout: if it is not true after `deadline` seconds; names `what` it waited for.
        """
        end = time.monotonic() + deadline
        while not predicate():
            if time.monotonic() > end:
                raise LabTimeout(f"{what or 'the awaited'}: not there after {deadline} s")
            time.sleep(_POLL_S)

    def logs(self, last: int = 10) -> str:
        """The last lines of the logs of each daemon and of etcd."""
        parts: list[str] = []
        for path in (*(node.directory / "log" for node in self.nodes), self.path / "etcd.log"):
            if path.exists():
                lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-last:]
                parts.append("\n".join([f"=== {path}", *lines]))
        return "\n".join(parts)

    def leave_running(self) -> None:
        """Detaches a lab that will outlive this process, which then does not reap its processes."""
        for holder in self._holders:
            abandon(holder)
        for node in self.nodes:
            node.release()
        if self._etcd is not None:
            self._etcd.release()
        self._holders = []

    def dump(self) -> str:
        """Logs, addresses, routes, neighbours and FDB of all nodes, for a failed test."""
        parts: list[str] = []
        looks = (
            "ip -d -br link",
            "ip -br address",
            "ip route show table all",
            "ip neigh",
            "bridge fdb show",
        )
        for node in self.nodes:
            daemon = f"pid {node.pid}" if node.daemon else "not running"
            parts.append(f"=== {node.name}: daemon {daemon}, {node.subnet_env()}")
            parts.append(node.log(_DUMP_LINES))
            parts += [f"--- {node.name}$ {look}\n{_try(node.space, look)}" for look in looks]
            parts.append(f"--- {node.pod.name}$ ip route\n{_try(node.pod, 'ip route')}")
        if self._etcd is not None:
            try:
                parts += [f"{lease.key} {lease.value} {lease.ttl}" for lease in self._etcd.leases()]
            except (OSError, LabError) as error:
                parts.append(f"=== etcd: {error}")
        return "\n".join(parts)

    def down(self) -> None:
        """Removes the lab, if it exists.

        Ends the recorded processes and those that carry the lab's mark: daemons first, so that they
        can clean up, and the holders of the namespaces last.
        """
        try:
            with self._directory.locked():
                state = self._directory.load()
                self._take_down(state)
        except NoSuchLab:
            # The directory of a running lab may have been removed.
            if self._state is not None:
                self._take_down(self._state)
        self._forget()

    def remember(self, role: str, process: ProcessRef) -> None:
        """Writes a process of the lab into the state file."""
        self.state.processes[role] = process
        self._save()

    def _take_down(self, state: LabState) -> None:
        recorded = set(state.processes.values())
        holders = {
            ref
            for role, ref in state.processes.items()
            if role == "switch" or role.startswith(("node", "pod"))
        }
        daemons = {ref for role, ref in state.processes.items() if role.startswith("daemon")}
        end_all(daemons, grace_s=GRACE_S)
        end_all(recorded - holders, grace_s=GRACE_S)
        end_all(set(marked_with(state.lab_id)) - holders, grace_s=GRACE_S)
        # `sleep` needs no time to clean up. A second pass finds processes that were started
        # meanwhile.
        for ref in holders:
            ref.send(signal.SIGKILL)
        end_all(marked_with(state.lab_id), grace_s=0.0)
        wait_gone(holders, deadline=time.monotonic() + GRACE_S)
        self._directory.remove(state)

    def _forget(self) -> None:
        for node in self.nodes:
            node.close()
        if self._etcd is not None:
            self._etcd.close()
        for child in self._holders:
            child.wait()
        self.nodes, self._holders = [], []
        self._state = self._switch = self._etcd = None

    def _adopt(self, state: LabState) -> None:
        self._state = state
        processes = state.processes
        if "switch" not in processes:
            raise self._half_made()
        self._switch = Space("switch", processes["switch"], state.lab_id, own_mounts=False)
        if state.spec.store == "etcd":
            self._etcd = self._make_etcd(processes.get("etcd"))
        for role, holder in processes.items():
            if role.startswith("node"):
                number = int(role.removeprefix("node"))
                pod = processes.get(topology.pod_name(number))
                if pod is None:
                    raise self._half_made()
                self.nodes.append(
                    Node(
                        self,
                        number,
                        Space(role, holder, state.lab_id, own_mounts=True),
                        Space(topology.pod_name(number), pod, state.lab_id, own_mounts=False),
                    )
                )
        self.nodes.sort(key=lambda node: node.number)

    def _half_made(self) -> LabError:
        name = self.spec.name
        return LabError(
            f"the lab {name!r} is only half made; `pyflannel lab down --name {name}` takes it away"
        )

    def _make_etcd(self, process: ProcessRef | None = None) -> LabEtcd:
        return LabEtcd(
            space=self.switch,
            program=find_etcd(self.spec.etcd),
            data=self.state.etcd_data,
            log=self.path / "etcd.log",
            prefix=self.spec.prefix,
            process=process,
            changed=lambda ref: self.remember("etcd", ref),
        )

    def _plans(self, number: int) -> list[SpacePlan]:
        name = topology.node_name(number)
        directory = self.path / name
        places = [directory / place for place in ("run", "state", "overlay")]
        for place in places:
            place.mkdir(parents=True)
        mounts = topology.node_mounts(*map(str, places))
        return [
            SpacePlan(name=name, setup=mounts, own_mounts=True),
            SpacePlan(name=topology.pod_name(number)),
        ]

    def _cable(self, node: Node) -> None:
        pid = node.space.holder.pid
        ip_batch(self.switch, topology.cable(node.number, pid, self.spec.underlay_mtu))
        ip_batch(node.space, topology.node_setup(node.number))
        off = [word for feature in self.spec.features_off() for word in (feature, "off")]
        on = [word for feature in self.spec.features_on() for word in (feature, "on")]
        for space, device, words in (
            (node.space, "eth0", [*off, *on]),
            (self.switch, node.name, off),
        ):
            if words:
                space.run([need("ethtool"), "-K", device, *words])
        self.nodes.append(node)

    def _save(self) -> None:
        self._directory.save(self.state)


def _try(space: Space, command: str) -> str:
    try:
        done = space.run(shlex.split(command), check=False, timeout=5.0)
    except LabError as error:
        return str(error)
    return (done.stdout + done.stderr).rstrip()


class NodeJson(TypedDict):
    """A node of a lab that is up."""

    node: int
    public_ip: str
    daemon_pid: int | None
    subnet: str | None
    mtu: str | None
    pod: str | None
    log: str


class LabJson(TypedDict):
    """What `pyflannel lab up --json` prints."""

    name: str
    directory: str
    store: str
    etcd_endpoint: str | None
    etcd_prefix: str
    config: dict[str, object]
    nodes: list[NodeJson]


def describe(lab: Lab) -> LabJson:
    """A lab as JSON values: what `pyflannel lab up --json` prints."""
    return {
        "name": lab.spec.name,
        "directory": str(lab.path),
        "store": lab.spec.store,
        "etcd_endpoint": lab.etcd.endpoint if lab.spec.store == "etcd" else None,
        "etcd_prefix": lab.spec.prefix,
        "config": json.loads(lab.spec.config_text()),
        "nodes": [
            {
                "node": node.number,
                "public_ip": node.address,
                "daemon_pid": node.daemon.pid if node.daemon else None,
                "subnet": node.subnet_env().get("FLANNEL_SUBNET"),
                "mtu": node.subnet_env().get("FLANNEL_MTU"),
                "pod": node.pod_address(),
                "log": str(node.directory / "log"),
            }
            for node in lab.nodes
        ],
    }
