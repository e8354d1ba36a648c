"""Segments joined at the card: a FOU port at the socket's address and port, for its GRO alone.

Theory of operation. The kernel joins what comes in (GRO) only for UDP ports that are registered
for it. A FOU port with IP in IP inside is such a registration, and the payload of a udp backend's
datagram is just that. So the first GRO joins a stream as it does for vxlan's port, and the program
at the external interface takes what was joined like any super packet. The port must never
*receive*: it would let in what is inside, from any sender. Two things prevent it, each by itself:

* `underlay_at_card`, the program in the place of `underlay_in`. What it does not take it hands to
  the socket of user space (`bpf_sk_assign`), or drops. It works while it is attached.
* The *bolt*, an xfrm policy for the address and port (`kernel.xfrm`). What comes to the port
  nevertheless is dropped. It works always: it needs neither program nor process.

| object | one per | known as ours by | order |
|---|---|---|---|
| bolt | node | its priority, which is our number, and its selector | 1 |
| FOU port | node | its bolt | 2 |

The socket has a policy of its own, so the bolt does not count for it. Socket and port cannot be
bound beside each other, but the kernel looks for conflicts only when binding: the socket steps
aside for that moment (`kernel.udp.aside`).

Both go when the data path stops, so at the end of the daemon too: flanneld, or another release,
finds the UDP port free. Until the next start the second GRO joins. Of a daemon that was killed both
stay: packets go on, and the next start takes them over or away.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from pyflannel.core.errors import FlannelError, KernelError
from pyflannel.datapath.base import DatapathConfig
from pyflannel.datapath.ebpf import cardplan
from pyflannel.datapath.ebpf.programs import SLOW, Programs
from pyflannel.kernel import fou, veth, xfrm
from pyflannel.kernel.fou import FouPort
from pyflannel.kernel.limits import linux_version
from pyflannel.kernel.sysctl import read_sysctl
from pyflannel.kernel.udp import aside, can_step_aside
from pyflannel.logs import get_logger

log = get_logger(__name__)

ZERO_KEY: Final = bytes(4)
_DESCRIPTOR: Final = struct.Struct("=I")


def ability() -> str:
    """Whether this kernel can do it: `on`, or `off` and why."""
    if linux_version() < cardplan.FIRST_LINUX:
        return f"off ({cardplan.TOO_OLD})"
    return "on" if fou.is_there() else f"off ({cardplan.NO_FOU})"


def find() -> list[str]:
    """What an earlier run has left, in words.

    Raises:
        KernelError: what the kernel answers.
    """
    ports, bolts = cardplan.superfluous(*_listed(), None)
    return [f"FOU port {each.port} on {each.local}" for each in ports] + [
        "xfrm policy for {} udp port {}".format(*each.bolted) for each in bolts if each.bolted
    ]


def remove(keep: FouPort | None = None) -> bool:
    """Deletes what an earlier run has left, its ports first.

    Args:
        keep: this port stays, with its bolt.

    Returns:
        Whether there was anything.

    Raises:
        KernelError: naming what cannot be deleted.
    """
    return _remove(*_listed(), keep)


def keep_only(keep: FouPort | None) -> bool:
    """As `remove`; whether the port to keep is there, and ours.

    Raises:
        KernelError: naming what cannot be deleted.
    """
    ports, policies = _listed()
    if _remove(ports, policies, keep):
        log.info("removed a FOU port that an earlier run had left")
    return keep in ports and cardplan.is_ours(keep, policies)


def _listed() -> tuple[list[FouPort], list[xfrm.Policy]]:
    """Ports and policies, if any can be ours.

    The question for policies loads a module; where neither it nor FOU's is loaded there is nothing.
    Of the two a bolt needs only the former, and stays when FOU's is unloaded. And what we may not
    list we have not added.
    """
    try:
        return (fou.ports(), xfrm.policies()) if fou.is_there() or xfrm.is_loaded() else ([], [])
    except KernelError as error:
        if error.errno in (errno.EPERM, errno.EACCES):
            return [], []
        raise


def _remove(ports: list[FouPort], policies: list[xfrm.Policy], keep: FouPort | None) -> bool:
    former, bolts = cardplan.superfluous(ports, policies, keep)
    for port in former:
        fou.delete(port)
    for policy in bolts:
        xfrm.delete(policy)
    return bool(former or bolts)


class CardGro:
    """Port and bolt of one data path.

    Args:
        config: of the data path.
        pins: as for `Programs`.
    """

    def __init__(self, config: DatapathConfig, pins: Path | None) -> None:
        self._config = config
        self._pins = pins
        self._serves = False
        """Whether the programs do what a port needs."""
        self.on = False
        """Whether the programs are to hand to user space what the port would get."""
        self._why_not = "not started" if config.card_gro else cardplan.NOT_ASKED
        self._is_exempt = False

    @property
    def state(self) -> str:
        """For `Capabilities.offloads`."""
        return f"off ({self._why_not})" if self._why_not else "on"

    def load(self) -> Programs:
        """The programs, as this node needs them.

        Raises:
            FlannelError: they cannot be loaded.
        """
        self.on = self._serves = False
        if self._config.card_gro:
            if linux_version() >= cardplan.FIRST_LINUX:
                try:
                    return self._load_at_card()
                except (FlannelError, OSError) as error:
                    self._why_not = str(error)
            else:
                self._why_not = cardplan.TOO_OLD
            # The programs that served a port, if there is one, are about to be replaced.
            remove()
        return Programs(self._pins)

    def _load_at_card(self) -> Programs:
        loaded = Programs(self._pins, at_card=True)
        try:
            loaded.maps[SLOW].set(ZERO_KEY, _DESCRIPTOR.pack(self._config.udp_fd))
        except BaseException:
            loaded.close()
            raise
        # From the first packet on: a port may have been left, and its daemon's socket is gone.
        self.on = self._serves = True
        return loaded

    def ensure(self, write_settings: Callable[[], None], *, attached: bool = True) -> list[str]:
        """Sees to it that port and bolt are there; or neither, where something speaks against it.

        To be called when the programs are attached and the settings written. The programs hear of
        the port before it is there, and of its end after it.

        Args:
            write_settings: for the programs, when `on` has changed.
            attached: whether the programs run.

        Returns:
            What was added.
        """
        if not self._serves:
            return []
        added: list[str] = []
        try:
            wanted = self._wanted()
            found = self._look()
            against = cardplan.obstacle(wanted, found)
            if not attached:
                against = against or "the programs are not attached"
            if not against:
                if not self.on:
                    self.on = True
                    write_settings()
                added = self._add(wanted, found)
        except (FlannelError, OSError) as error:
            against = str(error)
        if against:
            self._withdraw(write_settings)
        if against != self._why_not:
            self._why_not = against
            if against:
                log.info("segments are not joined at the card", reason=against)
        return added

    def stop(self, write_settings: Callable[[], None]) -> None:
        """Takes port and bolt away. May be called twice."""
        if self._serves:
            self._serves = False
            self._withdraw(write_settings)
            self._why_not = "stopped"

    def _wanted(self) -> FouPort:
        config = self._config
        ifindex = socket.if_nametoindex(config.underlay_name)
        return cardplan.wanted_port(config.underlay_address, config.port, ifindex)

    def _look(self) -> cardplan.Surroundings:
        names = [
            f"net/ipv4/conf/{each}/disable_policy" for each in ("all", self._config.underlay_name)
        ]
        return cardplan.Surroundings(
            linux=linux_version(),
            has_fou=fou.is_there(),
            kind=veth.kind_of(self._config.underlay_name),
            can_step_aside=can_step_aside(),
            unchecked=tuple(name for name in names if read_sysctl(name) != "0"),
            ports=fou.ports(),
            policies=xfrm.policies(),
        )

    def _add(self, wanted: FouPort, found: cardplan.Surroundings) -> list[str]:
        assert wanted.local is not None  # noqa: S101
        added = []
        with self._socket() as sock:
            if not self._is_exempt:
                xfrm.exempt(sock, wanted.local, wanted.port)
                self._is_exempt = True
            if all(each.bolted != (wanted.local, wanted.port) for each in found.policies):
                xfrm.bolt(wanted.local, wanted.port)
                added.append("bolt of the fou port")
            if wanted not in found.ports:
                with aside(sock):
                    fou.add(wanted)
                added.append("fou port")
        return added

    @contextlib.contextmanager
    def _socket(self) -> Iterator[socket.socket]:
        """The data path's, which stays open."""
        with socket.socket(fileno=os.dup(self._config.udp_fd)) as sock:
            yield sock

    def _withdraw(self, write_settings: Callable[[], None]) -> None:
        try:
            remove()
            if self._is_exempt:
                with self._socket() as sock:
                    xfrm.submit(sock)
                self._is_exempt = False
        except (FlannelError, OSError) as error:
            log.warning("a FOU port stays: pyflannel cleanup removes it", reason=error)
            return
        if self.on:
            self.on = False
            with contextlib.suppress(FlannelError):
                write_settings()
