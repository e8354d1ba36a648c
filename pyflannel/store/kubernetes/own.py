"""This node's own object: which annotations it must carry, and when we write them.

The desired annotations are a value. Each version of the object that arrives is compared with it,
and a difference is written at once. If another client changes them back, the pause between two
repairs doubles, and the log names the client. The condition NetworkUnavailable is cleared once the
node is ready, and again on an object that lacks it.

The watch may be older than the answer to our own write. So after a write the object of the answer
counts, until the watch has reached its version.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from pyflannel.aio.clock import Clock
from pyflannel.core.announce import Announcer
from pyflannel.core.config import NetworkConfig
from pyflannel.core.ip import Family, IPAddress
from pyflannel.core.kube import annotations as names
from pyflannel.core.kube.nodes import KubeNode, subnets_of
from pyflannel.core.lease import Lease, LeaseAttrs
from pyflannel.logs import get_logger
from pyflannel.store.kubernetes import wire
from pyflannel.store.kubernetes.client import NodeClient
from pyflannel.store.kubernetes.failures import (
    NodeMissing,
    NodeReplaced,
    NotRegistered,
    UnusablePodCidr,
)

log = get_logger(__name__)

CATCH_UP_S: Final = 10.0
"""After a write of ours the watch counts again after this time at the latest, at any version."""
SEEN: Final = 16
"""Number of remembered versions of the watch: an event may come before the answer to our write."""
QUIET_S: Final = 300.0
"""After this long without a repair the next one is made at once."""
MOST_PAUSE_S: Final = 60.0
"""Longest pause between two repairs."""


class OwnNode:
    """Our node object as last seen, and what is missing on it.

    Args:
        client: writes.
        clock: the time.
        set_condition: whether the condition NetworkUnavailable is ours to clear.
    """

    def __init__(self, client: NodeClient, clock: Clock, *, set_condition: bool) -> None:
        self._client = client
        self._clock = clock
        self._set_condition = set_condition
        self._writing = asyncio.Lock()
        self._said: Announcer[str] = Announcer()
        self._overwrites: Mapping[Family, IPAddress] = {}
        self._expected = ""
        self._expected_until = 0.0
        self._held_back: KubeNode | None = None
        self._seen: deque[str] = deque(maxlen=SEEN)
        self._published: tuple[str, Mapping[str, str | None]] | None = None
        self._repairs = 0
        self._repaired = float("-inf")
        self.node: KubeNode | None = None
        """The object; `None` if there is none."""
        self.confirmed: float | None = None
        """When it was last seen, in seconds since the epoch."""
        self.is_up = False
        """Whether this node carries packets and has written its files."""
        self.wished: Mapping[Family, IPAddress] = {}
        """The values of `node-public-ip` and `node-public-ipv6`, each as last valid."""
        self.problems: Mapping[str, str] = {}
        """What is wrong with an operator's annotations, by annotation."""

    # Seeing

    def saw(self, node: KubeNode) -> None:
        """The watch or a list has delivered it."""
        self._seen.append(node.version)
        former = self.node
        if self._expected and former is not None and node.uid == former.uid:
            if node.version == self._expected:
                self._expected, self._held_back = "", None
            elif self._clock.monotonic() < self._expected_until:
                self._held_back = node
                return
        self._expected, self._held_back = "", None
        self._take(node)

    def gone(self) -> None:
        """The watch or a list shows that it is gone."""
        if self.node is not None:
            log.error(
                "this node was deleted from Kubernetes; traffic goes on with its former subnet",
                node=self.node.name,
                remedy="it is taken up again when the kubelet registers it: restart the kubelet",
            )
        self.node, self._expected, self._held_back = None, "", None

    def _take(self, node: KubeNode) -> None:
        self.node = node
        self.confirmed = self._clock.time()
        prefix = self._client.ours.prefix
        overwrites = names.addresses_of(names.OVERWRITE, node.annotations, prefix)
        self._overwrites = overwrites.over(self._overwrites)
        wished = names.addresses_of(names.NODE_PUBLIC, node.annotations, prefix)
        self.wished = wished.over(self.wished)
        problems = {
            **{names.OVERWRITE[family]: text for family, text in overwrites.errors.items()},
            **{names.NODE_PUBLIC[family]: text for family, text in wished.errors.items()},
        }
        for name, text in problems.items():
            if self._said.worth(name, text, self._clock.monotonic()):
                log.error("an annotation of this node cannot be used", reason=text)
        for name in self.problems.keys() - problems.keys():
            self._said.forget(name)
        self.problems = problems

    # What it must carry

    def lease(self, config: NetworkConfig, attrs: LeaseAttrs) -> Lease:
        """Our lease, by the object.

        Raises:
            LeaseError: there is none; with the way out.
        """
        node = self.node
        if node is None:
            raise NotRegistered(
                f"node {self._client.ours.own} is not registered; its kubelet does that"
            )
        try:
            key = subnets_of(node, config.families)
        except ValueError as error:
            raise UnusablePodCidr(f"node {node.name}: {error}; {_HOW_TO_GET_ONE}") from None
        for family in config.families:
            subnet, network = key.subnet(family), config.network_of(family)
            if subnet is None or network is None:
                continue
            if subnet.prefixlen < network.prefixlen or subnet.network_address not in network:
                raise UnusablePodCidr(
                    f'node {node.name}: subnet "{network}" specified in the flannel net config '
                    f'doesn\'t contain "{subnet}" PodCIDR of the "{node.name}" node; make Network '
                    "in net-conf.json the --cluster-cidr of kube-controller-manager"
                )
        return Lease(key=key, attrs=self._attrs(attrs))

    def _attrs(self, attrs: LeaseAttrs) -> LeaseAttrs:
        """The attributes, with the addresses that an operator has set instead of ours."""
        v4, v6 = self._overwrites.get(Family.V4), self._overwrites.get(Family.V6)
        return replace(
            attrs,
            public_ip=v4 if isinstance(v4, IPv4Address) else attrs.public_ip,
            public_ipv6=v6 if isinstance(v6, IPv6Address) else attrs.public_ipv6,
        )

    async def settle(self, config: NetworkConfig, attrs: LeaseAttrs) -> bool:
        """Writes what is missing; whether the object is now as it should be.

        Call `lease` first; it must not raise.

        Raises:
            StoreError: the server failed or refused; also if the object was replaced meanwhile.
        """
        async with self._writing:
            self._catch_up()
            if self.node is None:
                return False
            wanted = names.encode(attrs, config.families, self._overwrites)
            changes = names.difference(self.node.annotations, wanted)
            if changes and not self._may_write(changes, (self.node.uid, wanted)):
                return False
            try:
                if changes:
                    self._wrote(await self._client.annotate(self.node.uid, changes))
                self._published = (self.node.uid, wanted)
                if self._lacks_condition():
                    now = self._clock.time()
                    self._wrote(await self._client.say_network_up(self.node.uid, now))
            except (NodeMissing, NodeReplaced):
                await self.look()
                raise
            return True

    async def look(self) -> None:
        """Reads the object from the server.

        Raises:
            StoreError: the server failed or refused.
        """
        try:
            node = await self._client.node()
        except NodeMissing:
            self.gone()
        else:
            self._expected, self._held_back = "", None
            self._take(node)

    def _lacks_condition(self) -> bool:
        return (
            self._set_condition
            and self.is_up
            and self.node is not None
            and self.node.network_unavailable != wire.IS_UP
        )

    def _catch_up(self) -> None:
        if self._held_back is not None and self._clock.monotonic() >= self._expected_until:
            held, self._held_back, self._expected = self._held_back, None, ""
            self._take(held)

    def _wrote(self, node: KubeNode) -> None:
        self._take(node)
        if node.version not in self._seen:
            self._expected = node.version
            self._expected_until = self._clock.monotonic() + CATCH_UP_S

    def _may_write(
        self, changes: Mapping[str, str | None], wanted: tuple[str, Mapping[str, str | None]]
    ) -> bool:
        """Whether to write now. It is a repair if we had published it and others changed it."""
        if self._published != wanted:
            return True
        now = self._clock.monotonic()
        if now - self._repaired > QUIET_S:
            self._repairs = 0
        pause = min(MOST_PAUSE_S, 2.0 ** (self._repairs - 1)) if self._repairs else 0.0
        if now - self._repaired < pause:
            return False
        self._repairs += 1
        self._repaired = now
        log.warning(
            "annotations of this node were changed, writing them again",
            names=", ".join(changes),
            by=(self.node.writer if self.node is not None else "") or None,
            times=self._repairs,
        )
        return True


_HOW_TO_GET_ONE: Final = (
    "kube-controller-manager gives podCIDRs with --allocate-node-cidrs and --cluster-cidr (kubeadm:"
    " --pod-network-cidr), as long as the range has some left"
)
