"""What is wrong, derived from reports; and how a person is told."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from pyflannel.report import problems as rules
from pyflannel.report.model import (
    ConfigReport,
    DatapathReport,
    DeviceReport,
    Failure,
    FilesReport,
    LeaseReport,
    NetworkReport,
    NodeReport,
    ProbeFailure,
    ProbeReport,
    RulesReport,
    Severity,
    StoreReport,
    UnderlayReport,
)
from pyflannel.report.problems import CODES, problems
from pyflannel.report.text import headline, page, verdict

NOW = 1_700_000_000.0
FINE = NodeReport(
    version="1.2",
    now=NOW,
    started=NOW - 500,
    phase="running with subnet 10.5.1.0/24",
    ready_since=NOW - 499,
    config=ConfigReport(effective={"Network": "10.5.0.0/16"}),
    store=StoreReport(kind="etcd", where="http://192.0.2.1:2379", connected=True, since=NOW - 500),
    underlay=UnderlayReport(interface="eth0", index=2, mtu=1500, address="192.0.2.9"),
    lease=LeaseReport(subnet="10.5.1.0/24", backend="vxlan", expires=NOW + 86_000, held=True),
    network=NetworkReport(
        backend="vxlan", devices={"flannel.1": DeviceReport(index=3, mtu=1450, up=True)}
    ),
    rules=RulesReport(),
    files=FilesReport(states={"/run/flannel/subnet.env": "written"}),
)
AWAY = replace(FINE.store, connected=False, since=NOW - 185, reason="connection refused")


def broken(**changes) -> NodeReport:
    return replace(FINE, **changes)


def network(**changes) -> NodeReport:
    return broken(network=replace(FINE.network, **changes))


def probed(failing: dict[str, ProbeFailure], up: int = 0) -> NodeReport:
    states = Counter(one.state for one in failing.values())
    return broken(probes=ProbeReport(states={**states, "up": up}, failing=failing))


CASES = [
    (rules.OWN_OVERLAP, network(own_overlap="10.5.1.0/24 contains 10.5.1.7"), "10.5.1.7"),
    (rules.SHARED_DEVICE, network(shared={"flannel.1": "10.9.3.0 is one"}), "10.9.3.0"),
    (rules.STORE, broken(store=AWAY), "connection refused"),
    (
        rules.ALARM,
        broken(store=replace(FINE.store, version="3.5.21", alarms=("NOSPACE",))),
        "NOSPACE",
    ),
    (rules.OLD_SERVER, broken(store=replace(FINE.store, version="3.3.27")), "3.3.27"),
    (rules.STORE, broken(store=replace(AWAY, kind="static", where="/etc/n.json")), "/etc/n.json"),
    (rules.CONFIG, broken(config=ConfigReport(pending="it was deleted")), "deleted"),
    (
        rules.LEASE_LOST,
        broken(lease=replace(FINE.lease, held=False, reason="another node took it over")),
        "another node took it over",
    ),
    (rules.LEASE_ENDED, broken(lease=replace(FINE.lease, expires=NOW - 1)), "10.5.1.0/24"),
    (
        rules.LEASE_ENDED,
        broken(lease=replace(FINE.lease, held=False, expires=NOW - 1, reason="token refused")),
        "token refused",
    ),
    (rules.LEASE_NOT_RENEWED, broken(lease=replace(FINE.lease, reason="no space")), "no space"),
    (
        rules.LEASE_NOT_RENEWED,
        broken(lease=replace(FINE.lease, held=None, reason="permission denied")),
        "permission denied",
    ),
    (rules.UNDERLAY, broken(underlay=replace(FINE.underlay, failing="no carrier")), "no carrier"),
    (rules.DEVICE_DOWN, network(devices={"flannel.1": DeviceReport(up=False)}), "flannel.1"),
    (rules.NOT_APPLIED, network(failing={"peer 10.5.2.0/24": "EPERM"}), "EPERM"),
    (rules.PEER_IGNORED, network(ignored={"10.5.2.0/24": "no VTEP MAC"}), "no VTEP MAC"),
    (rules.OVERLAP, network(overlaps=("10.5.2.0/24 is inside 10.0.0.0/8",)), "10.0.0.0/8"),
    (rules.NO_DATAPATH, network(datapath=DatapathReport(name=None)), "started again"),
    (rules.RULES, broken(rules=RulesReport(failing="no iptables")), "no iptables"),
    (rules.FILE, broken(files=FilesReport(states={"/run/x": "ENOSPC"})), "ENOSPC"),
    (rules.PART, broken(failing={"status socket": Failure(text="taken")}), "taken"),
    (
        rules.PEER_DOWN,
        probed({"10.5.2.0/24": ProbeFailure(state="down", text="the node is away")}, up=2),
        "the node is away",
    ),
    (
        rules.PEER_DOWN,
        probed({f"10.5.{n}.0/24": ProbeFailure(state="down") for n in range(11)}, up=11),
        "11 peers",
    ),
    (
        rules.PEER_SMALL_ONLY,
        probed({"10.5.2.0/24": ProbeFailure(state="small-only", text="of 1450 bytes do not")}),
        "of 1450 bytes do not",
    ),
    (
        rules.CUT_OFF,
        probed({f"10.5.{n}.0/24": ProbeFailure(state="down") for n in range(3)}, up=2),
        "3 of 5 peers",
    ),
    (rules.DEFECT, network(defects=2), "2 defects"),
    (rules.WAITING, NodeReport(now=NOW, waiting_for="waiting for etcd"), "waiting for etcd"),
    (
        rules.LEASE_REJECTED,
        broken(store=replace(FINE.store, rejected={"10.9.0.0/24": "outside"})),
        "outside",
    ),
]


def test_a_node_that_is_fine_has_no_problem():
    assert problems(FINE) == ()
    assert verdict(FINE) is None
    assert headline(FINE) == FINE.phase
    assert page(FINE).splitlines()[0] == "pyflanneld 1.2: fine; running with subnet 10.5.1.0/24"


@pytest.mark.parametrize(("code", "report", "words"), CASES, ids=[case[0] for case in CASES])
def test_each_kind_of_trouble_has_its_code_and_says_why(code, report, words):
    (found,) = problems(report)
    assert found.code == code
    assert words in found.text or words in found.subject
    assert found.code in page(report)
    assert words in page(report).replace("\n  ", " ")


def test_each_of_few_peers_is_a_problem_and_half_of_three_nodes_is_no_cut():
    down = {f"10.5.{n}.0/24": ProbeFailure(state="down", since=NOW - 9) for n in range(2)}
    found = problems(probed(down, up=1))
    assert [one.code for one in found] == [rules.PEER_DOWN] * 2
    assert [one.subject for one in found] == ["peer 10.5.0.0/24", "peer 10.5.1.0/24"]
    assert {one.since for one in found} == {NOW - 9}
    assert "pyflannel ping 10.5.0.0/24" in found[0].remedy


def test_of_very_many_that_fail_or_are_left_out_the_first_are_problems_and_the_rest_a_number():
    many = {f"peer 10.{n // 250}.{n % 250}.0/24": "EPERM" for n in range(1_000)}
    report = network(failing=many, failing_count=1_000, ignored=many, ignored_count=1_000)
    found = problems(report)
    assert len(found) == 202
    assert [one.text for one in found if one.subject == "others"] == [
        "900 more are not applied",
        "900 more are left out",
    ]


def test_unknown_peers_and_probes_that_are_off_are_no_problem():
    assert problems(broken(probes=ProbeReport(states={"unknown": 9}))) == ()
    assert problems(broken(probes=ProbeReport())) == ()


def test_every_code_is_tried_here():
    assert {case[0] for case in CASES} == set(CODES)


def test_the_worst_comes_first_and_decides():
    report = replace(
        network(
            ignored={"10.5.2.0/24": "no VTEP MAC"}, devices={"flannel.1": DeviceReport(up=False)}
        ),
        store=replace(FINE.store, rejected={"10.9.0.0/24": "outside"}),
    )
    assert [p.severity for p in problems(report)] == [
        Severity.ERROR,
        Severity.WARNING,
        Severity.INFO,
    ]
    assert verdict(report) is Severity.ERROR


def test_information_alone_is_no_verdict():
    report = broken(store=replace(FINE.store, rejected={"10.9.0.0/24": "outside"}))
    assert verdict(report) is None
    assert ": fine;" in page(report)


class TestKubernetes:
    """The same problems, in the words of a cluster that has no keys and no etcd of ours."""

    def test_the_api_server_is_what_to_look_at_and_a_podcidr_does_not_end(self):
        (found,) = problems(broken(store=replace(AWAY, kind="kubernetes")))
        assert "API server" in found.remedy
        assert "podCIDR stays ours" in found.text
        assert "etcd" not in found.remedy

    def test_a_podcidr_is_no_reservation(self):
        report = broken(
            store=replace(FINE.store, kind="kubernetes"),
            lease=replace(FINE.lease, reservation=True, expires=None),
        )
        assert "with the node object" in page(report)
        assert "reservation" not in page(report)

    def test_a_node_that_is_not_followed_is_named(self):
        rejected = {"node n2": "it has no podCIDR yet"}
        (found,) = problems(broken(store=replace(FINE.store, kind="kubernetes", rejected=rejected)))
        assert found.subject == "node n2"
        assert "key" not in found.remedy


class TestAStoreThatIsAway:
    """An operator is on call at three in the morning and has only this page."""

    REPORT = broken(store=AWAY)

    def test_the_first_lines_say_since_when_and_what_goes_on_and_when_the_lease_ends(self):
        first, second, *rest = page(self.REPORT).splitlines()
        assert "works, with 1 problem" in first
        assert second.startswith("WARNING PF102 etcd, since ")
        assert "(3 min 5 s)" in second
        told = " ".join(line.strip() for line in rest[:6])
        assert "Packets flow on" in told
        assert "Our lease ends at" in told
        assert "in 23 h 53 min" in told

    def test_systemd_says_the_same_in_one_line(self):
        line = headline(self.REPORT)
        assert line.startswith("running with subnet 10.5.1.0/24; etcd since ")
        assert "Our lease ends at" in line
        assert "\n" not in line

    def test_a_reservation_has_no_end(self):
        report = replace(self.REPORT, lease=replace(FINE.lease, reservation=True, expires=None))
        assert "has no end" in problems(report)[0].text


def test_a_line_fits_into_80_columns_where_its_words_allow_it():
    for _, report, _ in CASES:
        for line in page(report).splitlines()[1:]:
            assert len(line) <= 80 or " " not in line.strip() or not line.startswith("  "), line


def test_a_node_is_not_working_for_its_own_errors_and_never_for_its_peers():
    assert rules.why_not_working(FINE) == ""
    assert rules.why_not_working(broken(store=AWAY)) == ""  # packets flow on
    lost = broken(lease=replace(FINE.lease, held=False, reason="taken"))
    assert rules.why_not_working(lost).startswith("PF111 ")
    assert "flannel.1" in rules.why_not_working(
        network(devices={"flannel.1": DeviceReport(up=False)})
    )
    cut = probed({f"10.5.{n}.0/24": ProbeFailure(state="down") for n in range(9)})
    assert problems(cut)[0].code == rules.CUT_OFF
    assert rules.why_not_working(cut) == ""
