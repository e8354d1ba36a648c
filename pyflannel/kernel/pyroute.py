"""The route lookup, through pyroute2's message classes.

pyroute2 knows the dozens of attributes of a route; we use that knowledge and nothing else of it.
Its sockets are left out: `AsyncIPRoute` does not work on uvloop without replacing its transport,
mixes requests with events, and costs many times the start-up time.

    what is imported (Python 3.11, quiet machine)            time    memory
    `import pyroute2`                                        84 ms   13.7 MB
    `pyroute2.iproute.linux` (AsyncIPRoute) by itself        44 ms    6.7 MB
    its class for routes by itself                            4 ms             <- this module

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
from typing import Any, Final

from pyflannel.core.ip import IPAddress
from pyflannel.kernel import rtnl
from pyflannel.kernel.base import Route
from pyflannel.kernel.routes import REJECTING_TYPES
from pyflannel.kernel.rtnl import Request

_NLMSG_HEADER_LENGTH: Final = 16


@cache
def _route_message() -> Any:  # noqa: ANN401
    """pyroute2's class for routes, without running the package's own `__init__`.

    pyroute2 has no types: the class is `Any` here, and only here.

    That `__init__` imports every protocol pyroute2 knows (the table above). While ours is imported
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


def _load() -> Any:  # noqa: ANN401
    return importlib.import_module("pyroute2.netlink.rtnl.rtmsg").rtmsg


def _body(message: Any, attributes: Iterable[tuple[str, object]]) -> bytes:  # noqa: ANN401
    """What pyroute2 makes of a message, without the header."""
    message["attrs"] = list(attributes)
    message.encode()
    return bytes(message.data[_NLMSG_HEADER_LENGTH:])


def _decode(body: bytes) -> Any:  # noqa: ANN401
    """A message from its body. pyroute2 wants a header before it; what is in there is not used."""
    message = _route_message()(rtnl.pack(Request(0, 0, body), 0))
    message.decode()
    return message


def _address(text: str | None) -> IPAddress | None:
    """An address from pyroute2's text; none, or all zeros ("any"), is `None`."""
    if not text:
        return None
    address = ip_address(text)
    return None if address.is_unspecified else address


def look_up_route(destination: IPAddress) -> Request:
    """Asks which route a packet to this address would take."""
    message = _route_message()()
    message["family"] = rtnl.AF_INET if destination.version == 4 else rtnl.AF_INET6
    message["dst_len"] = destination.max_prefixlen
    body = _body(message, [("RTA_DST", str(destination))])
    return Request(rtnl.RTM_GETROUTE, rtnl.NLM_F_REQUEST, body)


def decode_looked_up_route(body: bytes, destination: IPAddress) -> Route | None:
    """The answer to `look_up_route`; `None` if that route leads nowhere."""
    message = _decode(body)
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
