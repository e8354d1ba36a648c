"""The sample network configs are what they claim to be."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyflannel.backend.kinds import BUILT_IN, KINDS
from pyflannel.core.config import parse_network_config
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


def test_samples_of_dual_stack_backends_show_dual_stack() -> None:
    dual = set()
    for path in SAMPLES:
        config = parse_network_config(path.read_bytes(), KINDS).config
        assert config is not None
        if config.families == (Family.V4, Family.V6):
            dual.add(config.backend_type)
    assert dual == {"vxlan", "host-gw"}
