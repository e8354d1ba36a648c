"""What a docker that runs does: its arguments, its bridge, its rules."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network
from typing import Final

from pyflannel.docker.dockerd import FLAG, VARIABLE, Direct
from pyflannel.docker.model import (
    RESTART,
    SET_UP,
    Checked,
    DockerFacts,
    ok,
    problem,
    unknown,
)
from pyflannel.docker.unitchecks import configured, given_options

_RAW_DROP: Final = re.compile(r"-A PREROUTING -d (\S+) ! -i \S+ .*-j DROP")
_RAW_ACCEPT: Final = re.compile(r"-A PREROUTING -d (\S+) -i flannel\S* .*-j ACCEPT")
_BRIDGE_DROP: Final = re.compile(r"-A DOCKER ! -i (\S+) -o \1 -j DROP")
_USER_ACCEPT: Final = re.compile(r"-A DOCKER-USER .*-d (\S+) .*-j ACCEPT")


def done(facts: DockerFacts) -> Iterator[Checked]:
    """The checks of what a running docker does."""
    yield from _running(facts)
    yield from _bridge(facts)
    yield from _masquerade(facts)
    yield from _forwarding(facts)
    yield from _direct(facts)


def _running(facts: DockerFacts) -> Iterator[Checked]:
    check = "running docker"
    if facts.arguments is None:
        yield unknown(check, "dockerd does not run")
        return
    wanted = given_options(facts)
    missing = [option for option in wanted if option not in facts.arguments]
    if missing:
        yield problem(
            check,
            f"dockerd runs without {' '.join(missing)}",
            "it was started before the file was there (it waits for pyflannel, but no longer than"
            " the unit's JobRunningTimeoutSec=), or before it was as it is now",
            f"{RESTART} (containers without --live-restore are stopped)",
        )
    elif wanted:
        yield ok(check, f"dockerd runs with {' '.join(wanted)}")
    else:
        yield unknown(check, "no options to compare with")


def _bridge(facts: DockerFacts) -> Iterator[Checked]:
    if facts.bridge is None:
        yield unknown("docker0", "no device docker0")
        return
    shown = ", ".join(map(str, facts.bridge)) or "no address"
    subnet = facts.subnet.subnet if facts.subnet is not None else None
    if facts.arguments is None:
        yield unknown("docker0", f"{shown}, of a docker that does not run")
        return
    if subnet is None:
        yield unknown("docker0", shown)
    elif any(address.network == subnet for address in facts.bridge):
        yield ok("docker0", shown)
    else:
        yield problem(
            "docker0",
            f"docker0 has {shown}, the leased subnet is {subnet}",
            "containers are outside the overlay",
            RESTART,
        )
    mtu = facts.subnet.mtu if facts.subnet is not None else None
    # A bridge has the default until the first container comes: docker's --mtu is about the
    # containers' interfaces.
    told = f"--mtu={mtu}" in (facts.arguments or ())
    if mtu is not None and facts.bridge_mtu is not None and facts.bridge_mtu > mtu and not told:
        yield problem(
            "MTU",
            f"docker0 has {facts.bridge_mtu}, the overlay carries {mtu}",
            "large packets are fragmented or lost",
            RESTART,
        )


def _masquerade(facts: DockerFacts) -> Iterator[Checked]:
    check = "masquerade"
    ours = facts.subnet.ip_masq if facts.subnet is not None else None
    if facts.arguments is None or ours is None:
        yield unknown(check, "docker or the lease is not there")
        return
    theirs = _masquerades(facts.arguments, (configured(facts.daemon_json) or {}).get("ip-masq"))
    if ours and theirs:
        yield problem(
            check,
            "pyflannel masquerades, and docker as well",
            "packets to other nodes' containers get the node's address as source",
            f"{RESTART}, so that it takes --ip-masq=false from the options file",
        )
    elif not ours and not theirs:
        yield problem(
            check,
            "neither pyflannel nor docker masquerades",
            "containers reach nothing outside of the overlay",
            "set FLANNELD_IP_MASQ=true for pyflannel, or take --ip-masq=false from docker",
        )
    else:
        yield ok(check, f"done by {'pyflannel' if ours else 'docker'}")


def _masquerades(arguments: Sequence[str], said: object) -> bool:
    for word in reversed(arguments):
        name, _, value = word.partition("=")
        if name == "--ip-masq":
            return value not in {"false", "0", "f", "F", "False", "FALSE"}
    return said is not False


def _forwarding(facts: DockerFacts) -> Iterator[Checked]:
    if facts.ip_forward is None:
        yield unknown("ip_forward", "not readable")
    elif facts.ip_forward:
        yield ok("ip_forward", "on")
    else:
        yield problem(
            "ip_forward",
            "net.ipv4.ip_forward is 0",
            "the node passes no packet of a container on",
            "sysctl -w net.ipv4.ip_forward=1",
        )
    if facts.forward_policy is None:
        yield unknown("FORWARD", "iptables did not tell")
    elif facts.forward_policy == "ACCEPT" or facts.forward_rules:
        how = "our rules accept the overlay" if facts.forward_rules else "policy ACCEPT"
        yield ok("FORWARD", how)
    else:
        yield problem(
            "FORWARD",
            f"policy {facts.forward_policy}, and no rule accepts the overlay",
            "docker sets this policy: packets between nodes' containers are dropped",
            "start pyflannel, without --iptables-forward-rules=false",
        )


def _direct(facts: DockerFacts) -> Iterator[Checked]:
    """Since version 28 docker lets only the node itself send to a container's own address."""
    subnet = facts.subnet.subnet if facts.subnet is not None else None
    if subnet is None:
        return
    check = "direct routing"
    consequence = "docker 28 and later keeps the containers of other nodes from those of this one"
    own = str(subnet)
    trusted = {m[1] for m in map(_RAW_ACCEPT.match, facts.docker_rules) if m}
    raw = [
        m
        for m in map(_RAW_DROP.match, facts.docker_rules)
        if m and (_covers(own, m[1]) or _covers(m[1], own)) and m[1] not in trusted
    ]
    if raw:
        yield problem(check, f"iptables -t raw: {raw[0][0]}", consequence, _past_raw(facts))
    drops = [m for m in map(_BRIDGE_DROP.fullmatch, facts.docker_rules) if m]
    ours = [m for m in drops if m[1] in {"docker0", *facts.bridges}]
    if ours and not _let_through(facts.docker_rules, subnet):
        network = f" -s {facts.subnet.network}" if facts.subnet and facts.subnet.network else ""
        yield problem(
            check,
            f"iptables: {ours[0][0]}, before our rules",
            consequence,
            "pyflannel docker-setup (pyflanneld then keeps an accept); until the next boot also:"
            f" iptables -I DOCKER-USER{network} -d {subnet} -j ACCEPT",
        )
    if facts.own_nftables:
        yield problem(
            check,
            "nft: docker keeps its rules in table ip docker-bridges, and drops there",
            f"{consequence}; no rule outside of that table changes it",
            f'"firewall-backend": "iptables" in /etc/docker/daemon.json; {RESTART}',
        )


def _past_raw(facts: DockerFacts) -> str:
    """What makes docker leave its drops in table raw out."""
    if facts.direct is Direct.NOTHING:
        return (
            f'"{FLAG}": true in /etc/docker/daemon.json (docker 28.2 and later), or {VARIABLE}=1 in'
            f" docker's environment; {RESTART}"
        )
    if facts.unit is not None and (
        f"--{FLAG}" in facts.unit.command_line
        or f"{VARIABLE}=1" in facts.unit.words("Service", "Environment")
    ):
        return f"{RESTART} (its unit has the option already)"
    if set(facts.bridges) - {"docker0"}:
        return (
            f"{SET_UP}; or make the docker network with"
            " -o com.docker.network.bridge.trusted_host_interfaces=flannel.1 (docker 28.2)"
        )
    return SET_UP


def _covers(outer: str, inner: str) -> bool:
    try:
        return IPv4Network(inner, strict=False).subnet_of(IPv4Network(outer, strict=False))
    except ValueError:
        return False


def _let_through(rules: Sequence[str], subnet: IPv4Network) -> bool:
    """Whether a packet to a container is accepted before docker's own chains see it."""
    for rule in rules:
        if rule.startswith("-A FORWARD ") and rule.endswith("-j FLANNEL-FWD"):
            return True
        if rule.startswith("-A FORWARD ") and rule.endswith(("-j DOCKER-FORWARD", "-j DOCKER")):
            break
    accepted = [m[1] for m in map(_USER_ACCEPT.match, rules) if m]
    return any(_covers(text, str(subnet)) for text in accepted)
