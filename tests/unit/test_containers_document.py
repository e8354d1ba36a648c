"""docs/containers.md: the shell's arithmetic on a leased subnet of any length."""

from __future__ import annotations

import re
import subprocess
from ipaddress import IPv4Network
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[2] / "docs/containers.md").read_text()
COMMANDS = re.findall(
    r"subnet\.env; (GATEWAY=\S+;) docker network create (--subnet .*? --gateway \S+)", TEXT
)


@pytest.mark.parametrize("subnet", ["10.9.7.0/24", "10.9.7.128/25", "10.9.16.0/20", "10.9.7.4/30"])
def test_docker_gets_the_subnet_and_its_first_address(subnet: str) -> None:
    network = IPv4Network(subnet)
    first = network.network_address + 1
    assert len(COMMANDS) == 2
    for assignment, options in COMMANDS:
        script = f"FLANNEL_SUBNET={first}/{network.prefixlen}; {assignment} echo {options}"
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout == f"--subnet {subnet} --gateway {first}\n"
