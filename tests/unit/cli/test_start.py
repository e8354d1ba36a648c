"""`pyflanneld-start`: what it makes of the unit's environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyflannel.cli import start
from pyflannel.cli.start import check, in_our_directory

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


@pytest.mark.parametrize(
    ("text", "arguments", "words"),
    [
        ('{"Network":"10.244.0.0/16","Backend":{"Type":"nope"}}', [], "unknown backend type: nope"),
        (None, [], "no such file"),
        ("{}", ["-kubeconfig-file=/nope"], "/nope"),
    ],
)
def test_a_check_says_what_keeps_a_node_of_kubernetes_from_starting(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str | None,
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.setenv("NODE_NAME", "n1")
    path = tmp_path / "net-conf.json"
    if text is not None:
        path.write_text(text)
    argv = ["-kube-subnet-mgr", "-kube-api-url=http://127.0.0.1:1", f"-net-config-path={path}"]
    files = [f"-{name}={tmp_path}/x" for name in ("subnet-file", "status-socket", "state-dir")]
    assert check([*argv, *files, *arguments]) == 78
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["-v=1", "-h"], ["-help"]])
def test_help_is_about_this_program(words):
    text = start.help_text(words)
    assert text.startswith("Usage: pyflanneld-start [-check-only] [OPTION]...\n")
    assert "FLANNEL_ETCD_ENDPOINTS (or FLANNEL_ETCD): -etcd-endpoints" in text
    assert "FLANNEL_OPTIONS" in text
    assert "  -subnet-file" in text


@pytest.mark.parametrize("words", [[], ["-v=1"], ["-iface", "-h"], ["-nosuch", "-h"]])
def test_help_is_not_given_where_it_is_not_asked_for(words):
    assert start.help_text(words) is None
