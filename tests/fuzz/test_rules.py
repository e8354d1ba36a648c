"""The eBPF programs and the native engine, held to an oracle in C with the same inputs.

`make fuzz` takes a hundred million for each. The oracle (oracle.h) is held to the contract suite's
model here, and each of its deliberate mistakes must be found out by both harnesses.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from pyflannel.core.lpm import Peer, PeerTable
from pyflannel.datapath.base import DatapathConfig
from pyflannel.datapath.select import IMPLEMENTATIONS
from tests.contract.datapath_cases import MTU, Model
from tests.contract.datapath_rigs import DeviceRig, Wire
from tests.fuzz.differential import NETWORK, SUBNETS, TUN_ADDRESS, Place, stack
from tests.fuzz.native_build import ENGINE, HERE, build

FUZZ_S = float(os.environ.get("PYFLANNEL_FUZZ_S", "6"))
PER_SECOND = 170_000
"""Inputs; a hundred million in the ten minutes of `make fuzz`. A core does more than that."""
STATIONS = ("", "ours", "a", "b", "stranger")
BASE = IPv4Address("192.0.2.0")
OTHER_MAC = "02000000000b"
MISTAKES = ("hop", "source", "destination", "sender", "length", "ttl")

pytestmark = pytest.mark.slow


def run(program: Path, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, check=False, **options
    )


def seed() -> int:
    return time.time_ns() % 2**32


def outcomes(done: dict[str, int]) -> Counter[str]:
    return Counter({name: n for name, n in done.items() if name.startswith(("tun_", "udp_"))})


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    where = tmp_path_factory.mktemp("rules")
    oracle = str(HERE / "oracle.c")
    return {
        "show": build(where / "show", "show_oracle.c", (), "-O2", oracle),
        "programs": build(where / "programs", "fuzz_programs.c", (), "-O2", oracle),
        "engine": build(where / "engine", "fuzz_engine.c", ENGINE, "-O2", oracle),
    }


@pytest.mark.parametrize("options", range(4))
def test_the_oracle_says_what_the_contract_suites_model_says(
    options: int, built: dict[str, Path]
) -> None:
    place = Place(
        {name: BASE + n for n, name in enumerate(STATIONS) if name}, bytes.fromhex(OTHER_MAC), 8285
    )
    config = DatapathConfig(
        tun_fd=-1,
        udp_fd=-1,
        tun_name="",
        mtu=MTU,
        port=place.port,
        network=NETWORK,
        tun_address=TUN_ADDRESS,
        accept_any=bool(options & 1),
        any_port=bool(options & 2),
    )
    peers = {name: Peer(SUBNETS[name], place.addresses[name]) for name in SUBNETS}
    number = seed()
    shown = run(built["show"], number, 3000, f"{int(BASE):x}", OTHER_MAC, place.port, options)
    assert shown.returncode == 0
    seen: Counter[str] = Counter()
    for line in shown.stdout.splitlines():
        way, _, data, outcome, to, passed, error_to, error = line.split()
        model = Model(config, peers)
        if way == "out":
            model.from_tun(bytes.fromhex(data))
        elif (found := stack(bytes.fromhex(data), place)) is not None:
            source, port, payload = found
            names = {address: name for name, address in place.addresses.items()}
            right = port == place.port or config.any_port
            model.from_udp(names.get(source, "") if right else "another port", payload)
        came = [("ours", each) for each in model.to_tun] + model.to_peer
        told = [
            (STATIONS[int(where)], bytes.fromhex(what))
            for where, what in ((to, passed), (error_to, error))
            if what != "-"
        ]
        assert came == told, f"seed {number}: {line}"
        reasons = {name for name in model.counters if "bytes" not in name and "icmp" not in name}
        assert reasons == ({outcome} - {"udp_nothing"}), f"seed {number}: {line}"
        seen[outcome] += 1
    assert set(seen) >= {"tun_packets", "tun_ttl", "udp_packets", "udp_malformed", "udp_nothing"}


@contextmanager
def programs(wire: Wire, options: int) -> Iterator[tuple[tuple[object, ...], dict[str, Any]]]:
    """Loaded programs: arguments of the harness behind its seed and number, and how to start it."""
    with DeviceRig(wire) as rig:
        table = PeerTable(Peer(SUBNETS[name], rig.addresses[name]) for name in SUBNETS)
        rig.start(
            IMPLEMENTATIONS["ebpf"].make,
            table,
            network=NETWORK,
            tun_address=TUN_ADDRESS,
            accept_any=bool(options & 1),
            any_port=bool(options & 2),
        )
        link = wire.ours()
        fds = rig.path._loaded.programs  # type: ignore[attr-defined]
        base, mac = f"{int(BASE):x}", link["address"].replace(":", "")
        chosen = fds["overlay_out"], fds["underlay_in"]
        yield (*chosen, link["ifindex"], base, mac, rig.PORT, options), {"pass_fds": chosen}


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    if isinstance(why := IMPLEMENTATIONS["ebpf"].probe(), str):
        pytest.skip(why)
    wire = Wire()
    try:
        yield wire
    finally:
        wire.close()


@pytest.mark.root
@pytest.mark.parametrize("options", range(4))
def test_the_programs_do_what_the_oracle_says(
    options: int, built: dict[str, Path], wire: Wire
) -> None:
    number, inputs = seed(), int(FUZZ_S * PER_SECOND / 4)
    with programs(wire, options) as (arguments, how):
        ran = run(built["programs"], number, inputs, *arguments, **how)
    assert ran.returncode == 0, f"seed {number}\n{ran.stderr}"
    done = json.loads(ran.stdout)
    print(done)
    assert done["inputs"] == inputs == outcomes(done).total()
    assert done["overlay_out taken"] > inputs / 20
    assert done["underlay_in taken"] > inputs / 40


def test_the_engine_does_what_the_oracle_says(built: dict[str, Path]) -> None:
    number, inputs = seed(), int(FUZZ_S * PER_SECOND)
    ran = run(built["engine"], number, inputs, f"{int(BASE):x}", OTHER_MAC, 8285)
    assert ran.returncode == 0, f"seed {number}\n{ran.stderr}"
    done = json.loads(ran.stdout)
    print(done)
    assert done["inputs"] == inputs == outcomes(done).total()
    assert all(outcomes(done).values()), done


@pytest.mark.root
@pytest.mark.parametrize("mistake", MISTAKES)
def test_an_oracle_that_is_wrong_is_found_out(
    mistake: str, built: dict[str, Path], wire: Wire
) -> None:
    """Else nothing above would mean anything."""
    ran = run(built["engine"], 5, 100_000, f"{int(BASE):x}", OTHER_MAC, 8285, mistake)
    assert ran.returncode == 1, ran
    with programs(wire, 0) as (arguments, how):
        ran = run(built["programs"], 5, 100_000, *arguments, mistake, **how)
    assert ran.returncode == 1, ran
