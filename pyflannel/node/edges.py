"""The sockets of the probes. Their modules are imported when one is opened, after the start."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyflannel.core.ip import Family, IPAddress
    from pyflannel.probe.checksums import Knocks
    from pyflannel.probe.prober import Echoes


def open_echoes(family: Family) -> Echoes:
    """ICMP echo of one family.

    Raises:
        KernelError: CAP_NET_RAW is missing, or the family.
    """
    from pyflannel.kernel.icmp import EchoSocket

    return EchoSocket(family)


def open_knock(address: IPAddress) -> Knocks:
    """Datagrams to one address, for the probe of checksums.

    Raises:
        KernelError: CAP_NET_RAW is missing, or there is no way to the address.
    """
    from pyflannel.kernel.knock import Knock

    return Knock(address)
