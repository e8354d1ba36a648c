"""How each kind of fault is done and healed. All of it runs in the members' namespace.

`begin` does a fault; `heal` undoes it, even after other faults, and may be called for a fault whose
ground another one has taken away (users of a cluster that lost its data). `settle` is for what
comes after the recovery: authentication is switched off under nodes that are well.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
from pathlib import Path
from typing import Final

from pyflannel.lab.nodes import Node
from pyflannel.testing.certs import Authority, Certificate
from pyflannel.testing.etcdserver import EtcdError, EtcdServer, b64
from tests.integration.etcd_cluster.campaign import link
from tests.integration.etcd_cluster.campaign.ground import (
    BCRYPT,
    BELOW,
    HOSTS,
    PORT,
    PREFIX,
    ROOT_PASSWORD,
    USER,
    Ground,
    owner,
    value_of,
)
from tests.integration.etcd_cluster.campaign.plan import MEMBERS, Area, Fault, Kind

STRANGERS_IP: Final = "198.51.100.9"
FILLER: Final = 20
"""Writes that history goes on by."""


class Faults:
    """The faults of one campaign."""

    def __init__(self, ground: Ground, directory: Path) -> None:
        self._ground = ground
        self._directory = directory
        self._taken: list[bytes] = []
        self._certificates: tuple[Authority, Certificate] | None = None
        self._passwords = 0
        self._learner = ""

    def begin(self, fault: Fault) -> None:
        """Does it."""
        ground, node = self._ground, self._ground.lab.node(fault.node)
        members = ground.cluster.members
        others = [n for n in range(MEMBERS) if n != fault.member]
        match fault.kind:
            case Kind.CUT_FROM_ONE:
                link.cut(node, [fault.member])
            case Kind.CUT_FROM_TWO:
                link.cut(node, others)
            case Kind.CUT_FROM_ALL:
                link.cut(node, range(len(HOSTS)))
            case Kind.COMPACTED:
                link.cut(node, range(len(HOSTS)))
                self._go_on()
                header = ground.post("kv/range", {"key": b64(b"\0")})["header"]
                ground.post("kv/compaction", {"revision": header["revision"], "physical": True})
            case Kind.SLOW:
                link.slow_down(node)
            case Kind.LOSSY:
                link.lose(node)
            case Kind.AUTH:
                self._auth_on()
            case Kind.PASSWORD:
                self._auth_on()
                self._passwords += 1
                ground.password = f"secret-{self._passwords}"
                self._change_password()
            case Kind.ROLE:
                self._auth_on()
                self._permit("READ")
            case Kind.NOSPACE:
                member = ground.leader()
                status = ground.post_to(member, "maintenance/status", {})
                self._alarm("ACTIVATE", status["header"]["member_id"])
            case Kind.KEY_DELETED:
                if (key := self._key(node)) is not None:
                    ground.delete(key)
            case Kind.LEASE_REVOKED:
                key = self._key(node)
                if key is not None and (lease := ground.leases()[key].lease):
                    ground.post("lease/revoke", {"ID": str(lease)})
            case Kind.KEY_TAKEN:
                if (key := self._key(node)) is not None:
                    self._take(key, value_of(STRANGERS_IP))
            case Kind.KEY_GARBLED:
                if (key := self._key(node)) is not None:
                    self._take(key, b'{"PublicIP":')
            case Kind.LEASE_SHORT:
                if (key := self._key(node)) is not None:
                    granted = ground.post("lease/grant", {"TTL": "15"})
                    ground.put(key, ground.leases()[key].value, int(granted["ID"]))
            case Kind.EMPTIED:
                ground.delete(BELOW, BELOW[:-1] + bytes([BELOW[-1] + 1]))
            case Kind.LEADER_KILLED:
                ground.leader().kill()
            case Kind.LEADER_FROZEN:
                ground.leader().freeze()
            case Kind.MEMBER_KILLED:
                members[fault.member].kill()
            case Kind.MEMBER_FROZEN:
                members[fault.member].freeze()
            case Kind.QUORUM_LOST:
                for n in others:
                    members[n].kill()
            case Kind.QUORUM_FROZEN:
                for n in others:
                    members[n].freeze()
            case Kind.ALL_RESTARTED:
                for member in members:
                    member.kill()
                for member in members:
                    member.start(wait=False)
            case Kind.CERTIFICATES:
                self._exchange_certificates()
            case Kind.LEARNER:
                self._start_learner()
            case Kind.STRANGER:
                self._start_stranger()
            case Kind.REPLACED:
                self._kill_all()
                for member in members:
                    member.wipe()
                ground.auth = False
                self._start_all()
                ground.put_config()
            case Kind.RESTORED:
                self._restore()
            case Kind.DAEMON_KILLED:
                node.kill()
            case Kind.DAEMON_FROZEN:
                node.kill(signal.SIGSTOP)

    def heal(self, fault: Fault) -> None:
        """Undoes it."""
        ground, node = self._ground, self._ground.lab.node(fault.node)
        match fault.kind.area:
            case Area.MEMBERS:
                self._heal_members(fault.kind)
            case Area.NETWORK:
                link.mend(node)
            case Area.SPACE:
                for alarm in ground.post("maintenance/alarm", {}).get("alarms", []):
                    self._alarm("DEACTIVATE", alarm["memberID"])
            case Area.ACCESS if fault.kind is Kind.PASSWORD:
                ground.write_password()
            case Area.ACCESS if fault.kind is Kind.ROLE and ground.auth:
                self._permit("READWRITE")
            case Area.KEYS:
                self._give_back()
            case Area.DAEMON if fault.kind is Kind.DAEMON_KILLED:
                ground.start_daemon(node)
            case Area.DAEMON:
                node.kill(signal.SIGCONT)

    def settle(self, fault: Fault) -> None:
        """What is done when all nodes are well again."""
        if fault.kind.area is Area.ACCESS and self._ground.auth:
            self._ground.post("auth/disable", {})
            self._ground.auth = False
        if fault.kind is Kind.LEARNER:
            self._remove_learner()

    # Keys

    def _key(self, node: Node) -> bytes | None:
        """The key that names this node, if there is one."""
        for key, kv in self._ground.leases().items():
            if str(owner(kv)) == node.address:
                return key
        return None

    def _take(self, key: bytes, value: bytes) -> None:
        self._ground.put(key, value)
        self._taken.append(key)

    def _give_back(self) -> None:
        """What was written over a node's key, and still stands there, goes."""
        nodes = {node.address for node in self._ground.lab.nodes}
        found = self._ground.leases()
        for key in self._taken:
            if key in found and str(owner(found[key])) not in nodes:
                self._ground.delete(key)
        self._taken.clear()

    def _go_on(self) -> None:
        for n in range(FILLER):
            self._ground.put(b"/other/%d" % n, b"x")

    # Users

    def _auth_on(self) -> None:
        ground = self._ground
        # What is there already, from a former fault, stays.
        for path, body in (
            ("auth/user/add", {"name": "root", "password": ROOT_PASSWORD}),
            ("auth/role/add", {"name": "root"}),
            ("auth/user/grant", {"user": "root", "role": "root"}),
            ("auth/user/add", {"name": USER, "password": ground.password}),
            ("auth/role/add", {"name": "flannel"}),
            ("auth/user/grant", {"user": USER, "role": "flannel"}),
        ):
            self._unless_there(path, body)
        self._change_password()
        self._permit("READWRITE")
        ground.post("auth/enable", {})
        ground.auth = True

    def _unless_there(self, path: str, body: dict[str, object]) -> None:
        member = self._ground.leader()
        try:
            self._ground.post_to(member, path, body)
        except EtcdError as error:
            if "already exist" not in str(error) and "already granted" not in str(error):
                raise

    def _change_password(self) -> None:
        self._ground.post("auth/user/changepw", {"name": USER, "password": self._ground.password})

    def _permit(self, permission: str) -> None:
        prefix = PREFIX.encode()
        end = prefix[:-1] + bytes([prefix[-1] + 1])
        allowed = {"permType": permission, "key": b64(prefix), "range_end": b64(end)}
        self._ground.post("auth/role/grant", {"name": "flannel", "perm": allowed})

    def _alarm(self, action: str, member: str) -> None:
        self._ground.post(
            "maintenance/alarm", {"action": action, "memberID": member, "alarm": "NOSPACE"}
        )

    # Members

    def _heal_members(self, kind: Kind) -> None:
        ground = self._ground
        if kind is Kind.CERTIFICATES:
            assert self._certificates is not None
            ground.install(*self._certificates)
        if kind is Kind.STRANGER and ground.fourth is not None:
            ground.fourth.kill()
            ground.fourth = None
        for member in ground.cluster.members:
            ground.restart(member)
        for member in ground.cluster.members:
            ground.wait_until_it_reads(member)

    def _kill_all(self) -> None:
        for member in self._ground.cluster.members:
            member.kill()

    def _start_all(self) -> None:
        for member in self._ground.cluster.members:
            member.start(wait=False)
        for member in self._ground.cluster.members:
            self._ground.wait_until_it_reads(member)

    def _exchange_certificates(self) -> None:
        """The members get theirs one after the other; the nodes when it is healed."""
        ground = self._ground
        self._certificates = ground.new_authority()
        authority, client = self._certificates
        tls = ground.server_tls(authority)
        for member in ground.cluster.members:
            member.kill()
            ground.serve(member, tls, client)
            member.start(wait=False)
            ground.wait_until_it_reads(member)

    def _restore(self) -> None:
        backups = self._directory / "backups"
        shutil.rmtree(backups, ignore_errors=True)
        backups.mkdir()
        members = self._ground.cluster.members
        self._kill_all()
        for member in members:
            member.backup(backups / member.name)
        self._start_all()
        self._go_on()
        self._kill_all()
        for member in members:
            member.restore(backups / member.name)
        self._start_all()

    def _at_fourth(self, name: str, state: str) -> EtcdServer:
        tls = self._ground.cluster.members[0].tls
        server = EtcdServer(
            self._directory / name,
            binary=self._ground.binary,
            name=name,
            host=HOSTS[-1],
            tls=tls,
            options=(*BCRYPT, "--initial-cluster-state", state),
        )
        server.port = PORT
        server.wipe()
        return server

    def _start_stranger(self) -> None:
        self._ground.fourth = server = self._at_fourth("stranger", "new")
        server.start()

    def _start_learner(self) -> None:
        ground = self._ground
        server = self._at_fourth("learner", "existing")
        added = ground.post(
            "cluster/member/add", {"peerURLs": [server.peer_url], "isLearner": True}
        )
        self._learner = added["member"]["ID"]
        server.cluster = f"{ground.cluster.members[0].cluster},{server.name}={server.peer_url}"
        ground.fourth = server
        server.start(wait=False)

    def _remove_learner(self) -> None:
        ground = self._ground
        if ground.fourth is not None:
            ground.fourth.kill()
            ground.fourth = None
        if self._learner:
            with contextlib.suppress(EtcdError):
                ground.post("cluster/member/remove", {"ID": self._learner})
        self._learner = ""
