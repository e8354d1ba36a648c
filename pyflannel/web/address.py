"""Where the page is served, and which `Host` names it accepts. Pure."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from pyflannel.core.errors import UsageError
from pyflannel.foreign import shown
from pyflannel.records import dataclass

PORT: Final = 8780
"""Not one of flannel's ports (8285, 8472, 51820), and not in Debian's /etc/services."""
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)?(?::([0-9]{1,5}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Address:
    """An address to listen on."""

    ip: IPv4Address | IPv6Address
    port: int
    """0: the kernel chooses one."""

    @property
    def for_others(self) -> bool:
        """Whether it can be reached from other machines."""
        return not self.ip.is_loopback

    @property
    def url(self) -> str:
        """As a browser wants it."""
        host = f"[{self.ip}]" if self.ip.version == 6 else str(self.ip)
        return f"http://{host}:{self.port}/"


def parse(text: str) -> Address:
    """`ADDRESS:PORT`, either of them, `[::1]:PORT`; empty for the default.

    Raises:
        UsageError: it is none of these.
    """
    wrong = UsageError(
        f"{shown(text)}: expected ADDRESS:PORT, like 127.0.0.1:{PORT} or [::1]:{PORT}, or one of "
        "the two"
    )
    if re.fullmatch(r"[0-9]{1,5}", text, re.ASCII):
        text = f":{text}"
    host, port = text, ""
    if not _is_ip(text):  # `::1` has colons of its own
        match = _HOST.fullmatch(text)
        if match is None:
            raise wrong
        host, port = match[1] or "", match[2] or ""
    host = host.strip("[]")
    number = int(port) if port else PORT
    if number > 0xFFFF:
        raise wrong
    if host in ("", "localhost"):
        host = "127.0.0.1"
    if not _is_ip(host):
        raise wrong
    return Address(ip_address(host), number)


def may_ask(host: str | None) -> bool:
    """Whether a request with this `Host` is answered.

    The owner of another site can point its name to this machine's loopback address, and its page
    then reads what is served here as its own (DNS rebinding). The browser sends that name as
    `Host`. An address and `localhost` cannot be redirected in this way.
    """
    match = _HOST.fullmatch(host or "")
    if match is None or match[1] is None:
        return False
    return match[1].lower() == "localhost" or _is_ip(match[1].strip("[]"))


def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
