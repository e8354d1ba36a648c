"""The doctor's checks of the machine around the overlay: facts in, findings out.

One function a subject. A fault that certainly stops packets is an error. One that harms in part, or
will, is a warning. A setting that may be intended is information.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from pyflannel.core.ip import IPAddress
from pyflannel.diagnose import finding as codes
from pyflannel.diagnose.around import Around, PeerRoutes
from pyflannel.diagnose.facts import NodeFacts
from pyflannel.diagnose.finding import Finding
from pyflannel.report.model import Severity

FULL: Final = 0.95
NEARLY: Final = 0.8
"""Shares of a table of the kernel."""
LEAST_FREE: Final = 1_000_000
"""Bytes. The lease's record and the subnet file take less than one page each."""
CLOUD_TABLES: Final = range(30_200, 30_500)
"""Tables of nm-cloud-setup: 30200 for one address, 30400 and up for one interface each."""


def around_findings(facts: NodeFacts, around: Around) -> Iterator[Finding]:
    """Everything that is wrong around the overlay."""
    for check in _CHECKS:
        yield from check(facts, around)


def _carrier(facts: NodeFacts, around: Around) -> Iterator[Finding]:
    underlay = facts.report.underlay if facts.report is not None else None
    link = around.links.get(underlay.interface) if underlay is not None else None
    if underlay is not None and link is not None and (not link.up or not link.carrier):
        state = "has no carrier" if link.up else "is down"
        yield Finding(
            code=codes.NO_CARRIER,
            severity=Severity.ERROR,
            subject=underlay.interface,
            text=f"the external interface {underlay.interface} {state}",
            evidence=(f"ip link show {underlay.interface}",),
            consequence="no other node can be reached",
            remedy="look at the cable, the switch's port or the hypervisor's setting"
            if link.up
            else f"ip link set {underlay.interface} up",
        )


def _forwarding(facts: NodeFacts, around: Around) -> Iterator[Finding]:
    for version in (4, 6):
        if facts.subnet_of(version) is None:
            continue
        every = around.sysctls.get(
            "net/ipv4/ip_forward" if version == 4 else "net/ipv6/conf/all/forwarding"
        )
        if every == "0" and version == 6:
            yield Finding(
                code=codes.FORWARDING6_OFF,
                severity=Severity.ERROR,
                subject="kernel",
                text="the kernel does not forward IPv6 packets",
                evidence=("net.ipv6.conf.all.forwarding = 0",),
                consequence="nothing passes between containers here and on other nodes over IPv6",
                remedy="sysctl -w net.ipv6.conf.all.forwarding=1, and the same line in "
                "/etc/sysctl.d",
            )
        for device in {facts.tunnel_of(version), facts.bridge_of(version)} - {None}:
            # For IPv6 the setting `all` decides; the device's own is about router advertisements.
            name = f"net/ipv4/conf/{device}/forwarding"
            if version == 4 and every != "0" and around.sysctls.get(name) == "0":
                yield Finding(
                    code=codes.DEVICE_FORWARDING_OFF,
                    severity=Severity.ERROR,
                    subject=str(device),
                    text=f"packets that come in by {device} are not forwarded",
                    evidence=(f"{name.replace('/', '.')} = 0",),
                    consequence="packets pass in one direction at most",
                    remedy=f"sysctl -w {name.replace('/', '.')}=1",
                )


def _ipv6(facts: NodeFacts, around: Around) -> Iterator[Finding]:
    if facts.subnet_of(6) is None:
        return
    for device in {facts.tunnel_of(6), facts.bridge_of(6)} - {None}:
        if around.sysctls.get(f"net/ipv6/conf/{device}/disable_ipv6") == "1":
            yield Finding(
                code=codes.IPV6_OFF,
                severity=Severity.ERROR,
                subject=str(device),
                text=f"IPv6 is switched off on {device}",
                evidence=(f"net.ipv6.conf.{device}.disable_ipv6 = 1",),
                consequence="it has no IPv6 address, so IPv6 to other nodes' containers fails",
                remedy=f"sysctl -w net.ipv6.conf.{device}.disable_ipv6=0",
            )
    if around.sysctls.get("net/ipv6/conf/all/forwarding") != "1":
        return
    for device in around.ra_defaults:
        if around.sysctls.get(f"net/ipv6/conf/{device}/accept_ra") == "1":
            yield Finding(
                code=codes.RA_IGNORED,
                severity=Severity.WARNING,
                subject=device,
                text=f"the IPv6 default route by {device} was advertised by a router, and is not "
                "renewed: a node that forwards ignores advertisements",
                evidence=(
                    f"net.ipv6.conf.{device}.accept_ra = 1",
                    "net.ipv6.conf.all.forwarding = 1",
                ),
                consequence="it expires minutes to hours after the start",
                remedy=f"sysctl -w net.ipv6.conf.{device}.accept_ra=2",
            )


def _routes(facts: NodeFacts, around: Around) -> Iterator[Finding]:
    for each in around.routes:
        tunnel = facts.tunnel_of(each.version)
        yield from _ways_of_pods(facts, around, each, tunnel or "")
        underlay = facts.report.underlay if facts.report is not None else None
        out = each.to_node.device
        # A tunnel inside another may be intended, a loop into our own device is a fault.
        if underlay is not None and out and out != underlay.interface:
            yield Finding(
                code=codes.OTHER_UNDERLAY,
                severity=Severity.WARNING,
                subject=f"peer {each.subnet}",
                text=f"packets to the node {each.public} leave by {out}, and the overlay uses "
                f"{underlay.interface}",
                evidence=(f"ip route get {each.public}: {each.to_node.text}",),
                consequence="they have another source address than the peers expect, or get lost",
                remedy=f"correct the route, or name the interface: --iface={out} or "
                f"--iface-can-reach={each.public}",
            )


def _ways_of_pods(
    facts: NodeFacts, around: Around, each: PeerRoutes, tunnel: str
) -> Iterator[Finding]:
    underlay = facts.report.underlay if facts.report is not None else None
    right = {tunnel, underlay.interface if underlay is not None else ""}
    lookup = each.to_pods
    if lookup.error and _forwarding_is_off(facts, around, each.version):
        return  # without forwarding the kernel has no such route, and another check reports that
    if lookup.error or (lookup.device and lookup.device not in right):
        off_limits = sorted(p for p, table in around.rules if table not in _PLAIN_TABLES)
        rule = f"ip rule show pref {off_limits[0]}" if off_limits else "ip route"
        yield Finding(
            code=codes.ROUTED_ELSEWHERE,
            severity=Severity.ERROR,
            subject=f"peer {each.subnet}",
            text=f"packets of containers to {each.subnet} "
            + (f"have no route: {lookup.error}" if lookup.error else f"leave by {lookup.device}"),
            evidence=(f"ip route get: {lookup.text or lookup.error}", rule),
            consequence="they cannot reach the peer through the overlay",
            remedy="a rule or route of a VPN or of another program comes first: exclude the "
            f"overlay there, or ip rule add to {facts.network_of(each.version)} lookup main pref "
            "100",
        )
        return  # rp_filter makes the same look-up: one cause, one finding
    if _rp_filter_drops(around, each, tunnel):
        yield Finding(
            code=codes.RP_FILTER,
            severity=Severity.ERROR,
            subject=f"peer {each.subnet}",
            text=f"rp_filter drops packets of {each.subnet} that come in by {tunnel}: the route "
            "back to them uses another device",
            evidence=tuple(
                f"net.ipv4.conf.{name}.rp_filter = "
                + around.sysctls.get(f"net/ipv4/conf/{name}/rp_filter", "?")
                for name in (tunnel, "all")
            ),
            consequence="nothing of that peer arrives",
            remedy=f"correct the route back, or sysctl -w net.ipv4.conf.{tunnel}.rp_filter=2",
        )


def _rp_filter_drops(around: Around, each: PeerRoutes, tunnel: str) -> bool:
    """Whether the kernel refuses a peer's packets for the way back to them.

    Until Linux 6.13 the answer is EXDEV. Later kernels answer EINVAL, as for every impossible
    source; then the route back shows it, if rp_filter is strict.
    """
    if each.from_pods.error == "Invalid cross-device link":
        return True
    modes = [around.sysctls.get(f"net/ipv4/conf/{name}/rp_filter", "0") for name in (tunnel, "all")]
    back = each.to_pods.device
    strict = each.version == 4 and max(modes) == "1"  # the greater value counts (ip-sysctl)
    return each.from_pods.error == "Invalid argument" and strict and back not in ("", tunnel)


def _forwarding_is_off(facts: NodeFacts, around: Around, version: int) -> bool:
    names = (
        ("net/ipv4/ip_forward", f"net/ipv4/conf/{facts.bridge_of(version)}/forwarding")
        if version == 4
        else ("net/ipv6/conf/all/forwarding",)
    )
    return facts.ip_forward is False or any(around.sysctls.get(name) == "0" for name in names)


_PLAIN_TABLES: Final = frozenset({"local", "main", "default"})


def _rules(facts: NodeFacts, around: Around) -> Iterator[Finding]:
    del facts
    found = [
        (priority, table)
        for priority, table in around.rules
        if table.isdigit() and int(table) in CLOUD_TABLES
    ]
    if found:
        priority, table = found[0]
        yield Finding(
            code=codes.CLOUD_RULES,
            severity=Severity.WARNING,
            subject="nm-cloud-setup",
            text="nm-cloud-setup sends packets through tables of its own",
            evidence=(f"ip rule show pref {priority}: lookup {table}",),
            consequence="containers' packets may leave by the wrong interface",
            remedy="systemctl disable --now nm-cloud-setup.service nm-cloud-setup.timer; reboot",
        )


def _sizes(facts: NodeFacts, around: Around) -> Iterator[Finding]:
    network = facts.report.network if facts.report is not None else None
    bridge = facts.bridge
    link = around.links.get(bridge or "")
    if network is None or not network.mtu:
        return
    if link is not None and link.mtu > network.mtu:
        yield Finding(
            code=codes.BRIDGE_MTU,
            severity=Severity.WARNING,
            subject=str(bridge),
            text=f"containers behind {bridge} may send {link.mtu} bytes, and the overlay carries "
            f"{network.mtu}",
            evidence=(f"ip link show {bridge}: mtu {link.mtu}",),
            consequence="where ICMP is blocked, large packets are lost: connections open and hang",
            remedy="restart docker with the options that pyflanneld writes, and its containers",
        )


def _devices(facts: NodeFacts, around: Around) -> Iterator[Finding]:
    subnet = facts.subnet
    bridges = sorted(
        name
        for name, link in around.links.items()
        if name not in facts.devices
        and not link.ours
        and any(
            subnet is not None and each.version == 4 and each.ip in subnet
            for each in link.addresses
        )
    )
    if len(bridges) > 1:
        yield Finding(
            code=codes.TWO_BRIDGES,
            severity=Severity.WARNING,
            subject=", ".join(bridges),
            text=f"{' and '.join(bridges)} both have an address in the leased subnet {subnet}",
            evidence=tuple(f"ip address show {name}" for name in bridges),
            consequence="containers behind one of them cannot be reached",
            remedy="remove the one that no runtime uses: ip link delete NAME",
        )
    if facts.report is None or facts.report.network is None:
        return
    left = sorted(
        name
        for name, link in around.links.items()
        if link.ours and name not in facts.devices and not name.startswith("flannelgro")
    )
    if left and len(facts.daemons) < 2:
        yield Finding(
            code=codes.LEFT_OVER,
            severity=Severity.INFO,
            subject=", ".join(left),
            text=f"{', '.join(left)}: left by another backend or another daemon of flannel's",
            evidence=tuple(f"ip -d link show {name}" for name in left),
            consequence="its routes may come before those of the overlay in use",
            remedy="if no other daemon uses it: ip link delete NAME",
        )


def _managed(facts: NodeFacts, around: Around) -> Iterator[Finding]:
    for name in around.managed:
        if name in facts.devices or name == facts.bridge:
            yield Finding(
                code=codes.NETWORK_MANAGER,
                severity=Severity.WARNING,
                subject=name,
                text=f"NetworkManager manages {name}",
                evidence=(f"/run/NetworkManager/devices/{around.links[name].index}: managed=true",),
                consequence="it may remove routes and addresses of the device at any time",
                remedy="unmanaged-devices=interface-name:flannel*;interface-name:docker0 below "
                "[keyfile] in /etc/NetworkManager/conf.d/flannel.conf; nmcli general reload",
            )


def _peers(facts: NodeFacts, around: Around) -> Iterator[Finding]:
    del around
    report = facts.report
    by_address: dict[str, list[str]] = {}
    for peer in report.peers if report is not None else ():
        if peer.public_ip and peer.subnet:
            by_address.setdefault(peer.public_ip, []).append(peer.subnet)
    for address, subnets in by_address.items():
        if len(subnets) > 1:
            yield Finding(
                code=codes.SHARED_ADDRESS,
                severity=Severity.WARNING,
                subject=address,
                text=f"{len(subnets)} peers have the public address {address}: "
                + ", ".join(subnets[:4]),
                evidence=("pyflannel leases",),
                consequence="packets to all but one of them go to the wrong node",
                remedy="nodes behind one NAT need --public-ip and a port each; if a node moved, "
                "pyflannel leases release gives its old subnet back",
            )


def _files(facts: NodeFacts, around: Around) -> Iterator[Finding]:
    lease = facts.report.lease if facts.report is not None else None
    written = facts.env.subnet if facts.env is not None else None
    if lease is not None and lease.subnet and written is not None and written != facts.subnet:
        yield Finding(
            code=codes.FILE_DIFFERS,
            severity=Severity.WARNING,
            subject=facts.subnet_file,
            text=f"{facts.subnet_file} says {written}, and the lease is {lease.subnet}",
            evidence=(facts.subnet_file, "pyflannel status"),
            consequence="containers that start now get addresses of another node",
            remedy="another program writes it, or this is another daemon's file: --subnet-file",
        )
    if around.free is not None and around.free < LEAST_FREE:
        yield Finding(
            code=codes.DISK_FULL,
            severity=Severity.WARNING,
            subject="state directory",
            text=f"{around.free} bytes are left where pyflanneld keeps its state",
            evidence=("df",),
            consequence="after a reboot the node does not know its lease",
            remedy="make room",
        )


def _larger_table(place: str) -> str:
    sizes = ((3, 16384), (2, 8192), (1, 4096))
    return "sysctl -w " + " ".join(f"{place}.gc_thresh{number}={size}" for number, size in sizes)


def _tables(facts: NodeFacts, around: Around) -> Iterator[Finding]:
    del facts
    for what, pair, code, remedy in (
        (
            "the table of connections",
            around.conntrack,
            codes.CONNTRACK_FULL,
            "raise net.netfilter.nf_conntrack_max; conntrack -L shows who opens so many",
        ),
        (
            "the neighbour table of IPv4",
            around.arp,
            codes.NEIGHBOURS_FULL,
            _larger_table("net.ipv4.neigh.default"),
        ),
        (
            "the neighbour table of IPv6",
            around.ndisc,
            codes.NEIGHBOURS_FULL,
            _larger_table("net.ipv6.neigh.default"),
        ),
    ):
        if pair is None or pair[0] < NEARLY * pair[1]:
            continue
        count, most = pair
        yield Finding(
            code=code,
            severity=Severity.ERROR if count >= FULL * most else Severity.WARNING,
            subject="kernel",
            text=f"{what} has {count} of {most} entries",
            evidence=(f"{count} of {most}",),
            consequence="when it is full, packets to new destinations are dropped at random",
            remedy=remedy,
        )


def _names(facts: NodeFacts, around: Around) -> Iterator[Finding]:
    for server in around.nameservers:
        network = facts.network_of(server.version)
        if network is not None and server in network and not _is_own(facts, server):
            yield Finding(
                code=codes.DNS_INSIDE,
                severity=Severity.WARNING,
                subject=str(server),
                text=f"the DNS server {server} lies inside the overlay's network {network}",
                evidence=("/etc/resolv.conf",),
                consequence="its address belongs to another node, so names do not resolve when the "
                "overlay is down; etcd's name may be among them",
                remedy="another Network, or another DNS server",
            )


def _is_own(facts: NodeFacts, address: IPAddress) -> bool:
    subnet = facts.subnet_of(address.version)
    return subnet is not None and address in subnet


def _service(facts: NodeFacts, around: Around) -> Iterator[Finding]:
    if around.unit == "failed":
        yield Finding(
            code=codes.UNIT,
            severity=Severity.ERROR,
            subject="pyflannel.service",
            text="the unit has failed, and systemd does not start it again",
            evidence=("systemctl status pyflannel",),
            consequence="the lease ends, and the node falls out of the network",
            remedy="journalctl -u pyflannel says why; then systemctl restart pyflannel",
        )
    elif around.enabled == "disabled" and facts.report is not None:
        yield Finding(
            code=codes.UNIT,
            severity=Severity.INFO,
            subject="pyflannel.service",
            text="the unit is not enabled",
            evidence=("systemctl is-enabled pyflannel",),
            consequence="nothing starts it after a reboot",
            remedy="systemctl enable pyflannel",
        )
    if around.enabled and around.synchronised is False:
        yield Finding(
            code=codes.CLOCK,
            severity=Severity.INFO,
            subject="clock",
            text="this machine's clock is not synchronised",
            evidence=("adjtimex: STA_UNSYNC",),
            consequence="when it drifts, the times of leases and certificates are misjudged",
            remedy="chrony or systemd-timesyncd; in a container that is the host's business",
        )


_CHECKS: Final[tuple[Callable[[NodeFacts, Around], Iterator[Finding]], ...]] = (
    _carrier,
    _forwarding,
    _ipv6,
    _routes,
    _rules,
    _sizes,
    _devices,
    _managed,
    _peers,
    _files,
    _tables,
    _names,
    _service,
)
