"""A whole daemon among a hundred thousand keys: it follows them, and nothing else stands still."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Final

import pytest

from pyflannel.lab import Lab, LabError, LabSpec
from tests.support import turns
from tests.support.guests import need_devices

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(900)]

KEYS: Final = 100_000
LONGEST_TURN_S: Final = 0.05
"""Of CPU time."""
BELOW: Final = "/coreos.com/network/subnets/"
ROOT: Final = Path(__file__).parents[3]
LATE_S: Final = 300.0
"""It takes 30 s alone on a small machine."""


def lease(backend: str, number: int) -> tuple[str, str]:
    """A key and what a node on the link would write there."""
    attrs: dict[str, object] = {
        "PublicIP": f"192.0.2.{2 + number % 200}",
        "PublicIPv6": None,
        "BackendType": backend,
    }
    if backend == "vxlan":
        mac = f"02:00:00:{number >> 16:02x}:{number >> 8 & 255:02x}:{number & 255:02x}"
        attrs["BackendData"] = {"VNI": 1, "VtepMAC": mac}
    name = f"10.{128 + (number >> 10)}.{number >> 2 & 255}.{(number & 3) * 64}-26"
    return name, json.dumps(attrs, separators=(",", ":"))


def put(lab: Lab, *pairs: tuple[str, str]) -> None:
    for start in range(0, len(pairs), 100):
        puts = [
            {
                "requestPut": {
                    "key": base64.b64encode((BELOW + name).encode()).decode(),
                    "value": base64.b64encode(value.encode()).decode(),
                }
            }
            for name, value in pairs[start : start + 100]
        ]
        lab.etcd.post("/v3/kv/txn", {"success": puts})


def delete(lab: Lab, first: str, end: str = "") -> None:
    """One key, or all from one up to another, at one revision."""
    bounds = {"key": BELOW + first, **({"range_end": BELOW + end} if end else {})}
    body = {name: base64.b64encode(bound.encode()).decode() for name, bound in bounds.items()}
    lab.etcd.post("/v3/kv/deleterange", body)


@pytest.mark.parametrize(
    ("backend", "leases"),
    # Linux compares a new route through a gateway with all others of its device that are through
    # one (net/ipv4, `fib_find_info`): 100,000 of them on one vxlan device take it seven minutes.
    [("host-gw", KEYS), ("vxlan", 20_000)],
)
def test_a_node_follows_them_and_nothing_holds_up_its_loop(backend, leases, tmp_path):
    need_devices("vxlan")
    clock = tmp_path / "turns"
    clock.touch()
    spec = LabSpec(
        nodes=1,
        name=f"size-{backend}",
        config={
            "Network": "10.0.0.0/8",
            "SubnetLen": 26,
            "SubnetMax": "10.100.0.0",
            "Backend": {"Type": backend},
        },
        node_commands={1: f"{sys.executable} -m tests.support.turns {clock}"},
        daemon_env={"PYTHONPATH": str(ROOT)},
        start_daemons=False,
    )
    with Lab(spec) as lab:
        node = lab.node(1)

        def routes() -> int:
            """Those of peers: 10.128.0.0/9."""
            table = Path(f"/proc/{node.space.holder.pid}/net/route").read_text().splitlines()[1:]
            return sum(int(line.split("\t")[1], 16) & 0x80FF == 0x800A for line in table)

        def longest(when: str) -> None:
            found = turns.read(clock)
            print(f"{backend} {when}:", *sorted(found, reverse=True)[:5], sep="\n  ")
            assert not [turn for turn in found if turn[0] > LONGEST_TURN_S]

        def count(wanted: int) -> None:
            lab.wait(lambda: routes() == wanted, LATE_S, what=f"{wanted} routes")

        try:
            put(lab, *(lease(backend, number) for number in range(leases)))
            put(lab, *((f"no lease {number}", "x") for number in range(KEYS - leases)))
            node.start_daemon()
            count(leases)
            longest("start")
            put(lab, lease(backend, leases))
            count(leases + 1)
            put(lab, *(lease(backend, number) for number in range(leases + 1, leases + 2_001)))
            count(leases + 2_001)
            delete(lab, lease(backend, leases)[0])
            count(leases + 2_000)
            longest("changes")
            shown = json.loads(
                node.exec(["pyflannel", "status", "--json"], check=False, timeout=LATE_S).stdout
            )
            assert len(shown["peers"]) == leases + 2_000
            passes = shown["network"]["passes"]["resync"]

            def compared() -> bool:
                """Everything, once more."""
                said = node.exec(["pyflannel", "status", "--json"], check=False, timeout=LATE_S)
                return json.loads(said.stdout)["network"]["passes"]["resync"] > passes + 1

            lab.wait(compared, LATE_S, what="a comparison of everything")
            longest("at rest")
            delete(lab, "10.1", "10.3")
            count(0)
            longest("all peers gone")
            assert node.stop_daemon() == 0
            longest("end")
        except (AssertionError, LabError) as error:
            # None of which a lab describes itself: it has a hundred thousand routes and keys.
            pytest.fail(f"{error!r}\n{node.log(20)}")
