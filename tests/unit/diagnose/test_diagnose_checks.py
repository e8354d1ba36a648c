"""Each fault of a node has its code, and a healthy node has none."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Interface, ip_address, ip_interface
from pathlib import Path

import pytest

from pyflannel.core import subnetenv
from pyflannel.diagnose import finding, iptables
from pyflannel.diagnose.around import Around, LinkSeen, PeerRoutes
from pyflannel.diagnose.checks import findings
from pyflannel.diagnose.facts import LinkFact, NodeFacts
from pyflannel.diagnose.gather import has_module
from pyflannel.diagnose.way import Lookup
from pyflannel.report import problems
from pyflannel.report.model import (
    ConfigReport,
    DatapathReport,
    DeviceReport,
    LeaseReport,
    NetworkReport,
    NodeReport,
    PeerReport,
    Severity,
    StoreReport,
    UnderlayReport,
)

NOW = 1_700_000_000.0
REPORT = NodeReport(
    now=NOW,
    phase="running with subnet 10.5.1.0/24",
    ready_since=NOW - 9,
    config=ConfigReport(effective={"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}),
    store=StoreReport(kind="etcd", where="http://192.0.2.9:2379", connected=True),
    underlay=UnderlayReport(interface="eth0", address="192.0.2.1"),
    lease=LeaseReport(subnet="10.5.1.0/24", expires=NOW + 80_000, held=True),
    network=NetworkReport(backend="vxlan", devices={"flannel.1": DeviceReport(up=True)}, peers=1),
    peers=[PeerReport(subnet="10.5.2.0/24", public_ip="192.0.2.2")],
)
OURS = """*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s 10.5.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d 10.5.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
COMMIT
"""
ENV = subnetenv.parse("FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.1.1/24\nFLANNEL_MTU=1450\n")


def link(address: str = "", *, up: bool = True) -> LinkFact:
    return LinkFact(up=up, addresses=(IPv4Interface(address),) if address else ())


HEALTHY = NodeFacts(
    report=REPORT,
    env=ENV,
    ip_forward=True,
    links={
        "eth0": link("192.0.2.1/24"),
        "flannel.1": link("10.5.1.0/32"),
        "docker0": link("10.5.1.1/24"),
    },
    tables=iptables.read(OURS),
    daemons=(7,),
)


def node(**changes) -> NodeFacts:
    return replace(HEALTHY, **changes)


def links(**changes) -> NodeFacts:
    names = {name.replace("flannel_", "flannel."): value for name, value in changes.items()}
    merged = {**HEALTHY.links, **names}
    return node(links={name: value for name, value in merged.items() if value is not None})


def rules(*lines: str, ours: str = OURS) -> NodeFacts:
    before, after = ours.split("-A FORWARD", 1)
    return node(
        tables=iptables.read(before + "".join(f"{x}\n" for x in lines) + "-A FORWARD" + after)
    )


def report(**changes) -> NodeFacts:
    return node(report=replace(REPORT, **changes))


def nat(*lines: str) -> NodeFacts:
    chains = [":POSTROUTING ACCEPT [0:0]", ":FLANNEL-POSTRTG - [0:0]"]
    return node(
        tables=[
            *HEALTHY.tables,
            *iptables.read("\n".join(["*nat", *chains, *lines, "COMMIT"])),
        ]
    )


LEGACY = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p tcp -j ACCEPT\nCOMMIT\n"
BARE = "*filter\n:FORWARD DROP [0:0]\nCOMMIT\n"
AWAY = replace(REPORT.store, connected=False, reason="connection refused")
ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO

CASES = [
    (finding.NO_DAEMON, ERROR, node(report=None, silence="is it running?"), "is it running?"),
    (finding.NO_DAEMON, ERROR, node(report=None, flanneld=(5,)), "process 5"),
    (finding.NO_LEASE, ERROR, report(lease=None), "running with"),
    (problems.STORE, WARNING, report(store=AWAY), "connection refused"),
    (finding.FORWARDING_OFF, ERROR, node(ip_forward=False), "net.ipv4.ip_forward = 0"),
    (finding.DEVICE, ERROR, links(flannel_1=None), "missing"),
    (finding.DEVICE, ERROR, links(flannel_1=link("10.5.1.0/32", up=False)), "down"),
    (finding.MODULE, ERROR, node(modules={"vxlan": False}), "backend vxlan"),
    (
        finding.FORWARD_POLICY,
        ERROR,
        node(tables=iptables.read(BARE)),
        "policy drop of chain FORWARD",
    ),
    (finding.OVERLAY_DROPPED, ERROR, rules("-A FORWARD -o docker0 -j REJECT"), "-o docker0"),
    (finding.OVERLAY_DROPPED, INFO, rules("-A FORWARD -m limit --limit 5/s -j DROP"), "may drop"),
    (
        finding.UNDERLAY_DROPPED,
        ERROR,
        rules("-A INPUT -p udp -m udp --dport 8472 -j DROP"),
        "from 192.0.2.2, UDP port 8472",
    ),
    (finding.UNDERLAY_DROPPED, ERROR, rules("-A OUTPUT -d 192.0.2.2/32 -j DROP"), "to 192.0.2.2"),
    (finding.UNDERLAY_DROPPED, INFO, rules("-A INPUT -m recent --set -j DROP"), "may drop"),
    (finding.BRIDGE, WARNING, links(docker0=link("172.17.0.1/16")), "172.17.0.1/16"),
    (finding.OTHER_AGENT, WARNING, node(flanneld=(5,)), "process 5"),
    (finding.OTHER_AGENT, INFO, node(daemons=(7, 8)), "process 8"),
    (finding.OTHER_AGENT, INFO, links(cilium_vxlan=link()), "Cilium"),
    (
        finding.PODS_MASKED,
        WARNING,
        nat("-A POSTROUTING -s 10.5.1.0/24 ! -o docker0 -j MASQUERADE"),
        "! -o docker0 -j MASQUERADE",
    ),
    (
        finding.OUTER_MASKED,
        WARNING,
        nat("-A POSTROUTING -p udp -m udp --dport 8472 -j SNAT --to-source 192.0.2.1"),
        "--dport 8472 -j SNAT",
    ),
    (
        finding.BOTH_FIREWALLS,
        INFO,
        node(tables=[*HEALTHY.tables, *iptables.read(LEGACY, "iptables-legacy")]),
        "iptables-legacy filter",
    ),
    (finding.NOT_SEEN, INFO, node(unseen={"nftables": "no permission"}), "no permission"),
]


HERE = ip_interface
AROUND_LINKS = {
    "eth0": LinkSeen(index=2, mtu=1500, addresses=(HERE("192.0.2.1/24"),)),
    "flannel.1": LinkSeen(kind="vxlan", index=3, mtu=1450, ours=True),
    "docker0": LinkSeen(kind="bridge", index=4, mtu=1450, addresses=(HERE("10.5.1.1/24"),)),
}
TUNNEL = Lookup(text="10.5.2.2 via 10.5.2.0 dev flannel.1", device="flannel.1")
WAYS = PeerRoutes(
    subnet="10.5.2.0/24",
    public="192.0.2.2",
    to_pods=TUNNEL,
    from_pods=Lookup(text="10.5.1.2 dev docker0", device="docker0"),
    to_node=Lookup(text="192.0.2.2 dev eth0", device="eth0"),
)
WELL = Around(
    links=AROUND_LINKS,
    sysctls={
        "net/ipv4/ip_forward": "1",
        "net/ipv4/conf/flannel.1/forwarding": "1",
        "net/ipv6/conf/all/forwarding": "1",
        "net/ipv6/conf/eth0/accept_ra": "1",
    },
    routes=(WAYS,),
    rules=((0, "local"), (32766, "main"), (32767, "default")),
    conntrack=(100, 65_536),
    arp=(20, 1024),
    ndisc=(20, 1024),
    nameservers=(ip_address("192.0.2.53"),),
    enabled="enabled",
    synchronised=True,
    free=10**9,
)
NETWORK = replace(REPORT.network, mtu=1450)
SIX = node(
    report=replace(
        REPORT,
        config=ConfigReport(effective={**REPORT.config.effective, "IPv6Network": "fd00:5::/48"}),
        lease=replace(REPORT.lease, ipv6_subnet="fd00:5:0:1::/64"),
        network=replace(
            NETWORK,
            devices={"flannel.1": DeviceReport(up=True), "flannel-v6.1": DeviceReport(up=True)},
        ),
    ),
    links={**HEALTHY.links, "flannel-v6.1": link()},
)
TWINS = [*REPORT.peers, PeerReport(subnet="10.5.3.0/24", public_ip="192.0.2.2")]


def well(**changes) -> Around:
    return replace(WELL, **changes)


def seen(name: str, **changes) -> Around:
    return well(
        links={**AROUND_LINKS, name: replace(AROUND_LINKS.get(name, LinkSeen()), **changes)}
    )


def sysctl(name: str, value: str) -> Around:
    return well(sysctls={**WELL.sysctls, name: value})


def ways(**changes) -> Around:
    return well(routes=(replace(WAYS, **changes),))


AROUND = [
    (finding.NO_CARRIER, ERROR, HEALTHY, seen("eth0", carrier=False), "has no carrier"),
    (finding.NO_CARRIER, ERROR, HEALTHY, seen("eth0", up=False), "is down"),
    (
        *(finding.DEVICE_FORWARDING_OFF, ERROR, HEALTHY),
        *(sysctl("net/ipv4/conf/flannel.1/forwarding", "0"), "flannel.1.forwarding = 0"),
    ),
    (
        *(finding.FORWARDING6_OFF, ERROR, SIX),
        *(sysctl("net/ipv6/conf/all/forwarding", "0"), "forwarding = 0"),
    ),
    (
        *(finding.IPV6_OFF, ERROR, SIX),
        *(sysctl("net/ipv6/conf/flannel-v6.1/disable_ipv6", "1"), "disable_ipv6 = 1"),
    ),
    (finding.RA_IGNORED, WARNING, SIX, well(ra_defaults=("eth0",)), "accept_ra = 1"),
    (
        *(finding.RP_FILTER, ERROR, HEALTHY),
        *(ways(from_pods=Lookup(error="Invalid cross-device link")), "rp_filter drops"),
    ),
    (
        # As Linux 6.14 and later say it.
        *(finding.RP_FILTER, ERROR, HEALTHY),
        replace(
            ways(
                to_pods=Lookup(text="10.5.2.2 dev eth0", device="eth0"),
                from_pods=Lookup(error="Invalid argument"),
            ),
            sysctls={**WELL.sysctls, "net/ipv4/conf/flannel.1/rp_filter": "1"},
        ),
        "rp_filter drops",
    ),
    (
        *(finding.ROUTED_ELSEWHERE, ERROR, HEALTHY),
        *(ways(to_pods=Lookup(text="10.5.2.2 dev tun0", device="tun0")), "leave by tun0"),
    ),
    (
        *(finding.ROUTED_ELSEWHERE, ERROR, HEALTHY),
        *(ways(to_pods=Lookup(error="Network is unreachable")), "have no route"),
    ),
    (
        *(finding.OTHER_UNDERLAY, WARNING, HEALTHY),
        *(ways(to_node=Lookup(text="192.0.2.2 dev eth1", device="eth1")), "leave by eth1"),
    ),
    (finding.CLOUD_RULES, WARNING, HEALTHY, well(rules=((30_400, "30400"),)), "lookup 30400"),
    (finding.BRIDGE_MTU, WARNING, report(network=NETWORK), seen("docker0", mtu=1500), "1500"),
    (
        *(finding.TWO_BRIDGES, WARNING, HEALTHY),
        *(seen("cni0", addresses=(HERE("10.5.1.9/24"),)), "cni0 and docker0"),
    ),
    (finding.LEFT_OVER, INFO, HEALTHY, seen("flannel0", ours=True, kind="tun"), "flannel0"),
    (finding.NETWORK_MANAGER, WARNING, HEALTHY, well(managed=("flannel.1",)), "manages flannel.1"),
    (finding.SHARED_ADDRESS, WARNING, report(peers=TWINS), WELL, "10.5.2.0/24, 10.5.3.0/24"),
    (
        *(finding.FILE_DIFFERS, WARNING),
        node(env=subnetenv.parse("FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.9.1/24\n")),
        *(WELL, "10.5.9.0/24"),
    ),
    (finding.DISK_FULL, WARNING, HEALTHY, well(free=100), "100 bytes"),
    (finding.CONNTRACK_FULL, WARNING, HEALTHY, well(conntrack=(55_000, 65_536)), "55000 of 65536"),
    (finding.CONNTRACK_FULL, ERROR, HEALTHY, well(conntrack=(65_536, 65_536)), "table of conn"),
    (finding.NEIGHBOURS_FULL, ERROR, HEALTHY, well(arp=(1024, 1024)), "table of IPv4"),
    (finding.NEIGHBOURS_FULL, WARNING, HEALTHY, well(ndisc=(900, 1024)), "table of IPv6"),
    (
        *(finding.DNS_INSIDE, WARNING, HEALTHY),
        *(well(nameservers=(ip_address("10.5.77.53"),)), "10.5.77.53 lies inside"),
    ),
    (finding.UNIT, ERROR, HEALTHY, well(unit="failed"), "has failed"),
    (finding.UNIT, INFO, HEALTHY, well(enabled="disabled"), "not enabled"),
    (finding.CLOCK, INFO, HEALTHY, well(synchronised=False), "clock"),
]


@pytest.mark.parametrize(("code", "severity", "facts", "around", "words"), AROUND)
def test_each_fault_around_it_has_its_code_and_its_evidence(code, severity, facts, around, words):
    (found,) = findings(facts, around)
    assert (found.code, found.severity) == (code, severity)
    assert words in " ".join([found.text, *found.evidence])
    assert found.evidence
    assert found.consequence
    assert found.remedy


@pytest.mark.parametrize("facts", [HEALTHY, SIX, report(network=NETWORK)])
@pytest.mark.parametrize(
    "around",
    [
        WELL,
        Around(),
        # A container without systemd, whose clock is its host's business.
        well(enabled="", synchronised=False),
        # Two packages of one backend: the other half of an eBPF data path.
        seen("flannelgro0", ours=True, kind="veth"),
        # An address that no packet comes from, where rp_filter is off: another question's answer.
        ways(
            to_pods=Lookup(text="10.5.2.2 dev eth0", device="eth0"),
            from_pods=Lookup(error="Invalid argument"),
        ),
        # The overlay's own DNS, on this very node.
        well(nameservers=(ip_address("10.5.1.53"),)),
    ],
)
def test_a_healthy_node_has_no_finding_around_it_either(facts, around):
    assert findings(facts, around) == []


def test_a_healthy_node_has_no_finding():
    assert findings(HEALTHY) == []


@pytest.mark.parametrize(("code", "severity", "facts", "words"), CASES)
def test_each_fault_has_its_code_and_its_evidence(code, severity, facts, words):
    found = findings(facts)
    assert {one.code for one in found} == {code}
    assert found[0].severity is severity
    assert words in " ".join([found[0].text, *found[0].evidence])
    assert all(one.evidence or one.code == finding.NOT_SEEN for one in found)


def test_every_code_is_tried_here_and_in_the_reference():
    page = (Path(__file__).parents[3] / "docs/reference/problems.md").read_text()
    tried = {code for code, *_ in (*CASES, *AROUND)}
    # test_cluster and test_kubernetes_checks have the others.
    of_nodes = {code for code in finding.CODES if code < "PF4" and not "PF241" <= code <= "PF249"}
    assert tried - set(problems.CODES) == of_nodes
    for code, meaning in finding.CODES.items():
        assert f"| {code} | {meaning} |" in page
    assert not set(finding.CODES) & set(problems.CODES)


def test_the_device_is_told_once():
    down = {"flannel.1": DeviceReport(up=False)}
    facts = replace(
        links(flannel_1=link(up=False)),
        report=replace(REPORT, network=replace(REPORT.network, devices=down)),
    )
    assert [one.code for one in findings(facts)] == [finding.DEVICE]


def test_the_rule_of_a_known_tool_has_that_tools_cure():
    (found, *_) = findings(
        rules(":ufw-reject - [0:0]", "-A FORWARD -j ufw-reject", "-A ufw-reject -j DROP")
    )
    assert found.code == finding.OVERLAY_DROPPED
    assert "ufw route allow from 10.5.0.0/16" in found.remedy


def test_programs_that_take_packets_before_the_firewall_make_it_a_may():
    ebpf = replace(REPORT.network, backend="udp", port=8472, datapath=DatapathReport(name="ebpf"))
    facts = replace(
        rules("-A INPUT -p udp -m udp --dport 8472 -j DROP"),
        report=replace(REPORT, network=ebpf),
    )
    assert {(one.code, one.severity) for one in findings(facts)} == {
        (finding.UNDERLAY_DROPPED, INFO)
    }


def test_docker_elsewhere_is_fine_where_another_bridge_has_the_subnet():
    assert findings(links(docker0=link("172.17.0.1/16"), cni0=link("10.5.1.1/24"))) == []


def test_without_a_daemon_the_subnet_file_tells_what_to_look_at():
    codes = [one.code for one in findings(node(report=None, ip_forward=False))]
    assert codes == [finding.NO_DAEMON, finding.FORWARDING_OFF]


def test_a_node_of_which_nothing_is_known_has_no_daemon_and_nothing_else():
    assert [one.code for one in findings(NodeFacts())] == [finding.NO_DAEMON]


def test_the_port_is_the_one_of_the_config():
    config = {"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "Port": 4789}}
    elsewhere = replace(REPORT, config=ConfigReport(effective=config))
    facts = rules("-A INPUT -p udp -m udp --dport 4789 -j DROP")
    assert findings(facts) == []
    (found,) = findings(replace(facts, report=elsewhere))
    assert (found.code, "4789" in found.text) == (finding.UNDERLAY_DROPPED, True)


class TestModule:
    @pytest.fixture
    def root(self, tmp_path, monkeypatch):
        monkeypatch.setattr("os.uname", lambda: type("uname", (), {"release": "6.1"}))
        (tmp_path / "lib/modules/6.1").mkdir(parents=True)
        return tmp_path

    def listed(self, root, builtin: str, loadable: str) -> None:
        (root / "lib/modules/6.1/modules.builtin").write_text(builtin)
        (root / "lib/modules/6.1/modules.dep").write_text(loadable)

    def test_loaded_built_in_or_to_be_loaded(self, root):
        self.listed(root, "kernel/drivers/net/tun.ko\n", "kernel/net/vxlan/vxlan.ko.xz: a.ko\n")
        (root / "sys/module/ipip").mkdir(parents=True)
        assert [has_module(name, root) for name in ("tun", "vxlan", "ipip")] == [True] * 3
        assert has_module("geneve", root) is False

    def test_without_a_list_it_is_unknown(self, root):
        assert has_module("vxlan", root) is None


class TestIPv6:
    """The overlay's IPv6 packets meet their own chains."""

    DUAL = replace(
        HEALTHY,
        report=replace(
            REPORT,
            config=ConfigReport(
                effective={**REPORT.config.effective, "IPv6Network": "fd00:5::/48"}
            ),
            underlay=replace(REPORT.underlay, address6="2001:db8::1"),
            lease=replace(REPORT.lease, ipv6_subnet="fd00:5:0:1::/64"),
            network=replace(
                REPORT.network,
                devices={"flannel.1": DeviceReport(up=True), "flannel-v6.1": DeviceReport(up=True)},
            ),
            peers=[
                replace(REPORT.peers[0], ipv6_subnet="fd00:5:0:2::/64", public_ipv6="2001:db8::2")
            ],
        ),
        links={**HEALTHY.links, "flannel-v6.1": link()},
    )

    def six(self, *rules: str, policy: str = "ACCEPT") -> list[finding.Finding]:
        chains = [f":INPUT {policy} [0:0]", f":FORWARD {policy} [0:0]"]
        saved = "\n".join(["*filter", *chains, *rules, "COMMIT"])
        tables = [*self.DUAL.tables, *iptables.read(saved, "ip6tables", 6)]
        return findings(replace(self.DUAL, tables=tables))

    def test_a_healthy_one_has_none(self):
        assert self.six() == []

    @pytest.mark.parametrize(
        ("rule", "code", "words"),
        [
            ("-A FORWARD -s fd00:5::/48 -j DROP", "PF204", "fd00:5:0:"),
            ("-A INPUT -p udp -m udp --dport 8472 -j DROP", "PF205", "2001:db8::2"),
        ],
    )
    def test_what_drops_it_is_named(self, rule, code, words):
        (found,) = self.six(rule)
        assert found.code == code
        assert words in found.text
        assert found.evidence[0].startswith("ip6tables ")

    def test_a_policy_of_forward_is_told_with_its_tool(self):
        found = self.six("-A INPUT -j ACCEPT", policy="DROP")
        assert {one.code for one in found} == {"PF203"}
        assert "ip6tables -A FORWARD" in found[0].remedy


def test_backend_ipip_has_its_own_packets_looked_at():
    network = replace(
        REPORT.network, backend="ipip", devices={"flannel.ipip": DeviceReport(up=True)}
    )
    saved = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p 4 -j DROP\nCOMMIT\n"
    (found,) = findings(
        replace(
            HEALTHY,
            report=replace(REPORT, network=network),
            links={**HEALTHY.links, "flannel.ipip": link()},
            tables=[*HEALTHY.tables, *iptables.read(saved)],
        )
    )
    assert (found.code, "IP protocol 4" in found.text) == ("PF205", True)
