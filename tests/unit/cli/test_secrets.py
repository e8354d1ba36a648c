"""A password given in any way, also a wrong one, is never printed."""

from __future__ import annotations

import os

import pytest

from pyflannel import daemon
from pyflannel.cli import pyflannel as tool
from pyflannel.cli import pyflanneld, start
from pyflannel.core.commandline import RunDaemon, parse_daemon
from pyflannel.core.errors import UsageError
from pyflannel.core.options import DaemonOptions, EtcdOptions
from pyflannel.core.sysconfig import translate
from pyflannel.kernel import limits

SECRET = "S3cret"
URL = f"http://root:{SECRET}@h:1"


@pytest.mark.parametrize(
    "argv",
    [
        [command, *words]
        for command in ("leases", "status", "doctor", "docker-setup", "cleanup", "config check -")
        for words in (
            ["--etcd-pasword", SECRET],
            [f"--etcd-passwd={SECRET}"],
            ["--password", SECRET],
            ["-p", SECRET],
        )
    ]
    + [["doctor", "--etcd-password", SECRET], ["status", f"--etcd-password={SECRET}"]]
    + [["leases", "--etcd-endpoints", URL], ["config", "get", f"--etcd-endpoints=x,{URL}"]]
    + [["lab", "up", "--etcd-pasword", SECRET], ["lab", "ping", f"--password={SECRET}"]],
    ids=" ".join,
)
def test_no_command_repeats_one(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = [*argv[0].split(), *argv[1:]]
    assert tool.run(words) in {2, 78}
    said = capsys.readouterr()
    assert SECRET not in said.out + said.err
    assert said.err.startswith("pyflannel")


@pytest.mark.parametrize(
    "argv",
    [
        ["-etcd-pasword", SECRET],
        ["-etcd-password"],
        ["--etcd-password", SECRET, "-nonsense"],
        ["-etcd-endpoints", URL, "-iptables-resync=0", "-etcd-password", SECRET],
    ],
)
def test_the_daemons_refusals_do_not(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert pyflanneld.run(["pyflanneld", *argv]) in {2, 78}
    assert SECRET not in capsys.readouterr().err


@pytest.mark.parametrize(
    "env",
    [
        {"FLANNEL_ETCD_ENDPOINTS": URL, "FLANNEL_ETCD": f"{URL},http://b:1"},
        {"FLANNEL_ETCD_ENDPOINTS": URL, "FLANNELD_ETCD_ENDPOINTS": f"{URL}0"},
        {"FLANNEL_OPTIONS": f"-etcd-endpoints={URL}", "FLANNELD_ETCD_ENDPOINTS": f"{URL}0"},
        {"FLANNEL_OPTIONS": f"-etcd-password={SECRET}", "FLANNELD_ETCD_PASSWORD": f"x{SECRET}"},
        {"FLANNEL_OPTIONS": f"-v=1 x --etcd-pasword {SECRET}"},
        {"FLANNEL_OPTIONS": f"-v=1 etcd-password={SECRET}"},
        {"FLANNELD_ETCD_PASWORD": SECRET, "FLANNEL_ETCD_PASSWORD": SECRET},
    ],
    ids=str,
)
def test_warnings_and_the_logged_options_do_not(env: dict[str, str]) -> None:
    launch = translate([], env)
    parsed = parse_daemon(["pyflanneld", *launch.argv], env)
    assert isinstance(parsed, RunDaemon)
    warnings = (*launch.warnings, *parsed.warnings)
    assert warnings
    assert SECRET not in " ".join((*warnings, parsed.options.describe(), repr(launch.warnings)))


def test_a_line_of_options_that_cannot_be_split_is_not_printed() -> None:
    with pytest.raises(UsageError, match="FLANNEL_OPTIONS") as caught:
        translate([], {"FLANNEL_OPTIONS": f"-etcd-password={SECRET} 'x"})
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


def test_the_check_before_a_reload_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert start.check(["-etcd-endpoints", URL, "-etcd-password", SECRET]) == 78
    assert SECRET not in capsys.readouterr().err


def test_a_dump_of_the_options_does_not() -> None:
    assert SECRET not in repr(EtcdOptions(password=SECRET))


def test_what_the_daemon_runs_does_not_inherit_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """iptables, and the commands of backend extension, which stand in etcd."""
    seen: list[dict[str, str]] = []

    def run_daemon(options: DaemonOptions, _warnings: object) -> int:
        assert options.etcd.password == SECRET
        seen.append(dict(os.environ))
        return 0

    monkeypatch.setattr(daemon, "run_daemon", run_daemon)
    monkeypatch.setenv("FLANNELD_ETCD_PASSWORD", SECRET)
    monkeypatch.setenv("FLANNEL_OPTIONS", f"-etcd-password={SECRET}")
    assert pyflanneld.run(["pyflanneld"]) == 0
    assert SECRET not in str(seen)
    assert seen


@pytest.mark.parametrize(
    ("argv", "forbidden"),
    [
        ([], False),
        (["-etcd-username=flannel", "-etcd-password-file=/etc/secret"], True),
        (["-etcd-keyfile=/etc/key", "-etcd-certfile=/etc/cert"], True),
    ],
)
def test_a_daemon_with_secrets_dumps_no_core(
    argv: list[str], forbidden: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no unit sees to it."""
    done: list[str] = []
    monkeypatch.setattr(limits, "forbid_core_dumps", lambda: done.append("forbidden"))
    monkeypatch.setattr(daemon, "run_daemon", lambda *_: 0)
    assert pyflanneld.run(["pyflanneld", *argv]) == 0
    assert done == ["forbidden"] * forbidden
