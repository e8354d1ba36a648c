"""`pyflanneld-start`: what it makes of the unit's environment."""

from __future__ import annotations

import pytest

from pyflannel.cli.start import in_our_directory

UNITS = "-docker-opts-file=/run/flannel/docker_opts.env"


def confined(path: str) -> bool:
    """Of /run the unit's daemon writes its own directory alone."""
    return path == "/run/flannel"


@pytest.mark.parametrize(
    ("argv", "env", "becomes"),
    [
        (["-v=1"], {}, [UNITS, "-v=1"]),
        (["-docker-opts-file=/run/docker_opts.env", "-v=1"], {}, [UNITS, "-v=1"]),
        (["--docker-opts-file", "/run/docker_opts.env", "-v=1"], {}, [UNITS, "-v=1"]),
        (["-v=1"], {"FLANNELD_DOCKER_OPTS_FILE": "/run/docker_opts.env"}, [UNITS, "-v=1"]),
        (["-v=1"], {"FLANNELD_DOCKER_OPTS_FILE": "/run/flannel/docker_opts.env"}, ["-v=1"]),
        (["-docker-opts-file=", "-v=1"], {}, ["-docker-opts-file=", "-v=1"]),
        (["-docker-opts-file=/srv/x"], {}, ["-docker-opts-file=/srv/x"]),
        (["-no-such-flag"], {}, ["-no-such-flag"]),
    ],
)
def test_in_the_sandbox_the_usual_place_is_the_one_that_its_link_leads_to(
    argv: list[str], env: dict[str, str], becomes: list[str]
) -> None:
    assert in_our_directory(argv, env, writable=confined) == becomes


def test_elsewhere_it_is_where_it_always_was() -> None:
    assert in_our_directory(["-v=1"], {}, writable=lambda _: True) == ["-v=1"]
