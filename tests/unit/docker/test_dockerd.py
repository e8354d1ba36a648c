"""What a dockerd knows is read from the program, without running it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyflannel.docker.dockerd import Direct, direct_routing, program


@pytest.mark.parametrize(
    ("command_line", "path"),
    [
        ("/usr/bin/dockerd -H fd://", "/usr/bin/dockerd"),
        ("-@/usr/bin/dockerd -H fd://", "/usr/bin/dockerd"),
        ("", ""),
    ],
)
def test_the_program_of_a_command_line(command_line: str, path: str) -> None:
    assert program(command_line) == path


@pytest.mark.parametrize(
    ("content", "known"),
    [
        (b"\x7fELF ip-masq\0", Direct.NOTHING),
        (b"\x7fELF\0DOCKER_INSECURE_NO_IPTABLES_RAW\0", Direct.VARIABLE),
        (b"\x7fELF DOCKER_INSECURE_NO_IPTABLES_RAWallow-direct-routingbip", Direct.FLAG),
        (b"", Direct.NOTHING),
    ],
)
def test_what_it_knows(tmp_path: Path, content: bytes, known: Direct) -> None:
    (tmp_path / "dockerd").write_bytes(content)
    assert direct_routing(tmp_path, "/dockerd -H fd://") is known


def test_one_that_cannot_be_read_knows_nothing(tmp_path: Path) -> None:
    assert direct_routing(tmp_path, "/dockerd") is Direct.NOTHING
    assert direct_routing(tmp_path, "") is Direct.NOTHING
