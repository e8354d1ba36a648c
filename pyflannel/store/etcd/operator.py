"""What an operator does to leases from outside: give one back, or reserve a subnet.

Both are one conditional write, decided on what was read just before: if the owner, or anybody else,
writes in between, nothing happens and the operator is told. What they leave behind is what
upstream's nodes write and read: a reservation is a key without an etcd lease.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from pyflannel.aio.clock import Clock
from pyflannel.core import freesubnets
from pyflannel.core.config import NetworkConfig
from pyflannel.core.errors import LeaseError, StoreConflict
from pyflannel.core.ip import SubnetKey
from pyflannel.core.lease import Lease, LeaseAttrs
from pyflannel.foreign import shown
from pyflannel.records import dataclass
from pyflannel.store.etcd import codec
from pyflannel.store.etcd.acquire import discard_store_lease
from pyflannel.store.etcd.base import KeyValue, RangeResult, Store
from pyflannel.store.etcd.challenge import Reply, challenge
from pyflannel.store.etcd.feed import list_leases

COMES_BACK: Final = "a living pyflanneld takes it back at once; stop that node first"


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What was done, or would be."""

    lease: Lease
    text: str
    """A sentence for the operator."""


async def release(
    store: Store,
    prefix: str,
    key: SubnetKey,
    clock: Clock,
    *,
    force: bool,
    dry_run: bool,
    timed: bool = False,
) -> Done:
    """Deletes one lease, unless its owner shows that it is alive.

    Only a pyflanneld can show that; upstream's daemon does not answer, and ends when its lease is
    gone.

    Args:
        force: do not ask the owner.
        dry_run: write nothing, so ask nothing either.
        timed: leave a reservation alone: it has no time limit on purpose.

    Raises:
        LeaseError: there is no such lease, or its owner is alive.
        StoreConflict: it changed meanwhile.
        StoreError: etcd failed.
    """
    name = codec.lease_key(prefix, key)
    kv = _only(await store.get(name))
    if kv is None:
        raise LeaseError(f"no lease {key.describe()} under {shown(prefix)}; see pyflannel leases")
    found = codec.decode_lease(prefix, kv)
    lease = found if isinstance(found, Lease) else Lease(key=key, attrs=LeaseAttrs())
    owner = lease.attrs.public_ip or lease.attrs.public_ipv6
    kind = "reservation" if kv.lease == 0 else "lease"
    text = f"{kind} {key.describe()} of {owner or 'no one that can be read'}"
    if timed and kv.lease == 0:
        raise LeaseError(f"the {text} has no time limit; pyflannel leases release gives it back")
    if dry_run:
        return Done(lease=lease, text=f"would release the {text}")
    revision = kv.mod_revision
    if not force:
        asked = await challenge(store, kv, clock)
        if asked.reply is not Reply.SILENCE:
            raise LeaseError(
                f"the {text} is in use: its node is alive; stop that first, or give --force, "
                "and it takes the subnet back or another one"
            )
        revision = asked.revision
    if not await store.delete(name, if_mod_revision=revision):
        raise StoreConflict(f"the {text} changed while it was looked at; nothing was released")
    await discard_store_lease(store, kv.lease)
    return Done(lease=lease, text=f"released the {text}; {COMES_BACK}")


async def reserve(
    store: Store,
    prefix: str,
    config: NetworkConfig,
    key: SubnetKey,
    address: IPv4Address | IPv6Address,
    *,
    dry_run: bool,
) -> Done:
    """Binds a subnet to a public IP, without a time limit: a key without an etcd lease.

    A node that has this address, or gets it, uses the subnet for as long as the key is there; its
    living lease is turned into a reservation with all that it publishes.

    Raises:
        LeaseError: the subnet does not fit the network config, or another node's lease overlaps it.
        StoreConflict: another client wrote meanwhile.
        StoreError: etcd failed.
    """
    if not freesubnets.is_compatible(key, config):
        raise LeaseError(
            f"{key.describe()} is no subnet that may be leased under {shown(prefix)}: see "
            "SubnetLen, SubnetMin and SubnetMax (pyflannel config get)"
        )
    attrs = (
        LeaseAttrs(public_ip=address)
        if isinstance(address, IPv4Address)
        else LeaseAttrs(public_ipv6=address)
    )
    listing = await list_leases(store, prefix)
    there: Lease | None = None
    for lease in listing.leases:
        same_node = address in (lease.attrs.public_ip, lease.attrs.public_ipv6)
        if lease.key == key and same_node:
            there = lease
        elif same_node:
            raise LeaseError(
                f"{address} has {lease.key.describe()} already; release that first, or its node "
                "goes on with it"
            )
        elif freesubnets.overlap(lease.key, key) is not None:
            owner = lease.attrs.public_ip or lease.attrs.public_ipv6
            raise LeaseError(f"{key.describe()} overlaps {lease.key.describe()}, which {owner} has")
    text = f"{key.describe()} for {address}"
    if there is not None and there.is_reservation:
        return Done(lease=there, text=f"{text} is reserved already")
    wanted = replace(there or Lease(key=key, attrs=attrs), store_lease=0, expires=None)
    if dry_run:
        return Done(lease=wanted, text=f"would reserve {text}")
    name = codec.lease_key(prefix, key)
    revision = there.revision if there is not None else 0
    header = await store.put(name, codec.encode_attrs(wanted.attrs), if_mod_revision=revision)
    if there is not None:
        await discard_store_lease(store, there.store_lease)
    else:
        await _give_way(store, prefix, key, header.revision)
    return Done(lease=replace(wanted, revision=header.revision), text=f"reserved {text}")


async def _give_way(store: Store, prefix: str, key: SubnetKey, revision: int) -> None:
    """Takes a new reservation back if an overlapping lease was written before it.

    Raises:
        StoreConflict: there was one; the reservation is taken back.
    """
    for other in (await list_leases(store, prefix)).leases:
        earlier = other.revision < revision
        if other.key != key and earlier and freesubnets.overlap(other.key, key) is not None:
            await store.delete(codec.lease_key(prefix, key), if_mod_revision=revision)
            raise StoreConflict(
                f"{other.key.describe()} was leased meanwhile and overlaps; nothing was reserved"
            )


def _only(found: RangeResult) -> KeyValue | None:
    return found.kvs[0] if found.kvs else None
