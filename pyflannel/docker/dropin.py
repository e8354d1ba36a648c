"""The drop-in that gives docker's unit the options for the leased subnet.

It has the order only, no want: a docker that is installed beside a pyflannel which was not enabled
starts at once, and never starts an agent that would take the place of a running flanneld. The want
comes with `systemctl enable pyflannel`, whose `[Install]` section has docker.service too.

Two things differ between docker's units. Debian's has `$DOCKER_OPTS` on its command line, CentOS's
`$DOCKER_NETWORK_OPTIONS`: an `EnvironmentFile=` is enough there, since the daemon can write both
(`-docker-opts-keys`). Docker's own has neither: its command line is taken over with one added.

A docker that drops other nodes' packets to containers is told not to, in the way it knows
(`docker.dockerd`). Not by `docker_opts.env`: its bytes are upstream's, and a dockerd that does not
know an option refuses to start with it.
"""

from __future__ import annotations

from typing import Final

from pyflannel.docker import options as docker_options
from pyflannel.docker import unitfile
from pyflannel.docker.dockerd import FLAG, VARIABLE, Direct
from pyflannel.docker.unitfile import Unit

NETWORK_OPTIONS: Final = "DOCKER_NETWORK_OPTIONS"
KEYS: Final = (docker_options.DOCKER_OPTS, NETWORK_OPTIONS)
"""The variables that units of the distributions refer to."""
MARK: Final = "# docker in the subnet that pyflannel leased."
"""First line of a drop-in of ours: that it may be overwritten."""


def referenced(unit: Unit) -> tuple[str, ...]:
    """Which of our variables docker's command line refers to as words of their own."""
    used = unitfile.variables(unit.command_line)
    return tuple(key for key in KEYS if used.get(key))


def drop_in(
    unit: Unit | None,
    options_file: str = docker_options.DOCKER_ENV,
    direct: Direct = Direct.NOTHING,
) -> str:
    """The text of the drop-in.

    Args:
        unit: docker's, without a drop-in that we made before; `None` for the one that fits units
            which have one of the variables already.
        options_file: as the daemon's `-docker-opts-file`.
        direct: how this docker is told to let other nodes' packets through.
    """
    lines = [
        MARK,
        "[Unit]",
        "# The order only. Whether pyflannel is started with docker is said by enabling it.",
        "After=pyflannel.service",
        "",
        "[Service]",
        "# Optional: where pyflannel does not run, docker starts with its own subnet.",
        f"EnvironmentFile=-{options_file}",
    ]
    if direct is Direct.VARIABLE:
        lines += [_WHY_DIRECT, f"Environment={VARIABLE}=1"]
    if unit is not None:
        lines += _command(unit, with_flag=direct is Direct.FLAG)
    return "\n".join(lines) + "\n"


_WHY_DIRECT: Final = (
    "# Since version 28 docker drops what other nodes send to a container's address."
)


def _command(unit: Unit, *, with_flag: bool) -> list[str]:
    """The lines that give the unit another command line, if it needs one."""
    command = unit.command_line
    flag_is_new = with_flag and f"--{FLAG}" not in command
    lines = [_WHY_DIRECT] if flag_is_new else []
    if flag_is_new:
        command += f" --{FLAG}"
    if not referenced(unit):
        lines.append(f"# This unit's own command line, with ${docker_options.DOCKER_OPTS} added.")
        command = f"{_without_references(command)} ${docker_options.DOCKER_OPTS}"
    return [*lines, "ExecStart=", f"ExecStart={command}"] if lines else []


def _without_references(command_line: str) -> str:
    """A command line without references that pass all options as one word, which never works."""
    for key in KEYS:
        command_line = command_line.replace(f'"${{{key}}}"', "").replace(f"${{{key}}}", "")
    return command_line.rstrip()
