"""The network config: what is accepted, what is derived, and what is said about mistakes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyflannel.backend.kinds import KINDS
from pyflannel.backend.udp import UdpSettings
from pyflannel.backend.vxlan.settings import VxlanSettings
from pyflannel.core.config import NetworkConfig, effective, subnet_count
from pyflannel.core.configparse import Parsed, load_network_config, parse_network_config
from pyflannel.core.errors import EXIT_CONFIG, ConfigError
from pyflannel.core.fields import Problem, Severity
from pyflannel.core.ip import Family
from pyflannel.core.kind import Kind
from pyflannel.core.underlay import ExternalInterface

BACKEND: Mapping[str, object] = {"Type": "alloc"}


def parse(text: object = None, **members: object) -> Parsed:
    """Parses a text, or a config of these members that names a backend."""
    if isinstance(text, str | bytes):
        return parse_network_config(text, KINDS)
    return parse_network_config(json.dumps({"Backend": BACKEND} | members), KINDS)


def good(text: object = None, **members: object) -> NetworkConfig:
    """A config that has no problem at all."""
    parsed = parse(text, **members)
    assert parsed.problems == ()
    assert parsed.config is not None
    return parsed.config


def error(text: object = None, **members: object) -> Problem:
    """The one error of a config."""
    parsed = parse(text, **members)
    assert parsed.config is None
    assert len(parsed.errors) == 1
    return parsed.errors[0]


def warning(text: object = None, **members: object) -> Problem:
    """The one problem, a warning, of a config."""
    parsed = parse(text, **members)
    assert parsed.config is not None
    assert len(parsed.problems) == 1
    return parsed.problems[0]


def v6(**members: object) -> dict[str, object]:
    return {"EnableIPv4": False, "EnableIPv6": True} | members


class TestDerivedValues:
    @pytest.mark.parametrize(
        ("network", "length", "low", "high"),
        [
            ("10.0.0.0/8", 24, "10.0.1.0", "10.255.255.0"),
            ("10.3.0.0/16", 24, "10.3.1.0", "10.3.255.0"),
            ("10.0.0.0/22", 24, "10.0.1.0", "10.0.3.0"),
            ("10.0.0.0/23", 25, "10.0.0.128", "10.0.1.128"),
            ("10.0.0.0/24", 26, "10.0.0.64", "10.0.0.192"),
            ("10.0.0.0/28", 30, "10.0.0.4", "10.0.0.12"),
            ("255.255.0.0/16", 24, "255.255.1.0", "255.255.255.0"),
            ("0.0.0.0/1", 24, "0.0.1.0", "127.255.255.0"),
        ],
    )
    def test_ipv4(self, network: str, length: int, low: str, high: str) -> None:
        config = good(Network=network)
        assert config.network == IPv4Network(network)
        assert config.subnet_len == length
        assert config.subnet_min == IPv4Address(low)
        assert config.subnet_max == IPv4Address(high)

    @pytest.mark.parametrize(
        ("network", "length", "low", "high"),
        [
            ("fc00::/48", 64, "fc00:0:0:1::", "fc00:0:0:ffff::"),
            ("fc00::/62", 64, "fc00:0:0:1::", "fc00:0:0:3::"),
            ("fc00::/63", 65, "fc00:0:0:0:8000::", "fc00:0:0:1:8000::"),
            ("fc00::/64", 66, "fc00::4000:0:0:0", "fc00::c000:0:0:0"),
            ("fc00::/124", 126, "fc00::4", "fc00::c"),
        ],
    )
    def test_ipv6(self, network: str, length: int, low: str, high: str) -> None:
        config = good(**v6(IPv6Network=network))
        assert config.ipv6_network == IPv6Network(network)
        assert config.ipv6_subnet_len == length
        assert config.ipv6_subnet_min == IPv6Address(low)
        assert config.ipv6_subnet_max == IPv6Address(high)

    def test_given_values_are_kept(self) -> None:
        config = good(
            '{"Network":"10.0.0.0/16","SubnetLen":24,"SubnetMin":"10.0.1.0",'
            '"SubnetMax":"10.0.20.0","Backend":{"Type":"udp"}}'
        )
        assert config == NetworkConfig(
            network=IPv4Network("10.0.0.0/16"),
            subnet_len=24,
            subnet_min=IPv4Address("10.0.1.0"),
            subnet_max=IPv4Address("10.0.20.0"),
            backend_type="udp",
            backend=UdpSettings(port=8285),
        )
        assert subnet_count(config) == 20

    def test_an_unspecified_bound_counts_as_not_given(self) -> None:
        assert good(Network="10.3.0.0/16", SubnetMin="0.0.0.0", SubnetMax="0.0.0.0") == good(
            Network="10.3.0.0/16"
        )
        assert good(**v6(IPv6Network="fc00::/48", IPv6SubnetMin="::", IPv6SubnetMax="::")) == good(
            **v6(IPv6Network="fc00::/48")
        )

    def test_the_first_subnet_may_be_asked_for_explicitly(self) -> None:
        config = good(Network="10.3.0.0/16", SubnetMin="10.3.0.0", SubnetMax="10.3.2.0")
        assert subnet_count(config) == 3

    def test_the_smallest_network_with_an_explicit_length(self) -> None:
        config = good(Network="10.0.0.0/28", SubnetLen=30)
        assert subnet_count(config) == 3

    def test_both_families_are_independent(self) -> None:
        config = good(Network="10.3.0.0/16", EnableIPv6=True, IPv6Network="fc00::/48")
        assert config.families == (Family.V4, Family.V6)
        assert config.network_of(Family.V6) == IPv6Network("fc00::/48")
        assert subnet_count(config, Family.V6) == 65535
        assert good(Network="10.3.0.0/16").families == (Family.V4,)
        assert subnet_count(good(Network="10.3.0.0/16"), Family.V6) == 0

    @pytest.mark.parametrize("value", ["31", '"nonsense"', "null", "-1", "[]"])
    @pytest.mark.parametrize("key", ["SubnetLen", "SubnetMin", "SubnetMax"])
    def test_with_kubernetes_a_podcidr_is_the_subnet_with_any_value_here(self, key, value) -> None:
        """Upstream ignores all of it, nonsense too."""
        text = f'{{"Network":"10.3.0.0/16","{key}":{value},"Backend":{{"Type":"alloc"}}}}'
        parsed = parse_network_config(text, KINDS, allots=False)
        assert parsed.config is not None
        assert parsed.config.subnet_len == 0
        assert [problem.key for problem in parsed.warnings] == [key]
        shown = effective(parsed.config)
        assert "SubnetLen" not in shown
        again = parse_network_config(json.dumps(shown), KINDS, allots=False)
        assert again == Parsed(parsed.config, ())

    @pytest.mark.parametrize(
        "text",
        ["{}", '{"Network":"10.3.0.0"}', '{"Network":"127.0.0.0/8"}', '{"Network":"0.0.0.0/0"}'],
    )
    def test_with_kubernetes_the_rest_is_checked_as_ever(self, text) -> None:
        assert parse_network_config(text, KINDS, allots=False).config is None


class TestJson:
    def test_keys_match_in_any_case_also_inside_backend(self) -> None:
        config = good(
            '{"NETWORK":"10.3.0.0/16","subnetLEN":25,"enableIPv6":true,"ipv6network":"fc00::/48",'
            '"enablenftables":true,"backend":{"TYPE":"VXLAN","vni":7}}'
        )
        assert config.network == IPv4Network("10.3.0.0/16")
        assert config.subnet_len == 25
        assert config.enable_nftables
        assert config.backend_type == "vxlan"
        assert config.backend == VxlanSettings(vni=7)

    def test_go_takes_the_kelvin_sign_and_the_long_s_for_letters(self) -> None:
        config = good(
            '{"Networ\\u212a":"10.3.0.0/16","\\u017fubnetLen":25,"Backend":{"Type":"alloc"}}'
        )
        assert (str(config.network), config.subnet_len) == ("10.3.0.0/16", 25)

    def test_of_duplicates_the_last_wins_even_in_another_case(self) -> None:
        parsed = parse(
            '{"Network":"10.3.0.0/16","network":"10.4.0.0/16","Backend":{"Type":"udp"},'
            '"BACKEND":{"type":"vxlan","TYPE":"alloc"}}'
        )
        assert parsed.config is not None
        assert parsed.config.network == IPv4Network("10.4.0.0/16")
        assert parsed.config.backend_type == "alloc"
        assert [p.key for p in parsed.problems] == ["Network", "Backend", "Backend.Type"]
        assert "more than once (Network, network)" in parsed.problems[0].message

    def test_a_wrong_duplicate_is_wrong_even_if_a_right_one_follows(self) -> None:
        assert error('{"Network":"x","Network":"10.3.0.0/16","Backend":{"Type":"alloc"}}').key == (
            "Network"
        )

    @pytest.mark.parametrize(
        "text",
        ["", " ", "{", '{"Network":"10.0.0.0/8",}', '{"Network":"10.0.0.0/8"} x', "{} {}",
         '{"Network":"10.0.0.0/8"} // c', '{"SubnetLen":NaN}', "\ufeff{}", "{'Network':1}"],
    )  # fmt: skip
    def test_what_is_not_json_is_an_error_about_the_text(self, text: str) -> None:
        problem = error(text)
        assert problem.key == ""
        assert problem.message.startswith("the config is not JSON: ")

    def test_white_space_around_is_fine(self) -> None:
        assert good(' \r\n\t{"Network":"10.3.0.0/16","Backend":{"Type":"alloc"}}\n ')

    @pytest.mark.parametrize("text", ["[]", '"x"', "5", "true"])
    def test_a_document_that_is_no_object_is_an_error(self, text: str) -> None:
        assert "expected a JSON object" in error(text).message

    def test_the_document_null_gives_the_defaults_which_lack_a_network(self) -> None:
        problem = error("null")
        assert problem.key == "Network"

    @pytest.mark.parametrize("key", ["Network", "IPv6Network", "SubnetMin", "SubnetMax"])
    def test_null_is_an_error_where_go_has_a_parser_of_its_own(self, key: str) -> None:
        problem = error(**({"Network": "10.3.0.0/16"} | {key: None}))
        assert problem.key == key
        assert f"{key} is null" in problem.message
        assert problem.remedy == "leave it out"

    @pytest.mark.parametrize(
        "key",
        ["SubnetLen", "IPv6SubnetLen", "IPv6SubnetMin", "IPv6SubnetMax", "EnableIPv4", "EnableIPv6",
         "EnableNFTables", "LeaseTTL"],
    )  # fmt: skip
    def test_null_leaves_the_default_elsewhere(self, key: str) -> None:
        members = {"Network": "10.3.0.0/16"}
        assert good(**(members | {key: None})) == good(**members)

    def test_null_leaves_what_an_earlier_duplicate_said(self) -> None:
        parsed = parse('{"Network":"10.3.0.0/16","SubnetLen":26,"SubnetLen":null}')
        assert parsed.config is not None
        assert parsed.config.subnet_len == 26

    @pytest.mark.parametrize("value", ["24", -1, 24.0, 24.5, True, [24], {}, 2**64])
    def test_a_length_is_a_whole_number_and_nothing_like_it(self, value: object) -> None:
        for key in ("SubnetLen", "IPv6SubnetLen"):
            problem = error(**({"Network": "10.3.0.0/16"} | {key: value}))
            assert problem.key == key
            assert problem.message.startswith(f"{key} is ")
            assert "expected a whole number" in problem.message

    def test_the_remedy_for_a_quoted_number_or_boolean_is_to_drop_the_quotes(self) -> None:
        assert error(Network="10.3.0.0/16", SubnetLen="24").remedy == "write 24 without quotes"
        assert error(Network="10.3.0.0/16", SubnetLen=24.0).remedy == "write 24"
        assert error(Network="10.3.0.0/16", EnableIPv4="True").remedy == "write true without quotes"

    @pytest.mark.parametrize("value", ["true", 1, 0, "", [], {}])
    def test_a_switch_is_true_or_false_and_nothing_like_it(self, value: object) -> None:
        problem = error(Network="10.3.0.0/16", EnableNFTables=value)
        assert problem.key == "EnableNFTables"
        assert "expected true or false" in problem.message

    @pytest.mark.parametrize(
        ("value", "remedy"),
        [
            ("10.0.0.0/255.0.0.0", "write 10.0.0.0/8"),
            ("10.03.0.0/16", "without leading zeros"),
            ("10.3/16", "all four numbers"),
            ("10.0.0.0", "length is missing"),
            ("10.0.0.0/8 ", "write 10.0.0.0/8"),
            ("fd00::/48", "belongs into IPv6Network"),
            ("10.0.0.0/33", ""),
            ("10.0.0.300/8", ""),
            ("", "missing"),
            ("x/8", ""),
        ],
    )
    def test_a_network_that_is_spelt_otherwise_is_refused_with_the_remedy(
        self, value: str, remedy: str
    ) -> None:
        problem = error(Network=value)
        assert problem.key == "Network"
        assert f"Network is {json.dumps(value)}, expected an IPv4 network" in problem.message
        assert remedy in problem.remedy
        assert remedy or not problem.remedy

    @pytest.mark.parametrize("value", [5, True, [], {}, "10.0.0.0/8", "fd00::/129", ""])
    def test_an_ipv6_network_that_is_none_is_refused_even_if_ipv6_is_off(
        self, value: object
    ) -> None:
        problem = error(Network="10.3.0.0/16", IPv6Network=value)
        assert problem.key == "IPv6Network"
        assert "expected an IPv6 network" in problem.message

    @pytest.mark.parametrize("value", ["", "10.3.1", "10.3.01.0", "10.3.1.0/24", "fd00::", 5])
    def test_a_bound_that_is_no_address_is_refused(self, value: object) -> None:
        problem = error(Network="10.3.0.0/16", SubnetMin=value)
        assert problem.key == "SubnetMin"
        assert "expected an IPv4 address" in problem.message

    def test_an_ipv4_mapped_bound_is_the_ipv4_address(self) -> None:
        config = good(Network="10.3.0.0/16", SubnetMin="::ffff:10.3.5.0")
        assert config.subnet_min == IPv4Address("10.3.5.0")

    def test_invalid_utf8_inside_an_ignored_string_does_no_harm(self) -> None:
        text = b'{"Network":"10.3.0.0/16","Backend":{"Type":"alloc"},"Comment":"\xff"}'
        assert parse_network_config(text, KINDS).config is not None

    def test_deep_nesting_is_ignored_where_the_key_is_unknown(self) -> None:
        for depth, fine in ((9_000, True), (10_001, False)):
            junk = "[" * depth + "]" * depth
            text = f'{{"Network":"10.3.0.0/16","Backend":{{"Type":"udp","x":{junk}}},"y":{junk}}}'
            parsed = parse_network_config(text, KINDS)
            assert (parsed.config is not None) is fine
            if parsed.config is not None:
                json.dumps(effective(parsed.config))
                assert parsed.config == good(Network="10.3.0.0/16", Backend={"Type": "udp"})


class TestValidation:
    WANTED = "please define a correct Network parameter in the flannel config"
    WANTED6 = "please define a correct IPv6Network parameter in the flannel config"
    FOUR = "network must be able to accommodate at least four subnets"

    @pytest.mark.parametrize(
        ("members", "key", "text"),
        [
            ({}, "Network", WANTED),
            ({"Network": "0.0.0.0/0"}, "Network", WANTED),
            ({"Network": "10.0.0.5/0"}, "Network", WANTED),
            ({"Network": "10.0.0.0/16", "SubnetLen": 31}, "SubnetLen",
             "SubnetLen must be less than /31"),
            ({"Network": "10.0.0.0/16", "SubnetLen": 2**40}, "SubnetLen",
             "SubnetLen must be less than /31"),
            (v6(IPv6Network="fc00::/48", IPv6SubnetLen=129), "IPv6SubnetLen",
             "SubnetLen must be less than /127"),
            ({"Network": "10.0.0.0/30", "SubnetLen": 31}, "SubnetLen",
             "SubnetLen must be less than /31"),
            ({"Network": "10.0.0.0/16", "SubnetLen": 17}, "SubnetLen", FOUR),
            ({"Network": "10.0.0.0/29", "SubnetLen": 30}, "SubnetLen", FOUR),
            ({"Network": "10.0.0.0/29"}, "Network",
             "network is too small. Minimum useful network prefix is /28"),
            ({"Network": "10.0.0.0/32"}, "Network",
             "network is too small. Minimum useful network prefix is /28"),
            ({"Network": "10.3.0.0/16", "SubnetMin": "10.4.0.0"}, "SubnetMin",
             "SubnetMin is not in the range of the Network"),
            ({"Network": "10.3.0.0/16", "SubnetMax": "10.4.0.0"}, "SubnetMax",
             "SubnetMax is not in the range of the Network"),
            ({"Network": "10.3.0.0/16", "SubnetMin": "10.3.1.16"}, "SubnetMin",
             "SubnetMin is not on a SubnetLen boundary: 10.3.1.16"),
            ({"Network": "10.3.0.0/16", "SubnetMax": "10.3.1.1"}, "SubnetMax",
             "SubnetMax is not on a SubnetLen boundary: 10.3.1.1"),
            (v6(), "IPv6Network", WANTED6),
            (v6(IPv6Network="::/0"), "IPv6Network", WANTED6),
            (v6(IPv6Network="fc00::/48", IPv6SubnetLen=127), "IPv6SubnetLen",
             "SubnetLen must be less than /127"),
            (v6(IPv6Network="fc00::/48", IPv6SubnetLen=49), "IPv6SubnetLen", FOUR),
            (v6(IPv6Network="fc00::/125"), "IPv6Network",
             "IPv6Network is too small. Minimum useful network prefix is /124"),
            (v6(IPv6Network="fc00::/48", IPv6SubnetMin="fd00::"), "IPv6SubnetMin",
             "IPv6SubnetMin is not in the range of the IPv6Network"),
            (v6(IPv6Network="fc00::/48", IPv6SubnetMax="fd00::"), "IPv6SubnetMax",
             "IPv6SubnetMax is not in the range of the IPv6Network"),
            (v6(IPv6Network="fc00::/48", IPv6SubnetMin="fc00::1"), "IPv6SubnetMin",
             "IPv6SubnetMin is not on a SubnetLen boundary: fc00::1"),
            (v6(IPv6Network="fc00::/48", IPv6SubnetMax="fc00::1"), "IPv6SubnetMax",
             "IPv6SubnetMax is not on a SubnetLen boundary: fc00::1"),
            ({"EnableIPv4": False}, "EnableIPv4", "none defined stack"),
        ],
    )  # fmt: skip
    def test_an_error_names_its_key_and_says_what_upstream_says(
        self, members: dict[str, object], key: str, text: str
    ) -> None:
        problem = error(**members)
        assert problem.key == key
        assert text in problem.message
        assert problem.remedy

    def test_an_ipv6_network_of_length_zero_but_for_its_address_is_one(self) -> None:
        assert good(**v6(IPv6Network="::/1", IPv6SubnetLen=64)).ipv6_network == IPv6Network("::/1")

    def test_host_bits_of_the_network_are_masked_with_a_warning(self) -> None:
        parsed = parse(Network="10.3.77.5/16")
        assert parsed.config == good(Network="10.3.0.0/16")
        assert warning(Network="10.3.77.5/16").remedy == "write 10.3.0.0/16"

    def test_the_last_address_of_the_network_is_in_it_but_starts_no_subnet(self) -> None:
        problem = error(Network="10.3.0.0/16", SubnetMax="10.3.255.255")
        assert "is not on a SubnetLen boundary: 10.3.255.255" in problem.message

    def test_min_may_equal_max(self) -> None:
        config = good(Network="10.3.0.0/16", SubnetMin="10.3.9.0", SubnetMax="10.3.9.0")
        assert subnet_count(config) == 1

    def test_a_length_of_zero_means_not_given(self) -> None:
        assert good(Network="10.3.0.0/16", SubnetLen=0) == good(Network="10.3.0.0/16")

    def test_the_remedy_for_a_length_says_which_lengths_fit(self) -> None:
        assert "between 18 and 30" in error(Network="10.3.0.0/16", SubnetLen=31).remedy
        assert "between 18 and 30" in error(Network="10.3.0.0/16", SubnetLen=17).remedy
        assert "between 30 and 30" in error(Network="10.3.0.0/28", SubnetLen=29).remedy
        assert "larger network" in error(Network="10.3.0.0/29", SubnetLen=30).remedy

    def test_the_remedy_for_a_bound_between_two_subnets_is_the_one_it_lies_in(self) -> None:
        assert "write 10.3.1.0," in error(Network="10.3.0.0/16", SubnetMin="10.3.1.16").remedy

    def test_min_above_max_is_accepted_with_a_warning_as_no_subnet_is_left(self) -> None:
        problem = warning(Network="10.3.0.0/16", SubnetMin="10.3.9.0", SubnetMax="10.3.2.0")
        assert problem.key == "SubnetMin"
        assert "out of subnets" in problem.message
        config = parse(Network="10.3.0.0/16", SubnetMin="10.3.9.0", SubnetMax="10.3.2.0").config
        assert config is not None
        assert subnet_count(config) == 0
        problem = warning(
            **v6(
                IPv6Network="fc00::/48", IPv6SubnetMin="fc00:0:0:2::", IPv6SubnetMax="fc00:0:0:1::"
            )
        )
        assert problem.key == "IPv6SubnetMin"

    def test_all_errors_are_reported_in_the_order_in_which_upstream_would_meet_them(self) -> None:
        parsed = parse(
            json.dumps({
                "SubnetMax": "11.0.0.0",
                "IPv6SubnetLen": 127,
                "SubnetMin": "10.0.0.1",
                "EnableIPv6": True,
                "IPv6Network": "fc00::/48",
                "Network": "10.0.0.0/16",
                "Backend": {"Type": "vxlan", "VNI": "1", "Port": 70000},
            })
        )  # fmt: skip
        assert [p.key for p in parsed.errors] == [
            "SubnetMax", "SubnetMin", "IPv6SubnetLen", "Backend.VNI", "Backend.Port",
        ]  # fmt: skip

    def test_wrong_types_come_first_in_the_order_of_the_text(self) -> None:
        parsed = parse('{"EnableIPv6":1,"SubnetLen":"x","Network":5,"Backend":{"Type":"nope"}}')
        assert [p.key for p in parsed.errors] == [
            "EnableIPv6", "SubnetLen", "Network", "Backend.Type",
        ]  # fmt: skip

    def test_what_depends_on_a_wrong_value_is_not_reported_again(self) -> None:
        """A network of the wrong type is not also a missing one."""
        assert error(Network="x", SubnetMin="10.0.0.1").key == "Network"
        assert error(Network="10.3.0.0/16", SubnetLen=31, SubnetMin="10.3.0.1").key == "SubnetLen"

    def test_a_family_that_is_off_is_not_validated_but_its_network_is_worth_a_warning(self) -> None:
        problem = warning(Network="10.3.0.0/16", IPv6Network="fc00::/125", IPv6SubnetMin="fd00::1")
        assert problem.key == "IPv6Network"
        assert problem.remedy == 'add "EnableIPv6": true'
        config = parse(Network="10.3.0.0/16", IPv6Network="fc00::/48").config
        assert config is not None
        assert config.ipv6_network is None
        assert warning(**v6(Network="10.3.0.0/16", IPv6Network="fc00::/48")).key == "Network"


class TestUnknownKeys:
    @pytest.mark.parametrize(
        ("key", "meant"),
        [
            ("SudbnetMax", "SubnetMax"),
            ("SubnetMaximum", None),
            ("Subnet_Min", "SubnetMin"),
            ("IPv6Netwrok", "IPv6Network"),
            ("EnableNFTable", "EnableNFTables"),
            ("Comment", None),
        ],
    )
    def test_an_unknown_key_is_a_warning_with_what_was_probably_meant(
        self, key: str, meant: str | None
    ) -> None:
        problem = warning(**{"Network": "10.3.0.0/16", key: "10.3.9.0"})
        assert problem.severity is Severity.WARNING
        assert problem.key == key
        assert problem.message == f'unknown key "{key}" is ignored'
        if meant:
            assert problem.remedy == f"did you mean {meant}?"
        else:
            assert problem.remedy.startswith("known keys: ")

    def test_a_key_that_is_not_there_yet_is_the_better_guess(self) -> None:
        """`SubnetMix` is one slip away from two keys; the one that is given is not meant."""
        problem = warning(Network="10.3.0.0/16", SubnetMin="10.3.1.0", SubnetMix="10.3.9.0")
        assert problem.remedy == "did you mean SubnetMax?"
        problem = warning(Network="10.3.0.0/16", Netwrok="10.3.0.0/16")
        assert problem.remedy == "did you mean Network?"

    def test_a_missing_network_is_explained_by_the_key_that_was_meant_to_be_it(self) -> None:
        parsed = parse(Netwrok="10.3.0.0/16")
        assert [p.key for p in parsed.problems] == ["Netwrok", "Network"]
        assert '"Netwrok"' in parsed.errors[0].message
        assert 'did you mean Network by "Netwrok"' in parsed.errors[0].remedy

    def test_a_backend_that_is_misspelt_is_explained_too(self) -> None:
        parsed = parse('{"Network":"10.3.0.0/16","Bakcend":{"Type":"vxlan"}}')
        assert parsed.config is not None
        assert parsed.config.backend_type == "udp"
        assert [p.key for p in parsed.problems] == ["Bakcend", "Backend"]
        assert '"Bakcend"' in parsed.problems[1].remedy

    def test_backend_keys_at_the_top_are_sent_to_where_they_belong(self) -> None:
        assert "inside Backend" in warning(Network="10.3.0.0/16", BackendType="vxlan").remedy
        assert "inside Backend" in warning(Network="10.3.0.0/16", VNI=1).remedy
        assert "inside Backend" in warning(Network="10.3.0.0/16", type="udp").remedy

    def test_an_unknown_key_is_reported_once(self) -> None:
        parsed = parse('{"Network":"10.3.0.0/16","Backend":{"Type":"alloc"},"x":1,"x":2}')
        assert [p.key for p in parsed.problems] == ["x"]


class TestBackend:
    def test_absent_means_udp_although_the_documentation_says_vxlan(self) -> None:
        parsed = parse('{"Network":"10.3.0.0/16"}')
        assert parsed.config is not None
        assert parsed.config.backend_type == "udp"
        assert parsed.config.backend == UdpSettings(port=8285)
        (problem,) = parsed.problems
        assert (problem.severity, problem.key) == (Severity.WARNING, "Backend")
        assert "udp" in problem.message

    @pytest.mark.parametrize("backend", [{}, None, {"Type": None}, {"Type": ""}, {"Port": 1}])
    def test_a_backend_without_a_type_is_an_error(self, backend: object) -> None:
        problem = error(Network="10.3.0.0/16", Backend=backend)
        assert problem.key == "Backend.Type"
        assert problem.message.startswith("unknown backend type: ")

    @pytest.mark.parametrize("backend", ["vxlan", 5, True, ["vxlan"]])
    def test_a_backend_that_is_no_object_is_an_error(self, backend: object) -> None:
        problem = error(Network="10.3.0.0/16", Backend=backend)
        assert problem.key == "Backend"
        assert "expected an object" in problem.message

    def test_a_backend_given_as_a_string_gets_the_object_as_remedy(self) -> None:
        problem = error(Network="10.3.0.0/16", Backend="vxlan")
        assert problem.remedy == 'write {"Type": "vxlan"}'

    @pytest.mark.parametrize("kind", [5, True, [], {}])
    def test_a_type_that_is_no_string_is_an_error(self, kind: object) -> None:
        problem = error(Network="10.3.0.0/16", Backend={"Type": kind})
        assert problem.key == "Backend.Type"
        assert "expected a string" in problem.message

    def test_the_type_is_lower_cased(self) -> None:
        config = good(Network="10.3.0.0/16", Backend={"Type": "Host-GW"})
        assert config.backend_type == "host-gw"
        assert effective(config)["Backend"] == {"Type": "host-gw"}

    def test_an_unknown_type_is_an_error_that_lists_the_known_ones(self) -> None:
        problem = error(Network="10.3.0.0/16", Backend={"Type": "vxlam"})
        assert problem.message == "unknown backend type: vxlam"
        assert problem.remedy.startswith("did you mean vxlan?")
        assert "alloc, extension, host-gw, ipip, udp, vxlan" in problem.remedy

    @pytest.mark.parametrize("kind", ["wireguard", "ipsec", "tencent-vpc", "WireGuard"])
    def test_types_that_only_flannel_has_are_told_apart(self, kind: str) -> None:
        problem = error(Network="10.3.0.0/16", Backend={"Type": kind})
        assert "known to flannel but not supported by pyflannel" in problem.message

    @pytest.mark.parametrize("kind", ["aws-vpc", "gce", "ali-vpc"])
    def test_types_that_flannel_removed_are_unknown(self, kind: str) -> None:
        problem = error(Network="10.3.0.0/16", Backend={"Type": kind})
        assert problem.message.startswith(f"unknown backend type: {kind}")
        assert "removed" in problem.message

    @pytest.mark.parametrize("kind", ["udp", "ipip"])
    def test_ipv6_over_a_backend_without_it_is_a_warning_or_if_alone_an_error(
        self, kind: str
    ) -> None:
        dual = {"Network": "10.3.0.0/16", "EnableIPv6": True, "IPv6Network": "fc00::/48"}
        assert "IPv4 only" in warning(**dual, Backend={"Type": kind}).message
        alone = error(**v6(IPv6Network="fc00::/48", Backend={"Type": kind}))
        assert alone.key == "Backend.Type"

    @pytest.mark.parametrize(
        ("vni", "ipv4_fits", "ipv6_fits"),
        [(9999, True, True), (10_000, True, False), (9_999_999, True, False),
         (10_000_000, False, False)],
    )  # fmt: skip
    def test_a_vni_must_leave_room_for_the_name_of_the_device(
        self, vni: int, ipv4_fits: bool, ipv6_fits: bool
    ) -> None:
        backend = {"Type": "vxlan", "VNI": vni}
        parsed = parse(Network="10.3.0.0/16", Backend=backend)
        assert (parsed.config is not None) is ipv4_fits
        if not ipv4_fits:
            assert "at most 9999999:" in parsed.errors[0].message
        parsed = parse(**v6(IPv6Network="fc00::/48", Backend=backend))
        assert (parsed.config is not None) is ipv6_fits
        if not ipv6_fits:
            assert "at most 9999:" in parsed.errors[0].message

    def test_ipv6_needs_an_mtu_of_1280_inside_the_tunnel(self) -> None:
        """The outer header of an IPv6 underlay has 20 bytes more: 70 and not 50 of overhead."""
        dual = {"Network": "10.3.0.0/16", "EnableIPv6": True, "IPv6Network": "fc00::/48"}
        assert good(**dual, Backend={"Type": "vxlan", "MTU": 1350})
        assert error(**dual, Backend={"Type": "vxlan", "MTU": 1349}).key == "Backend.MTU"
        assert good(Network="10.3.0.0/16", Backend={"Type": "vxlan", "MTU": 118})


class TestEffective:
    def test_it_has_upstreams_names_and_every_default(self) -> None:
        config = good(Network="10.3.0.0/16", Backend={"type": "VXLAN", "vni": 2})
        assert effective(config) == {
            "EnableIPv4": True,
            "EnableIPv6": False,
            "EnableNFTables": False,
            "LeaseTTL": 86400,
            "Network": "10.3.0.0/16",
            "SubnetLen": 24,
            "SubnetMin": "10.3.1.0",
            "SubnetMax": "10.3.255.0",
            "Backend": {
                "Type": "vxlan",
                "VNI": 2,
                "Port": 0,
                "MTU": 0,
                "GBP": False,
                "Learning": False,
                "DirectRouting": False,
                "TxChecksumOffload": True,
            },
        }

    def test_a_family_that_is_off_is_left_out(self) -> None:
        assert set(effective(good(**v6(IPv6Network="fc00::/48")))) == {
            "EnableIPv4", "EnableIPv6", "EnableNFTables", "LeaseTTL", "IPv6Network",
            "IPv6SubnetLen", "IPv6SubnetMin", "IPv6SubnetMax", "Backend",
        }  # fmt: skip

    def test_load_raises_with_every_error(self) -> None:
        with pytest.raises(
            ConfigError, match=r"SubnetLen is 31.*unknown backend type: x"
        ) as caught:
            load_network_config(
                '{"Network":"10.3.0.0/16","SubnetLen":31,"Backend":{"Type":"x"},"Comment":1}', KINDS
            )
        assert "Comment" not in str(caught.value)
        assert caught.value.exit_code == EXIT_CONFIG
        text = '{"Network":"10.3.0.0/16","Backend":{"Type":"alloc"}}'
        assert load_network_config(text, KINDS) == good(Network="10.3.0.0/16")


_junk: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)
_nets4 = st.builds(
    lambda n, length: f"{IPv4Address(n)}/{length}", st.integers(0, 2**32 - 1), st.integers(0, 32)
)
_nets6 = st.builds(
    lambda n, length: f"{IPv6Address(n)}/{length}",
    st.integers(0, 2**128 - 1) | st.integers(0, 2**40),
    st.integers(0, 128),
)
_backends = st.fixed_dictionaries(
    {
        "Type": st.sampled_from(
            ["udp", "vxlan", "VXLAN", "host-gw", "ipip", "alloc", "extension", "x"]
        )
    },
    optional={
        "VNI": st.integers(-1, 2**24),
        "port": st.integers(-1, 65536),
        "MTU": st.integers(-1, 2000),
        "GBP": st.booleans(),
        "learning": st.booleans(),
        "DirectRouting": st.booleans(),
        "SubnetAddCommand": st.text(max_size=5),
    },
)
_configs = st.fixed_dictionaries(
    {},
    optional={
        "Network": _nets4 | _junk,
        "network": _nets4,
        "SubnetLen": st.integers(0, 33) | _junk,
        "SubnetMin": st.ip_addresses(v=4).map(str) | _junk,
        "SubnetMax": st.ip_addresses(v=4).map(str),
        "EnableIPv4": st.booleans() | _junk,
        "EnableIPv6": st.booleans(),
        "IPv6Network": _nets6 | _junk,
        "IPv6SubnetLen": st.integers(0, 129),
        "IPv6SubnetMin": st.none() | st.ip_addresses(v=6).map(str),
        "Backend": _backends | _junk,
        "Comment": _junk,
    },
)


@settings(deadline=None)
@given(st.binary() | st.text())
def test_parsing_never_raises_on_arbitrary_input(data: bytes | str) -> None:
    parsed = parse_network_config(data, KINDS)
    assert (parsed.config is None) == bool(parsed.errors)


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(_configs, st.booleans())
def test_there_is_a_config_unless_there_is_an_error(
    members: dict[str, object], allots: bool
) -> None:
    parsed = parse_network_config(json.dumps(members), KINDS, allots=allots)
    assert (parsed.config is None) == bool(parsed.errors)
    assert all(problem.message for problem in parsed.problems)


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(_nets4, _nets6, st.booleans(), st.booleans(), _backends, st.integers(0, 30))
def test_the_effective_config_parses_to_the_same_config_without_a_problem(
    net4: str, net6: str, on4: bool, on6: bool, backend: dict[str, object], length: int
) -> None:
    """Except for what stays worth a warning no matter who wrote it."""
    members = {
        "Network": net4, "IPv6Network": net6, "EnableIPv4": on4, "EnableIPv6": on6,
        "SubnetLen": length, "Backend": backend,
    }  # fmt: skip
    config = parse_network_config(json.dumps(members), KINDS).config
    if config is None:
        return
    again = parse_network_config(json.dumps(effective(config)), KINDS)
    assert again.config == config
    assert {p.key for p in again.problems} <= {"EnableIPv6", "Backend.MTU"}
    assert again.config is not None
    assert effective(again.config) == effective(config)


class TestAnotherDivision:
    """Changes that matter to the choice of a subnet, and to nothing else."""

    @pytest.mark.parametrize(
        ("members", "same_overlay"),
        [
            ({"SubnetLen": 26}, True),
            ({"LeaseTTL": 600}, True),
            ({"SubnetMin": "10.5.7.0", "SubnetMax": "10.5.9.0"}, True),
            ({}, False),
            ({"Network": "10.4.0.0/15"}, False),
            ({"Backend": {"Type": "vxlan", "VNI": 7}}, False),
            ({"EnableNFTables": True}, False),
        ],
    )
    def test_it_is_told_from_another_overlay(self, members, same_overlay):
        former = good(Network="10.5.0.0/16")
        assert good(**({"Network": "10.5.0.0/16"} | members)).allots_differently(former) is (
            same_overlay
        )


class TestKinds:
    """What the parser makes of backends that it has never heard of."""

    def test_a_backend_that_cannot_be_loaded_is_an_error_that_says_why(self) -> None:
        class Broken:
            def get(self, name: str) -> Kind | None:
                raise ConfigError(f"backend {name} of another package cannot be loaded: no module")

            def names(self) -> list[str]:
                return ["broken"]

        text = '{"Network":"10.3.0.0/16","Backend":{"Type":"broken"},"Comment":1}'
        parsed = parse_network_config(text, Broken())
        (problem,) = parsed.errors
        assert problem.key == "Backend.Type"
        assert "cannot be loaded: no module" in problem.message

    def test_what_its_kind_says_about_the_config_counts(self) -> None:
        def suits(config: NetworkConfig, external: ExternalInterface | None) -> list[Problem]:
            assert external is None
            return [Problem.error("SubnetLen", f"{config.subnet_len} is odd")]

        class One:
            def get(self, name: str) -> Kind | None:
                return (
                    Kind(name="foo", summary="", overhead={}, suits=suits)
                    if name == "foo"
                    else None
                )

            def names(self) -> list[str]:
                return ["foo"]

        text = '{"Network":"10.3.0.0/16","SubnetLen":25,"Backend":{"Type":"foo"}}'
        (problem,) = parse_network_config(text, One()).problems
        assert str(problem) == "25 is odd"


def test_a_network_of_one_family_alone_is_told_to_switch_the_other_off() -> None:
    """The remedy does not add a network of the family that is not wanted."""
    parsed = parse_network_config('{"EnableIPv6": true, "IPv6Network": "fd00::/48"}', KINDS)
    (error,) = parsed.errors
    assert error.remedy.startswith('set "EnableIPv4": false if the network is IPv6 only, or add')
    parsed = parse_network_config('{"EnableIPv6": true, "Network": "10.9.0.0/16"}', KINDS)
    (error,) = parsed.errors
    assert error.remedy.startswith('set "EnableIPv6": false if the network is IPv4 only, or add')
    parsed = parse_network_config("{}", KINDS)
    assert parsed.errors[0].remedy.startswith("add")


@pytest.mark.parametrize(
    "network", ["127.0.0.0/8", "127.16.0.0/16", "169.254.0.0/16", "224.0.0.0/8", "0.0.0.0/8"]
)
def test_a_network_that_no_host_routes_is_refused_with_the_way_out(network):
    parsed = parse_network_config(json.dumps({"Network": network}), KINDS)
    assert parsed.config is None
    found = [problem for problem in parsed.errors if "lies in" in problem.message]
    assert found
    assert found[0].key == "Network"
    assert "10.244.0.0/16" in found[0].remedy


@pytest.mark.parametrize("network", ["fe80::/48", "ff00::/48"])
def test_so_is_one_of_ipv6(network):
    text = {"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": network}
    text["Backend"] = {"Type": "vxlan"}
    parsed = parse_network_config(json.dumps(text), KINDS)
    assert any(p.key == "IPv6Network" and "lies in" in p.message for p in parsed.errors)


@pytest.mark.parametrize("network", ["10.0.0.0/8", "100.64.0.0/10", "192.168.0.0/16", "1.0.0.0/8"])
def test_ranges_beside_them_are_taken(network):
    assert parse_network_config(json.dumps({"Network": network}), KINDS).config is not None


class TestLeaseTTL:
    def test_it_is_a_day_unless_given(self):
        assert good(Network="10.5.0.0/16").lease_ttl == 86400
        assert good(Network="10.5.0.0/16", LeaseTTL=600).lease_ttl == 600

    @pytest.mark.parametrize("value", [0, 59, 2592001])
    def test_outside_its_bounds_it_is_an_error_that_names_them(self, value):
        problem = error(Network="10.5.0.0/16", LeaseTTL=value)
        assert problem.key == "LeaseTTL"
        assert "from 60 to 2592000" in problem.message
