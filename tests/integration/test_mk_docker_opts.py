"""The command as units run it: a process, real files, the bytes and exit codes of the script."""

from __future__ import annotations

import json
import os
import shlex
import stat
import string
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

DATA = Path(__file__).parent.parent / "data" / "mk-docker-opts"
CASES = json.loads((DATA / "cases.json").read_text())
COMMAND = (sys.executable, "-m", "pyflannel.cli.dockeropts")
UPSTREAM = os.environ.get("PYFLANNEL_UPSTREAM_MK_DOCKER_OPTS", "")


def run(directory, *arguments, environment=None, command=COMMAND):
    """Runs the command in a directory, with nothing but PATH in its environment."""
    clean = {"PATH": os.environ["PATH"], **(environment or {})}
    return subprocess.run(
        [*command, *arguments],
        cwd=directory,
        env=clean,
        check=False,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=30,
    )


@pytest.fixture
def directory(tmp_path):
    for file in DATA.glob("*.env"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.fixture
def fake_ip(tmp_path):
    """An `ip` in front of the real one that prints the given routes."""

    def install(routes):
        place = tmp_path / "bin"
        place.mkdir()
        script = place / "ip"
        script.write_text(
            f'#!/bin/sh\n[ "$*" = "route show" ] && printf %s {shlex.quote(routes)}\n'
        )
        script.chmod(0o755)
        return {"PATH": f"{place}:{os.environ['PATH']}"}

    return install


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(case["args"]))
def test_the_bytes_and_exit_codes_are_those_observed_on_the_script(directory, case):
    ended = run(directory, *case["args"], environment=case["environment"])
    written = directory / case["args"][3]
    assert ended.returncode == case["code"], ended.stderr
    assert (written.read_text() if written.exists() else None) == case["output"]
    assert bool(ended.stderr) == bool(case["stderr"])
    assert ended.stdout == ""
    if "Invalid value" in "".join(case["stderr"]):
        assert ended.stderr.splitlines() == case["stderr"]


@pytest.mark.parametrize("option", ["-h", "-?", "-x", "-f", "--help", "-k;reboot"])
def test_help_and_bad_options_give_the_usage_and_touch_nothing(directory, option):
    (directory / "out").write_text("old")
    ended = run(directory, "-d", "out", option)
    assert ended.returncode == 1
    assert "[-f FLANNEL-ENV-FILE]" in ended.stderr
    assert (directory / "out").read_text() == "old"


def test_an_unknown_option_is_named_in_the_shells_words(directory):
    assert run(directory, "-x").stderr.startswith("Illegal option -x\n")


def test_an_invalid_value_leaves_the_old_output_untouched(directory):
    (directory / "out").write_text("old")
    before = (directory / "out").stat()
    assert run(directory, "-f", "./bad.env", "-d", "out").returncode == 1
    after = (directory / "out").stat()
    assert (directory / "out").read_text() == "old"
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize(
    "line", ["touch ran", "A=$(touch ran)", "A=`touch ran`", "A=1; touch ran", "A=1 touch ran"]
)
def test_code_in_the_env_file_is_refused_and_not_run(directory, line):
    (directory / "evil.env").write_text(f"FLANNEL_MTU=1472\n{line}\n")
    (directory / "out").write_text("old")
    ended = run(directory, "-f", "./evil.env", "-d", "out")
    assert ended.returncode == 1
    assert "./evil.env: line 2: " in ended.stderr
    assert "nothing was written" in ended.stderr
    assert not (directory / "ran").exists()
    assert (directory / "out").read_text() == "old"


def test_quoted_code_does_not_come_alive_in_the_output(directory):
    (directory / "evil.env").write_text("FLANNEL_MTU='$(touch ran)'\n")
    ended = run(directory, "-f", "./evil.env", "-d", "out")
    assert ended.returncode == 1
    assert "FLANNEL_MTU" in ended.stderr
    assert not (directory / "out").exists()


def test_a_torn_file_ends_as_in_a_shell(directory):
    (directory / "torn.env").write_text("FLANNEL_MTU='14")
    ended = run(directory, "-f", "./torn.env", "-d", "out")
    assert ended.returncode == 2
    assert not (directory / "out").exists()


def test_a_missing_file_means_the_environment(directory):
    environment = {"FLANNEL_SUBNET": "10.1.74.1/24", "FLANNEL_IPMASQ": "true"}
    ended = run(directory, "-f", "./none", "-d", "out", "-c", environment=environment)
    assert ended.returncode == 0
    assert (directory / "out").read_text() == 'DOCKER_OPTS=" --bip=10.1.74.1/24 --ip-masq=false"\n'


def test_the_file_wins_over_the_environment(directory):
    ended = run(directory, "-f", "./t.env", "-d", "out", "-i", environment={"FLANNEL_MTU": "9000"})
    assert ended.returncode == 0
    assert "--mtu=1472" in (directory / "out").read_text()


def test_a_path_with_spaces_is_one_path(directory):
    (directory / "a b.env").write_bytes((DATA / "t.env").read_bytes())
    assert run(directory, "-f", "./a b.env", "-d", "o u t").returncode == 0
    assert (directory / "o u t").read_text() == CASES[0]["output"]


def test_it_may_be_pointed_at_its_own_input(directory):
    """All is read before anything is written; what comes out is what came out elsewhere."""
    assert run(directory, "-f", "./t.env", "-d", "./t.env").returncode == 0
    assert (directory / "t.env").read_text() == CASES[0]["output"]


def test_its_own_output_can_be_its_input(directory):
    assert run(directory, "-f", "./t.env", "-d", "out", "-i").returncode == 0
    assert run(directory, "-f", "./out", "-d", "again", "-i").returncode == 0
    assert (directory / "again").read_bytes() == (directory / "out").read_bytes()


def test_a_new_output_is_0644_and_an_old_ones_mode_is_kept(directory):
    script = 'umask 077; exec "$@"'
    command = ("sh", "-c", script, "sh", *COMMAND)
    run(directory, "-f", "./t.env", "-d", "out", command=command)
    assert stat.S_IMODE((directory / "out").stat().st_mode) == 0o644
    (directory / "out").chmod(0o600)
    run(directory, "-f", "./t.env", "-d", "out", command=command)
    assert stat.S_IMODE((directory / "out").stat().st_mode) == 0o600


def test_a_symbolic_link_is_written_through_and_stays(directory):
    (directory / "real").mkdir()
    (directory / "out").symlink_to("real/file")
    assert run(directory, "-f", "./t.env", "-d", "out").returncode == 0
    assert (directory / "out").is_symlink()
    assert (directory / "real" / "file").read_text() == CASES[0]["output"]


def test_the_output_may_be_the_standard_output(directory):
    ended = run(directory, "-f", "./t.env", "-d", "/dev/stdout")
    assert ended.returncode == 0
    assert ended.stdout == CASES[0]["output"]


def test_the_output_may_be_a_fifo(directory):
    os.mkfifo(directory / "fifo")
    got = []
    reader = threading.Thread(target=lambda: got.append((directory / "fifo").read_text()))
    reader.start()
    assert run(directory, "-f", "./t.env", "-d", "fifo").returncode == 0
    reader.join(timeout=10)
    assert got == [CASES[0]["output"]]


@pytest.mark.parametrize("target", ["nodir/out", "adir", ""])
def test_an_output_that_cannot_be_written_is_told_and_is_not_the_end(directory, target):
    (directory / "adir").mkdir()
    ended = run(directory, "-f", "./t.env", "-d", target)
    assert ended.returncode == 0
    assert ended.stderr.count("\n") == 1
    assert not (directory / "nodir").exists()


@pytest.mark.root
def test_a_file_that_is_a_mount_point_is_written_in_place(directory):
    """A container gets the file bind-mounted; nothing can be renamed over it."""
    (directory / "out").write_text("old")
    (directory / "mounted").write_text("old")
    script = 'mount --bind mounted out && exec "$@"'
    ended = run(
        directory, "-f", "./t.env", "-d", "out",
        command=("unshare", "-m", "sh", "-c", script, "sh", *COMMAND),
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (directory / "mounted").read_text() == CASES[0]["output"]


class TestRouteCheck:
    def test_a_route_to_the_subnet_ends_with_1_after_the_file_is_written(self, directory, fake_ip):
        environment = fake_ip("default via 192.0.2.1 dev e0\n10.240.35.0/24 via 192.0.2.7 dev e0\n")
        ended = run(directory, "-f", "./t.env", "-d", "out", environment=environment)
        assert ended.returncode == 1
        assert ended.stderr == (
            "Your routing table already contains the subnet: 10.240.35.0/24 via 192.0.2.7 dev e0\n"
        )
        assert (directory / "out").read_text() == CASES[0]["output"]

    def test_docker0s_own_route_is_fine(self, directory, fake_ip):
        environment = fake_ip("10.240.35.0/24 dev docker0 scope link src 10.240.35.1\n")
        assert run(directory, "-f", "./t.env", "-d", "out", environment=environment).returncode == 0

    def test_without_ip_the_check_is_left_out_and_told(self, directory):
        ended = run(directory, "-f", "./t.env", "-d", "out", environment={"PATH": str(directory)})
        assert ended.returncode == 0
        assert "routes were not checked" in ended.stderr

    @pytest.mark.root
    @pytest.mark.slow
    def test_with_real_routes_in_a_namespace_of_its_own(self, directory):
        script = (
            "ip link add a0 type veth peer name a1 && ip addr add 192.0.2.1/24 dev a0 && "
            "ip link set a0 up && ip link set a1 up && "
            'ip route add 10.240.35.0/24 via 192.0.2.7 && exec "$@"'
        )
        command = ("unshare", "-n", "sh", "-c", script, "sh", *COMMAND)
        ended = run(directory, "-f", "./t.env", "-d", "out", command=command)
        assert ended.returncode == 1
        assert "10.240.35.0/24 via 192.0.2.7 dev a0" in ended.stderr


def test_it_starts_without_what_a_short_command_does_not_need():
    """Docker waits for it: asyncio and the network libraries would be most of its time."""
    probe = (
        "import sys, pyflannel.cli.dockeropts as m; m.main(['-h']);"
        "print([n for n in ('asyncio', 'pyroute2', 'aiohttp', 'dataclasses') if n in sys.modules])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", probe], check=True, capture_output=True, text=True
    )
    assert ended.stdout.strip() == "[]"


SAFE = st.text(alphabet=string.ascii_letters + string.digits + "-=/.,:_%@+~#", max_size=12)


@st.composite
def env_files(draw):
    """Env files without code, their values written in the ways that a shell knows."""
    lines = []
    names = st.sampled_from(
        ["FLANNEL_SUBNET", "FLANNEL_MTU", "FLANNEL_IPMASQ", "DOCKER_OPTS", "DOCKER_OPT_BIP",
         "DOCKER_OPT_X", "MY_DOCKER_OPT_", "OTHER", "KEY"]
    )  # fmt: skip
    for _ in range(draw(st.integers(0, 6))):
        name = draw(names)
        value = draw(SAFE)
        if name == "FLANNEL_IPMASQ":
            value = draw(st.sampled_from(["true", "false", "maybe", ""]))
        if name == "FLANNEL_SUBNET":
            value = draw(st.sampled_from(["10.1.74.1/24", "10.9.0.129/25", ""]))
        style = draw(st.sampled_from(["'{}'", '"{}"', "{}"]))
        if style == "{}":
            value = "".join(rf"\{c}" if c in "~#" else c for c in value)
        export = draw(st.sampled_from(["", "export ", "  "]))
        comment = draw(st.sampled_from(["", " # why", " #"]))
        lines.append(f"{export}{name}={style.format(value)}{comment}\n")
        lines.append(draw(st.sampled_from(["", "\n", "# comment $(reboot)\n"])))
    return "".join(lines)


@pytest.mark.slow
@pytest.mark.skipif(
    not UPSTREAM, reason="PYFLANNEL_UPSTREAM_MK_DOCKER_OPTS (path of the script) is not set"
)
@settings(
    max_examples=int(os.environ.get("PYFLANNEL_EXAMPLES", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    text=env_files(),
    options=st.lists(st.sampled_from(["-i", "-c", "-m", "-icm", "-kKEY", "-mk KEY"]), max_size=3),
    environment=st.dictionaries(
        st.sampled_from(["DOCKER_OPTS", "DOCKER_OPT_E", "DOCKER_OPT_MTU", "FLANNEL_MTU", "KEY"]),
        SAFE,
        max_size=3,
    ),
)
def test_any_env_file_without_code_gives_what_the_script_gives(
    directory, text, options, environment
):
    arguments = [word for option in options for word in option.split()]
    results = []
    for command in (COMMAND, ("sh", UPSTREAM)):
        (directory / "x.env").write_text(text)
        out = directory / "out"
        out.write_text("old")
        ended = run(
            directory, "-f", "./x.env", "-d", "out", *arguments,
            environment=environment, command=command,
        )  # fmt: skip
        results.append((ended.returncode, out.read_text(), ended.stderr))
    assert results[0] == results[1]


@pytest.mark.slow
def test_it_is_done_in_a_moment(directory):
    """0.06 s is the aim on an idle machine; the bound leaves room for a busy one."""
    times = []
    for _ in range(5):
        begun = time.monotonic()
        run(directory, "-f", "./t.env", "-d", "out")
        times.append(time.monotonic() - begun)
    assert min(times) < 0.3


def test_help_is_no_bad_option(directory):
    ended = run(directory, "--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "[-f FLANNEL-ENV-FILE]" in ended.stdout


def test_as_a_command_of_pyflannel_it_says_who_speaks(directory):
    command = [sys.executable, "-m", "pyflannel.cli.pyflannel", "mk-docker-opts"]
    ended = run(directory, "-f", "bad.env", command=command)
    assert ended.returncode == 2
    assert ended.stderr.startswith("pyflannel mk-docker-opts: bad.env: ")
