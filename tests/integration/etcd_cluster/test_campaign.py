"""A seeded campaign of faults over three members and three nodes with real daemons and pods.

    PYFLANNEL_SEED=7 PYFLANNEL_FAULTS=100 .venv/bin/python -m pytest -s \\
        tests/integration/etcd_cluster/test_campaign.py

repeats one. Without a seed it draws one and prints it; the seed chooses etcd's release too.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Final

import pytest

from pyflannel.testing.etcdbuild import RELEASES, etcd
from pyflannel.testing.etcdserver import EtcdError
from tests.integration.etcd_cluster.campaign.audit import (
    EVERY_S,
    Audit,
    Pings,
    lost_since,
    tracebacks,
)
from tests.integration.etcd_cluster.campaign.faults import Faults
from tests.integration.etcd_cluster.campaign.ground import Ground, Repeated
from tests.integration.etcd_cluster.campaign.link import Relays
from tests.integration.etcd_cluster.campaign.plan import Area, Kind, Round, plan

COUNT: Final = int(os.environ.get("PYFLANNEL_FAULTS", "100"))
WELL_S: Final = 60.0
"""All nodes are well so long after a round was healed, at the latest. Without load it takes one to
ten seconds; a wrong password is tried again after 16 s at most, as long as a round lasts."""
HEALED_IN: Final = (
    Area.MEMBERS,
    Area.NETWORK,
    Area.SPACE,
    Area.ACCESS,
    Area.KEYS,
    Area.DAEMON,
)


def test_the_same_seed_gives_the_same_campaign_and_all_kinds():
    rounds = plan(7, 100)
    assert rounds == plan(7, 100) != plan(8, 100)
    faults = [fault for one in rounds for fault in one.faults]
    assert len(faults) == 100
    assert {fault.kind for fault in faults} == set(Kind)
    assert all(len({fault.kind.area for fault in one.faults}) == len(one.faults) for one in rounds)


def test_a_late_answer_is_no_loss():
    output = (
        "[10.0] 64 bytes from 10.0.1.2: icmp_seq=1 ttl=62 time=0.1 ms\n"
        "[10.4] no answer yet for icmp_seq=2\n"
        "[10.6] no answer yet for icmp_seq=3\n"
        "[10.7] 64 bytes from 10.0.1.2: icmp_seq=3 ttl=62 time=300 ms\n"
    )
    assert lost_since(output, 9.0) == 1
    assert lost_since(output, 10.5) == 0


@pytest.mark.root
@pytest.mark.slow
def test_every_node_has_its_lease_again_after_any_faults(tmp_path):
    given = os.environ.get("PYFLANNEL_SEED")
    seed = int(given) if given else random.SystemRandom().randrange(1_000_000)
    release = RELEASES[seed % len(RELEASES)]
    print(f"\nPYFLANNEL_SEED={seed} PYFLANNEL_FAULTS={COUNT}, etcd {release}", flush=True)
    try:
        binary = etcd(release)
    except EtcdError as error:
        pytest.skip(str(error))
    ground = Ground(tmp_path, binary, f"campaign{seed}")
    with ground.up(), Relays(ground):
        Campaign(ground, tmp_path).run(plan(seed, COUNT), f"PYFLANNEL_SEED={seed}")


class Campaign:
    """Faults in their order, and what is looked at meanwhile."""

    def __init__(self, ground: Ground, directory: Path) -> None:
        self._ground = ground
        self._faults = Faults(ground, directory)
        self._audit = Audit(ground)
        self._pings = Pings(ground, directory)
        self._subnets: dict[int, str] = {}
        self._began = time.monotonic()
        self._took: list[float] = []
        self._lost: list[str] = []

    def run(self, rounds: list[Round], how: str) -> None:
        """All of it, in the members' namespace; `how` it can be repeated stands in a failure."""
        audits = [
            Repeated(self._ground, look, EVERY_S)
            for look in (self._audit.look_at_etcd, self._audit.look_at_nodes)
        ]
        for audit in audits:
            audit.start()
        try:
            self._ground.inside(self._all, rounds)
        except BaseException as error:
            error.add_note(f"{how}: after {len(self._took)} rounds")
            raise
        finally:
            self._pings.end()
            for audit in audits:
                audit.end()
            self._say(
                f"{len(self._took)} rounds; well again after {max(self._took, default=0):.1f} s at"
                f" most; {self._audit.looks} looks; wrong claims lasted"
                f" {self._audit.longest_wrong:.1f} s at most, double ones"
                f" {self._audit.longest_double:.1f} s"
            )
        assert self._audit.problems == [], how
        assert self._lost == [], how
        assert tracebacks(self._ground.lab.nodes) == [], how

    def _all(self, rounds: list[Round]) -> None:
        self._wait_until_well(())
        for number, one in enumerate(rounds, 1):
            self._say(f"{number}/{len(rounds)}: {one}")
            self._round(one)

    def _round(self, one: Round) -> None:
        since = time.time()
        healing = sorted(one.faults, key=lambda fault: HEALED_IN.index(fault.kind.area))
        for fault in one.faults:
            if fault.kind.area is Area.DAEMON:
                self._audit.excused.add(fault.node)
            self._faults.begin(fault)
        time.sleep(one.hold_s)
        if one.is_overcome:
            self._wait_until_well(one.faults, strangers=True)
        for fault in healing:
            self._faults.heal(fault)
            if fault.kind.area is Area.DAEMON:
                self._audit.pids.pop(fault.node, None)
                self._audit.excused.discard(fault.node)
        self._took.append(self._wait_until_well(one.faults))
        changed = self._attach()
        for pair, lost in self._pings.lost(since).items():
            if not set(pair) & (one.may_lose_packets_of | changed):
                self._lost.append(f"{one}: pods {pair} lost {lost} packets")
                self._say(self._lost[-1])
        self._pings.start(changed)
        for fault in healing:
            self._faults.settle(fault)
        assert self._audit.problems == []

    def _wait_until_well(self, faults: object, *, strangers: bool = False) -> float:
        start = time.monotonic()
        while why := self._audit.ill(strangers=strangers):
            if self._audit.problems:
                break
            passed = time.monotonic() - start
            assert passed < WELL_S, f"not well {passed:.0f} s after {faults}: {why}"
            time.sleep(0.1)
        if not self._subnets:
            self._attach()
            self._pings.start(set())
        took = time.monotonic() - start
        if took > 5.0:
            self._say(f"   well after {took:.1f} s")
        return took

    def _attach(self) -> set[int]:
        """Pods of nodes with another subnet than before move; gives these nodes."""
        changed = set()
        for node in self._ground.lab.nodes:
            subnet = node.subnet_env()["FLANNEL_SUBNET"]
            if self._subnets.get(node.number) != subnet:
                node.attach_pod()
                changed.add(node.number)
                self._subnets[node.number] = subnet
        pinged = self._ground.lab.ping_all(count=1, deadline=20.0)
        assert pinged.ok, pinged.failures()
        return changed

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._began:7.1f} {text}", flush=True)
