"""The program that stands before a FOU port, and what the data path does with port and bolt.

On any kernel: a socket that is bound to the device stands for the port. It wins the kernel's
look-up as the port does, and has none of its GRO.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyflannel.core.errors import DeviceUnavailable, KernelError
from pyflannel.datapath.ebpf import EbpfDatapath, cardgro, cardplan
from pyflannel.kernel import xfrm
from pyflannel.kernel.fou import FouPort
from tests.contract.datapath_cases import AT_A, NOWHERE, OURS, one_hop_later, packet
from tests.contract.datapath_rigs import DeviceRig, Wire, drain

pytestmark = [pytest.mark.root, pytest.mark.guest]

PORT_ON = "fou port"
BOLT_ON = "bolt of the fou port"


class StandIn:
    """Plays `kernel.fou`."""

    def __init__(self) -> None:
        self.sockets: dict[FouPort, socket.socket] = {}
        self.others: list[FouPort] = []
        self.is_loaded = True

    def is_there(self) -> bool:
        return self.is_loaded

    def ports(self) -> list[FouPort]:
        return [*self.others, *self.sockets]

    def add(self, port: FouPort) -> None:
        if not self.is_loaded:
            raise DeviceUnavailable("add", "fou port", errno.ENOENT, "try: modprobe fou")
        # The bolt is there before, and the programs know.
        assert (port.local, port.port) in [each.bolted for each in xfrm.policies()]
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        made.setsockopt(
            socket.SOL_SOCKET, socket.SO_BINDTODEVICE, socket.if_indextoname(port.ifindex).encode()
        )
        made.bind((str(port.local), port.port))
        self.sockets[port] = made

    def delete(self, port: FouPort) -> None:
        self.sockets.pop(port).close()

    def heard(self) -> list[bytes]:
        return [data for each in self.sockets.values() for data in drain(each)]


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    made = Wire()
    yield made
    made.close()


@pytest.fixture
def fou(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    made = StandIn()
    monkeypatch.setattr(cardgro, "fou", made)
    monkeypatch.setattr(cardgro, "linux_version", lambda: cardplan.FIRST_LINUX)
    yield made
    for each in made.sockets.values():
        each.close()


@pytest.fixture
def rig(wire: Wire, fou: StandIn) -> Iterator[DeviceRig]:
    with DeviceRig(wire) as made:
        yield made
    with wire.node.entered():
        left = xfrm.policies()
    wire.node.run("ip", "xfrm", "policy", "flush")
    assert left == []


@pytest.fixture
def running(rig: DeviceRig) -> DeviceRig:
    rig.start(EbpfDatapath, card_gro=True)
    assert state(rig) == "on"
    return rig


def state(rig: DeviceRig) -> str:
    return rig.path.capabilities.offloads["card_gro"]


def test_the_stand_in_would_hear_what_is_not_handed_over(rig: DeviceRig, fou: StandIn) -> None:
    """What the other tests rely on: without the program user space hears nothing."""
    rig.start(EbpfDatapath, card_gro=True)
    ((port, _),) = fou.sockets.items()
    program = rig.path._loaded  # type: ignore[attr-defined]
    rig.path._attachment.place({})  # type: ignore[attr-defined]
    assert program is not None
    (bolt,) = (each for each in xfrm.policies() if each.bolted)
    xfrm.delete(bolt)
    rig.deliver("stranger", packet(AT_A, OURS))
    rig._delivered = 0
    rig.step(lambda: fou.heard() != [], f"{port} hears it")
    assert rig.counters() == {}


def test_user_space_hears_what_the_programs_do_not_take(running: DeviceRig, fou: StandIn) -> None:
    running.deliver("a", packet(AT_A, OURS))
    running.deliver("a", b"\x45 too short", packet(NOWHERE, OURS))
    running.deliver("stranger", packet(AT_A, OURS))
    running.settle()
    assert running.to_tun == [one_hop_later(packet(AT_A, OURS))]
    counted = running.counters()
    del counted["udp_bytes"]
    assert counted == {
        "udp_packets": 1,
        "udp_malformed": 1,
        "udp_wrong_source": 1,
        "udp_unknown_sender": 1,
    }
    assert fou.heard() == []


def test_a_datagram_in_fragments_is_stopped_for_the_port_would_have_it(
    running: DeviceRig, fou: StandIn
) -> None:
    running.deliver("a", packet(AT_A, OURS, payload=bytes(3000)))
    running.settle()
    assert running.counters() == {"udp_write_error": 1}
    assert fou.heard() == []


def test_the_bolt_keeps_everybody_out_when_the_program_is_gone(
    running: DeviceRig, fou: StandIn
) -> None:
    running.path._attachment.place({})  # type: ignore[attr-defined]
    running.deliver("stranger", packet(AT_A, OURS))
    running.deliver("a", packet(AT_A, OURS))
    running._delivered = 0
    running.step(lambda: blocked() == 2, "both are stopped")
    assert fou.heard() == []


def blocked() -> int:
    words = Path("/proc/thread-self/net/xfrm_stat").read_text().split()
    return int(words[words.index("XfrmInPolBlock") + 1])


def test_a_stop_takes_the_port_and_then_the_bolt(running: DeviceRig, fou: StandIn) -> None:
    assert len(fou.sockets) == 1
    running.path.stop()
    assert fou.sockets == {}
    assert xfrm.policies() == []
    assert state(running) == "off (stopped)"


def test_what_was_taken_away_is_put_back(running: DeviceRig, fou: StandIn) -> None:
    for port in list(fou.sockets):
        fou.delete(port)
    for policy in xfrm.policies():
        xfrm.delete(policy)
    assert running.path.repair() == [BOLT_ON, PORT_ON]
    assert running.path.repair() == []
    running.deliver("stranger", packet(AT_A, OURS))
    running.settle()
    assert running.counters() == {"udp_unknown_sender": 1}


def test_port_and_bolt_go_while_something_speaks_against_them(
    running: DeviceRig, fou: StandIn
) -> None:
    running.wire.node.run("ip", "xfrm", "policy", "add", "dir", "in", "dst", "198.51.100.9/32")
    running.path.repair()
    assert "IPsec" in state(running)
    assert fou.sockets == {}
    assert [each.bolted for each in xfrm.policies()] == [None]
    # In fragments as well: there is no port that could have them.
    running.deliver("stranger", packet(AT_A, OURS), packet(AT_A, OURS, payload=bytes(3000)))
    running.settle()
    assert running.counters() == {"udp_unknown_sender": 1, "udp_oversize": 1}
    running.wire.node.run("ip", "xfrm", "policy", "flush")
    assert running.path.repair() == [BOLT_ON, PORT_ON]
    assert state(running) == "on"


def test_a_policy_for_a_peer_counts_for_the_socket_that_was_exempt(running: DeviceRig) -> None:
    a = str(running.wire.addresses["a"])
    running.wire.node.run(*f"ip xfrm policy add dir in src {a} action block".split())
    running.path.repair()
    assert "IPsec" in state(running)
    running.deliver("a", packet(AT_A, OURS))
    running.deliver("stranger", packet(AT_A, OURS))
    running.step(lambda: running.counters() != {}, "what came later is counted")
    assert running.counters() == {"udp_unknown_sender": 1}
    running.wire.node.run("ip", "xfrm", "policy", "flush")
    assert running.path.repair() == [BOLT_ON, PORT_ON]
    running.deliver("a", packet(AT_A, OURS))
    running.step(lambda: running.counters().get("udp_packets") == 1, "the peer is heard again")


def test_without_fou_the_data_path_works_and_says_why(rig: DeviceRig, fou: StandIn) -> None:
    fou.is_loaded = False
    rig.start(EbpfDatapath, card_gro=True)
    assert "modprobe fou" in state(rig)
    assert xfrm.policies() == []
    rig.deliver("stranger", packet(AT_A, OURS))
    rig.settle()
    assert rig.counters() == {"udp_unknown_sender": 1}
    fou.is_loaded = True
    assert rig.path.repair() == [BOLT_ON, PORT_ON]
    assert state(rig) == "on"


def test_a_bolt_goes_also_when_fou_was_unloaded_meanwhile(running: DeviceRig, fou: StandIn) -> None:
    """Which takes the ports along; left alone it would keep the next program from its own port."""
    for port in list(fou.sockets):
        fou.delete(port)
    fou.is_loaded = False
    assert cardgro.find() == [
        f"xfrm policy for {running.config.underlay_address} udp port {running.PORT}"
    ]
    running.path.repair()
    assert "modprobe fou" in state(running)
    assert xfrm.policies() == []


def test_a_port_of_others_stays_and_is_a_reason(rig: DeviceRig, fou: StandIn) -> None:
    index = socket.if_nametoindex("under0")
    other = FouPort(port=rig.PORT, protocol=47, local=None, ifindex=index)
    fou.others.append(other)
    rig.start(EbpfDatapath, card_gro=True)
    assert "not ours" in state(rig)
    rig.path.stop()
    assert fou.ports() == [other]


def test_it_is_off_unless_it_is_asked_for(rig: DeviceRig, fou: StandIn) -> None:
    rig.start(EbpfDatapath)
    assert state(rig) == "off (not asked for)"
    assert fou.sockets == {}
    assert xfrm.policies() == []


def test_what_a_killed_daemon_left_is_found_and_only_that(rig: DeviceRig, fou: StandIn) -> None:
    index = socket.if_nametoindex("under0")
    ours = cardplan.wanted_port(rig.config.underlay_address, rig.PORT, index)
    others = FouPort(port=rig.PORT, protocol=4, local=None, ifindex=0)
    assert ours.local is not None
    assert not cardgro.keep_only(ours)
    xfrm.bolt(ours.local, ours.port)
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as left:
        fou.sockets[ours] = left
        fou.others.append(others)
        assert cardgro.find() == [
            f"FOU port {ours.port} on {ours.local}",
            f"xfrm policy for {ours.local} udp port {ours.port}",
        ]
        assert cardgro.keep_only(ours)
        assert cardgro.remove()
        assert not cardgro.remove()
    assert fou.ports() == [others]
    assert cardgro.find() == []


@pytest.mark.parametrize("code", [errno.EPERM, errno.EACCES])
def test_what_may_not_be_listed_was_not_added_by_us(
    fou: StandIn, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse() -> list[FouPort]:
        raise KernelError("list", "fou ports", code)

    monkeypatch.setattr(fou, "ports", refuse)
    assert cardgro.find() == []
    assert not cardgro.remove()
