"""The extension backend: which command runs when, with what, and what a bad one can do."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from pyflannel.backend.driver import Driver
from pyflannel.backend.extension import (
    MOST_CHILDREN,
    ExtensionBackend,
    ExtensionNetwork,
    expand,
    problem_of,
    run_child,
    split_command,
)
from pyflannel.core.errors import CommandError, ConfigError
from pyflannel.core.ip import SubnetKey
from pyflannel.core.lease import Lease, LeaseAdded, LeaseRemoved
from pyflannel.kernel.process import Completed
from pyflannel.testing.fakeclock import settle
from tests.support.overlay import Machine, config, key, lease, moved, run


class Programs:
    """Runs nothing and remembers what it was asked to run."""

    def __init__(self) -> None:
        self.ran: list[tuple[tuple[str, ...], bytes, dict[str, str]]] = []
        self.answers: dict[str, Completed | Exception] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.running = 0
        self.most = 0

    async def __call__(
        self, argv: Sequence[str], stdin: bytes, env: Mapping[str, str]
    ) -> Completed:
        self.ran.append((tuple(argv), stdin, dict(env)))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            for word in argv:
                if word in self.gates:
                    await self.gates[word].wait()
            await asyncio.sleep(0)
        finally:
            self.running -= 1
        answer = self.answers.get(argv[0], Completed(0, b"", b""))
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def lines(self) -> list[str]:
        return [" ".join(argv) for argv, _, _ in self.ran]


COMMANDS = {
    "PreStartupCommand": "pre",
    "PostStartupCommand": "post $NETWORK $SUBNET $PUBLIC_IP",
    "SubnetAddCommand": "add $SUBNET $PUBLIC_IP",
    "SubnetRemoveCommand": "remove $SUBNET $PUBLIC_IP",
}


def backend(tmp_path, programs, *, ipv6=False, **commands: str) -> ExtensionBackend:
    conf = config({"Type": "extension", **(commands or COMMANDS)}, ipv6=ipv6)
    return ExtensionBackend(
        Machine().context(conf, tmp_path), runner=programs, environ={"PATH": "/bin", "HOME": "/x y"}
    )


def peer(number: int, data: str | None = '"its data"', **families: bool) -> Lease:
    made = lease(number, "extension", **families)
    return replace(made, attrs=replace(made.attrs, backend_data=data))


async def attached(tmp_path, programs, **options) -> ExtensionNetwork:
    return await backend(tmp_path, programs, **options).attach(lease(1, "extension"))


# Command lines.


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("", ()),
        ("  ", ()),
        ("ip route add $SUBNET via $PUBLIC_IP", ("ip", "route", "add", "S", "via", "P Q")),
        ("sh -c 'ip route add $SUBNET'", ("sh", "-c", "ip route add S")),
        ('echo "a b"c ${SUBNET}x $NOPE.', ("echo", "a bc", "Sx", ".")),
        (r"echo a\ b # ; | > $(x)", ("echo", "a b", "#", ";", "|", ">", "$(x)")),
        ("echo $ $5 100$", ("echo", "$", "$5", "100$")),
    ],
)
def test_quotes_are_understood_and_a_value_with_blanks_stays_one_word(command, words):
    env = {"SUBNET": "S", "PUBLIC_IP": "P Q"}
    assert expand(split_command(command), env) == words


def test_an_open_quote_is_a_config_error_that_names_the_key(tmp_path):
    with pytest.raises(ConfigError, match="SubnetAddCommand"):
        backend(tmp_path, Programs(), SubnetAddCommand="echo 'oops")


# Start.


async def test_what_the_first_command_prints_is_published(tmp_path):
    programs = Programs()
    programs.answers["pre"] = Completed(0, b'  a "key"\n', b"noise on stderr\n")
    attrs = await backend(tmp_path, programs).prepare(None)
    assert attrs.backend_data == '"a \\"key\\""'
    assert attrs.backend_type == "extension"
    assert programs.ran == [(("pre",), b"\n", {"PATH": "/bin", "HOME": "/x y"})]


def test_without_a_first_command_there_is_no_data(tmp_path):
    attrs = run(backend(tmp_path, Programs(), SubnetAddCommand="x").prepare(None))
    assert attrs.backend_data is None


async def test_the_second_command_knows_network_and_lease(tmp_path):
    programs = Programs()
    await backend(tmp_path, programs, ipv6=True).attach(lease(1, "extension", ipv6=True))
    ((argv, stdin, env),) = programs.ran
    assert argv == ("post", "10.5.0.0/16", "10.5.1.0/24", "192.0.2.1")
    assert stdin == b"\n"
    assert env["IPV6SUBNET"] == "fd00:5:0:1::/64"
    assert env["PUBLIC_IPV6"] == "2001:db8::1"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (Completed(3, b"out", b"err"), r"exit status 3: out\nerr"),
        (Completed(-9, b"", b""), "killed by signal 9"),
        (CommandError("no such program"), "no such program"),
    ],
)
def test_a_command_that_fails_at_start_is_an_error(answer, text, tmp_path):
    programs = Programs()
    programs.answers = {"pre": answer, "post": answer}
    with pytest.raises(CommandError, match=text):
        run(backend(tmp_path, programs).prepare(None))
    with pytest.raises(CommandError, match=text):
        run(backend(tmp_path, programs).attach(lease(1, "extension")))


async def test_another_subnet_runs_the_post_startup_command_again(tmp_path):
    """What it has made for the former one, a bridge say, is of no use any more."""
    programs = Programs()
    network = await attached(tmp_path, programs)
    before = programs.ran[-1]
    assert programs.lines[-1].startswith("post 10.5.0.0/16 10.5.1.0/24")
    underlay = Machine().context(config({"Type": "extension"}), tmp_path).underlay
    await network.rebase(underlay)
    assert programs.ran[-1] is before, "only the interface is another one"
    await network.rebase(underlay, lease(9, "extension"))
    assert programs.lines[-1].startswith("post 10.5.0.0/16 10.5.9.0/24")
    programs.answers["post"] = Completed(1, b"", b"no bridge")
    await network.rebase(underlay, lease(8, "extension"))
    assert "no bridge" in network.report().failing["this node"]


# Peers.


async def test_a_command_that_failed_is_in_the_status_of_the_driver(tmp_path):
    programs = Programs()
    programs.answers["add"] = Completed(3, b"", b"no such bridge")
    network = await attached(tmp_path, programs)
    driver = Driver(network, Machine().netlink)
    network.update([LeaseAdded(peer(2))])
    await network.apply(full=False)
    await network.idle()
    failing = driver.report().failing
    assert "no such bridge" in failing["peer 10.5.2.0/24"]


async def test_commands_follow_a_peer_and_get_its_data(tmp_path):
    programs = Programs()
    network = await attached(tmp_path, programs)
    programs.ran.clear()
    for event in (LeaseAdded(peer(2)), LeaseRemoved(peer(2))):
        network.update([event])
        await network.apply(full=False)
        await network.idle()
    assert programs.lines == ["add 10.5.2.0/24 192.0.2.2", "remove 10.5.2.0/24 192.0.2.2"]
    assert {stdin for _, stdin, _ in programs.ran} == {b"its data\n"}
    assert programs.ran[0][2]["IPV6SUBNET"] == ""


async def test_a_changed_lease_is_removed_as_it_was_and_added_as_it_is(tmp_path):
    programs = Programs()
    network = await attached(tmp_path, programs)
    programs.ran.clear()
    old, new = peer(2), moved(peer(2), "192.0.2.99")
    for events in ([LeaseAdded(old)], [LeaseAdded(new, old)], [LeaseAdded(new, old)]):
        network.update(events)
        await network.apply(full=False)
        await network.idle()
    assert programs.lines == [
        "add 10.5.2.0/24 192.0.2.2",
        "remove 10.5.2.0/24 192.0.2.2",
        "add 10.5.2.0/24 192.0.2.99",
    ]


async def test_one_hanging_command_holds_up_no_other_peer_and_its_own_wait_in_order(tmp_path):
    programs = Programs()
    network = await attached(tmp_path, programs)
    programs.ran.clear()
    gate = programs.gates["10.5.2.0/24"] = asyncio.Event()
    network.update([LeaseAdded(peer(2)), LeaseAdded(peer(3))])
    async with asyncio.timeout(1):
        await network.apply(full=False)
    await settle()
    network.update([LeaseRemoved(peer(2))])
    await network.apply(full=False)
    await settle()
    assert programs.lines == ["add 10.5.2.0/24 192.0.2.2", "add 10.5.3.0/24 192.0.2.3"]
    gate.set()
    await network.idle()
    assert programs.lines[2:] == ["remove 10.5.2.0/24 192.0.2.2"]


async def test_a_peer_that_flaps_during_a_hanging_command_leaves_only_the_last_state(tmp_path):
    programs = Programs()
    network = await attached(tmp_path, programs)
    programs.ran.clear()
    gate = programs.gates["10.5.2.0/24"] = asyncio.Event()
    for _ in range(50):
        network.update([LeaseAdded(peer(2))])
        await network.apply(full=False)
        network.update([LeaseRemoved(peer(2))])
        await network.apply(full=False)
        await asyncio.sleep(0)
    gate.set()
    await network.idle()
    assert len(programs.lines) <= 2
    assert network.report().peers == 0


async def test_a_thousand_peers_are_never_more_than_a_few_processes(tmp_path):
    programs = Programs()
    network = await attached(tmp_path, programs)
    network.update([LeaseAdded(peer(n)) for n in range(2, 250)])
    await network.apply(full=False)
    await network.idle()
    assert programs.most == MOST_CHILDREN
    assert len(programs.lines) == 249


async def test_a_failing_command_is_told_and_not_repeated(tmp_path, caplog):
    programs = Programs()
    programs.answers["add"] = Completed(1, b"", b"no")
    network = await attached(tmp_path, programs)
    network.update([LeaseAdded(peer(2))])
    for _ in range(3):
        await network.apply(full=True)
        await network.idle()
    assert programs.lines[1:] == ["add 10.5.2.0/24 192.0.2.2"]
    assert "exit status 1: no" in network.report().failing["peer 10.5.2.0/24"]
    assert [r.message for r in caplog.records] == ["command failed"]


@pytest.mark.parametrize(
    "bad", [lease(2, "vxlan"), peer(2, '{"VNI":1}'), peer(2, "["), peer(2, "[" * 5000 + "]" * 5000)]
)
async def test_peers_of_other_backends_and_with_odd_data_are_ignored(bad, tmp_path, caplog):
    programs = Programs()
    network = await attached(tmp_path, programs)
    network.update([LeaseAdded(bad), LeaseAdded(bad), LeaseAdded(peer(3, None))])
    await network.apply(full=True)
    await network.idle()
    assert programs.lines[1:] == ["add 10.5.3.0/24 192.0.2.3"]
    assert programs.ran[1][1] == b"\n"
    assert [r.message for r in caplog.records] == ["peer ignored"]


async def test_the_end_kills_what_is_running_and_runs_nothing(tmp_path):
    programs = Programs()
    network = await attached(tmp_path, programs)
    programs.gates["10.5.2.0/24"] = asyncio.Event()
    network.update([LeaseAdded(peer(2))])
    await network.apply(full=False)
    await settle()
    await network.detach()
    assert programs.running == 0
    assert len(programs.lines) == 2
    assert len(asyncio.all_tasks()) == 1


async def test_a_real_program_gets_words_environment_and_input():
    env = {**os.environ, "SUBNET": "10.5.2.0/24"}
    script = 'read line; echo "$1|$SUBNET|$line"; echo oops >&2; exit 4'
    done = await run_child(("sh", "-c", script, "sh", "a b"), b"its data\n", env)
    assert done == Completed(4, b"a b|10.5.2.0/24|its data\n", b"oops\n")


async def test_an_ipv6_only_peer_has_empty_ipv4_values(tmp_path):
    programs = Programs()
    network = await attached(tmp_path, programs)
    only6 = replace(peer(2), key=SubnetKey(None, key(2, ipv6=True).v6))
    network.update([LeaseAdded(only6)])
    await network.apply(full=True)
    await network.idle()
    assert programs.ran[1][2]["SUBNET"] == ""
    assert programs.ran[1][2]["IPV6SUBNET"] == "fd00:5:0:2::/64"


@pytest.mark.parametrize("text", ["[" * 9000 + "]" * 9000, '{"a":' * 2000 + "1" + "}" * 2000, "5"])
def test_one_peers_strange_data_do_not_stop_the_others(text: str) -> None:
    """Python's own JSON gives up on deep nesting with a RecursionError."""
    strange = lease(1, "extension")
    attrs = replace(strange.attrs, backend_type="extension", backend_data=text)
    problem = problem_of(replace(strange, attrs=attrs))
    assert "not a JSON string" in problem
    assert len(problem) < 200
