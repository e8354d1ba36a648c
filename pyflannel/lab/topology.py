"""The layout of a lab, computed without side effects.

```
   pod1          pod2          pod3        10.0.x.2, default route via the bridge
    |             |             |
 [docker0]     [docker0]     [docker0]     as each node's docker_opts.env says
  node1         node2         node3        pyflanneld; flannel0, routes, /run of its own
   eth0          eth0          eth0        192.0.2.K
    |             |             |
  --+-------------+-------------+--        bridge in the namespace `switch`
                  |
                etcd                       192.0.2.254:2379
```

Node K has the addresses 192.0.2.K and 2001:db8::K on the underlay, the host name nodeK, and the pod
podK. Both prefixes are reserved for documentation (RFC 5737, RFC 3849), so they hide no real hosts,
and a capture can be read without a table.

Everything here is a plain function or a frozen value; `nodes` carries it out. Commands are written
as input for `ip -batch`, one batch per namespace, because one process is much faster than twenty.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, replace
from enum import StrEnum
from ipaddress import (
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_interface,
)
from typing import Final

from pyflannel.backend.kinds import KINDS
from pyflannel.core.config import NetworkConfig
from pyflannel.core.configparse import load_network_config, parse_network_config
from pyflannel.core.errors import UsageError
from pyflannel.core.ip import Family, IPNetwork
from pyflannel.records import dataclass

UNDERLAY: Final = IPv4Network("192.0.2.0/24")
"""TEST-NET-1 of RFC 5737: no real machine has these addresses."""
UNDERLAY_V6_BASE: Final = int(IPv6Address("2001:db8::"))
"""The documentation prefix of RFC 3849."""
UNDERLAY_V6_PREFIX_LENGTH: Final = 64

SWITCH_HOST: Final = 254
"""Last usable host number of the underlay: the switch, which is default gateway and has etcd."""
MAX_NODES: Final = 200
"""Fits below the switch's own number. Each node costs two sleeping processes."""

ETCD_PORT: Final = 2379
ETCD_ENDPOINT: Final = f"http://{UNDERLAY[SWITCH_HOST]}:{ETCD_PORT}"

DEFAULT_NETWORK: Final = "10.0.0.0/16"
DEFAULT_PREFIX: Final = "/coreos.com/network"

DEMO_CONFIG: Final = (
    '{"Network":"10.0.0.0/16","SubnetLen":24,"SubnetMin":"10.0.1.0",\n'
    ' "SubnetMax":"10.0.20.0","Backend":{"Type":"udp"}}'
)
"""The network config of the walk-through that `pyflannel lab demo` shows: room for twenty nodes."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,31}")


class Underlay(StrEnum):
    """Segmentation offloads of the underlay.

    A veth pair passes packets of 64 KB whole, which makes every data path that sends them look
    faster. A real network card is between `plain` and `as-it-comes`.
    """

    AS_IT_COMES = "as-it-comes"
    """veth as the kernel makes it: no packet is cut to the MTU on the path."""
    PLAIN = "plain"
    """TSO, GSO and UDP segmentation off, GRO on: a card without segmentation offload."""
    BARE = "bare"
    """GRO off as well: every packet is handled on its own, on both sides."""


_FEATURES_OFF: Final[Mapping[Underlay, tuple[str, ...]]] = {
    Underlay.AS_IT_COMES: (),
    Underlay.PLAIN: ("tso", "gso", "tx-udp-segmentation"),
    Underlay.BARE: ("tso", "gso", "tx-udp-segmentation", "gro"),
}


STORES: Final = ("etcd", "static")
STATIC_FILE: Final = "/var/lib/pyflannel/network.json"
"""Where each node has the static network file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabSpec:
    """The description of a lab."""

    name: str = "default"
    """The name of the lab, unique on this machine."""
    nodes: int = 3
    backend: str = "udp"
    """`Backend.Type` of the network config, unless `config` gives all of it."""
    network: str = DEFAULT_NETWORK
    """`Network` of the network config, unless `config` gives all of it."""
    config: str | Mapping[str, object] | None = None
    """The whole network config, as JSON text (put into etcd as it is) or as a mapping."""
    prefix: str = DEFAULT_PREFIX
    """etcd prefix of the network."""
    node_commands: Mapping[int, str] = field(default_factory=dict)
    """Nodes that run another daemon: node number to command line, split as a shell would split it.
    `-etcd-endpoints -etcd-prefix -subnet-file -iface` are appended."""
    datapath: str = ""
    """`--datapath` for our daemons; empty leaves the choice to them."""
    daemon_args: tuple[str, ...] = ()
    """Further arguments for our daemons."""
    daemon_env: Mapping[str, str] = field(default_factory=dict)
    """Environment of all daemons, added to ours."""
    start_daemons: bool = True
    """If false, `up` stops once etcd has the config, so that daemons can be started by hand."""
    underlay: Underlay = Underlay.AS_IT_COMES
    underlay_mtu: int = 1500
    tx_checksums: bool = True
    """Whether checksums may stay unfinished across the underlay: a veth pair, unlike a card, never
    finishes them."""
    store: str = "etcd"
    """Where the leases are kept: `etcd`, or `static` for a file on each node."""
    etcd: str = ""
    """Path of the etcd program; empty looks beside our Python and then in PATH."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(
                f"lab name {self.name!r}: expected 1 to 32 of a-z 0-9 _ . -, no sign first"
            )
        if not 1 <= self.nodes <= MAX_NODES:
            raise UsageError(f"{self.nodes} nodes: expected 1 to {MAX_NODES}")
        for number in self.node_commands:
            if number < 1:
                raise UsageError(f"node command for node {number}: nodes count from 1")
        if self.store not in STORES:
            raise UsageError(f"store {self.store!r}: expected one of {', '.join(STORES)}")
        if not 68 <= self.underlay_mtu <= 65535:  # RFC 791 §3.2; a 16-bit length
            raise UsageError(f"underlay MTU {self.underlay_mtu}: expected 68 to 65535")

    def config_text(self) -> str:
        """The network config as it is put into etcd."""
        if isinstance(self.config, str):
            return self.config
        if self.config is not None:
            return json.dumps(self.config, separators=(",", ":"))
        config = {"Network": self.network, "Backend": {"Type": self.backend}}
        return json.dumps(config, separators=(",", ":"))

    def runs_commands(self) -> bool:
        """Whether the network config has commands, which our daemons run only with a flag."""
        config = parse_network_config(self.config_text(), KINDS).config
        return config is not None and config.backend.RUNS_COMMANDS

    def network_config(self) -> NetworkConfig:
        """The same, as the daemons understand it.

        Raises:
            ConfigError: it is wrong.
        """
        return load_network_config(self.config_text(), KINDS)

    def features_off(self) -> tuple[str, ...]:
        """Features to switch off on every underlay device, as `ethtool -K` calls them."""
        return _FEATURES_OFF[self.underlay] + (() if self.tx_checksums else ("tx",))

    def features_on(self) -> tuple[str, ...]:
        """Features to switch on at the nodes' end: a veth has no GRO until it is asked for.

        The switch's end gets none: a switch joins no packets.
        """
        return ("gro",) if self.underlay is Underlay.PLAIN else ()

    def to_json(self) -> dict[str, object]:
        """The spec as JSON values; `spec_from_json` is the inverse."""
        return {
            "name": self.name,
            "nodes": self.nodes,
            "backend": self.backend,
            "network": self.network,
            "config": self.config_text(),
            "prefix": self.prefix,
            "node_commands": {str(k): command for k, command in self.node_commands.items()},
            "datapath": self.datapath,
            "daemon_args": list(self.daemon_args),
            "daemon_env": dict(self.daemon_env),
            "start_daemons": self.start_daemons,
            "underlay": self.underlay.value,
            "underlay_mtu": self.underlay_mtu,
            "tx_checksums": self.tx_checksums,
            "store": self.store,
            "etcd": self.etcd,
        }


def spec_from_json(data: Mapping[str, object]) -> LabSpec:
    """The spec that `LabSpec.to_json` described.

    Raises:
        KeyError, TypeError, ValueError: if `data` is not such a description.
    """
    commands = _mapping(data["node_commands"])
    arguments = data["daemon_args"]
    if not isinstance(arguments, list):
        raise TypeError("daemon_args: expected a list")
    return LabSpec(
        name=str(data["name"]),
        nodes=int(str(data["nodes"])),
        backend=str(data["backend"]),
        network=str(data["network"]),
        config=str(data["config"]),
        prefix=str(data["prefix"]),
        node_commands={int(k): str(command) for k, command in commands.items()},
        datapath=str(data["datapath"]),
        daemon_args=tuple(str(argument) for argument in arguments),
        daemon_env={k: str(v) for k, v in _mapping(data["daemon_env"]).items()},
        start_daemons=bool(data["start_daemons"]),
        underlay=Underlay(str(data["underlay"])),
        underlay_mtu=int(str(data["underlay_mtu"])),
        tx_checksums=bool(data["tx_checksums"]),
        store=str(data.get("store", "etcd")),
        etcd=str(data["etcd"]),
    )


def with_node_commands(spec: LabSpec, commands: Mapping[int, str]) -> LabSpec:
    """The same spec with other nodes running other daemons."""
    return replace(spec, node_commands=commands)


def _mapping(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise TypeError(f"expected an object, not {value!r}")
    return value


def underlay_address(number: int) -> IPv4Interface:
    """Node `number`'s address on the underlay, with the prefix length."""
    return IPv4Interface((UNDERLAY[number], UNDERLAY.prefixlen))


def underlay_address_v6(number: int) -> IPv6Interface:
    """Node `number`'s IPv6 address on the underlay; the same digits, so 2001:db8::12 is node 12."""
    return IPv6Interface((UNDERLAY_V6_BASE + int(str(number), 16), UNDERLAY_V6_PREFIX_LENGTH))


def node_name(number: int) -> str:
    """The name of a node's space."""
    return f"node{number}"


def pod_name(number: int) -> str:
    """The name of the space of a node's pod."""
    return f"pod{number}"


def node_number(text: str) -> int:
    """The number in `2`, `node2`, `node-2` or `pod2`.

    Raises:
        UsageError: if it is none of these.
    """
    match = re.fullmatch(r"(?:node-?|pod-?)?([0-9]{1,3})", text)
    if match is None or int(match[1]) < 1:
        raise UsageError(f"node {text!r}: expected a number from 1 on, like 2 or node2")
    return int(match[1])


SWITCH_SYSCTLS: Final = tuple(
    f"net.bridge.bridge-nf-call-{program}" for program in ("iptables", "ip6tables", "arptables")
)
"""Sysctls that must be 0 in the switch's namespace. They exist only with the module
br_netfilter."""


def switch_setup(etcd_address: IPv4Interface) -> str:
    """Batch for the switch: its bridge, the underlay's gateway and etcd's interface as well."""
    gateway_v6 = underlay_address_v6(SWITCH_HOST)
    return _lines(
        "link set dev lo up",
        # Snooping off: no host here asks for multicast groups, and neighbour discovery needs them.
        "link add name underlay type bridge mcast_snooping 0",
        f"address add {etcd_address} dev underlay",
        f"address add {gateway_v6} dev underlay nodad",
        "link set dev underlay up",
    )


def cable(number: int, node_pid: int, mtu: int) -> str:
    """Batch for the switch: a cable from it to a node, `eth0` on the node's side."""
    port = node_name(number)
    return _lines(
        f"link add name {port} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {node_pid}",
        f"link set dev {port} master underlay",
        f"link set dev {port} up",
    )


def node_setup(number: int) -> str:
    """Batch for a node: its end of the cable, and the default route that makes it the choice."""
    gateway, gateway_v6 = UNDERLAY[SWITCH_HOST], underlay_address_v6(SWITCH_HOST).ip
    return _lines(
        "link set dev lo up",
        "link set dev eth0 up",
        f"address add {underlay_address(number)} dev eth0",
        # nodad: the address is usable at once; duplicates cannot be where numbers differ.
        f"address add {underlay_address_v6(number)} dev eth0 nodad",
        f"route add default via {gateway} dev eth0",
        f"route add ::/0 via {gateway_v6} dev eth0",
    )


def node_mounts(run: str, state: str, overlay: str) -> str:
    """Shell lines that give a node a `/run` and a `/var/lib/pyflannel` of its own.

    So every path inside a node is the real default one, yet no two nodes share a file.

    Args:
        run: directory that becomes `/run`.
        state: directory that becomes `/var/lib/pyflannel`.
        overlay: empty directory, where something is mounted if the machine has no
            `/var/lib/pyflannel` to mount upon: none is made there, not even for a moment.
    """
    run, state, overlay = (shlex.quote(path) for path in (run, state, overlay))
    return f"""\
if [ ! -d /var/lib/pyflannel ]; then
    mount -t tmpfs tmpfs {overlay}
    mkdir -p {overlay}/upper/pyflannel {overlay}/work
    mount -t overlay -o lowerdir=/var/lib,upperdir={overlay}/upper,workdir={overlay}/work \\
        overlay /var/lib
fi
mount --bind {state} /var/lib/pyflannel
mount --bind {run} /run
echo 1 > /proc/sys/net/ipv4/ip_forward
echo 1 > /proc/sys/net/ipv6/conf/all/forwarding"""


@dataclass(frozen=True, slots=True)
class DockerOptions:
    """The bridge settings that docker would take from `docker_opts.env`.

    `--ip-masq` is not among them: docker's masquerade is for traffic that leaves the overlay, and a
    lab has no outside.
    """

    bip: IPv4Interface
    """Address of the bridge, and the network of the pods behind it."""
    mtu: int | None
    """MTU of the bridge and the pods' interfaces; the kernel's default if not given."""


def parse_docker_options(text: str) -> DockerOptions | None:
    """Reads a `docker_opts.env`, `None` if it gives the bridge no address.

    The combined variable of `mk-docker-opts` is the one that docker's unit uses; its value is split
    into words as systemd does.
    """
    words: list[str] = []
    for line in text.splitlines():
        name, _, value = line.partition("=")
        if name == "DOCKER_OPTS":
            words = [word for part in shlex.split(value) for word in shlex.split(part)]
    options = dict(word.split("=", 1) for word in words if "=" in word)
    if "--bip" not in options:
        return None
    mtu = options.get("--mtu")
    return DockerOptions(IPv4Interface(options["--bip"]), int(mtu) if mtu else None)


@dataclass(frozen=True, slots=True)
class PodNetwork:
    """The addresses and MTU of a node's bridge and its pod."""

    gateways: tuple[IPv4Interface | IPv6Interface, ...]
    """The bridge's addresses, at most one of each family."""
    mtu: int | None

    def pod_interface(
        self, gateway: IPv4Interface | IPv6Interface
    ) -> IPv4Interface | IPv6Interface:
        """The first address for a pod behind this bridge: the one after its own."""
        return ip_interface((gateway.ip + 1, gateway.network.prefixlen))

    def pod_address(self, version: int) -> str | None:
        """The pod's address of IP version 4 or 6, `None` if it has none."""
        for gateway in self.gateways:
            if gateway.version == version:
                return str(self.pod_interface(gateway).ip)
        return None


def pod_network(docker: DockerOptions | None, subnet_env: Mapping[str, str]) -> PodNetwork | None:
    """The pods' network of a node, `None` if it has none yet.

    docker sets up IPv4. For IPv6 `mk-docker-opts` has no option; operators who use it with flannel
    give the bridge the address from `subnet.env` themselves.
    """
    gateways: list[IPv4Interface | IPv6Interface] = [docker.bip] if docker else []
    if subnet := subnet_env.get("FLANNEL_IPV6_SUBNET"):
        gateways.append(IPv6Interface(subnet))
    mtu = docker.mtu if docker else int(subnet_env.get("FLANNEL_MTU", 0)) or None
    return PodNetwork(tuple(gateways), mtu) if gateways else None


def bridge_creation(pod_pid: int) -> str:
    """Batch for a node: docker's bridge and the pod's cable to it, without addresses yet."""
    return _lines(
        "link add name docker0 type bridge mcast_snooping 0",
        f"link add name veth0 type veth peer name eth0 netns {pod_pid}",
        "link set dev veth0 master docker0",
    )


def bridge_setup(network: PodNetwork) -> str:
    """Batch for a node: the bridge as docker would set it up; may be run again for a new subnet."""
    mtu = f" mtu {network.mtu}" if network.mtu else ""
    return _lines(
        "address flush dev docker0 scope global",
        f"link set dev veth0{mtu} up",
        f"link set dev docker0{mtu} up",
        *(_add_address(gateway, "docker0") for gateway in network.gateways),
    )


def pod_setup(network: PodNetwork) -> str:
    """Batch for a pod: its addresses and default routes; may be run again for a new subnet."""
    mtu = f" mtu {network.mtu}" if network.mtu else ""
    return _lines(
        "link set dev lo up",
        "address flush dev eth0 scope global",
        f"link set dev eth0{mtu} up",
        *(_add_address(network.pod_interface(gateway), "eth0") for gateway in network.gateways),
        *(
            f"route replace {_EVERYWHERE[gateway.version]} via {gateway.ip} dev eth0"
            for gateway in network.gateways
        ),
    )


_EVERYWHERE: Final = {4: "0.0.0.0/0", 6: "::/0"}


def _add_address(address: IPv4Interface | IPv6Interface, device: str) -> str:
    # Duplicates cannot be, and looking for them takes IPv6 a second or two.
    return (
        f"address add {address} dev {device} {'broadcast +' if address.version == 4 else 'nodad'}"
    )


def daemon_command(spec: LabSpec, number: int, ours: Sequence[str]) -> list[str]:
    """The command line of a node's daemon.

    Args:
        spec: the lab.
        number: the node.
        ours: how `pyflanneld` is started in this environment.
    """
    etcd = [f"-etcd-endpoints={ETCD_ENDPOINT}", f"-etcd-prefix={spec.prefix}"]
    other = spec.node_commands.get(number)
    if other is not None:
        return [*shlex.split(other), *etcd, "-subnet-file=/run/flannel/subnet.env", "-iface=eth0"]
    command = [*ours, *etcd] if spec.store == "etcd" else [*ours, f"--static-network={STATIC_FILE}"]
    if spec.datapath:
        command.append(f"--datapath={spec.datapath}")
    if spec.runs_commands():
        command.append("--allow-extension")  # the user who makes the lab writes its config
    return [*command, *spec.daemon_args]


def static_file(spec: LabSpec, numbers: Iterable[int]) -> str:
    """The static network file of a lab: a subnet for each node, from the first of the config on.

    Raises:
        ConfigError: the daemons would not understand the config.
    """
    config = spec.network_config()
    nodes: list[dict[str, str]] = []
    for number in numbers:
        node = {"Name": node_name(number)}
        for family, subnet, public in (
            (Family.V4, "Subnet", "PublicIP"),
            (Family.V6, "IPv6Subnet", "PublicIPv6"),
        ):
            if family in config.families:
                node[subnet] = str(_nth_subnet(config, family, number - 1))
                here = underlay_address if family is Family.V4 else underlay_address_v6
                node[public] = str(here(number).ip)
        nodes.append(node)
    return json.dumps({"Config": json.loads(spec.config_text()), "Nodes": nodes}, indent=2) + "\n"


def _nth_subnet(config: NetworkConfig, family: Family, index: int) -> IPNetwork:
    if family is Family.V4:
        size = 1 << (32 - config.subnet_len)
        return IPv4Network((int(config.subnet_min) + index * size, config.subnet_len))
    size = 1 << (128 - config.ipv6_subnet_len)
    return IPv6Network((int(config.ipv6_subnet_min) + index * size, config.ipv6_subnet_len))


def _lines(*commands: str) -> str:
    return "".join(f"{command}\n" for command in commands)
