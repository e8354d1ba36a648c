"""What a lab is made of, computed without making it."""

from __future__ import annotations

import json
from ipaddress import IPv4Interface

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.core.errors import UsageError
from pyflannel.lab import topology
from pyflannel.lab.topology import DockerOptions, LabSpec, Underlay, spec_from_json

EXTENSION = '{"Network": "10.9.0.0/16", "Backend": {"Type": "Extension"}}'


class TestAddresses:
    def test_a_node_is_told_by_its_addresses(self):
        assert str(topology.underlay_address(7)) == "192.0.2.7/24"
        assert str(topology.underlay_address_v6(7)) == "2001:db8::7/64"

    def test_both_families_show_the_same_digits(self):
        assert str(topology.underlay_address_v6(154).ip) == "2001:db8::154"

    @given(st.integers(1, topology.MAX_NODES), st.integers(1, topology.MAX_NODES))
    def test_no_two_nodes_share_an_address_and_none_has_the_switchs(self, one, other):
        for address in (topology.underlay_address, topology.underlay_address_v6):
            assert (address(one) == address(other)) == (one == other)
            assert address(one) != address(topology.SWITCH_HOST)

    @pytest.mark.parametrize("text", ["2", "node2", "node-2", "pod2", "pod-2", "02"])
    def test_a_node_may_be_named_in_several_ways(self, text):
        assert topology.node_number(text) == 2

    @pytest.mark.parametrize("text", ["", "0", "-1", "two", "2x", "node", "2 ", "1000"])
    def test_anything_else_is_no_node(self, text):
        with pytest.raises(UsageError):
            topology.node_number(text)


class TestSpec:
    def test_the_config_follows_from_network_and_backend(self):
        spec = LabSpec(network="10.9.0.0/16", backend="vxlan")
        assert json.loads(spec.config_text()) == {
            "Network": "10.9.0.0/16",
            "Backend": {"Type": "vxlan"},
        }

    def test_config_text_is_passed_on_as_it_is_even_if_wrong(self):
        assert LabSpec(config='{"Network" :oops').config_text() == '{"Network" :oops'

    def test_a_config_may_be_a_mapping(self):
        assert LabSpec(config={"Network": "10.1.0.0/16"}).config_text() == (
            '{"Network":"10.1.0.0/16"}'
        )

    @pytest.mark.parametrize(
        "wrong",
        [
            {"nodes": 0},
            {"nodes": topology.MAX_NODES + 1},
            {"name": ""},
            {"name": "../x"},
            {"name": ".hidden"},
            {"name": "UPPER"},
            {"name": "a" * 33},
            {"underlay_mtu": 67},
            {"underlay_mtu": 65536},
            {"node_commands": {0: "x"}},
        ],
    )
    def test_a_lab_that_cannot_be_is_refused(self, wrong):
        with pytest.raises(UsageError):
            LabSpec(**wrong)

    @given(
        st.builds(
            LabSpec,
            nodes=st.integers(1, topology.MAX_NODES),
            name=st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,31}", fullmatch=True),
            config=st.text(),
            node_commands=st.dictionaries(st.integers(1, 9), st.text()),
            daemon_args=st.lists(st.text()).map(tuple),
            daemon_env=st.dictionaries(st.text(), st.text()),
            underlay=st.sampled_from(Underlay),
            tx_checksums=st.booleans(),
            start_daemons=st.booleans(),
        )
    )
    def test_a_spec_survives_the_state_file(self, spec):
        assert spec_from_json(json.loads(json.dumps(spec.to_json()))) == spec

    def test_the_underlay_modes_take_away_more_and_more(self):
        plain, bare = LabSpec(underlay=Underlay.PLAIN), LabSpec(underlay=Underlay.BARE)
        assert LabSpec().features_off() == ()
        assert set(plain.features_off()) < set(bare.features_off())
        assert plain.features_on() == ("gro",)
        assert "gro" not in plain.features_off()
        assert LabSpec().features_on() == bare.features_on() == ()
        assert LabSpec(tx_checksums=False).features_off() == ("tx",)


class TestDaemonCommand:
    def test_ours_is_told_where_etcd_is_and_finds_the_rest_itself(self):
        spec = LabSpec(prefix="/atomic.io/network", datapath="python", daemon_args=("-v=1",))
        assert topology.daemon_command(spec, 1, ["pyflanneld"]) == [
            "pyflanneld",
            "-etcd-endpoints=http://192.0.2.254:2379",
            "-etcd-prefix=/atomic.io/network",
            "--datapath=python",
            "-v=1",
        ]

    @pytest.mark.parametrize("given", [{"backend": "extension"}, {"config": EXTENSION}])
    def test_our_daemons_may_run_the_commands_of_a_config_that_has_some(self, given):
        spec = LabSpec(node_commands={2: "flanneld"}, **given)
        assert "--allow-extension" in topology.daemon_command(spec, 1, ["pyflanneld"])
        assert "--allow-extension" not in topology.daemon_command(spec, 2, ["pyflanneld"])

    def test_another_daemon_gets_upstreams_flags_after_its_own(self):
        spec = LabSpec(node_commands={2: "/opt/my\\ flanneld -v='1'"}, daemon_args=("--ours",))
        assert topology.daemon_command(spec, 2, ["pyflanneld"]) == [
            "/opt/my flanneld",
            "-v=1",
            "-etcd-endpoints=http://192.0.2.254:2379",
            "-etcd-prefix=/coreos.com/network",
            "-subnet-file=/run/flannel/subnet.env",
            "-iface=eth0",
        ]


class TestDocker:
    COMBINED = 'DOCKER_OPTS=" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472"\n'

    def test_the_options_file_is_read_as_dockers_unit_does(self):
        text = f'DOCKER_OPT_BIP="--bip=9.9.9.9/9"\n{self.COMBINED}'
        assert topology.parse_docker_options(text) == DockerOptions(
            IPv4Interface("10.1.74.1/24"), 1472
        )

    def test_options_of_the_operators_own_do_no_harm(self):
        text = self.COMBINED.replace('=" ', '="--log-level=warn -H fd://  ')
        options = topology.parse_docker_options(text)
        assert options is not None
        assert options.mtu == 1472

    @pytest.mark.parametrize("text", ["", 'DOCKER_OPTS=""\n', 'OTHER=" --bip=10.1.74.1/24"\n'])
    def test_without_an_address_there_is_nothing_to_set_up(self, text):
        assert topology.parse_docker_options(text) is None


class TestPods:
    BIP = IPv4Interface("10.1.74.1/24")

    def test_a_pod_gets_the_address_after_its_bridges(self):
        network = topology.pod_network(DockerOptions(self.BIP, 1472), {})
        assert network.pod_address(4) == "10.1.74.2"
        assert network.pod_address(6) is None
        setup = topology.pod_setup(network)
        assert "address add 10.1.74.2/24 dev eth0 broadcast +\n" in setup
        assert "route replace 0.0.0.0/0 via 10.1.74.1 dev eth0\n" in setup

    def test_ipv6_comes_from_subnet_env(self):
        env = {"FLANNEL_IPV6_SUBNET": "fd00:5::1/64", "FLANNEL_MTU": "1400"}
        both = topology.pod_network(DockerOptions(self.BIP, 1472), env)
        assert both.pod_address(6) == "fd00:5::2"
        assert "address add fd00:5::1/64 dev docker0 nodad\n" in topology.bridge_setup(both)
        alone = topology.pod_network(None, env)
        assert (alone.pod_address(4), alone.mtu) == (None, 1400)

    def test_without_a_subnet_there_is_no_pod(self):
        assert topology.pod_network(None, {}) is None

    @pytest.mark.parametrize("mtu", [None, 1472])
    def test_bridge_and_pod_have_the_mtu_that_docker_would_give_them(self, mtu):
        network = topology.pod_network(DockerOptions(self.BIP, mtu), {})
        words = f" mtu {mtu} up\n" if mtu else " up\n"
        assert f"dev docker0{words}" in topology.bridge_setup(network)
        assert f"dev eth0{words}" in topology.pod_setup(network)
