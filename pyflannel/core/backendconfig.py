"""The `Backend` object of the network config: one frozen value per backend type.

`Type` picks the class, the other members are its fields: keys in any case, unknown ones ignored
(with a warning), wrong JSON types refused. What the kernel would refuse later (a VNI of 25 bits, a
port beyond 65535) is refused here, where the key can be named; what merely looks odd is a warning.
`encode_backend` is the way back, with every default filled in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from pyflannel.core.errors import ConfigError
from pyflannel.core.fields import ObjectReader, Problem, Severity, boolean, integer, show, string
from pyflannel.core.gojson import fold
from pyflannel.core.suggest import did_you_mean

DEFAULT_UDP_PORT: Final = 8285
DEFAULT_VNI: Final = 1
MAX_PORT: Final = 0xFFFF
MAX_VNI: Final = 0xFFFFFF
"""24 bits (RFC 7348 §5); the kernel answers ERANGE to more."""
VXLAN_OVERHEAD: Final = 50
"""Outer IPv4 (20) + UDP (8) + VXLAN (8) + inner Ethernet (14); taken off `MTU` for the device."""
MIN_DEVICE_MTU: Final = 68
"""What every IPv4 link must carry (RFC 791 §3.2); the kernel refuses less (`ETH_MIN_MTU`)."""
MAX_DEVICE_MTU: Final = 65535
"""`ETH_MAX_MTU`: the kernel refuses more."""
USUAL_LARGEST_MTU: Final = 9216
"""Jumbo frames as switches are commonly set for; larger is more likely a slip of the fingers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UdpConfig:
    """`udp`: packets in plain datagrams, carried by the daemon itself."""

    port: int = DEFAULT_UDP_PORT
    """UDP port of this node *and* of every peer (`Port`); it is not part of the lease."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VxlanConfig:
    """`vxlan`: the kernel's VXLAN device."""

    vni: int = DEFAULT_VNI
    """VXLAN network id (`VNI`); also the device's name, `flannel.<VNI>`."""
    port: int = 0
    """UDP port of all nodes (`Port`); 0 leaves it to the kernel, which takes 8472."""
    mtu: int = 0
    """MTU of the underlay to assume (`MTU`), overhead not yet taken off; 0 = the interface's."""
    gbp: bool = False
    """Group based policy extension (`GBP`)."""
    learning: bool = False
    """Whether the kernel learns FDB entries from packets (`Learning`)."""
    direct_routing: bool = False
    """Plain routes instead of tunnels to peers on the same link (`DirectRouting`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostGwConfig:
    """`host-gw`: plain routes via the peers; it has no settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IpipConfig:
    """`ipip`: the kernel's IP-in-IP device."""

    direct_routing: bool = False
    """Plain routes instead of tunnels to peers on the same link (`DirectRouting`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocConfig:
    """`alloc`: a lease and nothing else; it has no settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtensionConfig:
    """`extension`: the operator's own commands. An empty one is not run."""

    pre_startup_command: str = ""
    """Run before the lease; its output is published as the lease's backend data."""
    post_startup_command: str = ""
    """Run once the lease is there."""
    subnet_add_command: str = ""
    """Run for every peer that comes or changes."""
    subnet_remove_command: str = ""
    """Run for every peer that goes."""


BackendConfig = UdpConfig | VxlanConfig | HostGwConfig | IpipConfig | AllocConfig | ExtensionConfig

C = TypeVar("C", UdpConfig, VxlanConfig, HostGwConfig, IpipConfig, AllocConfig, ExtensionConfig)

CLASSES: Final[Mapping[str, type[BackendConfig]]] = {
    "alloc": AllocConfig,
    "extension": ExtensionConfig,
    "host-gw": HostGwConfig,
    "ipip": IpipConfig,
    "udp": UdpConfig,
    "vxlan": VxlanConfig,
}

KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "alloc": (),
    "extension": (
        "PreStartupCommand",
        "PostStartupCommand",
        "SubnetAddCommand",
        "SubnetRemoveCommand",
    ),
    "host-gw": (),
    "ipip": ("DirectRouting",),
    "udp": ("Port",),
    "vxlan": ("VNI", "Port", "MTU", "GBP", "Learning", "DirectRouting"),
}
"""The types we have, each with the keys it reads besides `Type`."""

UNSUPPORTED: Final = ("ipsec", "tencent-vpc", "wireguard")
"""Types that flannel v0.28 has and pyflannel has not."""

REMOVED: Final = ("ali-vpc", "aws-vpc", "gce")
"""Types that flannel itself had until v0.20.0."""

IPV4_ONLY: Final = ("ipip", "udp")
"""Types that carry no IPv6."""


def unknown_type(name: str) -> Problem:
    """The error for a backend type that we do not have, `name` as the operator wrote it."""
    known = ", ".join(KEYS)
    key = "Backend.Type"
    canonical = name.lower()
    if canonical in UNSUPPORTED:
        message = f"backend type {canonical}: known to flannel but not supported by pyflannel"
        return Problem(Severity.ERROR, key, message, f"use one of {known}")
    message = f"unknown backend type: {name}"
    if canonical in REMOVED:
        message += " (flannel removed it in v0.20.0)"
    elif not name:
        message += "(Backend is given without a Type)"
    guess = did_you_mean(name, (*KEYS, *UNSUPPORTED)) if name else None
    remedy = f"known types: {known}"
    return Problem(
        Severity.ERROR, key, message, f"did you mean {guess}? {remedy}" if guess else remedy
    )


def decode_backend(
    backend_type: str, members: Mapping[str, object]
) -> tuple[BackendConfig | None, tuple[Problem, ...]]:
    """The settings of one backend, and what is wrong with them.

    Args:
        backend_type: the canonical (lower-case) type.
        members: the `Backend` object, `Type` included or not.

    Returns:
        The config, `None` if there is an error among the problems.
    """
    if backend_type not in KEYS:
        return None, (unknown_type(backend_type),)
    reader = ObjectReader(
        members, path="Backend.", intro=f"error decoding {_title(backend_type)}backend config: "
    )
    reader.read("Type", string, backend_type)
    config, checks = _DECODERS[backend_type](reader)
    _note_unknown(reader, backend_type)
    problems = (*reader.problems(), *(c for c in checks if _bare(c.key) not in reader.failed))
    broken = any(problem.severity is Severity.ERROR for problem in problems)
    return (None if broken else config), problems


def load_backend(kind: type[C], members: Mapping[str, object]) -> C:
    """The settings of a backend whose type is known, for the backend itself.

    Raises:
        ConfigError: naming every error in them.
    """
    name = next(name for name, cls in CLASSES.items() if cls is kind)
    config, problems = decode_backend(name, members)
    if not isinstance(config, kind):
        errors = [str(p) for p in problems if p.severity is Severity.ERROR]
        raise ConfigError("; ".join(errors))
    return config


def encode_backend(backend_type: str, config: BackendConfig) -> dict[str, object]:
    """The `Backend` object that says the same with nothing left to defaults."""
    values: dict[str, object] = {"Type": backend_type}
    match config:
        case UdpConfig():
            values |= {"Port": config.port}
        case VxlanConfig():
            values |= {
                "VNI": config.vni,
                "Port": config.port,
                "MTU": config.mtu,
                "GBP": config.gbp,
                "Learning": config.learning,
                "DirectRouting": config.direct_routing,
            }
        case IpipConfig():
            values |= {"DirectRouting": config.direct_routing}
        case ExtensionConfig():
            values |= {
                "PreStartupCommand": config.pre_startup_command,
                "PostStartupCommand": config.post_startup_command,
                "SubnetAddCommand": config.subnet_add_command,
                "SubnetRemoveCommand": config.subnet_remove_command,
            }
        case HostGwConfig() | AllocConfig():
            pass
    return values


_Checked = tuple[BackendConfig, list[Problem]]


def _udp(reader: ObjectReader) -> _Checked:
    port = reader.read("Port", integer, DEFAULT_UDP_PORT)
    checks = []
    if not 1 <= port <= MAX_PORT:
        checks.append(_error("Port", port, f"a UDP port, 1 to {MAX_PORT}", "8285 is flannel's own"))
    return UdpConfig(port=port), checks


def _vxlan(reader: ObjectReader) -> _Checked:
    vni = reader.read("VNI", integer, DEFAULT_VNI)
    port = reader.read("Port", integer, 0)
    mtu = reader.read("MTU", integer, 0)
    config = VxlanConfig(
        vni=vni,
        # Upstream hands a port to the kernel only if it is above 0.
        port=max(port, 0),
        mtu=mtu,
        gbp=reader.read("GBP", boolean, default=False),
        learning=reader.read("Learning", boolean, default=False),
        direct_routing=reader.read("DirectRouting", boolean, default=False),
    )
    checks = []
    if not 0 <= vni <= MAX_VNI:
        checks.append(_error("VNI", vni, f"24 bits, 0 to {MAX_VNI}", "1 is flannel's own"))
    if port > MAX_PORT:
        checks.append(
            _error("Port", port, f"a UDP port, 1 to {MAX_PORT}", "0 means the kernel's own, 8472")
        )
    elif port < 0:
        checks.append(
            _warning(
                "Port", f"Port is {port}: taken as 0, the kernel's own port 8472", "leave it out"
            )
        )
    checks += _check_vxlan_mtu(mtu)
    return config, checks


def _check_vxlan_mtu(mtu: int) -> list[Problem]:
    if mtu == 0:
        return []
    low, high = MIN_DEVICE_MTU + VXLAN_OVERHEAD, MAX_DEVICE_MTU + VXLAN_OVERHEAD
    if not low <= mtu <= high:
        wanted = f"the MTU of the underlay, {low} to {high}"
        return [_error("MTU", mtu, wanted, "leave it out to follow the interface")]
    if mtu > USUAL_LARGEST_MTU:
        text = f"MTU is {mtu}, more than jumbo frames ({USUAL_LARGEST_MTU})"
        return [_warning("MTU", text, "leave it out to follow the interface")]
    return []


def _ipip(reader: ObjectReader) -> _Checked:
    return IpipConfig(direct_routing=reader.read("DirectRouting", boolean, default=False)), []


def _extension(reader: ObjectReader) -> _Checked:
    config = ExtensionConfig(
        pre_startup_command=reader.read("PreStartupCommand", string, ""),
        post_startup_command=reader.read("PostStartupCommand", string, ""),
        subnet_add_command=reader.read("SubnetAddCommand", string, ""),
        subnet_remove_command=reader.read("SubnetRemoveCommand", string, ""),
    )
    return config, []


def _host_gw(_reader: ObjectReader) -> _Checked:
    return HostGwConfig(), []


def _alloc(_reader: ObjectReader) -> _Checked:
    return AllocConfig(), []


_DECODERS: Final[Mapping[str, Callable[[ObjectReader], _Checked]]] = {
    "alloc": _alloc,
    "extension": _extension,
    "host-gw": _host_gw,
    "ipip": _ipip,
    "udp": _udp,
    "vxlan": _vxlan,
}

_TOP_LEVEL: Final = (
    "Network",
    "SubnetLen",
    "SubnetMin",
    "SubnetMax",
    "IPv6Network",
    "IPv6SubnetLen",
    "IPv6SubnetMin",
    "IPv6SubnetMax",
    "EnableIPv4",
    "EnableIPv6",
    "EnableNFTables",
)


def _note_unknown(reader: ObjectReader, backend_type: str) -> None:
    """Warns about every key that the type does not read, with what may have been meant."""
    mine = ("Type", *KEYS[backend_type])
    for key in reader.unknown():
        others = [name for name, keys in KEYS.items() if fold(key) in map(fold, keys)]
        guess = did_you_mean(key, mine)
        ignored = f"Backend.{key} is ignored"
        if fold(key) in map(fold, _TOP_LEVEL):
            message, remedy = f"{ignored}: it stands outside Backend", "move it to the top level"
        elif fold(key) == "backendtype":
            message, remedy = f"{ignored}: the key is called Type", "did you mean Type?"
        elif fold(key) == "shutdowncommand" and backend_type == "extension":
            message = f"{ignored}: flannel runs no command when it stops"
            remedy = "remove it"
        elif others:
            message = f"{ignored}: backend {backend_type} does not use it, {', '.join(others)} does"
            remedy = "remove it, or change Type"
        elif guess is not None:
            message = f"{ignored}: backend {backend_type} has no such key"
            remedy = f"did you mean {guess}?"
        else:
            message = f"{ignored}: backend {backend_type} has no such key"
            remedy = f"it knows {', '.join(mine)}"
        reader.warn_unknown(key, message, remedy)


def _title(backend_type: str) -> str:
    """The type's name, with a space, as in upstream's `error decoding VXLAN backend config`."""
    # The extension backend says "error decoding backend config".
    return "" if backend_type == "extension" else f"{backend_type.upper()} "


def _bare(key: str) -> str:
    return key.removeprefix("Backend.")


def _error(key: str, value: object, wanted: str, remedy: str) -> Problem:
    message = f"{key} is {show(value)}, expected {wanted}"
    return Problem(Severity.ERROR, f"Backend.{key}", message, remedy)


def _warning(key: str, message: str, remedy: str) -> Problem:
    return Problem(Severity.WARNING, f"Backend.{key}", message, remedy)
