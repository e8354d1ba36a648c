"""Why docker is not in the leased subnet: facts in, the outcome of each check out.

Each check looks at what was gathered (`docker.facts`) and says what it saw, what comes of it and
what to type. A fact that could not be read makes its checks `unknown`, never `ok`.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from ipaddress import IPv4Interface, IPv4Network
from typing import Final

from pyflannel.core.errors import ConfigError
from pyflannel.core.subnetenv import SubnetEnv
from pyflannel.docker import options as docker_options
from pyflannel.docker.dockerd import FLAG, VARIABLE, Direct
from pyflannel.docker.dropin import KEYS, referenced
from pyflannel.docker.unitfile import Unit, environment, variables
from pyflannel.records import dataclass

RESTART: Final = "systemctl restart docker"
_JSON_KEYS: Final = {
    "--bip": "bip",
    "--mtu": "mtu",
    "--ip-masq": "ip-masq",
    f"--{FLAG}": FLAG,
    "-H": "hosts",
    "--host": "hosts",
}
"""Docker's flags that we give, or that its units have, and their names in daemon.json."""
AGENT: Final = "pyflannel.service"
DROP_IN: Final = "pyflannel.conf"
"""What our drop-in for docker's unit is called, in whichever directory."""
_PULLING: Final = ("Wants", "Requires", "BindsTo", "Requisite", "Upholds")
"""Settings of systemd.unit(5) that start, or need, another unit."""
_RAW_DROP: Final = re.compile(r"-A PREROUTING -d (\S+) ! -i \S+ .*-j DROP")
_RAW_ACCEPT: Final = re.compile(r"-A PREROUTING -d (\S+) -i flannel\S* .*-j ACCEPT")
_BRIDGE_DROP: Final = re.compile(r"-A DOCKER ! -i (\S+) -o \1 -j DROP")
_SET_UP: Final = f"pyflannel docker-setup && systemctl daemon-reload && {RESTART}"
_USER_ACCEPT: Final = re.compile(r"-A DOCKER-USER .*-d (\S+) .*-j ACCEPT")


CODES: Final = {
    "PF301": "docker's options file is missing or has no options",
    "PF302": "docker's unit does not read the options file",
    "PF303": "docker's unit does not pass the options on",
    "PF304": "another file gives docker other options",
    "PF305": "docker's unit may start before pyflannel",
    "PF306": "docker's unit starts pyflannel though it is not enabled",
    "PF307": "flanneld runs, and pyflannel starts with docker",
    "PF308": "daemon.json contradicts the options",
    "PF309": "dockerd runs without the options",
    "PF310": "docker0 has another subnet than the leased one",
    "PF311": "docker0 has another MTU than the overlay",
    "PF312": "both masquerade, or neither does",
    "PF313": "docker drops what other nodes' containers send",
}
"""Every code of these checks, with what it means in a phrase."""
CODE_OF: Final = {
    "options file": "PF301",
    "EnvironmentFile": "PF302",
    "command line": "PF303",
    "other options": "PF304",
    "order": "PF305",
    "want": "PF306",
    "two agents": "PF307",
    "daemon.json": "PF308",
    "running docker": "PF309",
    "docker0": "PF310",
    "MTU": "PF311",
    "masquerade": "PF312",
    "direct routing": "PF313",
}
"""The code of each check that is docker's alone; the others are those of the node."""


class State(enum.StrEnum):
    """How a check came out."""

    OK = "ok"
    PROBLEM = "problem"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """The outcome of one check, also of one that found nothing wrong."""

    check: str
    state: State
    seen: str
    consequence: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerFacts:
    """What was seen of a node. `None` is: could not be found out, or is not there."""

    unit: Unit | None = None
    """docker's unit with all drop-ins; `None`: no such unit."""
    enabled: bool | None = None
    """Whether pyflannel.service is enabled; `None`: there is no such unit."""
    upstream_pids: tuple[int, ...] = ()
    """Processes called flanneld in this network namespace."""
    options_file: str = docker_options.DOCKER_ENV
    options_text: str | None = None
    environment_files: Mapping[str, str] = field(default_factory=dict)
    """Contents of the unit's environment files, by path; those that are not there are missing."""
    subnet: SubnetEnv | None = None
    subnet_file: str = docker_options.FLANNEL_ENV
    """The file that `subnet` was read from."""
    daemon: str = ""
    """What a pyflanneld that runs here waits for; empty if none runs, or it cannot be asked."""
    daemon_json: str | None = None
    """Contents of /etc/docker/daemon.json; `None`: there is none."""
    arguments: tuple[str, ...] | None = None
    """The running dockerd's command line; `None`: it does not run."""
    bridge: tuple[IPv4Interface, ...] | None = None
    """Addresses of docker0; `None`: no such device."""
    bridge_mtu: int | None = None
    forward_policy: str | None = None
    """Policy of iptables' chain FORWARD."""
    forward_rules: bool = False
    """Whether our rules that accept the overlay's packets are in it."""
    ip_forward: bool | None = None
    bridges: tuple[str, ...] = ()
    """Devices that have an address of the leased subnet: docker0, or a docker network's."""
    direct: Direct = Direct.NOTHING
    """What the installed dockerd knows against its own drops."""
    own_nftables: bool = False
    """Whether docker keeps its rules in nftables by itself (docker 29), where no rule helps."""
    docker_rules: tuple[str, ...] = ()
    """What iptables -S prints of raw's PREROUTING and of FORWARD, DOCKER-USER and DOCKER."""


def checked(facts: DockerFacts) -> list[Checked]:
    """All checks, those about what docker is told before those about what it does."""
    return [
        *_lease(facts),
        *_options(facts),
        *_unit(facts),
        *_daemon_json(facts),
        *_running(facts),
        *_bridge(facts),
        *_masquerade(facts),
        *_forwarding(facts),
        *_direct(facts),
    ]


def _ok(check: str, seen: str) -> Checked:
    return Checked(check=check, state=State.OK, seen=seen)


def _unknown(check: str, seen: str) -> Checked:
    return Checked(check=check, state=State.UNKNOWN, seen=seen)


def _problem(check: str, seen: str, consequence: str, remedy: str) -> Checked:
    return Checked(
        check=check, state=State.PROBLEM, seen=seen, consequence=consequence, remedy=remedy
    )


def _lease(facts: DockerFacts) -> Iterator[Checked]:
    if facts.subnet is None or facts.subnet.subnet is None:
        yield _problem(
            "lease",
            f"no subnet in {facts.subnet_file}"
            + ("" if facts.subnet is not None else ", which is not there"),
            "there is nothing that docker could use",
            f"pyflanneld runs and is not ready: {facts.daemon}"
            if facts.daemon
            else "systemctl start pyflannel; systemctl status pyflannel says what it waits for",
        )
    else:
        yield _ok("lease", f"subnet {facts.subnet.subnet}")


def _variables_of(facts: DockerFacts) -> dict[str, str]:
    try:
        return docker_options.parse_shell(facts.options_text or "")
    except ConfigError:
        return {}


def _options(facts: DockerFacts) -> Iterator[Checked]:
    if facts.options_text is None:
        yield _problem(
            "options file",
            f"no {facts.options_file}",
            "docker starts with a subnet of its own",
            "start pyflannel without an empty --docker-opts-file, or write it with"
            f" pyflannel mk-docker-opts -d {facts.options_file}",
        )
        return
    names = [key for key in _variables_of(facts) if key in KEYS]
    if not names:
        yield _problem(
            "options file",
            f"{facts.options_file} has none of {', '.join(KEYS)}",
            "docker gets no option from it",
            "delete it; pyflanneld writes it again",
        )
        return
    yield _ok("options file", f"{facts.options_file} has {', '.join(names)}")


def _unit(facts: DockerFacts) -> Iterator[Checked]:
    if facts.unit is None:
        yield _unknown("docker's unit", "no docker.service here")
        return
    if facts.options_file in facts.unit.environment_files:
        yield _ok("EnvironmentFile", f"docker.service reads {facts.options_file}")
    else:
        yield _problem(
            "EnvironmentFile",
            f"docker.service does not read {facts.options_file}",
            "docker gets no option from it",
            _SET_UP,
        )
    yield _reference(facts, facts.unit)
    yield from _other_files(facts, facts.unit)
    yield from _want(facts, facts.unit)
    if AGENT in facts.unit.words("Unit", "After"):
        seen = "docker is started after pyflannel"
        if facts.enabled is False:
            seen += ", which is not enabled: a boot does not start it"
        yield _ok("order", seen)
    else:
        yield _problem(
            "order",
            "docker.service has no After=pyflannel.service",
            "at boot docker may start before its subnet is leased",
            "pyflannel docker-setup && systemctl daemon-reload",
        )


def _want(facts: DockerFacts, unit: Unit) -> Iterator[Checked]:
    """Starting docker may start us only where somebody enabled us."""
    pulled = [name for name in _PULLING if AGENT in unit.words("Unit", name)]
    if pulled and facts.enabled is False:
        ours = [path for path in unit.sources if path.endswith(f"/{DROP_IN}")]
        yield _problem(
            "want",
            f"docker.service has {pulled[0]}={AGENT} ({', '.join(ours) or 'its unit'}),"
            " and pyflannel is not enabled",
            "a start of docker starts pyflannel, waits for it, and stops flanneld",
            "pyflannel docker-setup && systemctl daemon-reload (writes the drop-in without it)",
        )
    if facts.upstream_pids and facts.enabled:
        yield _problem(
            "two agents",
            f"flanneld runs (pid {facts.upstream_pids[0]}), and pyflannel is enabled",
            "the next start of docker, and the next boot, starts pyflannel and stops flanneld",
            "systemctl disable pyflannel, or: systemctl disable --now flanneld",
        )


def _reference(facts: DockerFacts, unit: Unit) -> Checked:
    check = "command line"
    used = variables(unit.command_line)
    ours = referenced(unit)
    if not ours:
        words = [key for key in KEYS if key in used]
        seen = (
            f"ExecStart passes ${{{words[0]}}} as one word"
            if words
            else f"ExecStart refers to none of ${', $'.join(KEYS)}"
        )
        return _problem(
            check,
            f"{seen}: {unit.command_line}",
            "docker does not get the options"
            if not words
            else "docker cannot read the options: they are one argument with blanks in it",
            _SET_UP,
        )
    had = _variables_of(facts)
    if facts.options_text is not None and not any(had.get(key) for key in ours):
        return _problem(
            check,
            f"ExecStart refers to ${ours[0]}, which {facts.options_file} does not set",
            "docker does not get the options",
            f"start pyflanneld with --docker-opts-keys={','.join(KEYS)}",
        )
    return _ok(check, f"ExecStart passes ${ours[0]}")


def _other_files(facts: DockerFacts, unit: Unit) -> Iterator[Checked]:
    """Of environment files that set the same variable the last counts, and hides the others."""
    had = _variables_of(facts)
    files = list(unit.environment_files)
    if facts.options_file not in files:
        return
    place = len(files) - 1 - files[::-1].index(facts.options_file)
    for key in referenced(unit):
        for index, path in enumerate(files):
            theirs = environment(facts.environment_files.get(path, ""))
            if path == facts.options_file or key not in theirs or not had.get(key):
                continue
            words = theirs[key].split()
            if index > place and words != had[key].split():
                yield _problem(
                    "other options",
                    f"{path} sets {key} as well, and is read after {facts.options_file}",
                    f"docker gets {theirs[key] or 'nothing'} instead of the options",
                    f"take {key} out of {path}",
                )
            flags = {word.partition("=")[0] for word in had[key].split()}
            lost = [word for word in words if word.partition("=")[0] not in flags]
            if index < place and lost:
                yield _problem(
                    "other options",
                    f"{path} sets {key}={theirs[key]}",
                    f"docker does not get that: {facts.options_file} is read later",
                    f"say it in /etc/docker/daemon.json, and take {key} out of {path}",
                )


def configured(daemon_json: str | None) -> dict[str, object] | None:
    """daemon.json's object; empty if there is no file, `None` if it is something else."""
    if daemon_json is None or not daemon_json.strip():
        return {}
    try:
        found = json.loads(daemon_json)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _daemon_json(facts: DockerFacts) -> Iterator[Checked]:
    check = "daemon.json"
    said = configured(facts.daemon_json)
    if said is None:
        yield _problem(
            check,
            "/etc/docker/daemon.json is not a JSON object",
            "dockerd refuses to start",
            "correct it, or remove it",
        )
        return
    flags = {word.partition("=")[0] for word in _command_line(facts)}
    twice = sorted({name for flag, name in _JSON_KEYS.items() if flag in flags} & set(said))
    if said.get("bridge") and "--bip" in flags:
        yield _problem(
            check,
            f"/etc/docker/daemon.json sets bridge ({said['bridge']}), the options file --bip",
            "dockerd refuses to start: the two exclude each other",
            "remove bridge from /etc/docker/daemon.json",
        )
    elif {"-b", "--bridge"} & flags and "--bip" in flags:
        yield _problem(
            "command line",
            "docker.service passes --bridge, the options file --bip",
            "dockerd refuses to start: the two exclude each other",
            "take --bridge out of docker's unit or its environment file",
        )
    if twice:
        yield _problem(
            check,
            f"/etc/docker/daemon.json sets {', '.join(twice)} as well",
            "dockerd refuses to start: specified both as a flag and in the configuration file",
            f"remove {', '.join(twice)} from /etc/docker/daemon.json",
        )
    elif not said.get("bridge") or "--bip" not in flags:
        yield _ok(check, "nothing is set twice")


def _given_options(facts: DockerFacts) -> tuple[str, ...]:
    """What docker is to be started with, as words."""
    had = _variables_of(facts)
    for key in KEYS:
        if had.get(key):
            return tuple(had[key].split())
    return ()


def _command_line(facts: DockerFacts) -> Iterator[str]:
    """The words with which docker.service starts it: its own, and those of the variables."""
    yield from _given_options(facts)
    if facts.unit is None:
        return
    yield from facts.unit.command_line.split()
    known: dict[str, str] = {}
    for path in facts.unit.environment_files:
        known |= environment(facts.environment_files.get(path, ""))
    for name in variables(facts.unit.command_line):
        if name not in KEYS:
            yield from known.get(name, "").split()


def _running(facts: DockerFacts) -> Iterator[Checked]:
    check = "running docker"
    if facts.arguments is None:
        yield _unknown(check, "dockerd does not run")
        return
    wanted = _given_options(facts)
    missing = [option for option in wanted if option not in facts.arguments]
    if missing:
        yield _problem(
            check,
            f"dockerd runs without {' '.join(missing)}",
            "it was started before the file was there (it waits for pyflannel, but no longer than"
            " the unit's JobRunningTimeoutSec=), or before it was as it is now",
            f"{RESTART} (containers without --live-restore are stopped)",
        )
    elif wanted:
        yield _ok(check, f"dockerd runs with {' '.join(wanted)}")
    else:
        yield _unknown(check, "no options to compare with")


def _bridge(facts: DockerFacts) -> Iterator[Checked]:
    if facts.bridge is None:
        yield _unknown("docker0", "no device docker0")
        return
    shown = ", ".join(map(str, facts.bridge)) or "no address"
    subnet = facts.subnet.subnet if facts.subnet is not None else None
    if facts.arguments is None:
        yield _unknown("docker0", f"{shown}, of a docker that does not run")
        return
    if subnet is None:
        yield _unknown("docker0", shown)
    elif any(address.network == subnet for address in facts.bridge):
        yield _ok("docker0", shown)
    else:
        yield _problem(
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
        yield _problem(
            "MTU",
            f"docker0 has {facts.bridge_mtu}, the overlay carries {mtu}",
            "large packets are fragmented or lost",
            RESTART,
        )


def _masquerade(facts: DockerFacts) -> Iterator[Checked]:
    check = "masquerade"
    ours = facts.subnet.ip_masq if facts.subnet is not None else None
    if facts.arguments is None or ours is None:
        yield _unknown(check, "docker or the lease is not there")
        return
    theirs = _masquerades(facts.arguments, (configured(facts.daemon_json) or {}).get("ip-masq"))
    if ours and theirs:
        yield _problem(
            check,
            "pyflannel masquerades, and docker as well",
            "packets to other nodes' containers get the node's address as source",
            f"{RESTART}, so that it takes --ip-masq=false from the options file",
        )
    elif not ours and not theirs:
        yield _problem(
            check,
            "neither pyflannel nor docker masquerades",
            "containers reach nothing outside of the overlay",
            "set FLANNELD_IP_MASQ=true for pyflannel, or take --ip-masq=false from docker",
        )
    else:
        yield _ok(check, f"done by {'pyflannel' if ours else 'docker'}")


def _masquerades(arguments: Sequence[str], said: object) -> bool:
    for word in reversed(arguments):
        name, _, value = word.partition("=")
        if name == "--ip-masq":
            return value not in {"false", "0", "f", "F", "False", "FALSE"}
    return said is not False


def _forwarding(facts: DockerFacts) -> Iterator[Checked]:
    if facts.ip_forward is None:
        yield _unknown("ip_forward", "not readable")
    elif facts.ip_forward:
        yield _ok("ip_forward", "on")
    else:
        yield _problem(
            "ip_forward",
            "net.ipv4.ip_forward is 0",
            "the node passes no packet of a container on",
            "sysctl -w net.ipv4.ip_forward=1",
        )
    if facts.forward_policy is None:
        yield _unknown("FORWARD", "iptables did not tell")
    elif facts.forward_policy == "ACCEPT" or facts.forward_rules:
        how = "our rules accept the overlay" if facts.forward_rules else "policy ACCEPT"
        yield _ok("FORWARD", how)
    else:
        yield _problem(
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
        yield _problem(check, f"iptables -t raw: {raw[0][0]}", consequence, _past_raw(facts))
    drops = [m for m in map(_BRIDGE_DROP.fullmatch, facts.docker_rules) if m]
    ours = [m for m in drops if m[1] in {"docker0", *facts.bridges}]
    if ours and not _let_through(facts.docker_rules, subnet):
        network = f" -s {facts.subnet.network}" if facts.subnet and facts.subnet.network else ""
        yield _problem(
            check,
            f"iptables: {ours[0][0]}, before our rules",
            consequence,
            "pyflannel docker-setup (pyflanneld then keeps an accept); until the next boot also:"
            f" iptables -I DOCKER-USER{network} -d {subnet} -j ACCEPT",
        )
    if facts.own_nftables:
        yield _problem(
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
            f"{_SET_UP}; or make the docker network with"
            " -o com.docker.network.bridge.trusted_host_interfaces=flannel.1 (docker 28.2)"
        )
    return _SET_UP


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
