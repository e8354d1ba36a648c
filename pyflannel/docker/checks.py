"""Why docker is not in the leased subnet: facts in, the outcome of each check out.

Each check looks at what was gathered (`docker.facts`) and says what it saw, what comes of it and
what to type. A fact that could not be read makes its checks `unknown`, never `ok`.
"""

from __future__ import annotations

from typing import Final

from pyflannel.docker.model import Checked, DockerFacts
from pyflannel.docker.runchecks import done
from pyflannel.docker.unitchecks import told

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


def checked(facts: DockerFacts) -> list[Checked]:
    """All checks, those about what docker is told before those about what it does."""
    return [*told(facts), *done(facts)]
