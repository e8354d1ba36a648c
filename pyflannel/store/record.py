"""What this node remembers of its own lease over a restart or a reboot.

Etcd knows leases by public IP only, so a daemon that finds "its" lease cannot tell its own former
run from a second node with the same address, and one whose address has changed finds none. This
small file in the state directory can: it names the etcd lease that we wrote, and the addresses that
it was written with. Losing it costs a second at the next start (the other holder, if there is one,
is asked for a sign of life), or the subnet if the address has changed as well; so no failure here
is fatal.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pyflannel.core.allocation import Former
from pyflannel.core.errors import FlannelError
from pyflannel.core.ip import IPAddress, SubnetKey, parse_ip, parse_subnet_key
from pyflannel.core.lease import Lease
from pyflannel.kernel.files import (
    FileMissing,
    FileText,
    FileUnreadable,
    read_text_if_exists,
    write_atomically,
)
from pyflannel.logs import get_logger

log = get_logger(__name__)

FILE_NAME = "lease.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """The lease of the former run."""

    key: SubnetKey
    store_lease: int
    prefix: str
    """The etcd prefix it was under."""
    public: tuple[IPAddress, ...] = ()
    """The addresses it was published with, IPv4 first; empty in a file of the first release."""
    cluster: int = 0
    """The id of the etcd cluster it was in, 0 if that is not known."""

    @property
    def former(self) -> Former:
        """The same in the words of `core.allocation`."""
        return Former(key=self.key, store_lease=self.store_lease, public=frozenset(self.public))


class LeaseRecord:
    """The file `<state-dir>/lease.json`."""

    def __init__(self, state_dir: str, prefix: str) -> None:
        self._path = Path(state_dir) / FILE_NAME
        self._prefix = prefix
        self._unwritten: bytes | None = None

    def load(self) -> Remembered | None:
        """What was written last under this prefix; `None` if there is nothing or it is damaged."""
        content = read_text_if_exists(self._path)
        if isinstance(content, FileMissing):
            return None
        reason = content.reason if isinstance(content, FileUnreadable) else ""
        if isinstance(content, FileText):
            try:
                return self._parse(content.text)
            except ValueError as error:
                reason = str(error)
        log.warning("lease record unreadable, going on without", path=self._path, error=reason)
        return None

    def _parse(self, text: str) -> Remembered | None:
        """What a file's text says, `None` if it is about another prefix.

        Raises:
            ValueError: it is not what `save` writes.
        """
        try:
            entry = json.loads(text)
        except RecursionError:
            raise ValueError("JSON that is nested too deeply") from None
        if not isinstance(entry, dict):
            raise ValueError("no JSON object")  # noqa: TRY004 - what the file holds
        subnet, store_lease, prefix = (entry.get(n) for n in ("subnet", "etcd_lease", "prefix"))
        if not isinstance(subnet, str) or not isinstance(prefix, str):
            raise ValueError("subnet or prefix is missing or no string")  # noqa: TRY004
        if not isinstance(store_lease, int) or not 0 <= store_lease < 1 << 63:
            raise ValueError(f"etcd_lease {str(store_lease)[:40]} is no id of an etcd lease")
        key = parse_subnet_key(subnet)
        if key is None:
            raise ValueError(f"subnet {subnet[:80]!r} names none")
        listed = entry.get("public", [])
        if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
            raise ValueError("public is no list of addresses")
        public = tuple(parse_ip(text) for text in listed)
        if prefix != self._prefix:
            return None
        cluster = entry.get("cluster", 0)
        if not isinstance(cluster, int) or not 0 <= cluster < 1 << 64:
            raise ValueError(f"cluster {str(cluster)[:40]} is no id of an etcd cluster")
        return Remembered(
            key=key, store_lease=store_lease, prefix=prefix, public=public, cluster=cluster
        )

    def save(self, lease: Lease, cluster: int = 0) -> None:
        """Remembers a lease. A full or read-only disk is logged once and is no reason to stop."""
        entry = {
            "subnet": str(lease.key),
            "etcd_lease": lease.store_lease,
            "prefix": self._prefix,
            "public": [
                str(ip) for ip in (lease.attrs.public_ip, lease.attrs.public_ipv6) if ip is not None
            ],
            "cluster": cluster,
        }
        failing = self._unwritten is not None
        self._unwritten = (json.dumps(entry) + "\n").encode()
        self._write(failing=failing)

    def save_again(self) -> None:
        """Writes what could not be written when it was to be; to be called now and then."""
        if self._unwritten is not None:
            self._write(failing=True)

    def _write(self, *, failing: bool) -> None:
        if self._unwritten is None:
            return
        try:
            write_atomically(self._path, self._unwritten, private=True)
        except FlannelError as error:
            if not failing:
                log.warning("lease record not written", path=self._path, error=error)
        else:
            self._unwritten = None
            if failing:
                log.info("lease record is written again", path=self._path)
