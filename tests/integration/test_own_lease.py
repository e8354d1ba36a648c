"""A node knows its own lease: over a change of address, a restart, and an operator's mistake."""

from __future__ import annotations

import contextlib
import json
import socket
import threading

import pytest

from pyflannel.lab import Lab, LabSpec, injecting
from pyflannel.lab.ping import ping_all
from pyflannel.lab.topology import ETCD_ENDPOINT

pytestmark = [pytest.mark.root, pytest.mark.slow]


def values(lab: Lab) -> dict[str, dict[str, object]]:
    """The leases by their subnet, as in the key."""
    return {one.key.rpartition("/")[2]: json.loads(one.value) for one in lab.etcd.leases()}


def subnet_of(node) -> str:
    return node.subnet_env()["FLANNEL_SUBNET"].replace(".1/24", ".0-24")


def key_of(lab: Lab, node):
    (found,) = [one for one in lab.etcd.leases() if one.key.endswith("/" + subnet_of(node))]
    return found


def routes(node) -> dict[str, str]:
    """Device by destination."""
    listed = json.loads(node.exec(["ip", "-j", "route", "show"]).stdout)
    return {route["dst"]: route["dev"] for route in listed}


@pytest.mark.parametrize("backend", ["host-gw", "vxlan", "udp"])
def test_a_key_overwritten_for_a_moment_costs_the_node_nothing(backend):
    """An operator writes another PublicIP to it, sees the mistake, and restores the old value."""
    with Lab(LabSpec(nodes=2, backend=backend, name="mistake")) as lab:
        node = lab.node(1)
        lab.wait(lambda: lab.ping_all(count=1).ok, 10, what="all pods")
        stored, before = key_of(lab, node), routes(node)
        wrong = stored.value.replace(node.address, "192.0.2.99")
        lab.etcd.put(stored.key, wrong)
        lab.wait(lambda: "another node's address was written" in node.log(), 3, what="it is seen")
        lab.etcd.put(stored.key, stored.value)
        lab.wait(lambda: lab.ping_all(count=1).ok, 5, what="all pods again")
        lab.wait(lambda: "became a reservation" in node.log(), 5, what="our key judged again")
        assert len(values(lab)) == 2
        assert subnet_of(node) == stored.key.rpartition("/")[2]
        assert routes(node) == before
        assert lab.ping_all().ok


@pytest.mark.parametrize("backend", ["host-gw", "udp"])
def test_a_key_overwritten_for_longer_does_not_cut_off_the_containers_that_are_there(backend):
    """The node has taken another subnet; its containers still live in the one it had."""
    with Lab(LabSpec(nodes=2, backend=backend, name="longmistake")) as lab:
        node = lab.node(1)
        lab.wait(lambda: lab.ping_all(count=1).ok, 10, what="all pods")
        pods = {n.pod.name: (n.pod, n.pod_address()) for n in lab.nodes}
        stored, former = key_of(lab, node), subnet_of(node)
        bridge = former.replace("-", "/")
        lab.etcd.put(stored.key, stored.value.replace(node.address, "192.0.2.99"))
        lab.wait(lambda: subnet_of(node) != former, 10, what="another subnet")
        lab.wait(lambda: len(values(lab)) == 3, 5, what="its lease")
        assert routes(node)[bridge] == "docker0"
        lab.etcd.put(stored.key, stored.value)
        lab.wait(lambda: ping_all(pods, count=1).ok, 5, what="the pods in the former subnet")
        assert routes(node)[bridge] == "docker0"
        assert ping_all(pods).ok
        node.kill()
        node.start_daemon()
        lab.wait(node.is_ready, 10, what="ready again")
        assert ping_all(pods).ok
        assert routes(node)[bridge] == "docker0"


def test_a_key_with_our_vtep_mac_is_ours_with_any_address():
    """No other node can have our device's MAC; after a sign of life is not given it is ours."""
    with Lab(LabSpec(nodes=2, backend="vxlan", name="ourmac")) as lab:
        node = lab.node(1)
        lab.wait(lambda: lab.ping_all(count=1).ok, 10, what="all pods")
        stored, mine = key_of(lab, node), subnet_of(node)
        lab.etcd.put(stored.key, stored.value.replace(node.address, "192.0.2.99"))
        lab.wait(lambda: values(lab)[mine]["PublicIP"] == "192.0.2.99", 3, what="it is written")
        lab.wait(lambda: values(lab)[mine]["PublicIP"] == node.address, 10, what="ours again")
        assert subnet_of(node) == mine
        assert len(values(lab)) == 2
        lab.wait(lambda: lab.ping_all(count=1).ok, 5, what="all pods")


@pytest.mark.parametrize("backend", ["host-gw", "vxlan"])
def test_a_node_that_starts_with_another_address_keeps_its_subnet(backend):
    """DHCP gave it a new one while the daemon was down; its containers run on."""
    with Lab(LabSpec(nodes=2, backend=backend, name="newaddress")) as lab:
        node = lab.node(1)
        lab.wait(lambda: lab.ping_all(count=1).ok, 10, what="all pods")
        mine, before = subnet_of(node), key_of(lab, node)
        node.stop_daemon()
        # /run is empty after a reboot.
        node.path("/run/flannel/subnet.env").unlink()
        address = injecting.move_underlay(node, 77)
        node.start_daemon()
        lab.wait(node.is_ready, what="ready")
        assert subnet_of(node) == mine
        assert values(lab)[mine]["PublicIP"] == address
        assert key_of(lab, node).lease_id == before.lease_id
        assert len(values(lab)) == 2
        lab.wait(lambda: lab.ping_all(count=1).ok, 5, what="all pods again")
        assert routes(node)[mine.replace("-", "/")] == "docker0"


def test_a_virtual_address_that_failed_over_brings_no_subnet_along():
    """Node 2 had it when it was leased and is down; its pods live. Node 1 gets it and restarts."""
    virtual = "192.0.2.200"
    spec = LabSpec(nodes=2, backend="vxlan", name="failover")
    with Lab(spec) as lab:
        first, second = lab.node(1), lab.node(2)
        lab.wait(lambda: lab.ping_all(count=1).ok, 10, what="all pods")
        mine, theirs = subnet_of(first), subnet_of(second)
        injecting.move_underlay(second, 200)
        lab.wait(lambda: values(lab)[theirs]["PublicIP"] == virtual, 5, what="leased with it")
        second.kill()
        second.exec(["ip", "address", "del", f"{virtual}/24", "dev", "eth0"])
        stranded = key_of(lab, second)

        # As where the node's own address is from DHCP: the permanent one would be preferred.
        script = (
            f"ip address change {first.address}/24 dev eth0 valid_lft 600 preferred_lft 600\n"
            f"ip address add {virtual}/24 dev eth0\n"
        )
        first.exec(["sh", "-e", "-s"], stdin=script)
        for _ in range(2):
            first.kill()
            first.start_daemon()
            lab.wait(first.is_ready, 10, what="ready")
            assert subnet_of(first) == mine
            assert values(lab)[mine]["PublicIP"] == first.address
            assert key_of(lab, second).mod_revision == stranded.mod_revision
        # And where the operator says that the virtual one is the node's.
        first.kill()
        first.start_daemon([f"--public-ip={virtual}"])
        lab.wait(first.is_ready, 10, what="ready")
        assert subnet_of(first) == mine
        assert key_of(lab, second).mod_revision == stranded.mod_revision


class Swallower:
    """A way to etcd on which no answer comes back any more once a transaction was asked for."""

    def __init__(self, node) -> None:
        self._node = node
        host, _, port = ETCD_ENDPOINT.removeprefix("http://").rpartition(":")
        self._etcd = (host, int(port))
        self._swallows = threading.Event()
        self._open: list[socket.socket] = []
        self._listener = self._socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _socket(self) -> socket.socket:
        made = self._node.space.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._open.append(made)
        return made

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._open.append(client)
                server = self._socket()
                server.connect(self._etcd)
                for pump in (self._ask, self._answer):
                    threading.Thread(target=pump, args=(client, server), daemon=True).start()

    def _ask(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if b"POST /v3/kv/txn" in data:
                    self._swallows.set()
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def _answer(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if not self._swallows.is_set():
                    client.sendall(data)
            client.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def test_a_node_that_is_killed_when_its_key_is_there_has_that_subnet_at_the_next_start():
    """Its former subnet is another node's by now; the answer to its write never reaches it."""
    with Lab(LabSpec(nodes=1, backend="host-gw", name="killed")) as lab:
        node = lab.node(1)
        former = key_of(lab, node)
        node.stop_daemon()
        node.path("/run/flannel/subnet.env").unlink()
        lab.etcd.put(former.key, former.value.replace(node.address, "192.0.2.99"))
        way = Swallower(node)
        try:
            node.start_daemon([f"--etcd-endpoints={way.endpoint}"])
            lab.wait(lambda: len(lab.etcd.leases()) == 2, 10, what="its key in etcd")
            node.kill()
        finally:
            way.close()
        (written,) = [one for one in lab.etcd.leases() if one.key != former.key]
        node.start_daemon()
        lab.wait(node.is_ready, what="ready")
        assert written.key.endswith("/" + subnet_of(node))
        assert {one.key for one in lab.etcd.leases()} == {former.key, written.key}
