"""What is set once must stay so: files, sysctls, the device's name."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from pyflannel.lab import Lab, LabSpec
from tests.support.bystander import DUAL_STACK, Bystander

pytestmark = [pytest.mark.root, pytest.mark.slow]

HEALED_S = 12.0
"""The kernel does not report a sysctl; it is seen at the next full pass, 10 s apart."""


@pytest.fixture(scope="module")
def kept() -> Iterator[Bystander]:
    with Lab(LabSpec(nodes=2, config=DUAL_STACK, name="kept")) as lab:
        yield Bystander(lab)


def sysctl(bystander: Bystander, name: str) -> str:
    return bystander.node.exec(["cat", f"/proc/sys/net/{name}"]).stdout.strip()


def device(bystander: Bystander, name: str) -> dict[str, object]:
    shown = bystander.node.exec(["ip", "-j", "link", "show", "dev", name], check=False).stdout
    return json.loads(shown)[0] if shown else {}


def test_a_truncated_or_edited_subnet_env_is_written_again(kept):
    path = kept.node.path("/run/flannel/subnet.env")
    whole = path.read_bytes()
    for damage in (whole[:40], whole.replace(b"FLANNEL_MTU=14", b"FLANNEL_MTU=15"), b""):
        path.write_bytes(damage)
        kept.lab.wait(lambda: path.read_bytes() == whole, 4, what="the file as it was")


def test_router_advertisements_stay_refused_after_an_mtu_too_small_for_ipv6(kept):
    """The kernel takes the device out of IPv6 below 1280, and back in with its defaults."""
    name = "ipv6/conf/flannel.1/accept_ra"
    assert sysctl(kept, name) == "0"
    kept.do("ip link set dev flannel.1 mtu 1200")
    kept.lab.wait(lambda: device(kept, "flannel.1")["mtu"] == 1450, 3, what="the MTU")
    kept.lab.wait(lambda: sysctl(kept, name) == "0", HEALED_S, what="accept_ra 0")
    kept.do(f"echo 1 >/proc/sys/net/{name}")
    kept.lab.wait(lambda: sysctl(kept, name) == "0", HEALED_S, what="accept_ra 0 again")


def test_a_device_without_ipv6_is_explained(kept):
    kept.do(
        "echo 1 >/proc/sys/net/ipv6/conf/flannel-v6.1/disable_ipv6\n"
        "ip link set dev flannel-v6.1 mtu 1400"
    )
    try:
        kept.lab.wait(
            lambda: "echo 0 >/proc/sys/net/ipv6/conf/flannel-v6.1/disable_ipv6" in kept.node.log(),
            HEALED_S,
            what="the explanation",
        )
        assert "CAP_NET_ADMIN" not in kept.node.log()
    finally:
        kept.do("echo 0 >/proc/sys/net/ipv6/conf/flannel-v6.1/disable_ipv6")
    kept.lab.wait(lambda: kept.lab.ping_all(count=1, version=6).ok, HEALED_S, what="IPv6 again")


def test_a_device_renamed_while_the_daemon_is_down_is_ours_still(kept):
    node = kept.node
    node.stop_daemon()
    kept.do("ip link set dev flannel.1 name other0\nip link set dev flannel-v6.1 name other6")
    node.start_daemon()
    kept.lab.wait(node.is_ready, 10, what="ready")
    assert device(kept, "flannel.1")["mtu"] == 1450
    assert device(kept, "other0") == {}
    for version in (4, 6):
        kept.lab.wait(
            lambda version=version: kept.lab.ping_all(count=1, version=version).ok, 5, what="pods"
        )


def test_another_programs_device_with_our_vni_ends_the_start_and_is_named(kept):
    node = kept.node
    node.stop_daemon()
    kept.do(
        "ip link del flannel.1\n"
        "ip link add theirs0 type vxlan id 1 dev eth0 dstport 8472 local 192.0.2.1"
    )
    node.start_daemon()
    assert node.wait_exit(timeout=10) == 69
    assert "ip link delete dev theirs0" in node.log()
    kept.do("ip link del theirs0")
    node.start_daemon()
    kept.lab.wait(node.is_ready, 10, what="ready")


@pytest.mark.parametrize("datapath", ["python", "native", "ebpf"])
def test_accept_local_of_the_udp_device_is_kept(datapath):
    with Lab(LabSpec(nodes=2, backend="udp", name="keptudp", datapath=datapath)) as lab:
        bystander = Bystander(lab)
        name = "ipv4/conf/flannel0/accept_local"
        assert sysctl(bystander, name) == "1"
        bystander.do(f"echo 0 >/proc/sys/net/{name}")
        lab.wait(lambda: sysctl(bystander, name) == "1", HEALED_S, what="accept_local")
