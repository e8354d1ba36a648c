"""Two nodes of a real cluster, with pods: kubelets, containerd and kube-proxy on booted Debians.

    [ node1: 192.0.2.11 ]---[ hub: 192.0.2.1 ]---[ node2: 192.0.2.12 ]
                  API server, controller manager, scheduler

Everything of a node, its containers too, runs in the namespaces of its own init, so it is gone with
it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self

import yaml

from tests.kube.build import node_parts
from tests.kube.images import PLUGINS, TOKEN, manifest
from tests.kube.server import SERVICE
from tests.support.document import Shell
from tests.support.machine import HUB, ROOT, Node, Site, pings, remove_cgroup, run, until

CONTROL: Final = f"http://{HUB}:8080/control"
DAEMONS: Final = ("-n", "kube-flannel")
SET: Final = "daemonset/kube-flannel-ds"
PATIENCE_S: Final = 300
"""Within it whatever is to happen has happened; most of it takes seconds."""
CONTAINERD: Final = """version = 2
# Its storage cannot lie on an overlay, which the node's root is.
root = "/var/lib/docker/containerd"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "pause:test"
  restrict_oom_score_adj = true
"""
KUBELET: Final = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
    "cgroupDriver": "cgroupfs",
    "failCgroupV1": False,
    "failSwapOn": False,
    "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
    "authorization": {"mode": "AlwaysAllow"},
    "enforceNodeAllocatable": [],
    # However full the machine's disk is.
    "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"},
    "imageGCHighThresholdPercent": 100,
    "imageGCLowThresholdPercent": 99,
    "localStorageCapacityIsolation": False,
    "resolvConf": "",
}
CONTROLLERS: Final = ("blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "memory", "pids")
"""Of control groups of version 1; where a machine has them its kubelets cannot use version 2."""
RUN_NODE: Final = """
# Control groups as kubelet wants them, for these programs alone: systemd has its own.
mount --make-private /sys/fs/cgroup
mount -t tmpfs cgroups /sys/fs/cgroup
for each in {controllers}; do
    mkdir "/sys/fs/cgroup/$each"
    mount -t cgroup -o "$each" cgroup "/sys/fs/cgroup/$each"
done
# kubelet wants these of the machine; it finds them as it likes them, and the machine keeps its own.
ln -sf null /dev/kmsg
for each in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \\
    kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
    file="/run/sysctl/${{each%=*}}"
    mkdir -p "${{file%/*}}"
    echo "${{each#*=}}" >"$file"
    mount --bind "$file" "/proc/sys/${{each%=*}}"
done
containerd >/var/log/containerd.log 2>&1 &
until ctr version >/dev/null 2>&1; do sleep 0.2; done
for image in /var/tmp/images/*.tar; do
    ctr -n k8s.io image import "$image"
    rm "$image"
done
# As a service manager would keep them.
keep() {{
    while :; do
        "$@" >>"/var/log/$1.log" 2>&1 &
        echo $! >"/run/$1.pid"
        wait $! || true
    done
}}
keep kube-proxy --kubeconfig=/etc/kubernetes/kube-proxy.json --hostname-override={name} \\
    --cluster-cidr=10.244.0.0/16 --conntrack-max-per-core=0 \\
    --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0 &
keep kubelet --config=/etc/kubernetes/kubelet.json --kubeconfig=/etc/kubernetes/{name}.json \\
    --hostname-override={name} --node-ip={address}
"""


class PodCluster:
    """A context manager; all of it is gone after.

    Args:
        archives: what `images` made.
    """

    def __init__(self, archives: Path) -> None:
        self._archives = archives
        self._stack = contextlib.ExitStack()
        self.nodes: list[Node] = []

    def __enter__(self) -> Self:
        try:
            self.site = self._stack.enter_context(Site("docker"))
            self.directory = self.site.directory / "kube"
            self.directory.mkdir()
            self._start_server()
            for number in (1, 2):
                self._start_node(number)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    # The API

    def control(self, call: str = "", *args: object) -> Any:
        """Calls a method of the API server's owner."""
        order = json.dumps({"call": call, "args": args})
        ask = f"import sys, urllib.request as r; d = sys.stdin.buffer.read();\
            print(r.urlopen('{CONTROL}', d, timeout=150).read().decode())"
        return json.loads(
            self._in_hub(sys.executable, "-c", " ".join(ask.split()), stdin=order, timeout=180)
        )

    def kubectl(
        self, *words: str, stdin: str = "", check: bool = True, timeout: float = PATIENCE_S + 30
    ) -> str:
        """Runs kubectl as the cluster's administrator; gives its output, both streams."""
        program = (self.directory / "kubectl", f"--kubeconfig={self.directory}/admin.json")
        return self._in_hub(*program, *words, stdin=stdin, check=check, timeout=timeout)

    def _in_hub(
        self, *command: str | Path, stdin: str = "", check: bool = True, timeout: float = 60
    ) -> str:
        hub = ("ip", "netns", "exec", f"{self.site.name}hub")
        # kubectl has a cache in its home.
        home = ("env", f"HOME={self.directory}")
        return run(*hub, *home, *command, stdin=stdin, check=check, timeout=timeout)

    def get(self, *words: str) -> list[dict[str, Any]]:
        """The objects that `kubectl get` finds."""
        items: list[dict[str, Any]] = json.loads(self.kubectl("get", "-o", "json", *words))["items"]
        return items

    def apply(self, text: str) -> None:
        """Objects as a manifest has them."""
        self.kubectl("apply", "-f", "-", stdin=text)

    def set_image(self, name: str) -> None:
        """The daemon's image, and that of the init container that flannel's manifest has."""
        spec = json.loads(self.kubectl(*DAEMONS, "get", SET, "-o", "json"))["spec"]["template"]
        there = {
            each["name"]
            for kind in ("initContainers", "containers")
            for each in spec["spec"].get(kind, ())
        }
        changes = [f"{each}={name}" for each in ("kube-flannel", "install-cni") if each in there]
        self.kubectl(*DAEMONS, "set", "image", SET, *changes)

    def roll_out(self, *where: str) -> None:
        """Waits until all nodes run the DaemonSet as it is now, and are ready."""
        words = where or (*DAEMONS, SET)
        self.kubectl("rollout", "status", *words, f"--timeout={PATIENCE_S}s")

    def pods(self, namespace: str = "default") -> dict[str, str]:
        """Addresses of running pods by node."""
        return {
            pod["spec"]["nodeName"]: pod["status"].get("podIP", "")
            for pod in self.get("pods", "-n", namespace)
            if pod["status"]["phase"] == "Running" and not pod["metadata"].get("deletionTimestamp")
        }

    def ready_nodes(self) -> set[str]:
        """Names of nodes that Kubernetes calls Ready."""
        return {
            node["metadata"]["name"]
            for node in self.get("nodes")
            for condition in node["status"].get("conditions", [])
            if (condition["type"], condition["status"]) == ("Ready", "True")
        }

    def in_daemon(self, number: int, *command: str) -> str:
        """Runs a program of the daemon's container; it may fail."""
        (pod,) = [
            each["metadata"]["name"]
            for each in self.get("pods", *DAEMONS)
            if each["spec"].get("nodeName") == f"node{number}"
        ]
        words = ("exec", pod, "-c", "kube-flannel", "--", *command)
        return self.kubectl(*DAEMONS, *words, check=False)

    @contextlib.contextmanager
    def standing_still(self, number: int) -> Iterator[None]:
        """The daemon of a node does nothing meanwhile, and does not end."""
        node = self.nodes[number - 1]
        (daemon,) = node.run("pgrep", "-f", "--", "--kube-subnet-mgr").split()
        node.run("kill", "-STOP", daemon)
        try:
            yield
        finally:
            node.run("kill", "-CONT", daemon)

    def token(self, number: int) -> str:
        """What the daemon shows the API server."""
        found = self.in_daemon(number, "cat", TOKEN).strip()
        assert found.count(".") == 2, found
        return found

    def accepts(self, token: str) -> bool:
        """Whether the API server does."""
        # Its output is nodes, or why there are none.
        answer = self.kubectl("get", "nodes", "-o", "name", f"--token={token}", check=False)
        assert ("node/" in answer) is not ("Unauthorized" in answer), answer
        return "node/" in answer

    def describe(self) -> str:
        """For a test that fails: pods, and the ends of logs."""
        lines = [self.kubectl("get", "nodes,pods", "-A", "-o", "wide", check=False)]
        lines.append(self.kubectl("describe", "pods", "-A", check=False)[-6000:])
        for node in self.nodes:
            for name in ("kubelet", "kube-proxy", "containerd"):
                lines.append(node.run("tail", "-n", "15", f"/var/log/{name}.log", check=False))
            logs = "tail -n 15 /var/log/pods/kube-flannel*/*/*.log"
            lines.append(node.run("sh", "-c", logs, check=False)[-4000:])
        return "\n".join(lines)

    # Pods

    def space(self, number: int) -> str:
        """The network namespace of the pod `web` on a node."""
        address = self.pods()[f"node{number}"]
        node = self.nodes[number - 1]
        names = node.run("ls", "/run/netns").split()
        for name in names:
            if f" {address}/" in node.run("ip", "-n", name, "-o", "address", check=False):
                return name
        raise AssertionError(f"no namespace with {address}")

    def inside(self, number: int, *command: str, check: bool = True) -> str:
        """Runs a program of the node in the network of its pod `web`."""
        node = self.nodes[number - 1]
        return node.run("ip", "netns", "exec", self.space(number), *command, check=check)

    @contextlib.contextmanager
    def pinging(self) -> Iterator[list[tuple[int, int]]]:
        """A hundred pings a second from the pod of node1 to that of node2: (sent, received)."""
        ping = ("ip", "netns", "exec", self.space(1), "ping")
        with pings(self.nodes[0], ping, (self.pods()["node2"],)) as result:
            yield result

    # The operator

    def shells(self) -> dict[str, Shell]:
        """What `docs/kubernetes.md` calls its hosts."""
        place = self.directory / "checkout"
        if not place.exists():
            (place / "kubernetes").mkdir(parents=True)
            (place / "kubernetes/pyflannel.yaml").write_text(manifest())
            (config,) = (
                made["data"]["net-conf.json"]
                for made in yaml.safe_load_all(manifest())
                if made["kind"] == "ConfigMap"
            )
            (place / "net-conf.json").write_text(config)
        path = f"PATH={self.directory}:{ROOT}/.venv/bin:{os.environ['PATH']}"
        setting = ("env", f"--chdir={place}", path, f"KUBECONFIG={self.directory}/admin.json")

        def admin(script: str) -> str:
            return self._in_hub(*setting, "sh", "-ec", script, timeout=PATIENCE_S + 30)

        def on(node: Node) -> Shell:
            return lambda script: node.shell(f"cd /root\n{script}", timeout=PATIENCE_S)

        return {"admin": admin, **{node.hostname: on(node) for node in self.nodes}}

    def restart(self, number: int, *parts: str) -> None:
        """Starts `kubelet` or `kube-proxy` of a node again; what the node runs stays."""
        for part in parts:
            self.nodes[number - 1].shell(f'kill "$(cat /run/{part}.pid)"')

    def reaches_the_server(self, number: int) -> bool:
        """Whether the API server's service address leads there."""
        ask = f"import socket; socket.create_connection(('{SERVICE}', 443), 2); print('yes')"
        return "yes" in self.nodes[number - 1].run("python3", "-c", ask, check=False).split()

    # Its parts

    def _start_server(self) -> None:
        hub = ("ip", "netns", "exec", f"{self.site.name}hub")
        log = self._stack.enter_context((self.directory / "server.log").open("wb"))
        words = ("-m", "tests.kube.server", HUB, "8080", self.directory, "*")
        server = subprocess.Popen(
            [*hub, sys.executable, *map(str, words)], cwd=ROOT, stdout=log, stderr=log
        )
        self._stack.callback(_end, server)
        until("the API server", self._answers, 180)
        for name in ("admin", "kube-scheduler"):
            (self.directory / f"{name}.json").write_text(self._kubeconfig(name))
        for name in ("kubectl", "kube-scheduler"):
            (self.directory / name).symlink_to(node_parts())
        flags = (
            f"--kubeconfig={self.directory}/kube-scheduler.json",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
        )
        program = self.directory / "kube-scheduler"
        scheduler = subprocess.Popen([*hub, program, *flags], stdout=log, stderr=log)
        self._stack.callback(_end, scheduler)

    def _answers(self) -> bool:
        try:
            return "nodes" in self.control()
        except AssertionError:
            return False

    def _kubeconfig(self, name: str) -> str:
        """One that has all in it, for another file system."""
        config = json.loads((self.directory / "kubeconfig.json").read_text())
        cluster = config["clusters"][0]["cluster"]
        authority = Path(cluster.pop("certificate-authority")).read_bytes()
        cluster["certificate-authority-data"] = base64.b64encode(authority).decode()
        config["users"][0]["user"] = {"token": f"{name}-token"}
        return json.dumps(config)

    def _start_node(self, number: int) -> None:
        node = self.site.add_node()
        self.nodes.append(node)
        name = node.hostname
        node.shell(
            "systemctl disable --now docker.socket docker containerd 2>/dev/null\n"
            "ip link del docker0 2>/dev/null || true\n"
            "nft flush ruleset\n"
            "mkdir -p /etc/containerd /etc/kubernetes /opt/cni/bin /var/lib/docker/containerd\n"
            ": >>/etc/resolv.conf"
        )
        for plugin in PLUGINS:
            shutil.copy(self._archives / "cni" / plugin, node.root / "opt/cni/bin")
        target = node.root / "usr/local/bin"
        shutil.copy(node_parts(), target / "kubelet")
        (target / "kube-proxy").symlink_to("kubelet")
        node.write("/etc/containerd/config.toml", CONTAINERD)
        group = f"{self.site.name}-{name}-pods"
        self._make_groups(group)
        kubelet = {**KUBELET, "cgroupRoot": f"/{group}"}
        node.write("/etc/kubernetes/kubelet.json", json.dumps(kubelet))
        for who in (name, "kube-proxy"):
            node.write(f"/etc/kubernetes/{who}.json", self._kubeconfig(who))
        waiting = node.root / "var/tmp/images"
        waiting.mkdir()
        for archive in self._archives.glob("*.tar"):
            shutil.copy(archive, waiting)
        (own,) = self._archives.glob("pyflannel-image-*.tar")
        shutil.copy(own, node.root / "root")
        script = RUN_NODE.format(controllers=" ".join(CONTROLLERS), name=name, address=node.address)
        node.write("/usr/local/sbin/kube-node", "set -e\n" + script)
        space = ("unshare", "--mount", "--propagation", "unchanged")
        unit = ("systemd-run", "--unit=kube-node", "--property=Delegate=yes", "--quiet")
        node.run(*unit, *space, "sh", "/usr/local/sbin/kube-node")
        words = ("get", "node", name, "-o", "name", "--ignore-not-found")
        try:
            until(f"{name} is registered", lambda: self.kubectl(*words) != "", 180)
        except AssertionError as error:
            error.add_note(node.journal("kube-node")[-3000:] + self.describe())
            raise

    def _make_groups(self, name: str) -> None:
        """The root of a kubelet's control groups, in every hierarchy, where a node sees its root.

        That is where this program is itself.
        """
        own = {}
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            own.update(dict.fromkeys(controllers.split(","), path))
        for controller in CONTROLLERS:
            group = Path(f"/sys/fs/cgroup/{controller}{own[controller]}", name)
            group.mkdir()
            self.site.on_exit_call(remove_cgroup, group)
            if controller == "cpuset":
                for file in ("cpuset.cpus", "cpuset.mems"):
                    (group / file).write_text((group.parent / file).read_text())


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(30)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
