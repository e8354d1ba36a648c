"""Injects faults into a node: several in one shell, so that they hit the daemon together."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from ipaddress import ip_interface
from typing import Final

from pyflannel.backend.kinds import KINDS
from pyflannel.core.ip import Family
from pyflannel.lab import topology
from pyflannel.lab.faults import Fault
from pyflannel.lab.nodes import Node
from pyflannel.lab.spaces import Space, ip_batch

NOBODY: Final = str(topology.underlay_address(250).ip)
"""Above the numbers of nodes (`topology.MAX_NODES`), below the switch's."""
NOBODY_V6: Final = str(topology.underlay_address_v6(250).ip)


def inject(
    node: Node, targets: Mapping[str, str], faults: Sequence[Fault], *, delay_s: float = 0.0
) -> list[str]:
    """Injects faults into a node, all in one shell; returns the names of those that had an effect.

    A fault has none if its object is already gone because of another fault.

    Args:
        node: whose kernel state they break.
        targets: the result of `aim` for it, from before the faults.
        faults: in this order.
        delay_s: for a crash: seconds between the damage and the end of the daemon.
    """
    lines = [f"{name}={shlex.quote(value)}" for name, value in targets.items()]
    for number, fault in enumerate(faults):
        # Not `( … ) && echo`: in there "set -e" would not count.
        lines.append(f"( set -e\n{fault.script}\n)\n[ $? = 0 ] && echo done {number}")
    crash = any(fault.crash for fault in faults)
    lines.append(f"sleep {delay_s:.3f}" if crash else "true")
    said = node.exec(["sh", "-s"], stdin="\n".join([*lines, "true\n"])).stdout
    if crash:
        node.kill()
        node.start_daemon()
    numbers = {int(line.split()[1]) for line in said.splitlines() if line.startswith("done ")}
    return [fault.name for number, fault in enumerate(faults) if number in numbers]


def replace_underlay(node: Node, switch: Space, *, mtu: int = 1500) -> None:
    """Replaces the external interface by another of the same name.

    Args:
        node: whose interface.
        switch: the namespace at the other end of its cable.
        mtu: of the new cable.
    """
    node.exec(["ip", "link", "del", "dev", "eth0"])
    ip_batch(switch, topology.cable(node.number, node.space.holder.pid, mtu))
    ip_batch(node.space, topology.node_setup(node.number))


def move_underlay(node: Node, host: int) -> str:
    """Gives the external interface the address with another host number; returns the address."""
    old, new = topology.underlay_address(node.number), topology.underlay_address(host)
    gateway = topology.underlay_address(topology.SWITCH_HOST).ip
    script = (
        f"ip address del {old} dev eth0\nip address add {new} dev eth0\n"
        f"ip route replace default via {gateway} dev eth0\n"
    )
    node.exec(["sh", "-e", "-s"], stdin=script)
    return str(new.ip)


def aim(node: Node, peer: Node) -> dict[str, str]:
    """The scripts' variables for a node and one of its peers, while both are healthy."""
    config = node.network_config
    kind = KINDS.get(config.backend_type)
    assert kind is not None  # noqa: S101 - the config was parsed with these
    devices = kind.device_names(config)
    device, device6 = (devices.get(family, "") for family in (Family.V4, Family.V6))
    own, theirs = node.subnet_env(), peer.subnet_env()
    subnet = _network(theirs["FLANNEL_SUBNET"])
    found = {
        "DEV": device or "eth0",
        "NET": own["FLANNEL_NETWORK"],
        "OWN": _network(own["FLANNEL_SUBNET"]),
        "OWN_IP": str(topology.underlay_address(node.number)),
        "OWN_IP6": str(topology.underlay_address_v6(node.number)),
        "GATEWAY": str(topology.underlay_address(topology.SWITCH_HOST).ip),
        "GATEWAY6": str(topology.underlay_address_v6(topology.SWITCH_HOST).ip),
        "ROUTE": subnet if kind.route_per_peer else own["FLANNEL_NETWORK"],
        "VTEP": subnet.partition("/")[0],
        "PEER_IP": str(topology.underlay_address(peer.number).ip),
        "PEER_IP6": str(topology.underlay_address_v6(peer.number).ip),
        "NOBODY": NOBODY,
        "NOBODY6": NOBODY_V6,
        "STALE": _unleased(own["FLANNEL_NETWORK"]),
    }
    links = _macs(peer)
    found["MAC"] = links.get(device, "")
    if "FLANNEL_IPV6_SUBNET" in theirs:
        subnet6 = _network(theirs["FLANNEL_IPV6_SUBNET"])
        found |= {
            "DEV6": device6 or "eth0",
            "ROUTE6": subnet6,
            "VTEP6": subnet6.partition("/")[0],
            "MAC6": links.get(device6, ""),
        }
    return found


def _macs(node: Node) -> dict[str, str]:
    links = json.loads(node.exec(["ip", "-j", "link"]).stdout)
    return {link["ifname"]: link.get("address", "") for link in links}


def _network(interface: str) -> str:
    return str(ip_interface(interface).network)


def _unleased(network: str) -> str:
    """The last /24 of the network, which is the least likely to be leased."""
    last = ip_interface(network).network.broadcast_address
    return f"{last - 255}/24"
