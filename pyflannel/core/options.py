"""The daemon's options: flags in Go's syntax and `FLANNELD_*` variables, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdOptions:
    """How to reach etcd; shared by every command that talks to it."""

    endpoints: tuple[str, ...] = ("http://127.0.0.1:4001", "http://127.0.0.1:2379")
    prefix: str = "/coreos.com/network"
    keyfile: str = ""
    certfile: str = ""
    cafile: str = ""
    username: str = ""
    password: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonOptions:
    """Every option of `pyflanneld`; names are the flags' with `_` for `-`."""

    etcd: EtcdOptions = EtcdOptions()
    iface: tuple[str, ...] = ()
    iface_regex: tuple[str, ...] = ()
    iface_can_reach: str = ""
    subnet_file: str = "/run/flannel/subnet.env"
    public_ip: str = ""
    public_ipv6: str = ""
    subnet_lease_renew_margin: int = 60
    ip_masq: bool = False
    ip_masq_fully_random_disable: bool = False
    kube_subnet_mgr: bool = False
    healthz_ip: str = "0.0.0.0"  # noqa: S104 - upstream's default
    healthz_port: int = 0
    iptables_resync: int = 5
    iptables_forward_rules: bool = True
    ip_blackhole_route: bool = False
    v: int = 0
    datapath: str = "auto"
    udp_accept: str = "peers"
    docker_opts_file: str = "/run/docker_opts.env"
    status_socket: str = "/run/flannel/pyflannel.sock"
    state_dir: str = "/var/lib/pyflannel"
    log_format: str = "auto"
