"""sample: plain routes as host-gw has them, and a device that no packet takes.

Small, and all that a backend can have: a setting, lease data, a device, a state file, a reason not
to work. It is installed as a package of its own, and copied into pyflannel as one of its files.

| object | per | recognised by |
|---|---|---|
| device `flannelsample0`, kind bridge, with our subnet's first address | node | name and kind |
| route `<subnet> via <public IP>` | peer | `routes.is_stray` |
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_interface
from pathlib import Path
from typing import Final

from pyflannel.backend import routes
from pyflannel.backend.base import BackendContext, BackendKind
from pyflannel.backend.engine import Engine
from pyflannel.backend.network import KernelNetwork, NodePlan, require_families
from pyflannel.backend.peers import sites
from pyflannel.backend.plan import Device, PeerObjects, Table, TableEntry, View
from pyflannel.core.config import NetworkConfig
from pyflannel.core.fields import Problem, string
from pyflannel.core.ip import Family, IPNetwork
from pyflannel.core.kind import DevicePattern, StateFile
from pyflannel.core.lease import Lease, LeaseAttrs
from pyflannel.core.settings import Settings, setting
from pyflannel.core.underlay import ExternalInterface
from pyflannel.kernel.base import Link, LinkSpec, Route

BACKEND_TYPE: Final = "sample"


# What the operator may set.


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSettings(Settings):
    """`Backend` of the network config."""

    colour: str = setting("Colour", string, default="blue", effect="published, and of no use")

    def problems(self) -> Iterable[Problem]:
        """As in `Settings`."""
        if self.colour == "octarine":
            yield Problem.error("Backend.Colour", "Colour is octarine, expected a visible one")


# Whether it can work, and what it is called on the node.

OVERHEAD: Final = {Family.V4: 0}
DEVICE: Final = "flannelsample0"
STATE_FILE: Final = "sample.json"


def suits(config: NetworkConfig, external: ExternalInterface | None) -> Iterable[Problem]:
    """Peers use our address as a next hop."""
    if external is not None and config.enable_ipv4 and external.address is None:
        yield Problem.error("", f"the sample backend needs an IPv4 address on {external.name}")


def device_names(config: NetworkConfig) -> Mapping[Family, str]:
    """The device."""
    return {Family.V4: DEVICE} if config.enable_ipv4 else {}


# What must be in the kernel.


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplePlan(NodePlan):
    """Desired state; see `Plan`."""

    @property
    def mtu(self) -> int:
        """As in `OverlayPlan`."""
        return self.external.mtu

    @property
    def networks(self) -> Sequence[IPNetwork]:
        """As in `Plan`."""
        return routes.networks(self.config, Family.V4)

    def devices(self, underlay: Link | None) -> Sequence[Device]:
        """As in `Plan`."""
        del underlay
        own = self.own.v4 if self.own is not None else None
        return (
            Device(
                name=DEVICE,
                create=LinkSpec(name=DEVICE, kind="bridge"),
                addresses=(ip_interface((own.network_address, 32)),) if own is not None else (),
                networks=tuple(self.networks),
            ),
        )

    def tables(self) -> Sequence[Table]:
        """As in `Plan`."""
        return (Table(Route, Family.V4),)

    def peer_objects(self, lease: Lease, view: View) -> PeerObjects:
        """As in `Plan`."""
        found, problem = sites(lease, BACKEND_TYPE, (Family.V4,))
        if view.underlay is None:
            return PeerObjects(problem=problem)
        oif = view.underlay.index
        objects = (routes.peer_route(site.subnet, site.address, oif) for site in found)
        return PeerObjects(tuple(objects), problem)

    def is_ours(self, thing: TableEntry, view: View, *, startup: bool) -> bool:
        """As in `Plan`."""
        return (
            startup
            and isinstance(thing, Route)
            and routes.is_stray(thing, self.config, self.own, view.underlay)
        )

    def attrs(self, links: Mapping[str, Link]) -> LeaseAttrs:
        """As in `OverlayPlan`."""
        del links
        colour = self.config.settings(SampleSettings).colour
        return LeaseAttrs(
            public_ip=self.external.public_ip,
            backend_type=BACKEND_TYPE,
            backend_data=json.dumps({"Colour": colour}, separators=(",", ":")),
        )


class SampleBackend:
    """The sample backend; see `Backend` for the contract."""

    def __init__(self, context: BackendContext) -> None:
        self._context = context
        self._plan = SamplePlan(config=context.config, external=context.underlay)

    async def prepare(self, previous: LeaseAttrs | None) -> LeaseAttrs:
        """As in `Backend`."""
        del previous
        return self._plan.attrs({})

    async def attach(self, lease: Lease) -> KernelNetwork:
        """As in `Backend`."""
        require_families(lease, (Family.V4,))
        state = Path(self._context.state_dir, STATE_FILE)
        state.parent.mkdir(parents=True, exist_ok=True)
        state.write_text(json.dumps({"colour": "as published"}))
        plan = replace(self._plan, own=lease.key)
        engine = Engine.of(self._context, plan)
        await engine.ensure_devices()
        return KernelNetwork(KIND, engine, plan)


KIND: Final = BackendKind(
    name=BACKEND_TYPE,
    summary="plain routes, and a device that no packet takes",
    settings=SampleSettings,
    families=(Family.V4,),
    overhead=OVERHEAD,
    devices=(DevicePattern(r"flannelsample\d+", "bridge"),),
    device_names=device_names,
    state_files=(StateFile(STATE_FILE, frozenset({"colour"})),),
    suits=suits,
    create=SampleBackend,
)
