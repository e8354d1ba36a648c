"""For each code: what people see, and what to do.

`docs/troubleshooting.md` is made from this (`tools/troubleshooting.py`), and a test holds both
together and complete. The findings themselves say the same with the values of the case.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Guide(NamedTuple):
    """One code."""

    symptom: str
    """What a user sees, in the user's words."""
    action: str
    """What helps."""


GUIDES: Final[dict[str, Guide]] = {
    "PF101": Guide(
        "the node has no subnet; docker waits",
        "`pyflannel status` says what it waits for; it continues by itself",
    ),
    "PF102": Guide(
        "new nodes cannot be reached; all others can",
        "look at etcd and the path to it; traffic continues until the lease ends",
    ),
    "PF103": Guide(
        "a changed config has no effect",
        "`systemctl restart pyflannel` on each node; or correct or restore the config",
    ),
    "PF104": Guide(
        "nodes that start get no subnet; running nodes are not affected",
        "`etcdctl alarm list`; for NOSPACE compact, `etcdctl defrag`, then `etcdctl alarm disarm`",
    ),
    "PF105": Guide("nothing by itself", "upgrade etcd, one minor release after another"),
    "PF111": Guide(
        "containers of one node cannot be reached",
        "`pyflannel leases` says who holds the subnet; stop the other node, or wait",
    ),
    "PF112": Guide("the same after a long outage of etcd", "make etcd reachable"),
    "PF113": Guide(
        "nothing yet", "make etcd reachable, or correct its roles, before the lease ends"
    ),
    "PF114": Guide(
        "one node cannot be reached", "the reason names its lease; delete or correct the key"
    ),
    "PF121": Guide(
        "this node cannot reach any other node", "look at the interface, its cable and its address"
    ),
    "PF131": Guide(
        "no packet passes", "the daemon brings it up within seconds; if not, see the log"
    ),
    "PF132": Guide(
        "one peer cannot be reached", "the problem quotes the kernel's answer; see also `dmesg`"
    ),
    "PF133": Guide(
        "one peer cannot be reached", "correct its lease, or the address that it overlaps with"
    ),
    "PF134": Guide(
        "no packet passes (udp)", "the daemon starts it again; the log says why it ended"
    ),
    "PF135": Guide("part of the LAN or of a VPN has vanished", "another `Network`"),
    "PF136": Guide(
        "this node cannot reach a network, one of its own addresses, or etcd",
        "`systemctl restart pyflannel`: the next start takes another subnet; or "
        "choose another `Network`",
    ),
    "PF137": Guide(
        "peers of one of two networks are lost now and then",
        "each daemon on a node needs a `VNI` of its own; no other daemon? `pyflannel cleanup` "
        "while pyflannel is stopped",
    ),
    "PF141": Guide(
        "containers cannot reach the internet, or each other", "the log says what iptables answers"
    ),
    "PF151": Guide(
        "docker does not start, or starts in a wrong subnet",
        "free disk space, or make the file writable",
    ),
    "PF161": Guide("nothing, or no status", "the problem names the reason"),
    "PF171": Guide(
        "one node's containers cannot be reached",
        "`pyflannel ping PEER`: the peer is down, or a firewall drops the overlay's packets",
    ),
    "PF172": Guide(
        "connections open, then hang; small pings work",
        "`MTU` in the Backend of the config, or the link that carries less",
    ),
    "PF173": Guide("this node cannot reach any other node", "`pyflannel doctor` on this node"),
    "PF199": Guide("nothing", "report it: `pyflannel bundle`"),
    "PF201": Guide("the lease will end", "`systemctl start pyflannel`"),
    "PF202": Guide(
        "the node reaches containers on other nodes, its containers do not",
        "`sysctl -w net.ipv4.ip_forward=1`, and in /etc/sysctl.d",
    ),
    "PF203": Guide(
        "the same, since docker was installed or a hardening guide was applied",
        "leave `--iptables-forward-rules` on, or accept the network in FORWARD",
    ),
    "PF204": Guide(
        "containers do not reach each other; the nodes do",
        "accept the overlay's network before that rule (firewalld: zone trusted; ufw: `ufw route "
        "allow`)",
    ),
    "PF205": Guide(
        "pings between nodes work, but no overlay packet passes",
        "accept the overlay's port (UDP 8472, 8285) or protocol 4 from the nodes",
    ),
    "PF206": Guide("no packet passes", "the daemon makes it again; if not, restart the daemon"),
    "PF207": Guide("docker's containers cannot be reached", "`pyflannel doctor docker`"),
    "PF208": Guide(
        "`operation not supported` at the start",
        "install the package with the rest of the kernel's modules, or use another backend",
    ),
    "PF209": Guide("routes and rules come and go", "stop one of the two"),
    "PF210": Guide("no peer knows this node", "wait some seconds, then see the log"),
    "PF211": Guide(
        "packets arrive (tcpdump), but go no further",
        "correct the route back, or set `rp_filter=2` there",
    ),
    "PF212": Guide("one direction works", "`sysctl -w net.ipv4.conf.DEVICE.forwarding=1`"),
    "PF213": Guide("IPv6 does not pass, IPv4 does", "`sysctl -w net.ipv6.conf.all.forwarding=1`"),
    "PF214": Guide("the same", "`sysctl -w net.ipv6.conf.DEVICE.disable_ipv6=0`"),
    "PF215": Guide(
        "the node loses its own IPv6 some time after the start",
        "`sysctl -w net.ipv6.conf.DEVICE.accept_ra=2`",
    ),
    "PF216": Guide(
        "this node cannot reach any other node",
        "cable, switch, hypervisor; `ip link set DEVICE up`",
    ),
    "PF217": Guide(
        "since a VPN is up, containers cannot reach other nodes",
        "exclude the overlay there, or `ip rule add to NETWORK lookup main pref 100`",
    ),
    "PF218": Guide(
        "two interfaces; the tunnel leaves by the wrong one", "`--iface`, `--iface-can-reach PEER`"
    ),
    "PF219": Guide(
        "containers leave by the wrong interface (RHEL in a cloud)",
        "`systemctl disable --now nm-cloud-setup.service nm-cloud-setup.timer`",
    ),
    "PF220": Guide("large transfers hang", "restart docker and its containers"),
    "PF222": Guide("some containers cannot be reached", "remove the unused bridge"),
    "PF223": Guide("traffic takes the former path", "`ip link delete` it, if no daemon uses it"),
    "PF224": Guide("routes come and go", "`unmanaged-devices=interface-name:flannel*`"),
    "PF225": Guide(
        "only one of several nodes behind a router works", "`--public-ip` and a port each"
    ),
    "PF226": Guide(
        "containers have addresses of another node", "find the program that writes the file"
    ),
    "PF227": Guide("a node loses its subnet at a reboot", "make room"),
    "PF228": Guide(
        "random failures on busy nodes; `table full` in dmesg", "raise nf_conntrack_max"
    ),
    "PF229": Guide("new peers and containers cannot be reached", "raise gc_thresh1, 2 and 3"),
    "PF230": Guide("names do not resolve", "another `Network`, or another DNS server"),
    "PF231": Guide(
        "the daemon is gone after a reboot, or does not come back",
        "`systemctl enable --now pyflannel`",
    ),
    "PF232": Guide("certificates `not yet valid`, leases of 25 h", "chrony"),
    "PF233": Guide("containers see the node's address", "masquerade in one place only"),
    "PF234": Guide(
        "connections take seconds, or none passes", "accept the overlay's port before that rule"
    ),
    "PF235": Guide(
        "the rules are right, but packets are lost", "delete the rules of one of the two variants"
    ),
    "PF241": Guide(
        "pods of the node stay in ContainerCreating",
        "kube-controller-manager: `--allocate-node-cidrs --cluster-cidr`, the same as `Network`",
    ),
    "PF242": Guide(
        "the same, after `kubectl delete node`",
        "`systemctl restart kubelet`; is `NODE_NAME` right?",
    ),
    "PF243": Guide("`is forbidden` in the log", "apply the role of `kubernetes/pyflannel.yaml`"),
    "PF244": Guide(
        "the node is NotReady: `cni plugin not initialized`",
        "`--cni-conflist`, as the manifest has it",
    ),
    "PF245": Guide(
        "pods have addresses of another network",
        "remove the file that comes first, then create the pods again",
    ),
    "PF246": Guide(
        "pods fail with `failed to find plugin`",
        "install the package kubernetes-cni; for flannel's own plugin delete this node's pod of "
        "the DaemonSet",
    ),
    "PF247": Guide(
        'pods fail with `"cni0" already has an IP address different from`',
        "delete the pods with former addresses, then `ip link delete cni0`",
    ),
    "PF248": Guide(
        "pods reach each other, but no service", "find out why kube-proxy does not run on this node"
    ),
    "PF249": Guide(
        "pods cannot reach a service whose pod is on their own node",
        "`modprobe br_netfilter`; `sysctl -w net.bridge.bridge-nf-call-iptables=1`",
    ),
    "PF299": Guide("nothing", "run it as root"),
    "PF301": Guide(
        "docker starts in a subnet of its own",
        "start pyflannel without an empty `--docker-opts-file`",
    ),
    "PF302": Guide(
        "the same", "`pyflannel docker-setup`, `systemctl daemon-reload`, restart docker"
    ),
    "PF303": Guide("the same", "the same"),
    "PF304": Guide("the same", "remove the option from the other file"),
    "PF305": Guide("the same, after a boot", "`pyflannel docker-setup`"),
    "PF306": Guide("a start of docker stops flanneld", "`pyflannel docker-setup`"),
    "PF307": Guide("the next boot stops flanneld", "disable one of the two"),
    "PF308": Guide("dockerd refuses to start", "remove the duplicate settings from daemon.json"),
    "PF309": Guide("docker's containers cannot be reached", "`systemctl restart docker`"),
    "PF310": Guide("the same", "`systemctl restart docker`, or the `bip` in daemon.json"),
    "PF311": Guide("large transfers hang", "`systemctl restart docker`"),
    "PF312": Guide(
        "containers see the node's address, or cannot reach the internet",
        "`--ip-masq` in one of the two",
    ),
    "PF313": Guide(
        "docker 28: other nodes cannot reach containers",
        "`pyflannel docker-setup` and a restart of docker",
    ),
    "PF401": Guide(
        "containers on two nodes have the same addresses",
        "restart the daemon that `pyflannel leases` does not name",
    ),
    "PF402": Guide(
        "since a change some nodes cannot reach others",
        "restart the daemons that started before the change",
    ),
    "PF403": Guide(
        "connections from one side fail",
        "`pyflannel doctor` on the one that hears (its firewall may let only replies in), then on "
        "the other",
    ),
    "PF404": Guide("one node's containers cannot be reached", "look at that node"),
    "PF405": Guide("the same from one node", "it may use another etcd or prefix"),
    "PF406": Guide("nothing", "update the rest"),
}
"""Every code that status and doctor know."""
