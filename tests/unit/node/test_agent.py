"""Whole nodes over fakes: what an agent does from its start to its end, in milliseconds each."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import ClassVar

import pytest

from pyflannel.backend.base import Backend, Network
from pyflannel.core.errors import ConfigError, KernelError, StoreDenied, StoreUnavailable
from pyflannel.core.ip import SubnetKey
from pyflannel.core.lease import Lease, LeaseAttrs
from pyflannel.node.agent import HEADLINE_S
from pyflannel.report.problems import problems
from pyflannel.report.text import headline
from pyflannel.store.etcd import codec
from tests.support.node import CONFIG, DOCKER_FILE, PREFIX, SUBNET_FILE, WholeNode, whole_node

DUAL_STACK = json.dumps(
    {
        "Network": "10.5.0.0/16",
        "EnableIPv6": True,
        "IPv6Network": "fd00:5::/48",
        "Backend": {"Type": "host-gw"},
    }
).encode()


@pytest.fixture
def node(tmp_path):
    """A node that is started."""
    return whole_node(tmp_path)


def codes(node: WholeNode) -> list[str]:
    return [problem.code for problem in problems(node.report())]


class TestStart:
    async def test_lease_rules_files_and_ready_in_this_order(self, node: WholeNode):
        assert node.manager.told == ["READY"]
        assert node.subnet.startswith("10.5.")
        assert f"FLANNEL_SUBNET={node.subnet.replace('.0/24', '.1/24')}" in node.subnet_env
        assert b"DOCKER_OPTS" in node.files.content[DOCKER_FILE]
        assert node.firewall.rules is not None
        await node.advance(2)
        assert node.other_firewall.removed == 1
        assert problems(node.report()) == ()

    async def test_peers_are_routed_and_a_changed_one_follows(self, node: WholeNode):
        node.put_peer(200)
        await node.advance(1)
        assert (await node.routes())["10.5.200.0/24"] == "192.0.2.200"
        node.put_peer(200, "192.0.2.77")
        await node.advance(1)
        assert (await node.routes())["10.5.200.0/24"] == "192.0.2.77"
        (peer,) = node.report().peers
        assert (peer.subnet, peer.public_ip) == ("10.5.200.0/24", "192.0.2.77")

    async def test_a_config_that_is_not_there_yet_is_waited_for_and_told(self, tmp_path):
        async with whole_node(tmp_path, config=None) as node:
            assert node.manager.told == []
            assert "network config" in node.report().waiting_for
            assert codes(node) == ["PF101"]
            node.put_config(CONFIG)
            await node.advance(2)
            assert node.manager.told == ["READY"]
            assert problems(node.report()) == ()

    async def test_a_full_network_is_waited_out_and_a_wider_one_is_followed(self, tmp_path):
        full = CONFIG.replace(b"}}", b'},"SubnetMin":"10.5.9.0","SubnetMax":"10.5.9.0"}')

        node = WholeNode(tmp_path, config=full)
        node.put_peer(9)
        try:
            await node.start()
            assert node.manager.told == []
            assert "out of subnets" in node.report().waiting_for
            node.put_config(CONFIG)
            await node.advance(2)
            assert node.manager.told == ["READY"]
        finally:
            await node.stop()

    async def test_commands_of_a_config_from_etcd_need_consent(self, tmp_path):
        config = b'{"Network":"10.5.0.0/16","Backend":{"Type":"extension"}}'

        with pytest.raises(ConfigError, match="--allow-extension"):
            async with whole_node(tmp_path, config=config) as node:
                await node.advance(1)

    async def test_a_refusal_at_the_start_ends_it(self, tmp_path):
        node = WholeNode(tmp_path)
        node.store.refuse(StoreDenied("user 'flannel' is not accepted"), "get")
        try:
            with pytest.raises(StoreDenied):
                await node.start()
        finally:
            await node.stop()


class TestTakenSubnet:
    """Another node has our subnet, and the network is full."""

    FULL = CONFIG.replace(b"}}", b'},"SubnetMin":"10.5.9.0","SubnetMax":"10.5.9.0"}')

    async def test_the_files_do_not_name_it_and_the_node_is_not_ready_until_it_is_back(
        self, tmp_path
    ):
        async with whole_node(tmp_path, config=self.FULL) as node:
            key = codec.lease_key(PREFIX, node.lease_store.lease.key)
            assert node.agent.ready
            node.take_own_key("192.0.2.99")
            await node.advance(10)
            assert not node.agent.ready
            assert node.subnet_env == ""
            assert DOCKER_FILE not in node.files.content
            assert {"PF101", "PF111"} <= set(codes(node))
            assert "was taken" in headline(node.report()) or "out of subnets" in headline(
                node.report()
            )
            node.etcd.delete(key)
            await node.advance(5)
            assert node.agent.ready
            assert "FLANNEL_SUBNET=10.5.9.1/24" in node.subnet_env
            assert DOCKER_FILE in node.files.content
            assert problems(node.report()) == ()

    async def test_so_it_is_if_the_other_came_after_our_key_was_gone(self, tmp_path):
        async with whole_node(tmp_path, config=self.FULL) as node:
            node.store.refuse(StoreDenied("not for you"), "put", "grant")
            node.lose_own_key()
            await node.advance(5)
            assert node.subnet_env, "it does not exist yet"
            node.put_peer(9)
            node.store.allow()
            await node.advance(40)
            assert node.subnet_env == ""
            assert not node.agent.ready

    LEFT: ClassVar = {
        SUBNET_FILE: b"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.9.1/24\n",
        DOCKER_FILE: b'DOCKER_OPTS=" --bip=10.5.9.1/24 --ip-masq=true --mtu=1500"\n',
    }

    async def test_a_start_takes_back_what_the_former_run_left(self, tmp_path):
        node = WholeNode(tmp_path, config=self.FULL, left=self.LEFT)
        node.put_peer(9)
        try:
            await node.start()
            await node.advance(5)
            assert node.files.content == {}
            assert not node.agent.ready
            node.etcd.delete(codec.lease_key(PREFIX, SubnetKey(IPv4Network("10.5.9.0/24"))))
            await node.advance(5)
            assert node.agent.ready
            assert "FLANNEL_SUBNET=10.5.9.1/24" in node.subnet_env
            assert DOCKER_FILE in node.files.content
        finally:
            await node.stop()

    @pytest.mark.parametrize("subnet", ["10.5.8.1/24", "10.5.9.129/25"])
    async def test_but_not_a_file_that_another_program_wrote_there_meanwhile(
        self, tmp_path, subnet
    ):
        node = WholeNode(tmp_path, config=self.FULL, left=self.LEFT)
        node.put_peer(9)
        theirs = {
            path: content.replace(b"10.5.9.1/24", subnet.encode())
            for path, content in self.LEFT.items()
        }
        node.files.content.update(theirs)
        try:
            await node.start()
            await node.advance(5)
            assert node.files.content == theirs
        finally:
            await node.stop()

    async def test_nor_what_names_a_subnet_that_no_node_has_or_when_etcd_does_not_say(
        self, tmp_path
    ):
        node = WholeNode(tmp_path, config=self.FULL, left=self.LEFT)
        node.store.refuse(StoreUnavailable("gone"), "grant")
        try:
            await node.start()
            await node.advance(5)
            assert node.files.content == self.LEFT
            node.put_peer(9)
            node.store.refuse(StoreUnavailable("gone"), "range_prefix")
            await node.advance(5)
            assert node.files.content == self.LEFT
        finally:
            await node.stop()

    async def test_what_was_taken_back_stays_away_while_etcd_is_out_of_reach(self, tmp_path):
        async with whole_node(tmp_path, config=self.FULL) as node:
            node.store.refuse(StoreDenied("not for you"), "put", "grant")
            node.lose_own_key()
            await node.advance(5)
            node.put_peer(9)
            node.store.allow()
            await node.advance(40)
            assert node.subnet_env == ""
            node.store.refuse(StoreUnavailable("gone"), "range_prefix")
            await node.advance(120)
            assert node.subnet_env == ""

    async def test_where_there_is_another_subnet_the_files_are_never_without_one(
        self, node: WholeNode
    ):
        former = node.subnet
        node.take_own_key("192.0.2.99")
        for _ in range(100):
            await node.advance(0.1)
            assert node.subnet_env
        assert node.subnet != former


class TestLateReadiness:
    """READY can wait for the files, on whose account other units are ordered after ours."""

    async def test_a_full_disk_holds_ready_up_and_nothing_else(self, tmp_path):
        node = WholeNode(tmp_path, ready_when_files=True)
        node.files.full = True
        node.put_peer(200)
        try:
            await node.start()
            await node.advance(15)
            assert "READY" not in node.manager.told
            assert node.manager.told.count("EXTEND") == 2
            assert "10.5.200.0/24" in await node.routes()
            assert not node.agent.ready
            assert "PF151" in codes(node)
            assert str(SUBNET_FILE) in node.report().phase
            node.files.full = False
            await node.advance(2)
            assert node.manager.told[-1] == "READY"
            assert "running with subnet 10.5." in node.manager.line_at_ready
            assert node.agent.ready
            assert problems(node.report()) == ()
        finally:
            await node.stop()

    async def test_without_it_ready_is_said_at_once_and_the_files_come_later(self, tmp_path):
        node = WholeNode(tmp_path)
        node.files.full = True
        try:
            await node.start()
            assert node.manager.told == ["READY"]
            assert not node.agent.ready
            node.files.full = False
            await node.advance(2)
            assert node.agent.ready
        finally:
            await node.stop()


class TestEtcdAway:
    async def test_status_and_systemd_say_so_and_packets_flow_on(self, node: WholeNode):
        node.put_peer(200)
        await node.advance(1)
        node.store.down()
        await node.advance(2)
        assert codes(node) == ["PF102"]
        (problem,) = problems(node.report())
        assert "Our lease ends at" in problem.text
        assert problem.since == pytest.approx(node.clock.time() - 2, abs=0.5)
        assert "etcd" in node.manager.line
        assert "10.5.200.0/24" in await node.routes()
        node.store.up()
        await node.advance(10)
        assert problems(node.report()) == ()
        assert node.manager.line == headline(node.report())

    async def test_a_lease_that_ends_meanwhile_is_an_error_and_comes_back(self, tmp_path):
        async with whole_node(tmp_path, config=CONFIG.replace(b"{", b'{"LeaseTTL":60,', 1)) as node:
            node.store.down()
            await node.advance(90)
            assert "PF112" in codes(node) or "PF111" in codes(node)
            node.store.up()
            await node.advance(60)
            assert problems(node.report()) == ()


class TestTheLease:
    async def test_one_that_was_deleted_is_taken_back(self, node: WholeNode):
        former = node.subnet
        node.lose_own_key()
        await node.advance(2)
        assert node.subnet == former
        assert problems(node.report()) == ()

    async def test_one_that_another_node_took_leads_to_another_subnet_everywhere(
        self, node: WholeNode
    ):
        """Files, rules, device and status follow; the taker is a peer from then on."""
        former, rules = node.subnet, node.firewall.rules
        node.take_own_key("192.0.2.99")
        await node.advance(20)
        assert node.subnet != former
        assert node.subnet.replace(".0/24", ".1/24") in node.subnet_env
        assert node.firewall.rules != rules
        assert (await node.routes())[former] == "192.0.2.99"
        assert node.subnet in node.report().phase

    async def test_why_it_is_not_back_is_said_as_it_is_at_present(self, node: WholeNode):
        """By status and by systemd's line: why it was lost, and why it cannot be had."""
        node.store.refuse(StoreDenied("write not permitted"), "put")
        node.lose_own_key()
        await node.advance(5)
        (problem,) = problems(node.report())
        assert problem.code == "PF111"
        assert "deleted" in problem.text
        assert "write not permitted" in problem.text
        assert problem.since == pytest.approx(node.clock.time() - 5, abs=0.5)
        node.store.allow()
        node.store.refuse(StoreDenied("password not accepted"), "put")
        await node.advance(30)
        assert "password not accepted" in node.manager.line
        assert "write not permitted" not in node.manager.line
        node.store.allow()
        await node.advance(15)
        assert problems(node.report()) == ()
        assert node.report().lease.held is True

    async def test_a_renewal_that_is_refused_is_a_problem_before_the_lease_ends(self, tmp_path):
        async with whole_node(
            tmp_path, config=CONFIG.replace(b"{", b'{"LeaseTTL":300,', 1)
        ) as node:
            node.store.refuse(StoreDenied("renewal not permitted"), "keepalive")
            await node.advance(210)
            (problem,) = problems(node.report())
            assert problem.code == "PF113"
            assert "renewal not permitted" in problem.text
            assert node.report().lease.held is True


class TestLeaving:
    """What an orderly end does with the lease; `leave` is called when nothing runs any more."""

    @staticmethod
    async def end(node: WholeNode) -> bytes:
        key = codec.lease_key(PREFIX, node.lease_store.lease.key)
        node.task.cancel()
        await asyncio.gather(node.task, return_exceptions=True)
        node.task = None
        await node.agent.leave()
        return key

    @pytest.mark.parametrize(("asked", "restarting"), [(False, False), (True, True)])
    async def test_the_subnet_is_kept_unless_asked_and_at_a_restart(
        self, tmp_path, asked, restarting
    ):
        async with whole_node(tmp_path, release_on_exit=asked) as node:
            node.restarting = restarting
            assert node.etcd.get(await self.end(node)) is not None

    async def test_the_subnet_of_a_node_that_is_thrown_away_is_free_at_once(self, tmp_path):
        async with whole_node(tmp_path, release_on_exit=True) as node:
            assert node.etcd.get(await self.end(node)) is None
            assert node.etcd.leases == {}

    async def test_an_etcd_that_is_away_does_not_hold_the_end_up(self, tmp_path, caplog):
        async with whole_node(tmp_path, release_on_exit=True) as node:
            node.store.down()
            await self.end(node)
            assert "its lease ends by itself" in caplog.text


class TestTheUnderlay:
    async def test_another_address_is_published(self, node: WholeNode):
        key, subnet = node.lease_store.lease.key, node.subnet
        node.readdress("192.0.2.55/24")
        await node.advance(3)
        stored = node.etcd.get(codec.lease_key(PREFIX, key))
        assert b'"PublicIP":"192.0.2.55"' in stored.value
        assert node.subnet == subnet
        assert node.report().underlay.address == "192.0.2.55"
        assert node.store.reconnected

    async def test_it_is_published_later_where_etcd_is_away_just_now(self, node: WholeNode):
        key = node.lease_store.lease.key
        node.store.down()
        node.readdress("192.0.2.55/24")
        await node.advance(30)
        assert node.report().underlay.address == "192.0.2.55"
        node.store.up()
        await node.advance(10)
        stored = node.etcd.get(codec.lease_key(PREFIX, key))
        assert b'"PublicIP":"192.0.2.55"' in stored.value

    async def test_the_neighbours_are_told_of_another_mac_and_a_damaged_file_is_put_right(
        self, tmp_path
    ):
        async with whole_node(tmp_path, config=DUAL_STACK) as node:
            whole = node.files.content[SUBNET_FILE]
            node.files.content[SUBNET_FILE] = whole[:20]
            await node.advance(3)
            assert node.files.content[SUBNET_FILE] == whole
            assert node.announced == []
            await node.netlink.set_link(node.machine.eth0.index, mac="02:00:00:00:00:77")
            await node.advance(5)
            assert node.announced == ["02:00:00:00:00:77"] * 3
            assert node.report().files.restored == 1


class TestTheConfig:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (b"{", "wrong now"),
            (CONFIG.replace(b"10.5", b"10.6"), "has changed"),
            (None, "was deleted"),
        ],
    )
    async def test_a_change_is_told_and_takes_effect_at_a_restart(self, node, text, words):
        await node.advance(2)
        if text is None:
            node.etcd.delete(codec.config_key(PREFIX))
        else:
            node.put_config(text)
        await node.advance(2)
        assert codes(node) == ["PF103"]
        assert words in problems(node.report())[0].text
        node.put_config(CONFIG)
        await node.advance(2)
        assert problems(node.report()) == ()


class TestRules:
    async def test_a_failing_firewall_holds_nothing_up_and_is_tried_again(self, tmp_path):
        node = WholeNode(tmp_path)
        node.firewall.failing = KernelError("iptables", "filter", 0, "no such program")
        try:
            await node.start()
            assert node.agent.ready
            assert codes(node) == ["PF141"]
            node.firewall.failing = None
            await node.advance(10)
            assert problems(node.report()) == ()
        finally:
            await node.stop()


class Slow:
    """A backend whose `attach` goes on when it is told; everything else is another one's."""

    def __init__(self, behind: Backend, held: Callable[[], None]) -> None:
        self.held = held
        self.behind = behind
        self.attaching = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.refused: KernelError | None = None

    async def prepare(self, previous: LeaseAttrs | None) -> LeaseAttrs:
        return await self.behind.prepare(previous)

    async def attach(self, lease: Lease) -> Network:
        self.attaching.set()
        await self.may_go_on.wait()
        if self.refused is not None:
            raise self.refused
        return await self.behind.attach(lease)


@asynccontextmanager
async def attaching(state_dir: Path) -> AsyncIterator[tuple[WholeNode, Slow]]:
    """A node whose backend is in the middle of `attach`, and that backend."""
    node, made = WholeNode(state_dir), []
    parts = node.agent._parts

    def backend(config, underlay, prescribed, held):
        made.append(Slow(parts.backend(config, underlay, prescribed, held), held))
        return made[-1]

    node.agent._parts = replace(parts, backend=backend)
    try:
        await node.start()
        while not (made and made[0].attaching.is_set()):
            await node.advance(0.1)
        yield node, made[0]
    finally:
        await node.stop()


class TestRulesBesideTheBackend:
    async def test_there_are_none_before_the_backend_has_what_another_daemon_could_hold(
        self, tmp_path
    ):
        async with attaching(tmp_path) as (node, backend):
            await node.advance(1)
            assert node.firewall.rules is None
            backend.refused = KernelError("open", "port 8285", 0, "another daemon has it")
            backend.may_go_on.set()
            with pytest.raises(KernelError, match="another daemon"):
                await node.advance(1)
            assert node.firewall.rules is None

    async def test_they_are_made_while_the_rest_of_its_work_goes_on(self, tmp_path):
        async with attaching(tmp_path) as (node, backend):
            backend.held()
            await node.advance(0.1)
            assert node.firewall.rules is not None
            assert not node.agent.ready
            backend.may_go_on.set()
            await node.advance(0.1)
            assert node.agent.ready


@pytest.mark.parametrize("turns", range(0, 60, 3))
async def test_a_stop_is_honoured_at_each_point_of_the_start(tmp_path, turns):
    """Every step that was begun is undone or left complete; no task and no watch stays."""
    node = WholeNode(tmp_path)
    task = asyncio.create_task(node._run())
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await node.advance(5)
    assert node.etcd.watches == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}
    leases = node.etcd.below(codec.subnets_prefix(PREFIX))
    assert len(leases) <= 1
    assert len(node.etcd.leases) <= 1


async def test_the_headline_is_sent_only_when_it_has_changed(node, monkeypatch):
    lines: list[str] = []
    await node.advance(2 * HEADLINE_S)
    monkeypatch.setattr(node.manager, "status", lines.append)
    await node.advance(20 * HEADLINE_S)
    assert lines == []
    node.store.down()
    await node.advance(5 * HEADLINE_S)
    assert 1 <= len(lines) <= 5


class TestProbes:
    """What peers answer is in the node's report, and what is wrong comes of it."""

    async def test_who_answers_is_up_and_who_does_not_any_more_is_a_problem(self, tmp_path):
        async with whole_node(tmp_path, probe_interval_s=10.0) as node:
            node.put_peer(200)
            await node.advance(30)
            (peer,) = node.report().peers
            assert (peer.state, peer.way, peer.loss) == ("up", "host-gw", 0)
            assert problems(node.report()) == ()
            node.echoes.silent = {"192.0.2.200"}
            await node.advance(16)
            (peer,) = node.report().peers
            assert (peer.state, peer.cause) == ("down", "away")
            (problem,) = problems(node.report())
            assert (problem.code, problem.subject) == ("PF171", "peer 10.5.200.0/24")
            assert "10.5.200.0/24" in node.manager.line
            assert "10.5.200.0/24" in await node.routes()  # a probe decides nothing
            node.echoes.silent = set()
            await node.advance(16)
            assert problems(node.report()) == ()

    async def test_a_peer_without_a_lease_is_not_asked_any_more(self, tmp_path):
        async with whole_node(tmp_path, probe_interval_s=10.0) as node:
            node.put_peer(200)
            await node.advance(30)
            node.etcd.delete(f"{PREFIX}/subnets/10.5.200.0-24".encode())
            await node.advance(2)
            node.echoes.sent.clear()
            await node.advance(60)
            assert node.echoes.sent == []
            assert node.report().probes.states["up"] == 0

    async def test_a_peer_that_is_left_out_is_not_asked_until_it_is_in(self, tmp_path):
        async with whole_node(tmp_path, probe_interval_s=10.0) as node:
            # Not on our link, so host-gw has no route for it.
            node.put_peer(200, "198.51.100.7")
            await node.advance(60)
            (peer,) = node.report().peers
            assert peer.state in {"ignored", "failing"}
            node.echoes.sent.clear()
            await node.advance(60)
            assert node.echoes.sent == []
            node.put_peer(200)
            await node.advance(60)
            assert node.report().peers[0].state == "up"

    async def test_off_is_off(self, node: WholeNode):
        node.put_peer(200)
        await node.advance(60)
        assert node.echoes.sent == []
        assert node.report().peers[0].state == "unknown"
        assert node.report().probes.interval_s == 0


async def test_a_lease_that_has_ended_is_told_to_who_asks_whether_the_node_works(tmp_path):
    async with whole_node(
        tmp_path, config=CONFIG.replace(b'"Backend"', b'"LeaseTTL":60,"Backend"')
    ) as node:
        assert node.agent.trouble() == ""
        node.store.down()
        await node.advance(10)
        assert node.agent.trouble() == ""  # packets flow, and the lease is held
        await node.advance(90)
        assert node.agent.trouble().startswith(("PF111 ", "PF112 "))
