"""What people run into with docker is named, and nothing else is."""

from __future__ import annotations

import dataclasses
from ipaddress import IPv4Interface

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.core.subnetenv import parse
from pyflannel.docker.checks import checked
from pyflannel.docker.dockerd import Direct
from pyflannel.docker.dropin import drop_in
from pyflannel.docker.model import Checked, DockerFacts, State
from pyflannel.docker.unitfile import Unit, merge

OPTIONS = " --bip=10.5.7.1/24 --ip-masq=true --mtu=1450"
DEBIAN = "[Service]\nExecStart=/usr/sbin/dockerd -H fd:// $DOCKER_OPTS\n"
SUBNET = (
    "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ="
)


def unit(text: str = DEBIAN) -> Unit:
    return merge([("docker.service", text), ("pyflannel.conf", drop_in(None))])


GOOD = DockerFacts(
    unit=unit(),
    options_text=f'DOCKER_OPTS="{OPTIONS}"\n',
    subnet=parse(SUBNET + "false"),
    daemon_json='{"log-driver": "journald"}',
    arguments=("/usr/sbin/dockerd", "-H", "fd://", *OPTIONS.split()),
    bridge=(IPv4Interface("10.5.7.1/24"),),
    bridge_mtu=1450,
    forward_policy="DROP",
    forward_rules=True,
    ip_forward=True,
)


def problems(**changes: object) -> dict[str, Checked]:
    found = checked(dataclasses.replace(GOOD, **changes))  # type: ignore[arg-type]
    return {finding.check: finding for finding in found if finding.state is State.PROBLEM}


def test_on_a_good_node_everything_is_ok() -> None:
    assert {finding.state for finding in checked(GOOD)} == {State.OK}


CASES = [
    ("lease", {"subnet": None}),
    ("lease", {"subnet": parse("FLANNEL_MTU=1450")}),
    ("options file", {"options_text": None}),
    ("options file", {"options_text": 'DOCKER_OPT_MTU="--mtu=1450"\n'}),
    ("options file", {"options_text": "DOCKER_OPTS=$(reboot)\n"}),
    ("EnvironmentFile", {"unit": merge([("docker.service", DEBIAN)])}),
    ("want", {"unit": unit(f"[Unit]\nWants=pyflannel.service\n{DEBIAN}"), "enabled": False}),
    ("want", {"unit": unit(f"[Unit]\nBindsTo=pyflannel.service\n{DEBIAN}"), "enabled": False}),
    ("two agents", {"upstream_pids": (17,), "enabled": True}),
    ("order", {"unit": merge([("docker.service", DEBIAN)])}),
    ("command line", {"unit": unit("[Service]\nExecStart=/usr/bin/dockerd -H fd://\n")}),
    ("command line", {"unit": unit("[Service]\nExecStart=/usr/bin/dockerd ${DOCKER_OPTS}\n")}),
    ("command line", {"unit": unit("[Service]\nExecStart=/d $DOCKER_NETWORK_OPTIONS\n")}),
    ("daemon.json", {"daemon_json": '{"bip": "10.9.0.1/24"}'}),
    ("daemon.json", {"daemon_json": '{"mtu": 1500}'}),
    ("daemon.json", {"daemon_json": '{"ip-masq": false}'}),
    ("daemon.json", {"daemon_json": "{"}),
    ("daemon.json", {"daemon_json": "[]"}),
    ("daemon.json", {"daemon_json": '{"bridge": "br0"}'}),
    ("daemon.json", {"daemon_json": '{"bridge": "none"}'}),
    ("daemon.json", {"daemon_json": '{"hosts": ["tcp://0.0.0.0:2375"]}'}),
    (
        "daemon.json",
        {
            "daemon_json": '{"allow-direct-routing": true}',
            "unit": unit(DEBIAN.replace("$", "--allow-direct-routing $")),
        },
    ),
    ("command line", {"unit": unit(DEBIAN.replace("$", "--bridge=br0 $"))}),
    ("direct routing", {"own_nftables": True}),
    ("running docker", {"arguments": ("/usr/sbin/dockerd", "-H", "fd://")}),
    ("docker0", {"bridge": (IPv4Interface("172.17.0.1/16"),)}),
    ("docker0", {"bridge": ()}),
    ("MTU", {"bridge_mtu": 1500, "arguments": ("/usr/sbin/dockerd",)}),
    ("masquerade", {"subnet": parse(SUBNET + "true")}),
    ("masquerade", {"arguments": (*(GOOD.arguments or ()), "--ip-masq=false")}),
    ("ip_forward", {"ip_forward": False}),
    ("FORWARD", {"forward_rules": False}),
]


@pytest.mark.parametrize(("check", "changes"), CASES)
def test_a_mistake_is_named_with_its_consequence_and_a_way_out(
    check: str, changes: dict[str, object]
) -> None:
    finding = problems(**changes)[check]
    assert finding.seen
    assert finding.consequence
    assert finding.remedy


@pytest.mark.parametrize(
    ("check", "changes"),
    [
        ("docker's unit", {"unit": None}),
        ("running docker", {"arguments": None}),
        ("docker0", {"bridge": None}),
        ("docker0", {"bridge": (IPv4Interface("172.17.0.1/16"),), "arguments": None}),
        ("masquerade", {"arguments": None}),
        ("ip_forward", {"ip_forward": None}),
        ("FORWARD", {"forward_policy": None}),
    ],
)
def test_what_could_not_be_seen_is_unknown_and_not_ok(
    check: str, changes: dict[str, object]
) -> None:
    states = {f.check: f.state for f in checked(dataclasses.replace(GOOD, **changes))}  # type: ignore[arg-type]
    assert states[check] is State.UNKNOWN


def test_docker_masquerades_where_we_do_not_whether_by_flag_or_by_default() -> None:
    plain = tuple(word for word in GOOD.arguments or () if "masq" not in word)
    options = GOOD.options_text.replace("--ip-masq=true ", "") if GOOD.options_text else ""
    assert problems(arguments=plain, options_text=options) == {}


def test_a_bridge_without_ports_may_have_the_default_mtu() -> None:
    """Docker's --mtu is about the containers' interfaces; the bridge follows the first of them."""
    assert problems(bridge_mtu=1500) == {}


def test_the_other_variable_is_as_good() -> None:
    centos = unit("[Service]\nExecStart=/usr/bin/dockerd-current $DOCKER_NETWORK_OPTIONS\n")
    assert problems(unit=centos, options_text=f'DOCKER_NETWORK_OPTIONS="{OPTIONS}"\n') == {}


DEFAULT = "[Service]\nEnvironmentFile=-/etc/default/docker\n" + DEBIAN.partition("\n")[2]
LATER = merge(
    [
        ("docker.service", DEBIAN),
        ("pyflannel.conf", drop_in(None)),
        ("z.conf", "[Service]\nEnvironmentFile=-/etc/sysconfig/docker-network\n"),
    ]
)


def test_options_that_another_file_gave_docker_and_that_it_loses_are_named() -> None:
    """Debian's /etc/default/docker: of two files that set DOCKER_OPTS the later counts, ours."""
    before = {"/etc/default/docker": '# comment\nDOCKER_OPTS="--dns 192.0.2.3 --bip=10.1.1.1/24"\n'}
    (found,) = problems(unit=unit(DEFAULT), environment_files=before).values()
    assert "/etc/default/docker sets DOCKER_OPTS=--dns 192.0.2.3" in found.seen
    assert "daemon.json" in found.remedy


@pytest.mark.parametrize(
    "text", ["", "# DOCKER_OPTS=--dns=x\n", "DOCKER_OPTS=\n", "DOCKER_OPTS='--bip=10.1.1.1/24'\n"]
)
def test_another_file_that_takes_nothing_from_docker_is_no_problem(text: str) -> None:
    assert problems(unit=unit(DEFAULT), environment_files={"/etc/default/docker": text}) == {}


def test_a_file_that_is_read_after_ours_and_sets_the_variable_is_named() -> None:
    """A restart, which would be the advice otherwise, changes nothing then."""
    after = {"/etc/sysconfig/docker-network": "DOCKER_OPTS=\n"}
    (found,) = problems(unit=LATER, environment_files=after).values()
    assert "/etc/sysconfig/docker-network" in found.seen
    assert "docker gets nothing" in found.consequence
    assert problems(unit=LATER, environment_files={}) == {}


RAW = "-A PREROUTING -d 10.5.7.2/32 ! -i docker0 -j DROP"
BRIDGE = "-A DOCKER ! -i docker0 -o docker0 -j DROP"
FORWARD = ("-A FORWARD -j DOCKER-USER", "-A FORWARD -j DOCKER-FORWARD")
OURS = '-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD'


NETWORK = "-A DOCKER ! -i br-3cdb1cb92a36 -o br-3cdb1cb92a36 -j DROP"
SUBNET_RAW = "-A PREROUTING -d 10.5.7.0/24 ! -i docker0 -j DROP"


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"docker_rules": (RAW,)}, '"allow-direct-routing": true'),
        ({"docker_rules": (RAW,), "direct": Direct.FLAG}, "pyflannel docker-setup && "),
        ({"docker_rules": (SUBNET_RAW,), "direct": Direct.VARIABLE}, "pyflannel docker-setup && "),
        (
            {
                "docker_rules": (RAW,),
                "direct": Direct.FLAG,
                "unit": unit(DEBIAN.replace("$", "--allow-direct-routing $")),
            },
            "systemctl restart docker (its unit has the option already)",
        ),
        (
            {"docker_rules": (RAW,), "direct": Direct.FLAG, "bridges": ("br-3cdb1cb92a36",)},
            "trusted_host_interfaces",
        ),
        ({"docker_rules": (*FORWARD, OURS, BRIDGE)}, "pyflannel docker-setup (pyflanneld"),
        (
            {"docker_rules": (*FORWARD, OURS, BRIDGE)},
            "iptables -I DOCKER-USER -s 10.5.0.0/16 -d 10.5.7.0/24",
        ),
        (
            {"docker_rules": (*FORWARD, OURS, NETWORK), "bridges": ("br-3cdb1cb92a36",)},
            "pyflannel docker-setup",
        ),
    ],
)
def test_rules_that_keep_other_nodes_from_the_containers_are_named(
    changes: dict[str, object], remedy: str
) -> None:
    """Of docker 28 and later: github.com/moby/moby, issue 49792, pull request 52224."""
    assert remedy in problems(**changes)["direct routing"].remedy


@pytest.mark.parametrize(
    "rules",
    [
        ("-A PREROUTING -d 172.18.0.2/32 ! -i br-3cdb1cb92a36 -p tcp -m tcp --dport 1000 -j DROP",),
        ("-A PREROUTING -d nonsense ! -i docker0 -j DROP",),
        (OURS, *FORWARD, BRIDGE),
        (*FORWARD, OURS, NETWORK),
        (RAW, "-A PREROUTING -d 10.5.7.2/32 -i flannel.1 -j ACCEPT"),
        (*FORWARD, OURS, "-A DOCKER-USER -s 10.5.0.0/16 -d 10.5.7.0/24 -j ACCEPT", BRIDGE),
    ],
)
def test_rules_that_do_not_are_no_problem(rules: tuple[str, ...]) -> None:
    assert problems(docker_rules=rules) == {}


@given(st.text(), st.text(), st.text())
def test_any_contents_of_files_are_judged(options: str, json: str, subnet: str) -> None:
    problems(options_text=options, daemon_json=json, subnet=parse(subnet))


@pytest.mark.parametrize(
    "changes",
    [
        {"unit": unit(f"[Unit]\nWants=pyflannel.service\n{DEBIAN}"), "enabled": True},
        {"unit": unit(f"[Unit]\nWants=pyflannel.service\n{DEBIAN}"), "enabled": None},
        {"upstream_pids": (17,), "enabled": False},
    ],
    ids=["that was asked for", "there is no such unit", "flanneld has the node"],
)
def test_a_want_that_does_no_harm_is_none(changes: dict[str, object]) -> None:
    assert problems(**changes) == {}


def test_that_a_boot_does_not_start_it_is_said() -> None:
    found = checked(dataclasses.replace(GOOD, enabled=False))
    (order,) = [finding for finding in found if finding.check == "order"]
    assert "not enabled" in order.seen


def test_the_file_without_a_subnet_is_named_and_a_daemon_that_waits_is_not_to_be_started() -> None:
    facts = DockerFacts(subnet_file="/x/y.env")
    (lease,) = [finding for finding in checked(facts) if finding.check == "lease"]
    assert "/x/y.env, which is not there" in lease.seen
    assert "systemctl start" in lease.remedy
    waiting = dataclasses.replace(facts, daemon="waiting for etcd", subnet=parse(""))
    (lease,) = [finding for finding in checked(waiting) if finding.check == "lease"]
    assert "not there" not in lease.seen
    assert "waiting for etcd" in lease.remedy
    assert "systemctl start" not in lease.remedy
