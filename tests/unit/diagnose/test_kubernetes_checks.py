"""Each fault of a Kubernetes node has its code, and a healthy node has none."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_interface

import pytest

from pyflannel.core.cni import CONFLIST
from pyflannel.diagnose import finding, iptables
from pyflannel.diagnose.around import Around, LinkSeen
from pyflannel.diagnose.checks import findings
from pyflannel.diagnose.facts import LinkFact, NodeFacts
from pyflannel.diagnose.kubegather import gather_kube
from pyflannel.diagnose.kubernetes import PLUGINS, CniFile, KubeFacts
from pyflannel.report.model import (
    ConfigReport,
    FilesReport,
    LeaseReport,
    NodeReport,
    Severity,
    StoreFault,
    StoreReport,
)

STORE = StoreReport(kind="kubernetes", where="https://10.96.0.1:443", connected=True)
REPORT = NodeReport(
    now=9.0,
    phase="running with subnet 10.244.1.0/24",
    ready_since=2.0,
    config=ConfigReport(effective={"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}),
    store=STORE,
    lease=LeaseReport(subnet="10.244.1.0/24", held=True),
)
SERVICES = "*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\nCOMMIT\n"
NODE = NodeFacts(report=REPORT, ip_forward=True, links={}, tables=iptables.read(SERVICES))
BRIDGED = "net/bridge/bridge-nf-call-iptables"
AROUND = Around(sysctls={BRIDGED: "1"})
FLANNELS = CniFile(name="10-flannel.conflist", plugins=("flannel", "portmap"))
KUBE = KubeFacts(
    directory="/etc/cni/net.d",
    files=(FLANNELS,),
    plugins=dict.fromkeys(PLUGINS, True),
    plugin_directory="/opt/cni/bin",
)


def codes(node: NodeFacts = NODE, around: Around = AROUND, kube: KubeFacts = KUBE) -> list[str]:
    found = findings(node, around, (), kube)
    for one in found:
        assert one.text
        assert one.consequence
        assert one.remedy or one.code == finding.NOT_SEEN
    return [one.code for one in found if one.severity is not Severity.INFO]


def bridge(*addresses: str) -> Around:
    link = LinkSeen(kind="bridge", addresses=tuple(map(ip_interface, addresses)))
    return replace(AROUND, links={"cni0": link})


def waiting(fault: StoreFault) -> NodeFacts:
    report = NodeReport(waiting_for="waiting: as it is said", store=replace(STORE, fault=fault))
    return replace(NODE, report=report)


def test_a_healthy_node_has_nothing():
    assert codes() == []
    assert codes(around=bridge("10.244.1.1/24", "fe80::1/64")) == []


BARE = replace(NODE, tables=iptables.read("*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n"))
CALICO = CniFile(name="05-calico.conflist", plugins=("calico",), address_manager="calico-ipam")
WITHOUT = replace(KUBE, plugins={**KUBE.plugins, "flannel": False})
CASES = [
    (finding.NO_POD_CIDR, waiting(StoreFault.NO_POD_CIDR), AROUND, KUBE, "waiting: as it is"),
    (finding.NODE_MISSING, waiting(StoreFault.NODE_MISSING), AROUND, KUBE, "waiting: as it is"),
    (finding.API_DENIED, waiting(StoreFault.DENIED), AROUND, KUBE, "https://10.96.0.1:443"),
    (finding.NO_CONFLIST, NODE, AROUND, replace(KUBE, files=()), "/etc/cni/net.d"),
    (finding.OTHER_CONFLIST, NODE, AROUND, replace(KUBE, files=(CALICO, FLANNELS)), "05-calico"),
    (finding.NO_PLUGIN, NODE, AROUND, WITHOUT, "missing: flannel"),
    (finding.PODS_BRIDGE, NODE, bridge("10.244.9.1/24"), KUBE, "10.244.9.1/24"),
    (finding.NO_PROXY, BARE, AROUND, KUBE, "KUBE-SERVICES"),
    (finding.BRIDGED_UNSEEN, NODE, Around(), KUBE, "bridge-nf-call-iptables"),
]


@pytest.mark.parametrize(
    ("code", "node", "around", "kube", "words"), CASES, ids=[case[0] for case in CASES]
)
def test_each_fault_has_its_code_alone_and_its_evidence(code, node, around, kube, words):
    (found,) = findings(node, around, (), kube)
    assert found.code == code
    assert words in " ".join([found.text, *found.evidence])


def test_every_code_is_tried():
    assert [case[0] for case in CASES] == [c for c in finding.CODES if "PF241" <= c <= "PF249"]


def test_no_configuration_for_cni_follows_from_a_daemon_that_waits():
    node = waiting(StoreFault.NO_POD_CIDR)
    assert codes(node, kube=replace(KUBE, files=())) == [finding.NO_POD_CIDR]


def test_a_kubelet_that_runs_does_not_register_a_node_again():
    kube = replace(KUBE, kubelets=(77,))
    (found,) = findings(waiting(StoreFault.NODE_MISSING), AROUND, (), kube)
    assert "at its start only" in found.text
    assert "process 77, kubelet" in found.evidence


def test_a_right_that_is_taken_away_later_is_the_cause_of_a_store_that_does_not_answer():
    store = replace(STORE, connected=False, reason="list nodes: 403", fault=StoreFault.DENIED)
    node = replace(NODE, report=replace(REPORT, store=store))
    assert codes(node) == [finding.API_DENIED]


@pytest.mark.parametrize("files", [None, (), (CniFile(name="10-flannel.conflist"),)])
def test_no_configuration_for_cni(files):
    assert codes(kube=replace(KUBE, files=files)) == [finding.NO_CONFLIST]


def test_a_pod_that_does_not_see_the_directory_does_not_complain():
    kube = replace(KUBE, files=None, plugins={}, in_pod=True)
    assert codes(kube=kube) == []
    (found,) = findings(NODE, AROUND, (), kube)
    assert found.code == finding.NOT_SEEN


def test_another_network_comes_first():
    assert codes(kube=replace(KUBE, files=(CALICO, FLANNELS))) == [finding.OTHER_CONFLIST]
    # After ours it is not used.
    assert codes(kube=replace(KUBE, files=(FLANNELS, CALICO))) == []
    # Alone it may be meant so: said, and no fault.
    alone = replace(KUBE, files=(CALICO,))
    assert codes(kube=alone) == []
    assert [one.code for one in findings(NODE, AROUND, (), alone)] == [finding.OTHER_CONFLIST]


def test_what_calls_flannel_or_takes_its_subnet_may_come_first():
    multus = CniFile(name="00-multus.conf", plugins=("multus",))
    canal = CniFile(name="10-canal.conflist", plugins=("calico",), address_manager="host-local")
    assert codes(kube=replace(KUBE, files=(multus, FLANNELS))) == []
    assert codes(kube=replace(KUBE, files=(canal,))) == []


def test_a_missing_program_is_named_if_it_is_called():
    for name in ("flannel", "portmap", "bridge", "loopback"):
        kube = replace(KUBE, plugins={**KUBE.plugins, name: False})
        assert codes(kube=kube) == [finding.NO_PLUGIN]
    kube = replace(KUBE, files=(CALICO,), plugins={**KUBE.plugins, "flannel": False})
    assert codes(kube=kube) == []


@pytest.mark.parametrize("address", ["10.244.9.1/24", "10.244.1.1/16", "10.244.1.7/24"])
def test_the_pods_bridge_has_another_address_than_the_plugin_wants(address):
    assert codes(around=bridge(address)) == [finding.PODS_BRIDGE]
    both = bridge(address, "10.244.1.1/24")
    assert codes(around=both) == []


def test_a_device_called_cni0_that_is_no_bridge_is_not_judged():
    link = LinkSeen(kind="dummy", addresses=(ip_interface("10.1.1.1/24"),))
    assert codes(around=replace(AROUND, links={"cni0": link})) == []


def test_kube_proxy_is_known_by_what_it_makes():
    for device in ("kube-ipvs0", "cilium_host"):
        assert codes(BARE, replace(AROUND, links={device: LinkSeen()})) == []
    table = replace(BARE.tables[0], name="ip kube-proxy")
    assert codes(replace(BARE, tables=[table])) == []
    assert codes(BARE, kube=replace(KUBE, proxies=(9,))) == []
    # Where the rules cannot be read nothing is known.
    assert codes(replace(BARE, tables=[])) == []


@pytest.mark.parametrize("value", [None, "0"])
def test_bridged_packets_must_meet_the_firewall(value):
    sysctls = {} if value is None else {BRIDGED: value}
    assert codes(around=Around(sysctls=sysctls)) == [finding.BRIDGED_UNSEEN]


def test_a_node_with_another_store_is_not_judged_by_this():
    node = replace(NODE, links={"cni0": LinkFact(addresses=())})
    assert gather_kube(None, environment={}) is None
    etcd = replace(REPORT, store=StoreReport(kind="etcd"))
    assert gather_kube(etcd, environment={}) is None
    assert [o.code for o in findings(node, Around())] == []


def test_files_are_read_as_the_runtime_does(tmp_path):
    directory = tmp_path / "net.d"
    directory.mkdir()
    (directory / "10-flannel.conflist").write_bytes(CONFLIST)
    (directory / "05-bridge.conf").write_text(
        json.dumps({"name": "b", "type": "bridge", "ipam": {"type": "host-local"}})
    )
    (directory / "99-broken.conflist").write_text("{")
    (directory / "00-notes.txt").write_text("no configuration")
    (directory / "20-strange.json").write_text('{"plugins": 7}')
    report = replace(
        REPORT, files=FilesReport(states={str(directory / "10-flannel.conflist"): "written"})
    )
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "flannel").touch()
    environment = {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}
    found = gather_kube(report, environment=environment, programs=programs)
    assert found is not None
    assert found.in_pod
    assert found.directory == str(directory)
    assert found.files == (
        CniFile(name="05-bridge.conf", plugins=("bridge",), address_manager="host-local"),
        FLANNELS,
        CniFile(name="20-strange.json"),
        CniFile(name="99-broken.conflist"),
    )
    assert [name for name, there in found.plugins.items() if there] == ["flannel"]
    missing = gather_kube(REPORT, environment={}, programs=tmp_path / "none")
    assert missing is not None
    assert missing.plugins == {}
    assert not missing.in_pod
