"""The creation of links and the route lookup, through pyroute2's message classes.

pyroute2 knows the dozens of attributes of a link and of each kind of link; we use that knowledge
and nothing else of it. Its sockets are left out: `AsyncIPRoute` does not work on uvloop without
replacing its transport, mixes requests with events, and costs four times the start-up time.

    what is imported (Python 3.11, quiet machine)            time    memory
    `import pyroute2`                                        84 ms   13.7 MB
    `pyroute2.iproute.linux` (AsyncIPRoute) by itself        44 ms    6.7 MB
    the two message classes by themselves                    10 ms    1.7 MB   <- this module

So this module turns records into message bodies and message bodies into records, like
`kernel/rtnl.py` does for what comes in bulk, and `kernel/netlink.py` moves both over one socket.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from functools import cache
from importlib.machinery import PathFinder
from ipaddress import ip_address
from types import ModuleType
from typing import Any, Final, NamedTuple

from pyflannel.core.ip import IPAddress
from pyflannel.kernel import rtnl
from pyflannel.kernel.base import (
    IpipAttrs,
    LinkSpec,
    Route,
    VxlanAttrs,
)
from pyflannel.kernel.routes import REJECTING_TYPES
from pyflannel.kernel.rtnl import Request

_NLMSG_HEADER_LENGTH: Final = 16


class _MessageClasses(NamedTuple):
    """The classes of pyroute2 that we use. It has no types: they are `Any` here, and only here."""

    link: Any
    route: Any


@cache
def _import_pyroute2() -> _MessageClasses:
    """Imports two submodules of pyroute2 without running the package's own `__init__`.

    That `__init__` imports every protocol pyroute2 knows (the table above). While ours are imported
    an empty module stands in its place; afterwards it is taken away again, so that a later
    `import pyroute2` gets the real thing. If pyroute2 has been imported already, or a release
    does not work this way, the ordinary import is used.
    """
    if "pyroute2" in sys.modules:
        return _load()
    spec = PathFinder.find_spec("pyroute2")
    if spec is None or spec.submodule_search_locations is None:
        return _load()
    before = set(sys.modules)
    package = ModuleType("pyroute2")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["pyroute2"] = package
    try:
        return _load()
    except (ImportError, AttributeError):
        for name in set(sys.modules) - before:
            if name.startswith("pyroute2."):
                del sys.modules[name]
    finally:
        sys.modules.pop("pyroute2", None)
    return _load()


def _load() -> _MessageClasses:
    package = "pyroute2.netlink.rtnl"
    return _MessageClasses(
        link=importlib.import_module(f"{package}.ifinfmsg").ifinfmsg,
        route=importlib.import_module(f"{package}.rtmsg").rtmsg,
    )


def _body(message: Any, attributes: Iterable[tuple[str, object]]) -> bytes:  # noqa: ANN401
    """What pyroute2 makes of a message, without the header."""
    message["attrs"] = list(attributes)
    message.encode()
    return bytes(message.data[_NLMSG_HEADER_LENGTH:])


def _decode(message_class: Any, body: bytes) -> Any:  # noqa: ANN401
    """A message from its body. pyroute2 wants a header before it; what is in there is not used."""
    message = message_class(rtnl.pack(Request(0, 0, body), 0))
    message.decode()
    return message


def create_link(spec: LinkSpec) -> Request:
    """Creates a link, exclusively. Attributes and their order are upstream's, byte for byte."""
    attributes: list[tuple[str, object]] = [("IFLA_IFNAME", spec.name)]
    if spec.mtu is not None:
        attributes.append(("IFLA_MTU", spec.mtu))
    if spec.txqlen is not None:
        attributes.append(("IFLA_TXQLEN", spec.txqlen))
    if spec.mac is not None:
        attributes.append(("IFLA_ADDRESS", spec.mac))
    info: list[tuple[str, object]] = [("IFLA_INFO_KIND", spec.kind)]
    if spec.vxlan is not None:
        info.append(("IFLA_INFO_DATA", {"attrs": _vxlan_attributes(spec.vxlan)}))
    elif spec.ipip is not None:
        info.append(("IFLA_INFO_DATA", {"attrs": _ipip_attributes(spec.ipip)}))
    attributes.append(("IFLA_LINKINFO", {"attrs": info}))
    flags = rtnl.NLM_F_REQUEST | rtnl.NLM_F_ACK | rtnl.NLM_F_CREATE | rtnl.NLM_F_EXCL
    return Request(rtnl.RTM_NEWLINK, flags, _body(_import_pyroute2().link(), attributes))


def _vxlan_attributes(vxlan: VxlanAttrs) -> list[tuple[str, object]]:
    attributes: list[tuple[str, object]] = [("IFLA_VXLAN_ID", vxlan.vni)]
    if vxlan.group is not None:
        attributes.append((_by_family("IFLA_VXLAN_GROUP", vxlan.group), str(vxlan.group)))
    if vxlan.link:
        attributes.append(("IFLA_VXLAN_LINK", vxlan.link))
    if vxlan.local is not None:
        attributes.append((_by_family("IFLA_VXLAN_LOCAL", vxlan.local), str(vxlan.local)))
    attributes += [
        ("IFLA_VXLAN_TTL", 0),
        ("IFLA_VXLAN_TOS", 0),
        ("IFLA_VXLAN_LEARNING", int(vxlan.learning)),
        ("IFLA_VXLAN_PROXY", 0),
        ("IFLA_VXLAN_RSC", 0),
        ("IFLA_VXLAN_L2MISS", int(vxlan.l2miss)),
        ("IFLA_VXLAN_L3MISS", 0),
        ("IFLA_VXLAN_UDP_ZERO_CSUM6_TX", 0),
        ("IFLA_VXLAN_UDP_ZERO_CSUM6_RX", 0),
    ]
    if vxlan.gbp:
        attributes.append(("IFLA_VXLAN_GBP", None))
    if vxlan.port > 0:
        attributes.append(("IFLA_VXLAN_PORT", vxlan.port))
    return attributes


def _ipip_attributes(ipip: IpipAttrs) -> list[tuple[str, object]]:
    # IFLA_IPTUN_*, which pyroute2 calls IFLA_IPIP_*. Upstream sends the zeros, and one of them is
    # not the kernel's default: without PMTUDISC the outer packet carries DF only if the inner does.
    attributes: list[tuple[str, object]] = []
    if ipip.local is not None:
        attributes.append(("IFLA_IPIP_LOCAL", str(ipip.local)))
    if ipip.remote is not None:
        attributes.append(("IFLA_IPIP_REMOTE", str(ipip.remote)))
    if ipip.link:
        attributes.append(("IFLA_IPIP_LINK", ipip.link))
    return [
        *attributes,
        ("IFLA_IPIP_PMTUDISC", 0),
        ("IFLA_IPIP_TTL", 0),
        ("IFLA_IPIP_TOS", 0),
        ("IFLA_IPIP_ENCAP_TYPE", 0),
        ("IFLA_IPIP_ENCAP_FLAGS", 0),
        ("IFLA_IPIP_ENCAP_SPORT", 0),
        ("IFLA_IPIP_ENCAP_DPORT", 0),
        ("IFLA_IPIP_PROTO", 0),
    ]


def _by_family(name: str, address: IPAddress) -> str:
    return name if address.version == 4 else f"{name}6"


def _address(text: str | None) -> IPAddress | None:
    """An address from pyroute2's text; none, or all zeros ("any"), is `None`."""
    if not text:
        return None
    address = ip_address(text)
    return None if address.is_unspecified else address


def look_up_route(destination: IPAddress) -> Request:
    """Asks which route a packet to this address would take."""
    message = _import_pyroute2().route()
    message["family"] = rtnl.AF_INET if destination.version == 4 else rtnl.AF_INET6
    message["dst_len"] = destination.max_prefixlen
    body = _body(message, [("RTA_DST", str(destination))])
    return Request(rtnl.RTM_GETROUTE, rtnl.NLM_F_REQUEST, body)


def decode_looked_up_route(body: bytes, destination: IPAddress) -> Route | None:
    """The answer to `look_up_route`; `None` if that route leads nowhere."""
    message = _decode(_import_pyroute2().route, body)
    kind: int = message["type"]
    if kind in REJECTING_TYPES:
        return None
    via = message.get_attr("RTA_VIA") or {}
    return Route(
        dst=rtnl.host_network(destination),
        gateway=_address(message.get_attr("RTA_GATEWAY") or via.get("addr")),
        oif=message.get_attr("RTA_OIF"),
        scope=message["scope"],
        protocol=message["proto"],
        type=kind,
        src=_address(message.get_attr("RTA_PREFSRC")),
    )
