"""VTEP MACs: what a lease says of them, where they come from, and where they are remembered."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pyflannel.backend.vxlan.settings import VxlanSettings
from pyflannel.core.errors import FlannelError
from pyflannel.core.ip import Family, IPNetwork
from pyflannel.core.underlay import ExternalInterface
from pyflannel.gocompat.json import JsonError, JsonObject, loads_go
from pyflannel.kernel.files import (
    FileMissing,
    FileUnreadable,
    read_text_if_exists,
    write_atomically,
)
from pyflannel.logs import get_logger
from pyflannel.records import dataclass

log = get_logger(__name__)

MAC_FILE: Final = "vtep-mac.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class VxlanData:
    """`BackendData` of a vxlan lease."""

    mac: str
    """VTEP MAC, lower case with colons."""
    vni: int | None = None
    """Missing in the leases of old peers; not compared with ours, as upstream does not."""


def encode_data(data: VxlanData) -> str:
    """The JSON text, byte for byte as upstream writes it."""
    return f'{{"VNI":{data.vni or 0},"VtepMAC":"{data.mac}"}}'


def decode_data(text: str | None) -> VxlanData:
    """Reads `BackendData` of a peer, with Go's leniency about the keys' case.

    Raises:
        ValueError: a sentence about what is wrong.
    """
    if not text:
        raise ValueError("it publishes no VTEP MAC")
    try:
        value = loads_go(text)
    except JsonError as error:
        raise ValueError(f"its backend data is not JSON: {error}") from None
    if not isinstance(value, JsonObject):
        raise ValueError(f"its backend data is not an object: {text[:80]}")  # noqa: TRY004
    mac, vni = value.find("VtepMAC"), value.find("VNI")
    if not isinstance(mac, str):
        raise ValueError(f"its backend data has no VtepMAC: {text[:80]}")  # noqa: TRY004
    return VxlanData(mac=parse_mac(mac), vni=vni if isinstance(vni, int) else None)


_MAC: Final = re.compile(r"[0-9a-f]{2}([:-])[0-9a-f]{2}(?:\1[0-9a-f]{2}){4}", re.ASCII)
_CISCO_MAC: Final = re.compile(r"[0-9a-f]{4}\.[0-9a-f]{4}\.[0-9a-f]{4}", re.ASCII)


def parse_mac(text: str) -> str:
    """A unicast Ethernet address in the spelling we use; reads those that Go's `ParseMAC` does.

    Raises:
        ValueError: it is none, or a multicast address, or zero.
    """
    lower = text.lower()
    if not _MAC.fullmatch(lower) and not _CISCO_MAC.fullmatch(lower):
        raise ValueError(f"its VTEP MAC {text!r} is not an Ethernet address")
    raw = bytes.fromhex(re.sub(r"[:.-]", "", lower))
    if raw[0] & 1 or not any(raw):
        raise ValueError(f"its VTEP MAC {text!r} is not a unicast address")
    return raw.hex(":")


def derive_data(settings: VxlanSettings, family: Family, subnet: IPNetwork) -> str:
    """The data of a lease whose node publishes nothing: the VTEP MAC follows from the subnet.

    Every node computes the same one, so nothing has to be exchanged. Of the 46 bits that are free
    in a locally administered unicast address all come from a hash of VNI and subnet: among 10,000
    nodes two share one with a probability of less than one in a million.
    """
    seed = f"pyflannel vtep {settings.vni} {family.value} {subnet}".encode()
    raw = bytearray(hashlib.sha256(seed).digest()[:6])
    raw[0] = raw[0] & 0xFC | 0x02
    return encode_data(VxlanData(vni=settings.vni, mac=raw.hex(":")))


def random_mac(rng: random.Random) -> str:
    """A locally administered unicast address (second-lowest bit of the first byte set, lowest not).

    Chosen before the device exists, so that udev's MAC policy takes it for the operator's wish and
    leaves it alone.
    """
    raw = bytearray(rng.randbytes(6))
    raw[0] = raw[0] & 0xFE | 0x02
    return raw.hex(":")


class MacFile:
    """The VTEP MACs of this node, kept over a reboot: `<state-dir>/vtep-mac.json`.

    Losing it costs the peers an update of one FDB and neighbour entry, so no failure is fatal.
    """

    def __init__(self, state_dir: str) -> None:
        self._path = Path(state_dir) / MAC_FILE
        self._written: dict[str, object] = {}
        self._failing = False

    def load(self, external: ExternalInterface) -> dict[str, str]:
        """MACs by device name, as written by this node at this address; else nothing."""
        try:
            found = read_text_if_exists(self._path, own=True)
            if isinstance(found, FileMissing):
                return {}
            if isinstance(found, FileUnreadable):
                raise ValueError(found.reason)  # noqa: TRY004, TRY301
            content = json.loads(found.text)
            if content["public_ip"] != _where(external):
                return {}
            return {name: parse_mac(mac) for name, mac in content["macs"].items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            log.warning(
                "file of VTEP MACs unreadable, going on without",
                path=str(self._path),
                reason=str(error),
            )
            return {}

    def keep(self, external: ExternalInterface, macs: Mapping[str, str]) -> None:
        """Writes if anything has changed, or could not be written; to be called now and then."""
        content: dict[str, object] = {"public_ip": _where(external), "macs": dict(macs)}
        if content == self._written:
            return
        if self._written or self.load(external) != macs:
            try:
                write_atomically(self._path, json.dumps(content).encode() + b"\n", private=True)
            except FlannelError as error:
                if not self._failing:
                    log.warning("VTEP MAC not remembered over a reboot", reason=str(error))
                self._failing = True
                return
        if self._failing:
            log.info("VTEP MAC is remembered over a reboot again", path=str(self._path))
        self._written, self._failing = content, False


def _where(external: ExternalInterface) -> str:
    return str(external.public_ip or external.public_ipv6)
