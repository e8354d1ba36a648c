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
from pyflannel.kernel.files import write_atomically
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

    @property
    def former(self) -> Former:
        """The same in the words of `core.allocation`."""
        return Former(key=self.key, store_lease=self.store_lease, public=frozenset(self.public))


class LeaseRecord:
    """The file `<state-dir>/lease.json`."""

    def __init__(self, state_dir: str, prefix: str) -> None:
        self._path = Path(state_dir) / FILE_NAME
        self._prefix = prefix
        self._warned = False

    def load(self) -> Remembered | None:
        """What was written last under this prefix; `None` if there is nothing or it is damaged."""
        try:
            entry = json.loads(self._path.read_bytes())
            key = parse_subnet_key(entry["subnet"])
            store_lease, prefix = int(entry["etcd_lease"]), entry["prefix"]
            public = tuple(parse_ip(text) for text in entry.get("public", ()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("lease record unreadable, going on without", path=self._path, error=error)
            return None
        if key is None or prefix != self._prefix:
            return None
        return Remembered(key=key, store_lease=store_lease, prefix=prefix, public=public)

    def save(self, lease: Lease) -> None:
        """Remembers a lease. A full or read-only disk is logged once and is no reason to stop."""
        entry = {
            "subnet": str(lease.key),
            "etcd_lease": lease.store_lease,
            "prefix": self._prefix,
            "public": [
                str(ip) for ip in (lease.attrs.public_ip, lease.attrs.public_ipv6) if ip is not None
            ],
        }
        try:
            write_atomically(self._path, (json.dumps(entry) + "\n").encode(), private=True)
        except FlannelError as error:
            if not self._warned:
                log.warning("lease record not written", path=self._path, error=error)
            self._warned = True
        else:
            self._warned = False
