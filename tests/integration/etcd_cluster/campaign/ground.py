"""Where a campaign takes place: a lab of three nodes with pods, over three real members of etcd.

The members run in the namespace of the lab's switch, each with an address of its own; so must
whatever speaks to them, and `Ground.inside` is how it gets there. A fourth endpoint, which all
nodes are told of, is empty most of the time: there a learner or a stranger appears.

Members and nodes speak TLS, and members ask for a client certificate. The nodes are started with a
user and a password; whether etcd has users is another matter.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import socket
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Final, TypeVar

from pyflannel.core.lease import Lease, LeaseAttrs
from pyflannel.kernel import netns
from pyflannel.lab import Lab, LabSpec
from pyflannel.lab.nodes import Node
from pyflannel.store.etcd import codec
from pyflannel.store.etcd.base import KeyValue
from pyflannel.testing.certs import Authority, Certificate
from pyflannel.testing.etcdserver import EtcdCluster, EtcdError, EtcdServer, ServerTLS, b64
from tests.integration.etcd_cluster.campaign.plan import MEMBERS, NODES

T = TypeVar("T")

PREFIX: Final = "/coreos.com/network"
BELOW: Final = codec.subnets_prefix(PREFIX)
CONFIG: Final = {
    "Network": "10.0.0.0/16",
    "SubnetMin": "10.0.1.0",
    "SubnetMax": "10.0.6.0",
    "Backend": {"Type": "vxlan"},
}
"""Six subnets for three nodes: what one loses another may get."""
HOSTS: Final = tuple(f"192.0.2.{241 + n}" for n in range(MEMBERS + 1))
"""The members', and the fourth endpoint's."""
PORT: Final = 2379
USER: Final = "flannel"
ROOT_PASSWORD: Final = "root-secret"
ANSWER_S: Final = 40.0
"""For an operator's request: longer than an election on a busy machine."""
POLL_S: Final = 0.1
BCRYPT: Final = ("--bcrypt-cost", "4")
SUBJECT: Final = "/O=flannel"
"""A client certificate has no common name, or etcd with users refuses its requests."""


class Ground:
    """The lab, its etcd, and an operator's hands on both."""

    def __init__(self, directory: Path, binary: Path, name: str) -> None:
        self._directory = directory
        self.binary = binary
        self._authorities = 0
        self._clients: dict[str, Certificate] = {}
        self.password = "first-secret"
        self.auth = False
        self.lab = Lab(LabSpec(name=name, nodes=NODES, config=CONFIG, start_daemons=False))
        self.files = directory / "files"
        self.cluster: EtcdCluster
        self.fourth: EtcdServer | None = None

    @contextlib.contextmanager
    def up(self) -> Iterator[Ground]:
        """The lab and its etcd, with all nodes ready; taken away again in any case."""
        self.files.mkdir(parents=True)
        authority, client = self.new_authority()
        self.install(authority, client)
        self.write_password()
        with self.lab:
            self.lab.etcd.stop()
            for host in (*HOSTS, "192.0.2.250"):
                self.lab.switch.run(["ip", "address", "add", f"{host}/24", "dev", "underlay"])
            self.inside(self._make_cluster, authority, client)
            try:
                self.inside(self._start)
                yield self
            finally:
                if self.fourth is not None:
                    self.fourth.kill()
                self.cluster.stop()

    def inside(self, call: Callable[..., T], *arguments: Any) -> T:
        """Calls something in the members' namespace; what it starts lives there too."""
        return self.lab.switch.call(lambda: call(*arguments))

    def enter(self) -> None:
        """Moves the calling thread there, for good."""
        netns.enter(self.lab.switch.holder.pid)

    def _make_cluster(self, authority: Authority, client: Certificate) -> None:
        self.cluster = EtcdCluster(
            self._directory / "etcd",
            binary=self.binary,
            hosts=HOSTS[:MEMBERS],
            tls=self.server_tls(authority),
            options=BCRYPT,
        )
        for member in self.cluster.members:
            member.port = PORT
            self._clients[member.name] = client

    def _start(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.cluster)
            stack.pop_all()  # ended by `up`, in any state
        self.put_config()
        for node in self.lab.nodes:
            self.start_daemon(node)
        self.lab.wait_ready()
        self.lab.attach_pods()

    def start_daemon(self, node: Node) -> None:
        """With all four endpoints, certificates and a user."""
        endpoints = ",".join(f"https://{host}:{PORT}" for host in HOSTS)
        node.start_daemon(
            [
                f"--etcd-endpoints={endpoints}",
                f"--etcd-cafile={self.files / 'ca.pem'}",
                f"--etcd-certfile={self.files / 'client.pem'}",
                f"--etcd-keyfile={self.files / 'client.key'}",
                f"--etcd-username={USER}",
                f"--etcd-password-file={self.files / 'password'}",
            ]
        )

    def put_config(self) -> None:
        """Writes the network config."""
        self.put(codec.config_key(PREFIX), json.dumps(CONFIG).encode())

    # Certificates and passwords

    def new_authority(self) -> tuple[Authority, Certificate]:
        """Another authority, and a client's certificate from it."""
        self._authorities += 1
        authority = Authority(self._directory / f"ca{self._authorities}", f"CA {self._authorities}")
        return authority, authority.issue("client", subject=SUBJECT)

    def server_tls(self, authority: Authority) -> ServerTLS:
        """What members serve with."""
        hosts = ",".join(["IP:127.0.0.1", *(f"IP:{host}" for host in HOSTS)])
        return ServerTLS(
            certificate=authority.issue("server", hosts=hosts),
            ca=authority.bundle,
            require_client_cert=True,
        )

    def install(self, authority: Authority, client: Certificate) -> None:
        """Puts an authority and a certificate where the nodes look for them."""
        for source, name in (
            (authority.bundle, "ca.pem"),
            (client.cert, "client.pem"),
            (client.key, "client.key"),
        ):
            shutil.copy(source, self.files / name)

    def serve(self, member: EtcdServer, tls: ServerTLS, client: Certificate) -> None:
        """Has a member serve with other certificates from its next start on."""
        member.serve(tls)
        self._clients[member.name] = client

    def write_password(self) -> None:
        """Puts the user's password where the nodes look for it."""
        path = self.files / "password"
        path.write_text(self.password)
        path.chmod(0o600)

    # An operator at etcd

    def post(self, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        """A request to the first member that carries it out; tried again while none does."""
        end = time.monotonic() + ANSWER_S
        while True:
            for member in self.cluster.members:
                if not member.answers:
                    continue
                try:
                    return self.post_to(member, path, body)
                except (EtcdError, OSError, http.client.HTTPException) as error:
                    reason = error
            if time.monotonic() > end:
                raise EtcdError(f"{path}: no member carries it out: {reason}")
            time.sleep(POLL_S)

    def post_to(
        self, member: EtcdServer, path: str, body: Mapping[str, object], timeout: float = 5.0
    ) -> dict[str, Any]:
        """A request to one member, as root where etcd has users."""
        client = self._clients[member.name]
        token = ""
        if self.auth:
            login = {"name": "root", "password": ROOT_PASSWORD}
            answer = member.post("auth/authenticate", login, client=client, timeout=timeout)
            token = answer["token"]
        return member.post(path, body, token=token, client=client, timeout=timeout)

    def put(self, key: bytes, value: bytes, lease: int = 0) -> None:
        """Writes a key."""
        self.post("kv/put", {"key": b64(key), "value": b64(value), "lease": str(lease)})

    def delete(self, key: bytes, end: bytes = b"") -> None:
        """Deletes a key, or all up to an end."""
        self.post("kv/deleterange", {"key": b64(key), **({"range_end": b64(end)} if end else {})})

    def leases(self, member: EtcdServer | None = None) -> dict[bytes, KeyValue]:
        """What is below `subnets/`, as a linearizable read shows it."""
        body = {"key": b64(BELOW), "range_end": b64(BELOW[:-1] + bytes([BELOW[-1] + 1]))}
        found = (
            self.post_to(member, "kv/range", body, 2.0) if member else self.post("kv/range", body)
        )
        kvs = {}
        for kv in found.get("kvs", []):
            key, value = b64decode(kv["key"]), b64decode(kv.get("value", ""))
            kvs[key] = KeyValue(
                key=key,
                value=value,
                mod_revision=int(kv["mod_revision"]),
                lease=int(kv.get("lease", 0)),
            )
        return kvs

    def leader(self) -> EtcdServer:
        """The member that leads now."""
        end = time.monotonic() + ANSWER_S
        while time.monotonic() < end:
            for member in self.cluster.members:
                if not member.answers:
                    continue
                with contextlib.suppress(EtcdError, OSError, http.client.HTTPException):
                    status = self.post_to(member, "maintenance/status", {}, 1.0)
                    if status["header"]["member_id"] == status.get("leader"):
                        return member
            time.sleep(POLL_S)
        raise EtcdError("the cluster has no leader")

    def wait_until_it_reads(self, member: EtcdServer, within: float = 60.0) -> None:
        """Returns when a member has a quorum behind it; with an alarm it never says "healthy"."""
        end = time.monotonic() + within
        while True:
            try:
                self.leases(member)
                return
            except (EtcdError, OSError, http.client.HTTPException) as error:
                if time.monotonic() > end:
                    raise EtcdError(f"{member.name} does not answer: {error}") from error
            time.sleep(POLL_S)

    def restart(self, member: EtcdServer) -> None:
        """Starts a member, or thaws it."""
        member.thaw()
        member.start(wait=False)

    # Nodes

    def status(self, node: Node) -> dict[str, Any] | None:
        """What a daemon says about itself; `None` if it does not answer at once."""
        connection = http.client.HTTPConnection("localhost", timeout=2.0)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(2.0)
        try:
            connection.sock.connect(str(node.path("/run/flannel/pyflannel.sock")))
            connection.request("GET", "/status")
            said: dict[str, Any] = json.loads(connection.getresponse().read())
        except (OSError, ValueError, http.client.HTTPException):
            return None
        finally:
            connection.close()
        return said


def owner(kv: KeyValue) -> IPv4Address | None:
    """The public IP that a key names."""
    lease = codec.decode_lease(PREFIX, kv)
    return lease.attrs.public_ip if isinstance(lease, Lease) else None


def key_of(subnet: str) -> bytes:
    """The key of a subnet such as `10.0.1.0/24`."""
    return BELOW + subnet.replace("/", "-").encode()


def value_of(address: str) -> bytes:
    """A lease of another machine."""
    attrs = LeaseAttrs(
        public_ip=IPv4Address(address),
        backend_type="vxlan",
        backend_data='{"VNI":1,"VtepMAC":"0a:00:00:00:00:63"}',
    )
    return codec.encode_attrs(attrs)


class Repeated(threading.Thread):
    """Calls something again and again in the members' namespace until it is ended."""

    def __init__(self, ground: Ground, call: Callable[[], None], every_s: float) -> None:
        super().__init__(name="audit", daemon=True)
        self._ground, self._call, self._every_s = ground, call, every_s
        self._over = threading.Event()
        self.failed: BaseException | None = None

    def run(self) -> None:
        try:
            self._ground.enter()
            while not self._over.wait(self._every_s):
                self._call()
        except BaseException as error:  # noqa: BLE001 - raised by `end`
            self.failed = error

    def end(self) -> None:
        self._over.set()
        self.join()
        if self.failed is not None:
            raise self.failed
