"""The accept in docker's chain: docker's own rules replayed on the nodes of a lab."""

from __future__ import annotations

import pytest

from pyflannel.lab import Lab, LabSpec

pytestmark = [pytest.mark.root, pytest.mark.slow]

CHAINS = {
    # As docker 28.5.2 makes them for docker0 (iptables-save of a node, without its NAT).
    "28": """*filter
:DOCKER - [0:0]
:DOCKER-BRIDGE - [0:0]
:DOCKER-CT - [0:0]
:DOCKER-FORWARD - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-USER - [0:0]
-I FORWARD 1 -j DOCKER-USER
-I FORWARD 2 -j DOCKER-FORWARD
-A DOCKER ! -i docker0 -o docker0 -j DROP
-A DOCKER-BRIDGE -o docker0 -j DOCKER
-A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -j DOCKER-CT
-A DOCKER-FORWARD -j DOCKER-ISOLATION-STAGE-1
-A DOCKER-FORWARD -j DOCKER-BRIDGE
-A DOCKER-FORWARD -i docker0 -j ACCEPT
COMMIT
""",
    # 28.0: one chain less, and a RETURN at the end of the one for users.
    "28.0": """*filter
:DOCKER - [0:0]
:DOCKER-USER - [0:0]
-I FORWARD 1 -j DOCKER-USER
-I FORWARD 2 -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-I FORWARD 3 -o docker0 -j DOCKER
-I FORWARD 4 -i docker0 -j ACCEPT
-A DOCKER ! -i docker0 -o docker0 -j DROP
-A DOCKER-USER -j RETURN
COMMIT
""",
}
FLUSH = "iptables-save -t filter | grep -v -e DOCKER -e docker0 | iptables-restore"


@pytest.fixture(scope="module")
def lab():
    with Lab(LabSpec(nodes=2, backend="vxlan", name="dockers-chain")) as made:
        yield made


@pytest.fixture(params=CHAINS)
def node(lab, request):
    """Node 2, on which docker has been started."""
    node = lab.node(2)
    node.exec(["iptables-restore", "--noflush"], stdin=CHAINS[request.param])
    yield node
    node.exec(["sh", "-c", FLUSH])
    node.exec(["rm", "-f", "/var/lib/pyflannel/docker-setup.json"])


def in_chain(node) -> list[str]:
    return node.exec(["iptables", "-S", "DOCKER-USER"]).stdout.splitlines()[1:]


def ours(node) -> list[str]:
    return [rule for rule in in_chain(node) if "pyflannel" in rule]


def test_docker_setup_lets_the_overlay_in_and_the_daemon_keeps_it(lab, node):
    assert not lab.ping_all(deadline=2.0).ok, "docker's rules keep the pods apart"
    said = node.exec(["pyflannel", "docker-setup", "--networks"]).stdout
    assert "accepted from 10." in said
    assert lab.ping_all().ok
    before = in_chain(node)
    (rule,) = ours(node)
    subnet = node.subnet_env()["FLANNEL_SUBNET"].replace(".1/", ".0/")
    assert f" -d {subnet} " in rule
    node.exec(["iptables", "-F", "DOCKER-USER"])
    lab.wait(lambda: ours(node) == [rule], 5, what="the rule is back")
    # As when docker is stopped, its rules flushed, and started again.
    node.exec(["sh", "-c", FLUSH])
    node.exec(["iptables", "-N", "DOCKER-USER"])
    node.exec(["iptables", "-A", "DOCKER-USER", "-j", "RETURN"])
    lab.wait(lambda: ours(node) == [rule], 5, what="the rule is back in the new chain")
    assert in_chain(node)[-1] == "-A DOCKER-USER -j RETURN"
    assert rule in before


def test_without_docker_setup_the_chain_is_left_alone(lab, node):
    """The daemon looks at it after each change, and finds that it was not asked to."""
    before = in_chain(node)
    node.exec(["iptables", "-I", "DOCKER-USER", "-s", "198.51.100.1", "-j", "DROP"])
    node.exec(["iptables", "-F", "FLANNEL-FWD"])

    def restored() -> bool:
        return "ACCEPT" in node.exec(["iptables", "-S", "FLANNEL-FWD"]).stdout

    lab.wait(restored, 5, what="the daemon has looked")
    node.exec(["iptables", "-D", "DOCKER-USER", "-s", "198.51.100.1", "-j", "DROP"])
    assert in_chain(node) == before


def test_an_operators_drop_before_it_keeps_winning(lab, node):
    node.exec(["iptables", "-I", "DOCKER-USER", "-i", "flannel.1", "-j", "DROP"])
    node.exec(["pyflannel", "docker-setup", "--networks"])
    assert in_chain(node)[0] == "-A DOCKER-USER -i flannel.1 -j DROP"
    assert len(ours(node)) == 1
    assert not lab.ping_all(deadline=2.0).ok


def test_cleanup_takes_it_away_and_leaves_what_others_wrote(lab, node):
    node.exec(["iptables", "-A", "DOCKER-USER", "-s", "198.51.100.1", "-j", "DROP"])
    before = in_chain(node)
    node.exec(["pyflannel", "docker-setup", "--networks"])
    assert ours(node)
    node.stop_daemon()
    try:
        said = node.exec(["pyflannel", "cleanup"]).stdout
        assert "removed iptables rule -A DOCKER-USER" in said
        assert "docker-setup.json" in said
        assert in_chain(node) == before
    finally:
        node.start_daemon()
        lab.wait_ready(15)
    assert ours(node) == []
