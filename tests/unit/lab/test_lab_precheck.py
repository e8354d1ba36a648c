"""What is said of a wanted lab before anything of it is made."""

from __future__ import annotations

import pytest

from pyflannel.core.errors import ConfigError, FlannelError, UsageError
from pyflannel.lab import demo, precheck
from pyflannel.lab.errors import LabError
from pyflannel.lab.topology import DEMO_CONFIG, LabSpec

HERE = "/bin/sh"


def check(**wishes):
    return precheck.check(LabSpec(etcd=HERE, **wishes), which={"flanneld": "x"}.get)


@pytest.mark.parametrize("backend", ["udp", "vxlan", "host-gw", "ipip"])
def test_an_ordinary_lab_has_nothing_to_say(backend):
    assert check(backend=backend) == []


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({"backend": "nosuch"}, "nosuch"),
        ({"network": "10.0.0.0/99"}, "10.0.0.0/99"),
        ({"config": "{"}, "JSON"),
        ({"config": '{"Network":"10.0.0.0/16","SubnetLen":"x"}'}, "SubnetLen"),
    ],
)
def test_a_wrong_value_is_named(wishes, words):
    with pytest.raises(ConfigError, match=words) as caught:
        check(**wishes)
    assert caught.value.exit_code == 78


def test_what_a_config_is_warned_of_comes_back():
    warnings = check(config='{"Network":"10.0.0.0/16","Netwerk":1}')
    assert any("Netwerk" in str(warning) for warning in warnings)


@pytest.mark.parametrize("wishes", [{"daemon_args": ("--nosuch",)}, {"datapath": "nosuch"}])
def test_a_flag_that_no_daemon_has_is_named(wishes):
    with pytest.raises(UsageError, match="nosuch"):
        check(**wishes)


def test_more_nodes_than_subnets_are_refused_with_both_numbers():
    assert check(config=DEMO_CONFIG, nodes=20) == []
    with pytest.raises(ConfigError, match=r"25 nodes.*room for 20 IPv4 subnets"):
        check(config=DEMO_CONFIG, nodes=25)


def test_both_families_need_room():
    config = (
        '{"Network":"10.0.0.0/8","EnableIPv6":true,"IPv6Network":"fd00::/62","IPv6SubnetLen":64}'
    )
    with pytest.raises(ConfigError, match=r"room for . IPv6 subnets"):
        check(config=config, nodes=9)


@pytest.mark.parametrize("command", ["nosuch -v=1", "'flanneld"])
def test_a_command_that_cannot_be_run_is_named_with_its_node(command):
    with pytest.raises(UsageError, match="node-command 2"):
        check(node_commands={2: command})


def test_where_only_other_daemons_run_ours_has_no_flags_to_check():
    assert check(nodes=1, node_commands={1: "flanneld"}, daemon_args=("--nosuch",)) == []


def test_without_daemons_any_config_will_do():
    assert check(config="{", start_daemons=False) == []


def test_etcd_has_to_be_there_unless_it_is_not_asked(tmp_path):
    missing = str(tmp_path / "etcd")
    with pytest.raises(LabError, match=missing):
        precheck.check(LabSpec(etcd=missing))
    assert precheck.check(LabSpec(etcd=missing, store="static")) == []


def test_the_demo_looks_before_it_begins(monkeypatch):
    monkeypatch.setattr(demo, "Lab", lambda _spec: pytest.fail("a lab was made"))
    monkeypatch.setattr(precheck, "find_etcd", lambda _wanted: HERE)
    with pytest.raises(FlannelError, match="25 nodes"):
        demo.run(nodes=25)
