"""`config check` and the daemon cannot disagree: thousands of configs and interfaces.

The check is the parser, which asks a kind without an interface; the daemon makes the backend with
the interface that it has, attaches it, and follows that interface when it changes.
"""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyflannel.backend.kinds import BUILT_IN, KINDS, create
from pyflannel.backend.udp.network import UdpNetwork
from pyflannel.core.configparse import parse_network_config
from pyflannel.core.errors import ConfigError
from pyflannel.core.ip import Family
from tests.support.overlay import NETWORK, NETWORK6, Machine, lease, run

ROUND_BORDERS = (
    st.sampled_from((0, 1, 20, 21, 67, 68, 95, 96, 117, 118, 1280, 1329, 1330, 1349, 1350, 1500))
    | st.integers(1325, 1355)
    | st.integers(1, 65535)
)
"""MTUs: those at which something becomes possible, and any."""
SETTINGS = {
    "vxlan": st.fixed_dictionaries(
        {},
        optional={
            "MTU": ROUND_BORDERS | st.integers(-1, 65600),
            "VNI": st.sampled_from((0, 1, 9999, 10_000, 9_999_999, 10_000_000, 1 << 24)),
            "Port": st.sampled_from((-1, 0, 4789, 65535, 65536)),
            "DirectRouting": st.booleans(),
        },
    ),
    "udp": st.fixed_dictionaries({}, optional={"Port": st.sampled_from((0, 1, 8285, 65536))}),
    "ipip": st.fixed_dictionaries({}, optional={"DirectRouting": st.booleans()}),
    "extension": st.fixed_dictionaries(
        {}, optional={"PostStartupCommand": st.sampled_from(("", "true", "echo 'oops"))}
    ),
}
BACKENDS = st.sampled_from(BUILT_IN).flatmap(
    lambda name: SETTINGS.get(name, st.just({})).map(lambda members: {"Type": name, **members})
)
FAMILIES = st.sampled_from(((True, False), (False, True), (True, True)))
MANY = settings(max_examples=1000, deadline=None)

pytestmark = pytest.mark.slow


@st.composite
def interfaces(draw):
    """External interfaces, sound ones and others, by what is different from a usual one."""
    changes = {"mtu": max(1, draw(ROUND_BORDERS))}
    if draw(st.integers(0, 3)) == 0:
        changes["address"] = None
    if draw(st.integers(0, 3)) == 0:
        changes["address6"] = None
    if draw(st.integers(0, 3)) == 0:
        changes["public_ip"] = IPv4Address("203.0.113.5")
    return changes


def check(backend, ipv4, ipv6):
    """What `config check` finds."""
    text = json.dumps(
        {
            "EnableIPv4": ipv4,
            "EnableIPv6": ipv6,
            "Network": str(NETWORK),
            "IPv6Network": str(NETWORK6),
            "Backend": backend,
        }
    )
    return parse_network_config(text, KINDS)


def machine_with(changes):
    machine = Machine(mtu=changes["mtu"])
    return machine, replace(machine.external(ipv6=True), **changes)


async def attach(machine, external, config, state_dir):
    """A node on this interface; udp without its descriptors, which no fake has."""
    context = replace(machine.context(config, state_dir), underlay=external)
    backend = create(context)
    attrs = await backend.prepare(None)
    own = lease(1, config.backend_type, ipv4=config.enable_ipv4, ipv6=config.enable_ipv6)
    own = replace(own, attrs=attrs)
    if config.backend_type == "udp":
        return UdpNetwork(context, KINDS.get("udp"), own)
    return await backend.attach(own)


@MANY
@given(BACKENDS, FAMILIES)
def test_what_the_check_lets_pass_a_sound_node_takes(tmp_path_factory, backend, families):
    """With all addresses and the largest MTU there is. (vxlan over IPv6, MTU 1330 to 1349, passed
    the check, and no node could take it.)"""
    config = check(backend, *families).config
    if config is None:
        return
    machine, external = machine_with({"mtu": 65535})
    assert not any(p.is_error for p in KINDS.get(config.backend_type).fits(config, external))
    network = run(attach(machine, external, config, tmp_path_factory.getbasetemp() / "none"))
    assert network.mtu >= (68 if config.families[0] is Family.V4 else 1280)


@MANY
@given(BACKENDS, FAMILIES, interfaces())
def test_a_node_takes_a_config_exactly_where_it_fits(tmp_path_factory, backend, families, changes):
    """The devices come up in the kernel then; where it does not fit nothing is made."""
    config = check(backend, *families).config
    if config is None:
        return
    machine, external = machine_with(changes)
    kind = KINDS.get(config.backend_type)
    problems = kind.fits(config, external)
    assert set(kind.fits(config)) <= set(problems)
    errors = [str(problem) for problem in problems if problem.is_error]
    before = run(machine.netlink.links())
    work = attach(machine, external, config, tmp_path_factory.getbasetemp() / "none")
    if not errors:
        run(work)
        return
    with pytest.raises(ConfigError) as caught:
        run(work)
    assert str(caught.value) == "; ".join(errors)
    assert run(machine.netlink.links()) == before


@MANY
@given(BACKENDS, FAMILIES, interfaces())
def test_a_node_that_runs_follows_exactly_where_it_could_have_started(
    tmp_path_factory, backend, families, changes
):
    config = check(backend, *families).config
    if config is None:
        return
    machine, sound = machine_with({"mtu": 65535})
    moved = replace(sound, **changes)
    kind = KINDS.get(config.backend_type)
    errors = [str(p) for p in kind.fits(config, moved) if p.is_error]

    async def follow():
        state_dir = tmp_path_factory.getbasetemp() / "none"
        network = await attach(machine, sound, config, state_dir)
        await network.rebase(moved)

    if errors:
        with pytest.raises(ConfigError) as caught:
            run(follow())
        assert str(caught.value) == "; ".join(errors)
    else:
        run(follow())


@MANY
@given(BACKENDS, FAMILIES)
def test_what_the_check_prints_is_the_same_config_again(backend, families):
    """Every setting is written under the key that it is read from."""
    config = check(backend, *families).config
    if config is None:
        return
    again = check({"Type": config.backend_type, **config.backend.encode()}, *families).config
    assert again == config
