"""What the engine knows, what the next pass has to do, and what one has done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import field

from pyflannel.backend.engine.tables import KIND, Owner, TableId, TableState
from pyflannel.backend.plan import Device, Plan, Table, TableEntry, View
from pyflannel.core.errors import FlannelError
from pyflannel.core.ip import IPAddress, IPNetwork, SubnetKey
from pyflannel.core.lease import Lease
from pyflannel.core.overlap import overlap
from pyflannel.kernel.base import FdbEntry, Neighbour, Route
from pyflannel.records import dataclass


@dataclass(slots=True)
class Dirty:
    """What the next pass must read back."""

    links: bool = False
    addresses: bool = False
    """Those of all links: what the overlay must not get in the way of."""
    others: bool = False
    """Routes of routing daemons near the network. There may be a hundred thousand farther off, so
    they are read when one of them may have changed, and not with every full pass."""
    kinds: set[type[TableEntry]] = field(default_factory=set)

    @classmethod
    def all(cls) -> Dirty:
        """Everything but the routes of others."""
        return cls(links=True, addresses=True, kinds={Route, Neighbour, FdbEntry})

    @classmethod
    def unknown(cls) -> Dirty:
        """Anything may have happened."""
        work = cls.all()
        work.others = True
        return work

    def add(self, other: Dirty) -> None:
        """There is more to do."""
        self.links |= other.links
        self.others |= other.others
        self.addresses |= other.addresses
        self.kinds |= other.kinds

    def __bool__(self) -> bool:
        return self.links or self.addresses or self.others or bool(self.kinds)


@dataclass(slots=True)
class Pass:
    """What one pass has done so far."""

    changed: int = 0
    repaired: Counter[str] = field(default_factory=Counter)
    failures: dict[str, FlannelError] = field(default_factory=dict)
    unread: bool = False
    """Whether a table could not be listed."""

    def count(self, kind: str, *, repair: bool) -> None:
        """One object was written: because it was wanted, or because it was broken."""
        if repair:
            self.repaired[kind] += 1
        else:
            self.changed += 1


@dataclass(slots=True)
class State:
    """What the parts of one engine share; changed by the task that owns the engine alone."""

    plan: Plan
    """The one in force."""
    paths: dict[IPAddress, Route | None] = field(default_factory=dict)
    """How underlay addresses of peers are reached, for plans that ask; emptied, never replaced."""
    strangers: dict[int, Mapping[str, Neighbour]] = field(default_factory=dict)
    """Neighbours of another daemon, by the index of the device that is shared with it."""
    view: View = field(init=False)
    """What plans look at."""
    specs: dict[str, Device] = field(default_factory=dict)
    """The plan's devices, by name."""
    tables: dict[TableId, TableState] = field(default_factory=dict)
    peers: dict[SubnetKey, Lease] = field(default_factory=dict)
    pending: dict[Owner, None] = field(default_factory=dict)
    """Whose objects are to be computed anew."""
    dirty: Dirty = field(default_factory=Dirty.unknown)
    synced: bool = False
    """What is ours and not wanted may be deleted."""
    swept: bool = False
    """It has been, once."""

    def __post_init__(self) -> None:
        self.view = View(paths=self.paths, strangers=self.strangers)

    @property
    def own_indexes(self) -> frozenset[int]:
        """Of the plan's devices, as last seen."""
        return frozenset(link.index for link in self.view.links.values())

    def id_of(self, table: Table) -> TableId | None:
        """Where a table of the plan is kept; `None` without its device."""
        version = table.family.value if table.family is not None else 0
        if table.kind is Route:
            return ("route", version, 0)
        link = self.view.links.get(table.device)
        return None if link is None else (KIND[table.kind], version, link.index)

    def is_near(self, net: IPNetwork) -> bool:
        """Whether a prefix has something in common with the cluster networks."""
        return any(overlap(net, network) for network in self.plan.networks)


def describe(owner: Owner) -> str:
    """Whose objects they are, for people."""
    return "this node" if owner is None else owner.describe()
