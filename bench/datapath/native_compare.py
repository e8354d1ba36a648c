"""The native data path beside others, over one pair of nodes made of network namespaces.

    pod a -- node a (bridge, flannel0, eth0) -- underlay veth -- node b -- pod b

Candidates: `vxlan` (the kernel's), `native` (ours), `upstream` (the real daemon named by
`PYFLANNEL_UPSTREAM`, with an etcd of its own) and any program given as `--program NAME=COMMAND`,
in which `{tun}`, `{local}`, `{peer_net}` and `{peer}` are filled in. Three underlays: `asis` (veth
passes super packets whole), `plain` (no TSO/GSO/USO, GRO on) and `bare` (no GRO either). Rounds
alternate over the candidates; medians are printed. Both nodes and both ends of the traffic share
this machine's cores: ratios count, absolute figures do not.

    sudo python bench/datapath/native_compare.py --mode plain --rounds 3 native vxlan
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pyflannel.lab.etcdprogram import etcd_command, etcd_environment, find_etcd

HERE = Path(__file__).resolve().parent
PORT = 8285
MTU = 1472
"""1500 of the veth less 28 of IPv4 and UDP."""
NETWORK = "10.77.0.0/16"
UNDERLAY = {"a": "10.200.0.1", "b": "10.200.0.2"}
SUBNET = {"a": "10.77.1", "b": "10.77.2"}
OTHER = {"a": "b", "b": "a"}


def run(command: str, *, check: bool = True) -> str:
    """Runs one command line and gives what it printed."""
    done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{command}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


class Lab:
    """Two nodes and two pods in namespaces named after this process."""

    def __init__(self, mode: str) -> None:
        self.tag = f"nb{os.getpid()}"
        self.processes: list[subprocess.Popen[str]] = []
        for end in "ab":
            for kind in ("node", "pod"):
                run(f"ip netns add {self.ns(kind, end)}")
                run(f"ip -n {self.ns(kind, end)} link set lo up")
        a, b = self.ns("node", "a"), self.ns("node", "b")
        run(f"ip -n {a} link add eth0 type veth peer name eth0 netns {b}")
        for end in "ab":
            node = self.ns("node", end)
            run(f"ip -n {node} addr add {UNDERLAY[end]}/24 dev eth0")
            run(f"ip -n {node} link set eth0 up")
            run(f"ip netns exec {node} sysctl -qw net.ipv4.ip_forward=1")
            if mode != "asis":
                off = "tso off gso off tx-udp-segmentation off"
                gro = "on" if mode == "plain" else "off"
                run(f"ip netns exec {node} ethtool -K eth0 {off} gro {gro}")
            else:
                run(f"ip netns exec {node} ethtool -K eth0 gro on")

    def ns(self, kind: str, end: str) -> str:
        """Name of a namespace."""
        return f"{self.tag}-{kind}-{end}"

    def pods(self, subnet: dict[str, str]) -> None:
        """Puts a bridge and a pod with address .2 into each node's subnet."""
        for end in "ab":
            node, pod = self.ns("node", end), self.ns("pod", end)
            run(f"ip -n {node} link add cni0 type bridge")
            run(f"ip -n {node} addr add {subnet[end]}.1/24 dev cni0")
            run(f"ip -n {node} link set cni0 mtu {MTU} up")
            run(f"ip -n {node} link add pod0 type veth peer name eth0 netns {pod}")
            run(f"ip -n {node} link set pod0 mtu {MTU} master cni0 up")
            run(f"ip -n {pod} addr add {subnet[end]}.2/24 dev eth0")
            run(f"ip -n {pod} link set eth0 mtu {MTU} up")
            run(f"ip -n {pod} route add default via {subnet[end]}.1")

    def spawn(self, namespace: str, command: str, **environment: str) -> subprocess.Popen[str]:
        """A child in a namespace, ended with the lab."""
        child = subprocess.Popen(
            ["ip", "netns", "exec", namespace, *shlex.split(command)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL if not os.environ.get("BENCH_VERBOSE") else None,
            text=True,
            env={**os.environ, **environment},
        )
        self.processes.append(child)
        return child

    def cpu_seconds(self) -> float:
        """CPU time of the children so far.

        Softirq work is charged to whom it interrupts, so most of the kernel's part is in it; and
        unlike a rate it does not depend on who else uses the machine.
        """
        total = 0.0
        for child in self.processes:
            fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return total

    def close(self) -> None:
        """Ends the children and removes the namespaces."""
        for child in reversed(self.processes):
            child.terminate()
        for child in self.processes:
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        for end in "ab":
            for kind in ("pod", "node"):
                run(f"ip netns del {self.ns(kind, end)}", check=False)


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
    """Polls a condition with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: not within {seconds} s")
        time.sleep(0.05)


def has_link(lab: Lab, end: str, name: str) -> bool:
    """Whether a node has a link of that name."""
    return bool(run(f"ip -n {lab.ns('node', end)} -j link show {name}", check=False).strip())


def tun_up(lab: Lab, end: str) -> None:
    """Addresses a program's TUN as the udp backend does."""
    node = lab.ns("node", end)
    wait_for(lambda: has_link(lab, end, "flannel0"), "flannel0")
    run(f"ip -n {node} addr replace {SUBNET[end]}.0/32 dev flannel0")
    run(f"ip -n {node} link set flannel0 mtu {MTU} up")
    run(f"ip -n {node} route replace {NETWORK} dev flannel0")


def start_vxlan(lab: Lab) -> dict[str, str]:
    """The kernel's vxlan, with one permanent FDB entry, as flannel's own vxlan backend has it."""
    for end in "ab":
        node, other = lab.ns("node", end), OTHER[end]
        run(
            f"ip -n {node} link add flannel.1 address 02:00:00:00:00:0{end} type vxlan id 1 "
            f"local {UNDERLAY[end]} dev eth0 dstport 8472 nolearning"
        )
        run(f"ip -n {node} addr add {SUBNET[end]}.0/32 dev flannel.1")
        run(f"ip -n {node} link set flannel.1 mtu 1450 up")
        via = f"via {SUBNET[other]}.0 dev flannel.1 onlink"
        run(f"ip -n {node} route add {SUBNET[other]}.0/24 {via}")
        mac = f"02:00:00:00:00:0{other}"
        run(f"ip -n {node} neigh add {SUBNET[other]}.0 lladdr {mac} dev flannel.1 nud permanent")
        run(f"bridge -n {node} fdb add {mac} dev flannel.1 dst {UNDERLAY[other]} self permanent")
    return SUBNET


def start_program(command: str) -> Callable[[Lab], dict[str, str]]:
    """A program that opens `flannel0` by itself."""

    def start(lab: Lab) -> dict[str, str]:
        for end in "ab":
            other = OTHER[end]
            filled = command.format(
                tun="flannel0",
                local=UNDERLAY[end],
                peer_net=f"{SUBNET[other]}.0/24",
                peer=UNDERLAY[other],
                address=f"{SUBNET[end]}.0",
                network=NETWORK,
                mtu=MTU,
                port=PORT,
            )
            lab.spawn(lab.ns("node", end), filled)
            tun_up(lab, end)
        return SUBNET

    return start


def start_upstream(lab: Lab) -> dict[str, str]:
    """The real daemon on both nodes, with an etcd on node a."""
    daemon = os.environ["PYFLANNEL_UPSTREAM"]
    etcd = find_etcd()
    if etcd is None:
        raise RuntimeError("etcd is not installed")
    state = Path(tempfile.mkdtemp(prefix=lab.tag))
    url = f"http://{UNDERLAY['a']}:2379"
    command = etcd_command(
        etcd, name="a", data=state / "etcd", clients=(url,), peer="http://127.0.0.1:2380"
    )
    lab.spawn(lab.ns("node", "a"), shlex.join(command), **etcd_environment())
    put = f"curl -sf {url}/v3/kv/put -d " + shlex.quote(
        json.dumps(
            {
                "key": "L2NvcmVvcy5jb20vbmV0d29yay9jb25maWc=",
                "value": "eyJOZXR3b3JrIjoiMTAuNzcuMC4wLzE2IiwiQmFja2VuZCI6eyJUeXBlIjoidWRwIn19",
            }
        )
    )  # /coreos.com/network/config = {"Network":"10.77.0.0/16","Backend":{"Type":"udp"}}
    execute = f"ip netns exec {lab.ns('node', 'a')} "
    wait_for(lambda: "revision" in run(execute + put, check=False), "etcd")
    subnet: dict[str, str] = {}
    for end in "ab":
        environment_file = state / f"{end}.env"
        lab.spawn(
            lab.ns("node", end),
            f"{daemon} -etcd-endpoints {url} -iface eth0 -subnet-file {environment_file}",
        )
        wait_for(environment_file.exists, "subnet.env")
        fields = dict(
            line.split("=", 1) for line in environment_file.read_text().splitlines() if "=" in line
        )
        subnet[end] = fields["FLANNEL_SUBNET"].rpartition(".")[0]
    shutil.rmtree(state, ignore_errors=True)
    return subnet


@contextlib.contextmanager
def candidate(name: str, mode: str, programs: dict[str, str]) -> Iterator[tuple[Lab, str]]:
    """A lab with one candidate running; gives the lab and pod b's address."""
    lab = Lab(mode)
    try:
        if name == "vxlan":
            subnet = start_vxlan(lab)
        elif name == "upstream":
            subnet = start_upstream(lab)
        else:
            subnet = start_program(programs[name])(lab)
        lab.pods(subnet)
        target = f"{subnet['b']}.2"
        ping = f"ip netns exec {lab.ns('pod', 'a')} ping -c1 -W1 {target}"
        wait_for(lambda: " 0% packet loss" in run(ping, check=False), f"{name}: ping")
        yield lab, target
    finally:
        lab.close()


def measure(lab: Lab, target: str, traffic: str, seconds: float, what: str) -> dict[str, float]:
    """One sample of each figure."""
    sample: dict[str, float] = {}
    here, there = lab.ns("pod", "a"), lab.ns("pod", "b")
    execute = f"ip netns exec {here} "
    if "t" in what or "4" in what:
        lab.spawn(there, "iperf3 -s -p 5201")
        wait_for(lambda: ":5201" in run(f"ip netns exec {there} ss -ltn"), "iperf3")
        for streams in (1, 4):
            if ("t" if streams == 1 else "4") not in what:
                continue
            before = lab.cpu_seconds()
            out = run(execute + f"iperf3 -J -c {target} -p 5201 -t {seconds} -P {streams}")
            end = json.loads(out)["end"]
            client = end["cpu_utilization_percent"]["host_total"] / 100 * end["sum_sent"]["seconds"]
            used = lab.cpu_seconds() - before + client
            sample[f"tcp{streams} Gbit/s"] = end["sum_received"]["bits_per_second"] / 1e9
            sample["CPU s/GB"] = used / (end["sum_received"]["bytes"] / 1e9)
    if "u" in what:
        lab.spawn(there, f"{traffic} udp-server 7000")
        time.sleep(0.2)
        sample["64 B kpps"] = (
            float(run(execute + f"{traffic} udp {target} 7000 {seconds} 64")) / 1e3
        )
    if "r" in what:
        lab.spawn(there, f"{traffic} tcp-server 7001")
        wait_for(lambda: ":7001" in run(f"ip netns exec {there} ss -ltn"), "tcp-server")
        p50, p99, _ = run(execute + f"{traffic} tcp {target} 7001 {seconds}").split()
        sample["rr p50 us"], sample["rr p99 us"] = float(p50), float(p99)
    return sample


def main() -> None:
    """Measures, and prints one row a candidate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("candidates", nargs="+")
    parser.add_argument("--mode", choices=("asis", "plain", "bare"), default="asis")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument(
        "--what", default="tur", help="t: TCP 1 flow, 4: 4 flows, u: UDP, r: latency"
    )
    parser.add_argument("--program", action="append", default=[], metavar="NAME=COMMAND")
    parser.add_argument("--json", type=Path, help="every sample, to this file")
    options = parser.parse_args()
    programs = dict(p.split("=", 1) for p in options.program)
    programs.setdefault(
        "native",
        f"{sys.executable} {HERE / 'native_node.py'} {{tun}} {{local}} {{address}} {{network}} "
        "{mtu} {port} {peer_net}={peer}",
    )
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in options.candidates}
    with tempfile.TemporaryDirectory() as directory:
        traffic = f"{directory}/traffic"
        run(f"cc -O2 -o {traffic} {HERE / 'native_traffic.c'}")
        for turn in range(options.rounds):
            order = options.candidates if turn % 2 == 0 else options.candidates[::-1]
            for name in order:
                with candidate(name, options.mode, programs) as (lab, target):
                    samples[name].append(
                        measure(lab, target, traffic, options.seconds, options.what)
                    )
    for name, rows in samples.items():
        cells = [
            f"{key} {statistics.median(row[key] for row in rows):8.2f} "
            f"({min(row[key] for row in rows):.2f}-{max(row[key] for row in rows):.2f})"
            for key in rows[0]
        ]
        print(f"{options.mode:5} {name:12} " + "  ".join(cells), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"mode": options.mode, "samples": samples}, indent=1))


if __name__ == "__main__":
    main()
