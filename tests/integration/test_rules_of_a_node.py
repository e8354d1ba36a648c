"""Traffic rules over whole daemons: managers that change, are missing, or old; and at rest.

What the rules are, and that both managers do the same to the same packets, is for
`tests/contract/test_traffic_contract.py`.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from pyflannel.lab import Lab, LabSpec

pytestmark = [pytest.mark.root, pytest.mark.slow]

CONFIG_KEY = "/coreos.com/network/config"
TOOLS = ("iptables", "ip6tables", "nft", "xtables")
SYSTEM = (Path("/usr/sbin"), Path("/usr/bin"), Path("/sbin"), Path("/bin"))


@pytest.fixture(scope="module")
def lab():
    with Lab(LabSpec(nodes=1, backend="vxlan", name="rules", start_daemons=False)) as made:
        yield made


@pytest.fixture
def node(lab):
    node = lab.node(1)
    yield node
    if node.daemon is not None:
        node.stop_daemon()
    node.exec(["pyflannel", "cleanup"])


def use(lab, *, nftables: bool) -> None:
    config = {
        "Network": "10.0.0.0/16",
        "EnableNFTables": nftables,
        "Backend": {"Type": "vxlan"},
    }
    lab.etcd.put(CONFIG_KEY, json.dumps(config))


def start(lab, node, *arguments: str, env: dict[str, str] | None = None) -> None:
    node.start_daemon(["--ip-masq", *arguments], env=env)
    lab.wait(node.is_ready, 15, what="the daemon")


def chains(node, command: str = "iptables-save") -> list[str]:
    """Our lines of what a command prints, without counters."""
    return [
        line
        for line in node.exec([command]).stdout.splitlines()
        if "FLANNEL" in line and not line.startswith("#")
    ]


def tables(node) -> list[str]:
    return [
        line
        for line in node.exec(["nft", "list", "tables"]).stdout.split("\n")
        if "flannel" in line
    ]


def programs(directory: Path, *, without: tuple[str, ...]) -> str:
    """A directory for PATH with all of the system's programs but some."""
    directory.mkdir()
    for place in SYSTEM:
        for program in place.iterdir():
            link = directory / program.name
            if not program.name.startswith(without) and not link.is_symlink():
                link.symlink_to(program)
    return str(directory)


def test_a_change_of_the_manager_takes_the_rules_along(lab, node):
    use(lab, nftables=False)
    start(lab, node)
    lab.wait(lambda: chains(node), 5, what="iptables rules")
    assert tables(node) == []
    node.stop_daemon()
    assert chains(node), "rules outlive the daemon"
    use(lab, nftables=True)
    start(lab, node)
    lab.wait(lambda: tables(node) == ["table ip flannel-ipv4"], 5, what="the nftables rules")
    lab.wait(lambda: not chains(node), 5, what="the iptables rules are gone")
    node.stop_daemon()
    use(lab, nftables=False)
    start(lab, node)
    lab.wait(lambda: chains(node), 5, what="iptables rules")
    lab.wait(lambda: not tables(node), 5, what="the nftables rules are gone")


def test_rules_of_a_former_network_are_replaced(lab, node):
    use(lab, nftables=False)
    start(lab, node)
    lab.wait(lambda: "10.0.0.0/16" in "".join(chains(node)), 5, what="rules")
    node.stop_daemon()
    lab.etcd.put(CONFIG_KEY, '{"Network": "10.77.0.0/16", "Backend": {"Type": "vxlan"}}')
    start(lab, node)
    lab.wait(lambda: "10.77.0.0/16" in "".join(chains(node)), 5, what="the new rules")
    assert "10.0.0.0/16" not in "".join(chains(node))


def test_with_nftables_no_binary_is_needed(lab, node, tmp_path):
    """Neither that of iptables nor nft's own: there is its library."""
    use(lab, nftables=True)
    start(lab, node, env={"PATH": programs(tmp_path / "bin", without=TOOLS)})
    lab.wait(lambda: tables(node), 5, what="the rules")

    def problems() -> list[object]:
        return json.loads(node.exec(["pyflannel", "status", "--json"]).stdout)["problems"]

    # The lease in the network of the test before is given back a moment after the new one is there.
    lab.wait(lambda: problems() == [], 5, what="no problem")


def test_a_missing_iptables_is_named_and_the_overlay_works_without(lab, node, tmp_path):
    use(lab, nftables=False)
    start(lab, node, env={"PATH": programs(tmp_path / "bin", without=TOOLS)})
    asked = node.exec(["pyflannel", "status", "--json"], check=False)
    assert asked.returncode == 1
    status = json.loads(asked.stdout)
    (problem,) = status["problems"]
    assert (problem["code"], problem["subject"]) == ("PF141", "traffic rules")
    assert "iptables" in problem["text"]
    assert "flannel.1" in status["network"]["devices"]
    # It comes back by itself.
    for program in Path("/usr/sbin").iterdir():
        if program.name.startswith(TOOLS):
            (tmp_path / "bin" / program.name).symlink_to(program)
    lab.wait(lambda: chains(node), 15, what="the rules")

    def problems() -> list[object]:
        return json.loads(node.exec(["pyflannel", "status", "--json"]).stdout)["problems"]

    # The lease in the network of the test before is given back a moment after the new one is there.
    lab.wait(lambda: problems() == [], 5, what="no problem")


@pytest.mark.parametrize("nftables", [False, True])
def test_rules_that_are_no_longer_asked_for_go(lab, node, nftables):
    use(lab, nftables=nftables)
    start(lab, node)

    def there() -> str:
        return "".join(chains(node)) + node.exec(["nft", "list", "ruleset"]).stdout

    lab.wait(lambda: "masquerade" in there(), 5, what="masquerading")
    node.stop_daemon()
    start(lab, node, "--ip-masq=false")
    lab.wait(lambda: "masquerade" not in there(), 5, what="no masquerading")
    assert "10.0.0.0/16" in there(), "forwarding is still accepted"


def test_the_old_kind_of_iptables_does_as_well(lab, node, tmp_path):
    use(lab, nftables=False)
    directory = Path(programs(tmp_path / "bin", without=TOOLS))
    for version in ("iptables", "ip6tables"):
        for verb in ("", "-save", "-restore"):
            (directory / f"{version}{verb}").symlink_to(f"/usr/sbin/{version}-legacy{verb}")
    # The default period is five seconds: it would be too late to look no sooner.
    start(lab, node, env={"PATH": str(directory)})

    def rules() -> list[str]:
        return chains(node, "iptables-legacy-save")

    lab.wait(lambda: any("-j FLANNEL-GUARD" in rule for rule in rules()), 5, what="the last rule")
    before = rules()
    assert chains(node, "iptables-nft-save") == []
    node.exec(["iptables-legacy", "-t", "nat", "-F", "FLANNEL-POSTRTG"])
    lab.wait(lambda: rules() == before, 5, what="they are restored")
    node.stop_daemon()
    off = ("--ip-masq=false", "--iptables-forward-rules=false")
    start(lab, node, *off, env={"PATH": str(directory)})
    lab.wait(lambda: not rules(), 5, what="unwanted rules are gone")


def test_at_rest_no_program_is_started(lab, node, tmp_path):
    """With the default settings, over a full comparison and two looks at the rules.

    With nftables there is none at all: its library is called.
    """
    use(lab, nftables=False)
    directory = Path(programs(tmp_path / "bin", without=TOOLS))
    calls = tmp_path / "calls"
    calls.touch()
    for program in Path("/usr/sbin").iterdir():
        if program.name.startswith(TOOLS):
            wrapper = directory / program.name
            wrapper.write_text(f'#!/bin/sh\necho "$0" >>{calls}\nexec {program} "$@"\n')
            wrapper.chmod(0o755)
    start(lab, node, env={"PATH": str(directory)})
    lab.wait(lambda: chains(node), 5, what="the rules")
    # Cleaning up after the other manager is the last thing that belongs to the start.
    last = -1

    def settled() -> bool:
        nonlocal last
        before, last = last, calls.stat().st_size
        time.sleep(0.5)
        return before == calls.stat().st_size

    lab.wait(settled, 10, what="the end of the start")
    before = calls.read_text()
    assert before
    begin = time.monotonic()
    lab.wait(lambda: time.monotonic() - begin > 11, 15, what="eleven seconds")
    assert calls.read_text() == before


def test_the_blackhole_route_is_kept(lab, node):
    use(lab, nftables=False)
    start(lab, node, "--ip-blackhole-route", "--iptables-resync=1")

    def routes() -> str:
        return node.exec(["ip", "route", "show", "type", "blackhole"]).stdout.strip()

    lab.wait(routes, 5, what="the route")
    before = routes()
    assert before == f"blackhole {node.subnet_env()['FLANNEL_SUBNET'].replace('.1/', '.0/')}"
    node.exec(["ip", "route", "del", "blackhole", before.split()[1]])
    lab.wait(lambda: routes() == before, 5, what="it is back")

    # A bridge that comes later, as docker's does when docker is restarted.
    bridge = node.subnet_env()["FLANNEL_SUBNET"]
    node.exec(["ip", "link", "add", "late0", "up", "type", "bridge"])
    node.exec(["ip", "address", "add", bridge, "dev", "late0"])
    lab.wait(lambda: not routes(), 5, what="the bridge has the subnet")
    node.exec(["ip", "link", "del", "late0"])
    lab.wait(lambda: routes() == before, 5, what="it is back once more")


def test_a_missing_br_netfilter_is_a_warning_with_the_remedy(lab, node):
    """Hidden by a mount of nothing over it; the daemon starts all the same."""
    use(lab, nftables=False)
    hidden = "mount -t tmpfs none /proc/sys/net/bridge"
    node.exec(["sh", "-c", f"test ! -d /proc/sys/net/bridge || {hidden}"])
    try:
        start(lab, node)
        assert "modprobe br_netfilter" in node.log()
    finally:
        node.exec(["umount", "/proc/sys/net/bridge"], check=False)
