"""What docker is told: the options file, its unit and environment files, daemon.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

from pyflannel.core.errors import ConfigError
from pyflannel.docker import options as docker_options
from pyflannel.docker.dockerd import FLAG
from pyflannel.docker.dropin import KEYS, referenced
from pyflannel.docker.model import (
    AGENT,
    DROP_IN,
    SET_UP,
    Checked,
    DockerFacts,
    ok,
    problem,
    unknown,
)
from pyflannel.docker.unitfile import Unit, environment, variables

_JSON_KEYS: Final = {
    "--bip": "bip",
    "--mtu": "mtu",
    "--ip-masq": "ip-masq",
    f"--{FLAG}": FLAG,
    "-H": "hosts",
    "--host": "hosts",
}
"""Docker's flags that we give, or that its units have, and their names in daemon.json."""
_PULLING: Final = ("Wants", "Requires", "BindsTo", "Requisite", "Upholds")
"""Settings of systemd.unit(5) that start, or need, another unit."""


def told(facts: DockerFacts) -> Iterator[Checked]:
    """The checks of what docker is told."""
    yield from _lease(facts)
    yield from _options(facts)
    yield from _unit(facts)
    yield from _daemon_json(facts)


def _lease(facts: DockerFacts) -> Iterator[Checked]:
    if facts.subnet is None or facts.subnet.subnet is None:
        yield problem(
            "lease",
            f"no subnet in {facts.subnet_file}"
            + ("" if facts.subnet is not None else ", which is not there"),
            "there is nothing that docker could use",
            f"pyflanneld runs and is not ready: {facts.daemon}"
            if facts.daemon
            else "systemctl start pyflannel; systemctl status pyflannel says what it waits for",
        )
    else:
        yield ok("lease", f"subnet {facts.subnet.subnet}")


def _variables_of(facts: DockerFacts) -> dict[str, str]:
    try:
        return docker_options.parse_shell(facts.options_text or "")
    except ConfigError:
        return {}


def _options(facts: DockerFacts) -> Iterator[Checked]:
    if facts.options_text is None:
        yield problem(
            "options file",
            f"no {facts.options_file}",
            "docker starts with a subnet of its own",
            "start pyflannel without an empty --docker-opts-file, or write it with"
            f" pyflannel mk-docker-opts -d {facts.options_file}",
        )
        return
    names = [key for key in _variables_of(facts) if key in KEYS]
    if not names:
        yield problem(
            "options file",
            f"{facts.options_file} has none of {', '.join(KEYS)}",
            "docker gets no option from it",
            "delete it; pyflanneld writes it again",
        )
        return
    yield ok("options file", f"{facts.options_file} has {', '.join(names)}")


def _unit(facts: DockerFacts) -> Iterator[Checked]:
    if facts.unit is None:
        yield unknown("docker's unit", "no docker.service here")
        return
    if facts.options_file in facts.unit.environment_files:
        yield ok("EnvironmentFile", f"docker.service reads {facts.options_file}")
    else:
        yield problem(
            "EnvironmentFile",
            f"docker.service does not read {facts.options_file}",
            "docker gets no option from it",
            SET_UP,
        )
    yield _reference(facts, facts.unit)
    yield from _other_files(facts, facts.unit)
    yield from _want(facts, facts.unit)
    if AGENT in facts.unit.words("Unit", "After"):
        seen = "docker is started after pyflannel"
        if facts.enabled is False:
            seen += ", which is not enabled: a boot does not start it"
        yield ok("order", seen)
    else:
        yield problem(
            "order",
            "docker.service has no After=pyflannel.service",
            "at boot docker may start before its subnet is leased",
            "pyflannel docker-setup && systemctl daemon-reload",
        )


def _want(facts: DockerFacts, unit: Unit) -> Iterator[Checked]:
    """Starting docker may start us only where we are enabled."""
    pulled = [name for name in _PULLING if AGENT in unit.words("Unit", name)]
    if pulled and facts.enabled is False:
        ours = [path for path in unit.sources if path.endswith(f"/{DROP_IN}")]
        yield problem(
            "want",
            f"docker.service has {pulled[0]}={AGENT} ({', '.join(ours) or 'its unit'}),"
            " and pyflannel is not enabled",
            "a start of docker starts pyflannel, waits for it, and stops flanneld",
            "pyflannel docker-setup && systemctl daemon-reload (writes the drop-in without it)",
        )
    if facts.upstream_pids and facts.enabled:
        yield problem(
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
        return problem(
            check,
            f"{seen}: {unit.command_line}",
            "docker does not get the options"
            if not words
            else "docker cannot read the options: they are one argument with blanks in it",
            SET_UP,
        )
    had = _variables_of(facts)
    if facts.options_text is not None and not any(had.get(key) for key in ours):
        return problem(
            check,
            f"ExecStart refers to ${ours[0]}, which {facts.options_file} does not set",
            "docker does not get the options",
            f"start pyflanneld with --docker-opts-keys={','.join(KEYS)}",
        )
    return ok(check, f"ExecStart passes ${ours[0]}")


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
                yield problem(
                    "other options",
                    f"{path} sets {key} as well, and is read after {facts.options_file}",
                    f"docker gets {theirs[key] or 'nothing'} instead of the options",
                    f"take {key} out of {path}",
                )
            flags = {word.partition("=")[0] for word in had[key].split()}
            lost = [word for word in words if word.partition("=")[0] not in flags]
            if index < place and lost:
                yield problem(
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
        yield problem(
            check,
            "/etc/docker/daemon.json is not a JSON object",
            "dockerd refuses to start",
            "correct it, or remove it",
        )
        return
    flags = {word.partition("=")[0] for word in _command_line(facts)}
    twice = sorted({name for flag, name in _JSON_KEYS.items() if flag in flags} & set(said))
    if said.get("bridge") and "--bip" in flags:
        yield problem(
            check,
            f"/etc/docker/daemon.json sets bridge ({said['bridge']}), the options file --bip",
            "dockerd refuses to start: the two exclude each other",
            "remove bridge from /etc/docker/daemon.json",
        )
    elif {"-b", "--bridge"} & flags and "--bip" in flags:
        yield problem(
            "command line",
            "docker.service passes --bridge, the options file --bip",
            "dockerd refuses to start: the two exclude each other",
            "take --bridge out of docker's unit or its environment file",
        )
    if twice:
        yield problem(
            check,
            f"/etc/docker/daemon.json sets {', '.join(twice)} as well",
            "dockerd refuses to start: specified both as a flag and in the configuration file",
            f"remove {', '.join(twice)} from /etc/docker/daemon.json",
        )
    elif not said.get("bridge") or "--bip" not in flags:
        yield ok(check, "nothing is set twice")


def given_options(facts: DockerFacts) -> tuple[str, ...]:
    """What docker is to be started with, as words."""
    had = _variables_of(facts)
    for key in KEYS:
        if had.get(key):
            return tuple(had[key].split())
    return ()


def _command_line(facts: DockerFacts) -> Iterator[str]:
    """The words with which docker.service starts it: its own, and those of the variables."""
    yield from given_options(facts)
    if facts.unit is None:
        return
    yield from facts.unit.command_line.split()
    known: dict[str, str] = {}
    for path in facts.unit.environment_files:
        known |= environment(facts.environment_files.get(path, ""))
    for name in variables(facts.unit.command_line):
        if name not in KEYS:
            yield from known.get(name, "").split()
