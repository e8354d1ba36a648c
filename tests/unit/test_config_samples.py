"""The sample network configs are what they claim to be."""

from __future__ import annotations

import json
import re
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from pyflannel.backend.kinds import BUILT_IN, KINDS
from pyflannel.core.configparse import parse_network_config
from pyflannel.core.ip import Family

SAMPLES = sorted((Path(__file__).parents[2] / "config").glob("*.json"))


def test_every_backend_has_a_sample_and_every_sample_a_backend() -> None:
    assert [path.stem for path in SAMPLES] == sorted(BUILT_IN)


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_a_sample_parses_without_any_problem_and_names_its_backend(path: Path) -> None:
    parsed = parse_network_config(path.read_bytes(), KINDS)
    assert parsed.problems == ()
    assert parsed.config is not None
    assert parsed.config.backend_type == path.stem


def test_the_reference_shows_these_samples() -> None:
    page = (SAMPLES[0].parents[1] / "docs/reference/network-config.md").read_text()
    shown = re.findall(r"^```json\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert [json.loads(block) for block in shown] == [json.loads(p.read_text()) for p in SAMPLES]


def test_samples_of_dual_stack_backends_show_dual_stack() -> None:
    dual = set()
    for path in SAMPLES:
        config = parse_network_config(path.read_bytes(), KINDS).config
        assert config is not None
        if config.families == (Family.V4, Family.V6):
            dual.add(config.backend_type)
    assert dual == {"vxlan", "host-gw"}


DEFAULTS = {
    "Azure's virtual networks": "10.0.0.0/16",
    "VirtualBox": "10.0.2.0/24",
    "home routers": "10.0.0.0/22",
    "k3s": "10.42.0.0/15",
    "Podman": "10.88.0.0/16",
    "Kubernetes' services": "10.96.0.0/12",
    "docker and AWS": "172.16.0.0/12",
    "home routers, libvirt": "192.168.0.0/16",
    "carriers, Tailscale": "100.64.0.0/10",
}
"""What machines are connected to where nothing was configured."""
README = Path(__file__).parents[2] / "README.md"


@pytest.mark.parametrize("path", [*SAMPLES, README], ids=lambda path: path.name)
def test_a_sample_overlaps_nothing_that_a_lan_has_by_default(path: Path) -> None:
    named = re.findall(r'"Network": *"([^"]+)"', path.read_text())
    assert named or path == README
    for text in named:
        network = IPv4Network(text)
        met = [who for who, net in DEFAULTS.items() if network.overlaps(IPv4Network(net))]
        assert met == []
