"""A daemon killed while it programs hundreds of peers, of whom some leave before it is back."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path

import pytest

from pyflannel.lab import Lab, LabSpec

pytestmark = [pytest.mark.root, pytest.mark.slow]

PREFIX = "/coreos.com/network"
PEERS = 600
LEAVING = 150
RANGE = {"SubnetMin": "10.128.0.0", "SubnetMax": "10.140.0.0"}
BATCH = 100
"""Operations in one transaction; etcd takes at most 128."""


def name(n: int) -> str:
    return f"10.{128 + (n >> 8)}.{n & 255}.0"


def value(backend: str, n: int) -> str:
    attrs: dict[str, object] = {
        "PublicIP": f"192.0.2.{2 + n % 200}",
        "PublicIPv6": None,
        "BackendType": backend,
    }
    if backend == "vxlan":
        attrs["BackendData"] = {"VNI": 1, "VtepMAC": f"02:00:00:00:{n >> 8:02x}:{n & 255:02x}"}
    return json.dumps(attrs, separators=(",", ":"))


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def put(lab, backend: str) -> None:
    for start in range(0, PEERS, BATCH):
        puts = [
            {"key": encoded(key(n)), "value": encoded(value(backend, n))}
            for n in range(start, start + BATCH)
        ]
        lab.etcd.post("/v3/kv/txn", {"success": [{"requestPut": each} for each in puts]})


def delete(lab, gone: set[int]) -> None:
    order = sorted(gone)
    for start in range(0, len(order), BATCH):
        keys = [{"key": encoded(key(n))} for n in order[start : start + BATCH]]
        lab.etcd.post("/v3/kv/txn", {"success": [{"requestDeleteRange": each} for each in keys]})


def key(n: int) -> str:
    return f"{PREFIX}/subnets/{name(n)}-24"


@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
def test_what_is_left_of_it_is_swept_and_the_rest_completed(backend):
    rng = random.Random(f"crash {backend}")
    spec = LabSpec(
        name=f"crash-{backend}",
        nodes=1,
        config={"Network": "10.0.0.0/8", **RANGE, "Backend": {"Type": backend}},
        start_daemons=False,
    )
    with Lab(spec) as lab:
        node = lab.node(1)
        route_file = Path(f"/proc/{node.space.holder.pid}/net/route")

        def routes() -> int:
            lines = route_file.read_text().splitlines()[1:]
            return sum(1 for line in lines if int(line.split("\t")[1], 16) & 0x80FF == 0x800A)

        def held() -> tuple[set[str], int, int]:
            listed = json.loads(node.exec(["ip", "-j", "route"]).stdout)
            found = {
                route["dst"].removesuffix("/24")
                for route in listed
                if route["dst"].startswith(("10.128.", "10.129.", "10.130."))
            }
            if backend == "host-gw":
                return found, 0, 0
            neighbours = node.exec(["ip", "neigh", "show", "dev", "flannel.1"]).stdout
            fdb = node.exec(["bridge", "fdb", "show", "dev", "flannel.1"]).stdout
            return found, neighbours.count("PERMANENT"), fdb.count(" dst ")

        interrupted = 0
        for _ in range(3):
            put(lab, backend)
            node.start_daemon()
            lab.wait(lambda: routes() > rng.randrange(PEERS // 2), 20, what="some of it")
            node.kill()
            interrupted += routes() < PEERS
            gone = set(rng.sample(range(PEERS), LEAVING))
            delete(lab, gone)
            node.start_daemon()
            wanted = {name(n) for n in range(PEERS) if n not in gone}
            each = len(wanted) if backend == "vxlan" else 0
            lab.wait(lambda: held() == (wanted, each, each), 20, what="exactly the rest")  # noqa: B023
            node.stop_daemon()
        assert interrupted, "never in the middle"
