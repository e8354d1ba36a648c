"""What this node remembers of its own lease over a restart or a reboot.

Etcd knows leases by public IP only, so a daemon that finds "its" lease cannot tell its own former
run from a second node with the same address, and one whose address has changed finds none. This
small file in the state directory can: it names the etcd lease that we wrote, and the addresses that
it was written with. The same is noted of a lease that is about to be written, before it is: a node
that is killed between etcd's answer and its own note finds it all the same. Losing the file costs
a second at the next start (the other holder, if there is one, is asked for a sign of life), or the
subnet if the address has changed as well; so no failure here is fatal.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from pyflannel.core.errors import FlannelError
from pyflannel.core.ip import IPAddress, parse_ip, parse_subnet_key
from pyflannel.core.lease import Lease
from pyflannel.core.ownleases import Former
from pyflannel.kernel.files import (
    FileMissing,
    FileText,
    FileUnreadable,
    read_text_if_exists,
    write_atomically,
)
from pyflannel.logs import get_logger
from pyflannel.records import dataclass

log = get_logger(__name__)

FILE_NAME = "lease.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """What a former run has noted."""

    former: Former | None
    """The lease that it had, if it had one."""
    intended: Former | None = None
    """The lease that it was about to write, if it did not note what came of it."""
    public: tuple[IPAddress, ...] = ()
    """The addresses it was published with, IPv4 first; empty in a file of the first release."""
    cluster: int = 0
    """The id of the etcd cluster it was in, 0 if that is not known."""


class LeaseRecord:
    """The file `<state-dir>/lease.json`."""

    def __init__(self, state_dir: str, prefix: str) -> None:
        self._path = Path(state_dir) / FILE_NAME
        self._prefix = prefix
        self._unwritten: bytes | None = None

    def load(self) -> Remembered | None:
        """What was written last under this prefix; `None` if there is nothing or it is damaged."""
        content = read_text_if_exists(self._path, own=True)
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
        prefix, intended = entry.get("prefix"), entry.get("intended")
        if not isinstance(prefix, str):
            raise ValueError("prefix is missing or no string")  # noqa: TRY004
        cluster = entry.get("cluster", 0)
        if not isinstance(cluster, int) or not 0 <= cluster < 1 << 64:
            raise ValueError(f"cluster {str(cluster)[:40]} is no id of an etcd cluster")
        had = None
        public: tuple[IPAddress, ...] = ()
        if entry.get("subnet") is not None or intended is None:
            had, public = _parse_lease(entry)
        about = None if intended is None else _parse_lease(intended)[0]
        if prefix != self._prefix:
            return None
        return Remembered(former=had, intended=about, public=public, cluster=cluster)

    def intend(self, lease: Lease) -> None:
        """Notes a lease that is about to be written; what came of it is noted by `save`.

        A full or read-only disk is no reason not to write it.
        """
        content = read_text_if_exists(self._path, own=True)
        entry: dict[str, object] = {"subnet": None, "etcd_lease": 0, "prefix": self._prefix}
        if isinstance(content, FileText):
            # What cannot be read, or is about another prefix, is replaced, as by `save`.
            with contextlib.suppress(ValueError):
                if self._parse(content.text) is not None:
                    entry = json.loads(content.text)
        self._note({**entry, "intended": _entry(lease)})

    def save(self, lease: Lease, cluster: int = 0) -> None:
        """Remembers a lease. A full or read-only disk is logged once and is no reason to stop."""
        self._note({**_entry(lease), "prefix": self._prefix, "cluster": cluster})

    def _note(self, entry: dict[str, object]) -> None:
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


def _entry(lease: Lease) -> dict[str, object]:
    ips = (lease.attrs.public_ip, lease.attrs.public_ipv6)
    return {
        "subnet": str(lease.key),
        "etcd_lease": lease.store_lease,
        "public": [str(ip) for ip in ips if ip is not None],
    }


def _parse_lease(entry: object) -> tuple[Former, tuple[IPAddress, ...]]:
    """A lease, and its addresses in their order.

    Raises:
        ValueError: it is not what `_entry` gives.
    """
    if not isinstance(entry, dict):
        raise ValueError("a lease is no JSON object")  # noqa: TRY004 - what the file holds
    subnet, store_lease = entry.get("subnet"), entry.get("etcd_lease")
    if not isinstance(subnet, str):
        raise ValueError("subnet is missing or no string")  # noqa: TRY004
    if not isinstance(store_lease, int) or not 0 <= store_lease < 1 << 63:
        raise ValueError(f"etcd_lease {str(store_lease)[:40]} is no id of an etcd lease")
    key = parse_subnet_key(subnet)
    if key is None:
        raise ValueError(f"subnet {subnet[:80]!r} names none")
    listed = entry.get("public", [])
    if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
        raise ValueError("public is no list of addresses")
    public = tuple(parse_ip(text) for text in listed)
    return Former(key=key, store_lease=store_lease, public=frozenset(public)), public
