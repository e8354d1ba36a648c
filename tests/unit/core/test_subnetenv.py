"""`subnet.env`: upstream's bytes out, anything in."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.core import subnetenv
from pyflannel.core.config import NetworkConfig
from pyflannel.core.ip import parse_subnet_key
from pyflannel.core.subnetenv import SubnetEnv, parse
from pyflannel.docker import options

CONFIG = NetworkConfig(network=IPv4Network("10.5.0.0/16"))
DUAL = replace(CONFIG, enable_ipv6=True, ipv6_network=IPv6Network("2001:cafe:42::/56"))
V6_ONLY = replace(DUAL, enable_ipv4=False)


def docker_file(config, subnets, *, mtu, ip_masq, combined=(options.DOCKER_OPTS,)):
    variables = subnetenv.variables(config, subnets, mtu=mtu, ip_masq=ip_masq)
    return options.render(variables, combined)


def key(text):
    found = parse_subnet_key(text)
    assert found is not None
    return found


DUAL_KEY = key("10.5.72.0-24&2001:cafe:42::-64")


class TestRender:
    def test_dual_stack_comes_out_to_the_byte(self):
        assert subnetenv.render(DUAL, DUAL_KEY, mtu=1450, ip_masq=True) == (
            b"FLANNEL_NETWORK=10.5.0.0/16\n"
            b"FLANNEL_SUBNET=10.5.72.1/24\n"
            b"FLANNEL_IPV6_NETWORK=2001:cafe:42::/56\n"
            b"FLANNEL_IPV6_SUBNET=2001:cafe:42::1/64\n"
            b"FLANNEL_MTU=1450\n"
            b"FLANNEL_IPMASQ=true\n"
        )

    def test_ipv4_only_is_the_four_lines_of_old(self):
        """As observed on upstream: udp, `-ip-masq`."""
        config = replace(CONFIG, network=IPv4Network("10.240.0.0/12"))
        written = subnetenv.render(config, key("10.240.35.0-24"), mtu=1472, ip_masq=True)
        assert written == (
            b"FLANNEL_NETWORK=10.240.0.0/12\nFLANNEL_SUBNET=10.240.35.1/24\n"
            b"FLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n"
        )

    def test_ipv6_only_has_no_ipv4_lines(self):
        written = subnetenv.render(
            V6_ONLY, key("0.0.0.0-0&2001:cafe:42:1::-64"), mtu=1, ip_masq=False
        )
        assert written == (
            b"FLANNEL_IPV6_NETWORK=2001:cafe:42::/56\n"
            b"FLANNEL_IPV6_SUBNET=2001:cafe:42:1::1/64\nFLANNEL_MTU=1\nFLANNEL_IPMASQ=false\n"
        )

    def test_a_network_that_is_set_but_not_enabled_is_not_written(self):
        config = replace(DUAL, enable_ipv6=False)
        assert b"IPV6" not in subnetenv.render(config, DUAL_KEY, mtu=1450, ip_masq=True)

    def test_an_enabled_family_without_a_subnet_is_a_mistake_of_the_caller(self):
        with pytest.raises(ValueError, match="FLANNEL_IPV6_SUBNET"):
            subnetenv.render(DUAL, key("10.5.72.0-24"), mtu=1450, ip_masq=True)

    def test_docker_gets_what_the_script_would_write_without_options(self, monkeypatch):
        monkeypatch.setenv("DOCKER_OPT_X", "--inherited")
        monkeypatch.setenv("DOCKER_OPTS", "--preset")
        written = docker_file(CONFIG, key("10.5.72.0-24"), mtu=1472, ip_masq=False)
        assert written == (
            b'DOCKER_OPT_BIP="--bip=10.5.72.1/24"\nDOCKER_OPT_IPMASQ="--ip-masq=true"\n'
            b'DOCKER_OPT_MTU="--mtu=1472"\n'
            b'DOCKER_OPTS=" --bip=10.5.72.1/24 --ip-masq=true --mtu=1472"\n'
        )

    def test_all_options_are_there_under_each_name_that_a_unit_may_refer_to(self):
        written = docker_file(
            CONFIG,
            key("10.5.72.0-24"),
            mtu=1472,
            ip_masq=False,
            combined=("DOCKER_OPTS", "DOCKER_NETWORK_OPTIONS"),
        )
        *_, first, second = written.decode().splitlines()
        options = '=" --bip=10.5.72.1/24 --ip-masq=true --mtu=1472"'
        assert (first, second) == (f"DOCKER_OPTS{options}", f"DOCKER_NETWORK_OPTIONS{options}")
        assert written.count(b"DOCKER_OPT_BIP") == 1

    def test_docker_gets_no_bridge_address_in_an_ipv6_only_network(self):
        written = docker_file(V6_ONLY, key("0.0.0.0-0&2001:cafe:42:1::-64"), mtu=1400, ip_masq=True)
        assert b"BIP" not in written
        assert b'DOCKER_OPTS=" --ip-masq=false --mtu=1400"\n' in written


class TestParse:
    def test_what_is_written_is_read_back(self):
        written = subnetenv.render(DUAL, DUAL_KEY, mtu=1450, ip_masq=True)
        found = parse(written)
        assert found == SubnetEnv(
            network=DUAL.network,
            subnet=IPv4Network("10.5.72.0/24"),
            ipv6_network=DUAL.ipv6_network,
            ipv6_subnet=IPv6Network("2001:cafe:42::/64"),
            mtu=1450,
            ip_masq=True,
        )
        assert found.previous_subnet == DUAL_KEY

    @pytest.mark.parametrize("value", ["10.5.72.1/24", "10.5.72.0/24", "10.5.72.255/24"])
    def test_the_subnet_is_masked(self, value):
        found = parse(f"FLANNEL_SUBNET={value}\n")
        assert found.subnet == IPv4Network("10.5.72.0/24")
        assert str(found.previous_subnet) == "10.5.72.0-24"

    @pytest.mark.parametrize(
        "line",
        [
            "FLANNEL_SUBNET=10.5.72.1/24",
            "export FLANNEL_SUBNET=10.5.72.1/24",
            "export\tFLANNEL_SUBNET=10.5.72.1/24",
            '  FLANNEL_SUBNET="10.5.72.1/24"  ',
            "FLANNEL_SUBNET='10.5.72.1/24' # ours",
            "FLANNEL_SUBNET=10.5.72.1/24 # ours",
            "FLANNEL_SUBNET = 10.5.72.1/24",
            "FLANNEL_SUBNET=10.5.72.1/24\r",
            "# FLANNEL_SUBNET=10.9.9.1/24\nFLANNEL_SUBNET=10.5.72.1/24",
            "FLANNEL_SUBNET=10.9.9.1/24\nFLANNEL_SUBNET=10.5.72.1/24",
            "\ufeffFLANNEL_SUBNET=10.5.72.1/24",
        ],
    )
    def test_the_dotenv_dialect_is_understood(self, line):
        found = parse(line + "\n")
        assert str(found.subnet) == "10.5.72.0/24"
        assert found.skipped == ()

    def test_bad_members_of_a_list_are_passed_over(self):
        found = parse("FLANNEL_SUBNET=junk,10.5.72.1/24,10.5/16\n")
        assert str(found.subnet) == "10.5.72.0/24"
        assert [reason.partition(" is ")[0] for reason in found.skipped] == [
            "FLANNEL_SUBNET: 'junk'",
            "FLANNEL_SUBNET: '10.5/16'",
        ]

    def test_more_than_one_good_member_counts_as_none(self):
        found = parse("FLANNEL_NETWORK=10.5.0.0/16,10.6.0.0/16\nFLANNEL_MTU=1450\n")
        assert found.network is None
        assert found.mtu == 1450
        assert "2 prefixes" in found.skipped[0]

    @pytest.mark.parametrize(
        "text", ["", "\n", "FLANNEL_SUBNET=\n", "FLANNEL_SUBNET=''\n", "X=1\n"]
    )
    def test_none_is_none_and_nothing_to_complain_about(self, text):
        found = parse(text)
        assert found.previous_subnet is None
        assert found.skipped == ()

    def test_a_torn_file_gives_what_is_whole_and_a_reason_for_the_rest(self):
        found = parse("FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUB")
        assert found.network == IPv4Network("10.5.0.0/16")
        assert found.previous_subnet is None
        assert found.skipped == ("line 2: 'FLANNEL_SUB' is not KEY=VALUE",)

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ("FLANNEL_MTU=many", "FLANNEL_MTU: 'many' is not a number"),
            ("FLANNEL_MTU=-1", "FLANNEL_MTU: '-1' is not a number"),
            ("FLANNEL_IPMASQ=yes", "FLANNEL_IPMASQ: 'yes' is neither true nor false"),
            ('FLANNEL_SUBNET="10.5.72.1/24', "line 1: FLANNEL_SUBNET has a quote"),
            ("FLANNEL_IPV6_SUBNET=10.5.72.1/24", "FLANNEL_IPV6_SUBNET: '10.5.72.1/24' is not"),
        ],
    )
    def test_each_bad_value_is_passed_over_with_its_reason(self, line, reason):
        found = parse(line + "\n")
        assert replace(found, skipped=()) == SubnetEnv()
        assert found.skipped[0].startswith(reason)

    @given(st.binary(max_size=200))
    def test_no_bytes_whatsoever_make_it_fail(self, content):
        assert isinstance(parse(content), SubnetEnv)

    @given(st.lists(st.sampled_from(["FLANNEL_SUBNET", "=", ",", "10.5.72.1/24", '"', "\n", "#"])))
    def test_no_rubble_of_a_real_file_makes_it_fail(self, pieces):
        assert isinstance(parse("".join(pieces)), SubnetEnv)

    def test_a_file_full_of_garbage_gives_a_handful_of_reasons(self):
        found = parse("garbage\n" * 5000)
        assert len(found.skipped) == 9
        assert found.skipped[-1] == "and 4992 more"

    def test_reasons_are_short_even_if_the_lines_are_not(self):
        found = parse("FLANNEL_SUBNET=" + "x" * 100_000)
        assert len(found.skipped[0]) < 150
