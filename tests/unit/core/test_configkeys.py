"""The table of the config's keys says what the parser does."""

from __future__ import annotations

import re

import pytest

from pyflannel.backend.kinds import KINDS
from pyflannel.core import config, configparse
from pyflannel.core.configchange import consequences
from pyflannel.core.configkeys import ALL_TOGETHER, AT_LEASE, KEYS, NETWORK

BASE = {"Network": "10.5.0.0/16", "IPv6Network": "fd00:5::/48"}
BY_KEY = {each.key: each for each in KEYS}


def effective(**values):
    text = repr({**BASE, **values}).replace("'", '"').replace("True", "true")
    return config.effective(parsed(text))


def parsed(text):
    return configparse.load_network_config(text, KINDS)


def test_every_key_is_there_in_the_parsers_spelling():
    assert set(BY_KEY) == set(configparse.TOP_KEYS)
    assert len(BY_KEY) == len(KEYS)


def test_defaults_are_those_of_the_parser():
    values = effective(EnableIPv6=True, Backend={"Type": "vxlan"})
    for key in ("EnableIPv4", "EnableNFTables", "LeaseTTL"):
        assert BY_KEY[key].default == str(values[key]).lower()
    assert BY_KEY["EnableIPv6"].default == str(effective()["EnableIPv6"]).lower()
    assert str(values["SubnetLen"]) == re.match(r"\d+", BY_KEY["SubnetLen"].default)[0]
    assert str(values["IPv6SubnetLen"]) == re.match(r"\d+", BY_KEY["IPv6SubnetLen"].default)[0]
    assert (values["SubnetMin"], values["SubnetMax"]) == ("10.5.1.0", "10.5.255.0")
    assert effective()["Backend"]["Type"] in BY_KEY["Backend"].default


@pytest.mark.parametrize(
    ("network", "length"), [("10.5.0.0/22", 24), ("10.5.0.0/23", 25), ("10.5.0.0/28", 30)]
)
def test_the_length_that_is_derived(network, length):
    assert effective(Network=network)["SubnetLen"] == length


@pytest.mark.parametrize("length", [17, 31])
def test_lengths_outside_of_the_range_are_errors(length):
    text = f'{{"Network": "10.5.0.0/16", "SubnetLen": {length}}}'
    assert configparse.parse_network_config(text, KINDS).config is None


OTHER = {
    "Network": '"Network": "10.6.0.0/16"',
    "SubnetLen": '"SubnetLen": 25',
    "SubnetMin": '"SubnetMin": "10.5.9.0"',
    "SubnetMax": '"SubnetMax": "10.5.9.0"',
    "EnableNFTables": '"EnableNFTables": true',
    "LeaseTTL": '"LeaseTTL": 3600',
    "Backend": '"Backend": {"Type": "host-gw"}',
}


@pytest.mark.parametrize("key", OTHER)
def test_what_a_change_takes_is_what_config_set_says(key):
    before = parsed('{"Network": "10.5.0.0/16"}')
    text = OTHER[key] if key == "Network" else f'"Network": "10.5.0.0/16", {OTHER[key]}'
    said = "\n".join(consequences(before, parsed(f"{{{text}}}"), []))
    change = BY_KEY[key].change
    assert ("cut off" in said) == (change in {ALL_TOGETHER, NETWORK})
    assert ("until they are restarted" in said) == (change != AT_LEASE)
