"""Every protocol with its implementations, for the type checker; never run."""

from __future__ import annotations

from pyflannel.aio.clock import Clock, SystemClock
from pyflannel.backend.base import Backend, Network
from pyflannel.backend.udp import UdpBackend
from pyflannel.backend.udp.network import UdpNetwork
from pyflannel.backend.vxlan import VxlanBackend
from pyflannel.datapath.base import Datapath
from pyflannel.datapath.ebpf import EbpfDatapath
from pyflannel.datapath.native import NativeDatapath
from pyflannel.datapath.python import PythonDatapath
from pyflannel.kernel.base import Netlink
from pyflannel.kernel.netlink import KernelNetlink
from pyflannel.store.base import LeaseStore
from pyflannel.store.etcd.base import Store
from pyflannel.store.etcd.manager import EtcdLeaseStore
from pyflannel.store.etcd.store import EtcdStore
from pyflannel.store.kubernetes.manager import KubernetesLeaseStore
from pyflannel.store.static import StaticLeaseStore
from pyflannel.testing.fakeclock import FakeClock
from pyflannel.testing.fakenetlink import FakeNetlink
from pyflannel.testing.fakestore import FakeStore
from pyflannel.traffic.base import TrafficManager
from pyflannel.traffic.iptables import IptablesManager
from pyflannel.traffic.nftables import NftablesManager


def clocks(real: SystemClock, fake: FakeClock) -> tuple[Clock, ...]:
    """The time."""
    return real, fake


def netlinks(real: KernelNetlink, fake: FakeNetlink) -> tuple[Netlink, ...]:
    """The kernel's tables."""
    return real, fake


def stores(real: EtcdStore, fake: FakeStore) -> tuple[Store, ...]:
    """etcd."""
    return real, fake


def lease_stores(
    etcd: EtcdLeaseStore, kubernetes: KubernetesLeaseStore, static: StaticLeaseStore
) -> tuple[LeaseStore, ...]:
    """Who keeps the leases."""
    return etcd, kubernetes, static


def datapaths(
    python: PythonDatapath, native: NativeDatapath, ebpf: EbpfDatapath
) -> tuple[Datapath, ...]:
    """What moves packets."""
    return python, native, ebpf


def backends(udp: UdpBackend, vxlan: VxlanBackend) -> tuple[Backend, ...]:
    """Ways to reach other nodes."""
    return udp, vxlan


def networks(udp: UdpNetwork) -> Network:
    """An attached overlay."""
    return udp


def managers(iptables: IptablesManager, nftables: NftablesManager) -> tuple[TrafficManager, ...]:
    """The firewall."""
    return iptables, nftables
