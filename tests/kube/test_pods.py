"""Pods on two nodes with real kubelets: the manifest, updates, from flannel and back, faults."""

from __future__ import annotations

import base64
import ipaddress
import json
import os
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kube.images import (
    NEXT,
    TOKEN_S,
    daemon_of,
    images,
    manifest,
    missing,
    upstream_manifest,
    with_short_tokens,
)
from tests.kube.pods import DAEMONS, PATIENCE_S, SET, PodCluster
from tests.support.document import follow, steps
from tests.support.machine import ROOT, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.root,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        not os.environ.get("PYFLANNEL_KUBE"), reason="real kubelets: `make kube` builds them"
    ),
    pytest.mark.skipif(bool(missing("_CNI")), reason=f"{missing('_CNI')} is not set"),
]
NODES = {"node1", "node2"}
DOCUMENT = (ROOT / "docs/kubernetes.md").read_text()
SECTIONS = {part.split("\n")[0]: part for part in DOCUMENT.split("\n## ")}
SERVICE = "10.96.0.80"
HOST_PORT = 8088
FETCH = (
    "import sys, urllib.request as r\n"
    "for url in sys.argv[1:]: print(len(r.urlopen(url, timeout=20).read()))"
)
WEB = f"""
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: web, namespace: default}}
spec:
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 0
      automountServiceAccountToken: false
      containers:
        - name: web
          image: busybox:test
          command: [httpd, -f, -p, "80", -h, /bin]
          ports: [{{containerPort: 80, hostPort: {HOST_PORT}}}]
---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: default}}
spec:
  clusterIP: {SERVICE}
  selector: {{app: web}}
  ports: [{{port: 80}}]
"""
AWAY_S = 600
LEEWAY_S = 70
"""The API server takes a token for a minute more."""
MANAGED = "flannel.alpha.coreos.com/kube-subnet-manager"
PEER_SUBNET = "10.244.77.0/24"
PEER = """
apiVersion: v1
kind: Node
metadata:
  name: balancer
  annotations:
    flannel.alpha.coreos.com/kube-subnet-manager: "true"
    flannel.alpha.coreos.com/backend-type: vxlan
    flannel.alpha.coreos.com/backend-data: '{"VNI":1,"VtepMAC":"02:00:00:00:00:4d"}'
    flannel.alpha.coreos.com/public-ip: 192.0.2.77
spec: {podCIDR: 10.244.77.0/24, podCIDRs: [10.244.77.0/24]}
"""


def follow_section(cluster: PodCluster, title: str) -> None:
    """Runs the blocks of a section of the document."""
    text = f"# One section\n\n{SECTIONS[title]}"
    file = cluster.directory / "section.md"
    file.write_text(text)
    assert follow(file, cluster.shells()) == len(list(steps(text)))


@pytest.fixture(scope="module")
def cluster() -> Iterator[PodCluster]:
    """Two nodes with our manifest and a pod on each."""
    with images() as archives, PodCluster(archives) as made:
        assert made.ready_nodes() == set(), "before there is a network no node is Ready"
        try:
            follow_section(made, "Install")
            assert made.ready_nodes() == NODES
            made.apply(WEB)
            made.roll_out("daemonset/web")
        except AssertionError as error:
            error.add_note(made.describe())
            raise
        yield made


@pytest.fixture(autouse=True)
def _told(request: pytest.FixtureRequest, cluster: PodCluster) -> Iterator[None]:
    """What the cluster says of itself where a test fails."""
    failed = request.session.testsfailed
    yield
    if request.session.testsfailed > failed:
        print(cluster.describe())


def use(cluster: PodCluster, backend: str, text: str) -> None:
    """A manifest with that backend on all nodes; pods stay."""
    cluster.apply(re.sub(r'"Type": "[a-z-]+"', f'"Type": "{backend}"', text))
    cluster.kubectl(*DAEMONS, "rollout", "restart", SET)
    cluster.roll_out()
    device = {"vxlan": "flannel.1", "host-gw": "eth0"}[backend]
    for number, node in enumerate(cluster.nodes, 1):
        far = cluster.pods()[f"node{3 - number}"]
        until(
            f"a route through {device}",
            lambda node=node, far=far: f"dev {device} " in node.run("ip", "route", "get", far),
        )


def fetch(cluster: PodCluster, number: int, *urls: str) -> set[int]:
    """Asks from a pod; how many bytes there were."""
    printed = cluster.inside(number, "python3", "-c", FETCH, *urls)
    return set(map(int, printed.split()))


def test_pods_reach_pods_services_and_host_ports(cluster):
    for here in (1, 2):
        there = cluster.nodes[2 - here]
        address = cluster.pods()[there.hostname]
        assert " 0% packet loss" in cluster.inside(here, "ping", "-c", "3", "-W", "5", address)
        (size,) = fetch(cluster, here, f"http://{address}/busybox")
        assert size > 1_000_000
        # Both of its pods are asked: which one it is is drawn each time.
        assert fetch(cluster, here, *[f"http://{SERVICE}/busybox"] * 16) == {size}
        assert fetch(cluster, here, f"http://{there.address}:{HOST_PORT}/busybox") == {size}


def test_the_daemon_and_its_doctor_find_nothing_wrong(cluster):
    for number in (1, 2):
        status = json.loads(cluster.in_daemon(number, "pyflannel", "status", "--json"))
        assert status["problems"] == []
        printed = cluster.in_daemon(number, "pyflannel", "doctor", "--json")
        found = json.loads(printed)["findings"]
        assert [one for one in found if one["severity"] != "info"] == []


@pytest.mark.parametrize("title", ["The image", "Annotations for operators", "Watch"])
def test_every_command_of_the_document_prints_what_it_shows(cluster, title):
    """Those of the other sections are run by the fixture and by the tests that need them."""
    follow_section(cluster, title)


def test_no_block_of_the_document_is_left_out():
    with_blocks = {title for title, text in SECTIONS.items() if list(steps(text))}
    elsewhere = {"Install", "In flannel's place", "Repair", "Tokens", "After etcd was restored"}
    assert with_blocks == {"The image", "Annotations for operators", "Watch", *elsewhere}
    # A block that is only shown would be run by nothing.
    assert DOCUMENT.count("```") == 2 * DOCUMENT.count("```console")
    assert not re.search(r"^    \S", DOCUMENT, re.MULTILINE)


@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
def test_a_rolling_update_loses_no_packet(cluster, backend):
    use(cluster, backend, manifest())
    with cluster.pinging() as result:
        cluster.set_image(NEXT)
        cluster.roll_out()
    ((sent, received),) = result
    assert sent > 100
    assert sent == received


@pytest.mark.skipif(bool(missing("", "_MANIFEST")), reason=f"{missing('', '_MANIFEST')} is not set")
@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
def test_from_flannel_to_pyflannel_and_back_loses_no_packet(cluster, backend):
    theirs, ours = daemon_of(upstream_manifest()), daemon_of(manifest())
    use(cluster, backend, upstream_manifest())
    for image in (ours, theirs):
        with cluster.pinging() as result:
            cluster.set_image(image)
            cluster.roll_out()
        ((sent, received),) = result
        assert sent > 100
        assert sent == received, image
    with cluster.pinging() as result:
        follow_section(cluster, "In flannel's place")
    ((sent, received),) = result
    assert sent == received
    use(cluster, "vxlan", manifest())


def test_a_node_that_is_registered_anew_has_pods_in_its_new_subnet(cluster):
    former = ipaddress.ip_network(subnet_of(cluster, "node2"))
    cluster.kubectl("delete", "node", "node2")
    cluster.restart(2, "kubelet")
    until(
        "another podCIDR",
        lambda: subnet_of(cluster, "node2") not in {"", str(former)},
        PATIENCE_S,
    )
    new = ipaddress.ip_network(subnet_of(cluster, "node2"))
    # Kubernetes leaves its pods alone, and new ones cannot be.
    until(
        "the daemon says so",
        lambda: f"device=cni0 former={former}" in logs_of(cluster, 2),
        PATIENCE_S,
    )
    follow_section(cluster, "Repair")
    until(
        "a pod with an address of it",
        lambda: ipaddress.ip_address(cluster.pods().get("node2") or "0.0.0.0") in new,
        PATIENCE_S,
    )
    cluster.roll_out()
    cluster.roll_out("daemonset/web")
    test_pods_reach_pods_services_and_host_ports(cluster)


def logs_of(cluster: PodCluster, number: int) -> str:
    """The daemon's; empty or an error while its kubelet starts."""
    chosen = ("-l", "app=flannel", "--field-selector", f"spec.nodeName=node{number}")
    pods = cluster.kubectl(*DAEMONS, "get", "pods", "-o", "name", *chosen).split()
    words = ("logs", *pods[:1], "-c", "kube-flannel")
    return cluster.kubectl(*DAEMONS, *words, check=False)


def subnet_of(cluster: PodCluster, name: str) -> str:
    return cluster.kubectl(
        "get", "node", name, "--ignore-not-found", "-o", "jsonpath={.spec.podCIDR}"
    )


def peers_of(cluster: PodCluster, number: int) -> dict[str, str]:
    """The subnets that a node has a route to through the overlay, each with the peer's address."""

    def shown(*words: str) -> list[dict[str, str]]:
        printed = cluster.nodes[number - 1].run(*words, "show", "dev", "flannel.1")
        found: list[dict[str, str]] = json.loads(printed or "[]")
        return found

    macs = {near["dst"]: near.get("lladdr") for near in shown("ip", "-j", "neigh")}
    far = {entry["mac"]: entry["dst"] for entry in shown("bridge", "-j", "fdb") if "dst" in entry}
    return {
        route["dst"]: far.get(macs.get(route.get("gateway", "")) or "", "unknown")
        for route in shown("ip", "-j", "route")
    }


def follows(cluster: PodCluster, subnet: str, address: str) -> float:
    """Waits until both nodes send that subnet's packets there; how long that took."""
    begun = time.monotonic()
    for number in (1, 2):
        until(
            f"node{number} sends packets of {subnet} to {address or 'nobody'}",
            lambda number=number: peers_of(cluster, number).get(subnet, "") == address,
            PATIENCE_S,
        )
    return time.monotonic() - begun


def has_no_trouble(cluster: PodCluster) -> None:
    """Waits until no daemon finds anything wrong, with its API server least of all."""

    def status(number: int) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(
            cluster.in_daemon(number, "pyflannel", "status", "--json")
        )
        return told

    for number in (1, 2):
        until(
            f"node{number} has no problem",
            lambda number=number: status(number)["problems"] == [],
            PATIENCE_S,
        )
        store = status(number)["store"]
        assert (store["connected"], store["reason"]) == (True, "")


def test_a_token_that_the_api_server_refuses_is_replaced_without_loss(cluster):
    """Another key for its tokens. By itself the kubelet asks for a new one after 48 minutes."""
    former = {number: cluster.token(number) for number in (1, 2)}
    assert all(map(cluster.accepts, former.values()))
    with cluster.pinging() as result:
        cluster.control("replace_account_key")
        assert not any(map(cluster.accepts, former.values()))
        for number in (1, 2):
            until(
                "the daemon is refused",
                lambda number=number: "does not accept our token" in logs_of(cluster, number),
                PATIENCE_S,
            )
        cluster.apply(PEER)
        for number in (1, 2):
            cluster.restart(number, "kubelet")
        goes_on_with_new_tokens(cluster, former)
        cluster.kubectl("delete", "node", "balancer")
        follows(cluster, PEER_SUBNET, "")
        # The other way, for an operator who does not restart kubelets.
        follow_section(cluster, "Tokens")
    ((sent, received),) = result
    assert sent > 100
    assert sent == received


def goes_on_with_new_tokens(cluster: PodCluster, former: dict[int, str]) -> None:
    """Waits until a peer that has come meanwhile is followed, by daemons with other tokens."""
    print("followed again after", follows(cluster, PEER_SUBNET, "192.0.2.77"))
    for number in (1, 2):
        now = cluster.token(number)
        assert now != former[number]
        assert cluster.accepts(now)
    has_no_trouble(cluster)


def expiry(token: str) -> int:
    """When a token ends, in seconds since the epoch."""
    claims = token.split(".")[1]
    ends: int = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["exp"]
    return ends


def test_ten_minutes_without_api_server_lose_no_packet(cluster):
    """In the meantime tokens end that live no longer, and no kubelet can ask for others."""
    cluster.apply(with_short_tokens(manifest()))
    cluster.roll_out()
    former = {number: cluster.token(number) for number in (1, 2)}
    ends = max(map(expiry, former.values()))
    assert ends < time.time() + TOKEN_S + 1
    with cluster.pinging() as result:
        cluster.control("end_server")
        # There is no state to wait for: that it lasts is the point.
        time.sleep(max(AWAY_S, ends + LEEWAY_S - time.time()))
        cluster.control("start_server")
        assert not any(map(cluster.accepts, former.values()))
        cluster.apply(PEER)
        goes_on_with_new_tokens(cluster, former)
    ((sent, received),) = result
    assert sent > AWAY_S
    assert sent == received
    cluster.kubectl("delete", "node", "balancer")


def test_an_etcd_restored_from_a_backup_is_followed_without_loss(cluster):
    """The last one: what else is in a cluster has to be started again after that."""
    moved = "192.0.2.78"
    later = PEER.replace("77", "79").replace(":4d", ":4f").replace("balancer", "later")
    cluster.apply(PEER)
    follows(cluster, PEER_SUBNET, "192.0.2.77")
    with cluster.pinging() as result:
        # A backup in which an annotation of node1 is missing.
        with cluster.standing_still(1):
            cluster.kubectl("annotate", "node", "node1", f"{MANAGED}-")
            cluster.control("backup")
        until("node1 repairs it", lambda: managed(cluster, "node1") == "true", PATIENCE_S)

        move_peer(cluster, moved)
        cluster.apply(later)
        follows(cluster, PEER_SUBNET, moved)
        follows(cluster, "10.244.79.0/24", "192.0.2.79")

        # One daemon sees the API server go and come, the other one only that its version is gone.
        with cluster.standing_still(2):
            cluster.control("grow", "balancer", 200)
            cluster.control("put_back")
            for number in (1, 2):
                # Their watches go on from versions that are gone, and are silent.
                cluster.restart(number, "kubelet", "kube-proxy")
                until(
                    "the service address",
                    lambda number=number: cluster.reaches_the_server(number),
                    PATIENCE_S,
                )
        assert "later" not in cluster.kubectl("get", "nodes", "-o", "name")
        print("restored, followed after", follows(cluster, PEER_SUBNET, "192.0.2.77"))
        assert "its etcd was restored" in logs_of(cluster, 2)
        follows(cluster, "10.244.79.0/24", "")
        until("node1 repairs it again", lambda: managed(cluster, "node1") == "true", PATIENCE_S)

        move_peer(cluster, moved)
        print("a change after that, followed after", follows(cluster, PEER_SUBNET, moved))
        has_no_trouble(cluster)
        follow_section(cluster, "After etcd was restored")
    ((sent, received),) = result
    assert sent > 100
    assert sent == received


def move_peer(cluster: PodCluster, address: str) -> None:
    name = "flannel.alpha.coreos.com/public-ip"
    cluster.kubectl("annotate", "node", "balancer", "--overwrite", f"{name}={address}")


def managed(cluster: PodCluster, node: str) -> str:
    """What a node says of itself that makes it a peer."""
    path = "{.metadata.annotations." + MANAGED.replace(".", r"\.") + "}"
    return cluster.kubectl("get", "node", node, "-o", f"jsonpath={path}")
