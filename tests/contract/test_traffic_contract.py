"""One suite over both traffic managers, on the real kernel in a namespace of its own."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import time
from contextlib import asynccontextmanager
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from types import SimpleNamespace

import pytest

from pyflannel.backend.vxlan.settings import VxlanSettings
from pyflannel.core.config import NetworkConfig
from pyflannel.core.errors import CommandError
from pyflannel.core.ip import SubnetKey
from pyflannel.core.rules import RuleSet, build
from pyflannel.kernel import process
from pyflannel.traffic import iptables
from pyflannel.traffic.iptables import IptablesManager
from pyflannel.traffic.nftables import NftablesManager
from tests.support.netns import in_new_netns

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.guest]

CONFIG = NetworkConfig(
    network=IPv4Network("10.0.0.0/16"),
    ipv6_network=IPv6Network("fd00::/48"),
    enable_ipv6=True,
    backend=VxlanSettings(),
)
KEY = SubnetKey(IPv4Network("10.0.5.0/24"), IPv6Network("fd00:0:0:5::/64"))
OTHER = SubnetKey(IPv4Network("10.0.6.0/24"), IPv6Network("fd00:0:0:6::/64"))
MANAGERS = {"iptables": IptablesManager, "nftables": NftablesManager}


def rules(key=KEY, *, ip_masq=True, forward=True) -> RuleSet:
    return build(CONFIG, key, ip_masq=ip_masq, forward=forward)


def sh(command: str) -> str:
    return subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout


def everything() -> str:
    return sh("nft -s list ruleset")


@pytest.fixture(autouse=True)
def runner():
    return lambda main: in_new_netns(lambda: asyncio.run(main()))


@pytest.fixture(params=MANAGERS)
@asynccontextmanager
async def manager(request, runner):
    """A fresh one in a fresh network namespace."""
    manager = MANAGERS[request.param]()
    try:
        yield manager
    finally:
        manager.close()


async def test_what_is_there_already_is_not_written_again(manager):
    assert (await manager.ensure(rules())).changed
    before = everything()
    assert "10.0.5.0/24" in before
    assert "fd00:0:0:5::/64" in before
    later = type(manager)()  # the next run of the daemon
    try:
        assert not (await later.ensure(rules())).changed
    finally:
        later.close()
    assert everything() == before


async def test_another_subnet_leaves_nothing_of_the_former(manager):
    await manager.ensure(rules())
    applied = await manager.ensure(rules(OTHER), previous=rules())
    assert applied.changed
    assert not applied.repaired, "no other program had a part in it"
    assert "10.0.5.0/24" not in everything()
    assert "10.0.6.0/24" in everything()


@pytest.mark.parametrize("damage", ["flush", "one rule"])
async def test_removed_rules_are_noticed_and_back_within_five_seconds(manager, damage):
    await manager.ensure(rules())
    before = everything()
    nft = isinstance(manager, NftablesManager)
    if damage == "flush":
        sh("nft flush ruleset")
    elif nft:
        sh("nft flush chain ip flannel-ipv4 forward")
    else:
        sh("iptables -D FLANNEL-FWD 1")
    start = time.monotonic()
    async with asyncio.timeout(5):
        assert await manager.changed()
        while not (applied := await manager.ensure(rules())).changed:
            await manager.changed()
    assert applied.repaired
    assert time.monotonic() - start < 5
    assert sorted(everything().split()) == sorted(before.split())


async def test_at_rest_no_more_than_one_process_a_minute_is_spent(manager, monkeypatch):
    """Dual stack and both parts of the rules: the most that a look can cost."""
    spawned = []

    async def counting(argv, **how):
        spawned.append(argv)
        return await run(argv, **how)

    run = process.run
    monkeypatch.setattr(process, "run", counting)

    await manager.ensure(rules())
    spawned.clear()
    assert not (await manager.ensure(rules())).changed
    per_minute = 60.0 * len(spawned) / manager._monitor.full_check_s
    assert per_minute <= 1, spawned


async def test_rules_of_others_are_left_alone_and_not_waited_upon(manager):
    """A firewall that another program changes all the time does not keep us busy."""
    await manager.ensure(rules())
    sh("nft add table ip theirs; nft add chain ip theirs c")
    await manager.ensure(rules())
    waiting = asyncio.ensure_future(manager.changed())
    await asyncio.sleep(2.5)  # our own writes are over; a look that they caused has been had
    if waiting.done():
        waiting = asyncio.ensure_future(manager.changed())
    for _ in range(20):
        sh("nft add rule ip theirs c accept")
    done, _ = await asyncio.wait({waiting}, timeout=1)
    assert not done
    waiting.cancel()
    await manager.remove()
    assert "theirs" in everything()


async def test_nothing_of_ours_is_left_after_removal(manager):
    await manager.ensure(rules())
    assert await manager.leftovers()
    await manager.remove()
    assert await manager.leftovers() == []
    assert "flannel" not in everything().lower()


@pytest.mark.parametrize("name", MANAGERS)
@pytest.mark.parametrize("wanted", [True, False])
async def test_source_ports_are_fully_random_unless_that_is_switched_off(name, wanted):
    """Every kernel since 3.13 and both tools of this decade can do it."""
    manager = MANAGERS[name](fully_random=wanted)
    try:
        await manager.ensure(rules())
        text = everything().lower()
        # How iptables' own rules print here depends on the version of nft.
        printed = sh("iptables-save") if name == "iptables" else text
        assert ("fully" in printed) == wanted
    finally:
        manager.close()


async def test_a_part_that_is_no_longer_wanted_goes(manager):
    await manager.ensure(rules())
    await manager.ensure(rules(ip_masq=False))
    assert "masquerade" not in everything().lower()
    assert "10.0.0.0/16" in everything()


BESIDE = NetworkConfig(network=IPv4Network("10.9.0.0/16"), backend=VxlanSettings(port=8473))
BESIDE_KEY = SubnetKey(IPv4Network("10.9.5.0/24"))


def beside(*, ip_masq=True, forward=True) -> RuleSet:
    """The rules of another daemon on this node, for a network of its own."""
    return build(BESIDE, BESIDE_KEY, ip_masq=ip_masq, forward=forward)


def counts() -> dict[str, int]:
    """How often each network is named, and each own subnet, and the jumps."""
    text = everything() + sh("iptables-save")
    words = ("10.0.0.0/16", "10.0.5.0/24", "10.9.0.0/16", "10.9.5.0/24", "fd00::/48", "-j FLANNEL")
    return {word: text.count(word) for word in words}


async def test_two_daemons_leave_each_others_rules_alone(manager):
    other = type(manager)()
    try:
        await manager.ensure(rules())
        alone = counts()
        assert (await other.ensure(beside())).changed
        both = counts()
        assert {w: both[w] for w in alone if "10.9" not in w} == {
            w: alone[w] for w in alone if "10.9" not in w
        }
        assert both["10.9.0.0/16"] == alone["10.0.0.0/16"]
        # Neither has anything to do, however often they look.
        for one, wanted in ((manager, rules()), (other, beside())) * 2:
            assert not (await one.ensure(wanted)).changed
        assert counts() == both
        # One gets another subnet, the other one does without a part.
        await manager.ensure(rules(OTHER), previous=rules())
        await other.ensure(beside(ip_masq=False))
        now = counts()
        assert now["10.0.5.0/24"] == now["10.9.5.0/24"] == 0
        assert 0 < now["10.9.0.0/16"] < both["10.9.0.0/16"]
        assert now["10.0.0.0/16"] == both["10.0.0.0/16"]
        # The first ends for good.
        await manager.remove(ours=rules().networks)
        assert counts()["10.0.0.0/16"] == counts()["fd00::/48"] == 0
        assert counts()["10.9.0.0/16"] == now["10.9.0.0/16"]
        await other.remove(ours=beside().networks)
        assert "flannel" not in everything().lower()
    finally:
        other.close()


async def test_each_of_two_daemons_restores_its_own_rules(manager):
    other = type(manager)()
    try:
        await manager.ensure(rules())
        await other.ensure(beside())
        before = counts()
        sh("nft flush ruleset")
        for one, wanted in ((other, beside()), (manager, rules())):
            applied = await one.ensure(wanted)
            assert applied.repaired
        assert counts() == before
        if isinstance(manager, IptablesManager):
            sh("iptables -D FLANNEL-FWD -s 10.9.0.0/16 -m comment --comment 'flanneld forward'"
               " -j ACCEPT")  # fmt: skip
        else:
            sh("nft flush chain ip flannel-ipv4 forward")
        await other.ensure(beside())
        await manager.ensure(rules())
        assert counts() == before
    finally:
        other.close()


async def test_the_mark_is_asked_before_either_masquerades(manager):
    """One rule for both: it stays when the daemon goes that had made it."""

    def positions() -> tuple[int, int]:
        text = sh("iptables-save -t nat") if "FLANNEL" in sh("iptables-save") else everything()
        lines = [x for x in text.splitlines() if "4000" in x or "asquerade" in x.lower()]
        lines = [x for x in lines if "10.9." in x or "4000" in x]
        marks = [n for n, line in enumerate(lines) if "4000" in line]
        hides = [n for n, line in enumerate(lines) if "10.9." in line]
        return marks[0], hides[0]

    other = type(manager)()
    try:
        await manager.ensure(rules())
        await other.ensure(beside())
        assert positions()[0] < positions()[1]
        await manager.remove(ours=rules().networks)
        assert positions()[0] < positions()[1]
    finally:
        other.close()


async def test_what_an_operator_has_put_into_our_chain_stays(manager):
    await manager.ensure(rules())
    before = counts()
    if isinstance(manager, IptablesManager):
        sh("iptables -I FLANNEL-FWD -s 198.51.100.0/24 -j DROP")
    else:
        sh("nft insert rule ip flannel-ipv4 forward ip saddr 198.51.100.0/24 drop")
    assert not (await manager.ensure(rules())).changed
    await manager.ensure(rules(OTHER), previous=rules())
    await manager.ensure(rules())
    assert counts() == before
    assert "198.51.100.0/24" in everything()


OPERATORS = """
    add set ip flannel-ipv4 quarantine { type ipv4_addr; }
    add chain ip flannel-ipv4 watch
    add rule ip flannel-ipv4 watch ip saddr 198.51.100.7 counter
    add chain ip flannel-ipv4 doorman { type filter hook input priority 0; policy accept; }
    add rule ip flannel-ipv4 doorman ip saddr @quarantine jump watch
"""


@pytest.mark.parametrize("damage", ["flush", "hook"])
async def test_what_an_operator_has_put_into_our_table_beside_our_chains_stays(damage):
    """Chains with and without a hook, and a set: nft alone has such tables."""

    def theirs() -> str:
        return "".join(
            sh(f"nft -s list {what}")
            for what in (
                "set ip flannel-ipv4 quarantine",
                "chain ip flannel-ipv4 watch",
                "chain ip flannel-ipv4 doorman",
            )
        )

    def ours() -> str:
        return "".join(
            sh(f"nft -s list chain ip flannel-ipv4 {name}")
            for name in ("postrtg", "forward", "guard")
        )

    manager = NftablesManager()
    try:
        await manager.ensure(rules())
        subprocess.run(["nft", "-f", "-"], input=OPERATORS, text=True, check=True)
        before, wanted = theirs(), ours()
        assert not (await manager.ensure(rules())).changed
        sh("nft flush chain ip flannel-ipv4 forward")
        if damage == "hook":
            sh("nft delete chain ip flannel-ipv4 forward")
            base = "type filter hook output priority 0;"
            sh(f"nft add chain ip flannel-ipv4 forward '{{ {base} }}'")
        assert (await manager.ensure(rules())).changed
        assert theirs() == before
        assert [line for line in ours().splitlines() if "comment" not in line] == [
            line for line in wanted.splitlines() if "comment" not in line
        ]
        assert not (await manager.ensure(rules())).changed
        await manager.ensure(rules(OTHER))
        assert theirs() == before
        await manager.remove(ours=None if damage == "hook" else rules().networks)
        assert theirs() == before
        assert "10.0." not in everything()
        assert await manager.leftovers() == []
    finally:
        manager.close()


async def test_the_rules_of_the_former_network_go(manager):
    """As told by `subnet.env` at a start; another run than the one that made them."""
    former = type(manager)()
    await former.ensure(beside())
    former.close()
    await manager.ensure(rules(), previous=beside())
    assert counts()["10.9.0.0/16"] == 0
    assert counts()["10.0.5.0/24"] > 0


@pytest.mark.parametrize("ours", ["iptables", "nftables"])
async def test_the_other_managers_rules_go_only_if_they_are_ours(ours):
    """After a change from one manager to the other, beside a daemon that uses the first."""
    former, other = MANAGERS[ours](), MANAGERS[ours]()
    try:
        await former.ensure(rules())
        await other.ensure(beside())
        before = counts()
        await MANAGERS[ours]().remove(ours=rules().networks)
        now = counts()
        assert now["10.0.0.0/16"] == 0
        assert now["10.9.0.0/16"] == before["10.9.0.0/16"]
    finally:
        former.close()
        other.close()


async def test_the_kernel_masquerades_the_same_packets(manager):
    """Packets from a pod, from a stranger, from this host; to outside, to a local and a remote pod:
    which source they arrive with. Addresses on veth ends in two more namespaces."""
    sh(
        "ip link set lo up; echo 1 > /proc/sys/net/ipv4/ip_forward;"
        "ip link add pod type veth peer name podx; ip link add out type veth peer name outx;"
        "ip addr add 10.0.5.1/24 dev pod; ip addr add 192.0.2.1/24 dev out;"
        "ip link set pod up; ip link set out up; ip link set podx up; ip link set outx up"
    )
    await manager.ensure(rules())
    holders = [
        subprocess.Popen(["unshare", "-n", "sleep", "60"]),
        subprocess.Popen(["unshare", "-n", "sleep", "60"]),
    ]
    try:
        pod, far = holders
        ours = Path("/proc/self/ns/net").readlink()
        async with asyncio.timeout(30):
            while ours in {Path(f"/proc/{one.pid}/ns/net").readlink() for one in holders}:
                await asyncio.sleep(0.01)
        sh(f"ip link set podx netns {pod.pid}; ip link set outx netns {far.pid}")
        inside(
            pod,
            "ip addr add 10.0.5.2/24 dev podx",
            "ip link set podx up",
            "ip route add default via 10.0.5.1",
        )
        # The far side is both a remote pod (10.0.9.2) and a stranger (203.0.113.9).
        inside(
            far,
            "ip link set lo up",
            "ip addr add 192.0.2.2/24 dev outx",
            "ip addr add 10.0.9.2/32 dev lo",
            "ip addr add 203.0.113.9/32 dev lo",
            "ip link set outx up",
            "ip route add 10.0.5.0/24 via 192.0.2.1",
        )
        sh("ip route add 10.0.9.0/24 via 192.0.2.2; ip route add 203.0.113.0/24 via 192.0.2.2")
        here = "10.0.5.1"
        seen = {
            "pod to outside": source(pod.pid, far.pid, "203.0.113.9"),
            "pod to remote pod": source(pod.pid, far.pid, "10.0.9.2"),
            "host to remote pod": source(None, far.pid, "10.0.9.2", bind="192.0.2.1"),
            "pod's gateway to remote pod": source(None, far.pid, "10.0.9.2", bind=here),
            "stranger to local pod": source(far.pid, pod.pid, "10.0.5.2", bind="203.0.113.9"),
            "marked, pod to outside": source(pod.pid, far.pid, "203.0.113.9", mark=True),
        }
        assert seen == {
            "pod to outside": "192.0.2.1",
            "pod to remote pod": "10.0.5.2",
            "host to remote pod": "192.0.2.1",
            "pod's gateway to remote pod": here,
            "stranger to local pod": "203.0.113.9",
            "marked, pod to outside": "10.0.5.2",
        }
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()


def inside(holder: subprocess.Popen, *commands: str) -> None:
    for command in commands:
        sh(f"nsenter -n -t {holder.pid} {command}")


RECEIVE = (
    "import socket; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.bind(('{to}',7777));"
    "s.settimeout(5); print('ready',flush=True); print(s.recvfrom(9)[1][0])"
)
SEND = (
    "import socket; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.bind(('{bind}',{port}));"
    "s.sendto(b'x',('{to}',7777))"
)


PORTS = itertools.count(40_000)
"""A source port for each datagram. One by chance may be that of a datagram before, and then the
packet belongs to that one's connection, and is masqueraded as it was, with any mark."""


def source(sender: int | None, receiver: int, to: str, *, bind: str = "0.0.0.0", mark=False) -> str:
    """The source address with which a datagram arrives."""
    enter = ["nsenter", "-n", "-t"]
    if mark:
        sh("iptables -t mangle -A PREROUTING -j MARK --set-xmark 0x4000/0x4000")
    with subprocess.Popen(
        [*enter, str(receiver), "python3", "-c", RECEIVE.format(to=to)],
        stdout=subprocess.PIPE,
        text=True,
    ) as taking:
        assert taking.stdout is not None
        assert taking.stdout.readline().strip() == "ready"
        prefix = [] if sender is None else [*enter, str(sender)]
        send = SEND.format(to=to, bind=bind, port=next(PORTS))
        subprocess.run([*prefix, "python3", "-c", send], check=True)
        return taking.stdout.readline().strip()


def test_without_table_raw_everything_else_is_in_place(monkeypatch):
    """A legacy iptables whose kernel has no module for it; said once for each family."""
    said = []

    async def scenario() -> None:
        manager = IptablesManager()
        log = SimpleNamespace(warning=lambda text, **_: said.append(text))
        monkeypatch.setattr(iptables, "log", log)
        command = manager._command

        async def without_raw(*argv: str, stdin: str = "") -> str:
            if "raw" in argv or "*raw" in stdin:
                raise CommandError("iptables-save: can't initialize table `raw'")
            return await command(*argv, stdin=stdin)

        monkeypatch.setattr(manager, "_command", without_raw)
        try:
            assert (await manager.ensure(rules())).changed
            assert not (await manager.ensure(rules())).changed
        finally:
            manager.close()
        saved = sh("iptables-save")
        assert "FLANNEL-FWD" in saved
        assert "FLANNEL-POSTRTG" in saved
        assert "GUARD" not in saved
        assert said == ["pods can reach the nodes' tunnel ports"] * 2

    in_new_netns(lambda: asyncio.run(scenario()))
