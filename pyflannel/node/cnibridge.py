"""The pods' bridge after the node got another podCIDR.

The plugin `bridge` gives `cni0` the first address of the subnet, and refuses to work when it finds
another one there: every new pod fails (`"cni0" already has an IP address different from …`).
flannel does nothing about that. We take the address of the former subnet off if no pod is on the
bridge, and the plugin sets the new one. With pods on it the bridge stays as it is, since they would
lose their gateway; a log line says which pods have to go.
"""

from __future__ import annotations

from ipaddress import ip_interface
from typing import Final

from pyflannel.core.errors import KernelError
from pyflannel.core.ip import Family, IPNetwork, SubnetKey
from pyflannel.kernel.base import Delete, Netlink
from pyflannel.logs import get_logger

log = get_logger(__name__)

BRIDGE: Final = "cni0"
"""The default of the plugin `bridge`, which flannel's plugin leaves as it is."""


async def release_bridge(netlink: Netlink, former: SubnetKey, present: SubnetKey) -> None:
    """Takes the former subnet's gateway address off the bridge; a failure is logged, not raised."""
    gateways = {
        _gateway(subnet)
        for family in Family
        if (subnet := former.subnet(family)) is not None and subnet != present.subnet(family)
    }
    try:
        links = await netlink.links()
        link = next((link for link in links if (link.name, link.kind) == (BRIDGE, "bridge")), None)
        if link is None:
            return
        found = [
            address
            for address in await netlink.addresses(index=link.index)
            if address.interface in gateways
        ]
        if not found:
            return
        ports = [port.name for port in links if port.master == link.index]
        if ports:
            log.error(
                "pods with addresses of the former podCIDR are on the bridge, new pods fail",
                device=BRIDGE,
                former=former.describe(),
                ports=len(ports),
                remedy=f"delete this node's pods with an address in {former.describe()}, then"
                f" ip link delete {BRIDGE}",
            )
            return
        failures = await netlink.apply([Delete(address) for address in found])
    except KernelError as error:
        log.warning("the pods' bridge cannot be looked at", device=BRIDGE, reason=str(error))
        return
    for failure in failures.values():
        log.warning("the former podCIDR's address stays", device=BRIDGE, reason=str(failure))
    if not failures:
        log.info("took the former podCIDR's address off", device=BRIDGE, former=former.describe())


def _gateway(subnet: IPNetwork) -> object:
    return ip_interface(f"{subnet.network_address + 1}/{subnet.prefixlen}")
