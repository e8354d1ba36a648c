from typing import Final, final

COUNTERS: Final[tuple[str, ...]]
OFFLOADS: Final[tuple[str, ...]]

@final
class Engine:
    def __new__(
        cls,
        *,
        tun_fds: tuple[int, ...],
        udp_fd: int,
        tun_address: int,
        network: int,
        netmask: int,
        mtu: int,
        port: int,
        any_port: bool,
        accept_any: bool,
        vnet_header: bool,
        forced_off: int,
        assume_offloads: bool,
        threads: int,
        spin_us: int,
        gather_us: int,
    ) -> Engine: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def replace_table(self, rows: bytes, /) -> None: ...
    def counters(self) -> tuple[int, ...]: ...
    def offloads(self) -> tuple[tuple[int, int], ...]: ...
    def failure(self) -> int: ...
    def retired(self) -> int: ...

def lookup(rows: bytes, addresses: bytes, /) -> bytes: ...
def segment(packet: bytes, /) -> list[bytes] | None: ...
def join(packets: list[bytes], /) -> list[bytes]: ...
