"""The command line of `pyflannel lab`: a parser for each of its actions."""

from __future__ import annotations

import argparse
import math
from typing import Final

from pyflannel.backend.kinds import KINDS
from pyflannel.cli.parsers import Branch, Parser, group
from pyflannel.cli.web import add_address
from pyflannel.lab import topology
from pyflannel.lab.topology import Underlay

PROG: Final = "pyflannel lab"
DAEMON_ARG: Final = "--daemon-arg"
ABOUT: Final = """\
Nodes are network namespaces of this machine, with an etcd between them. Nothing outside of them
is touched, and `down` leaves nothing behind. Without root it works where user namespaces are
allowed."""


def branch() -> Branch:
    """The command line."""
    actions = (
        _demo(),
        _up(),
        _ping(),
        _exec(),
        _bench(),
        _break(),
        _heal(),
        _list(),
        _status(),
        _logs(),
        _web(),
        _down(),
    )
    return group(PROG, "a cluster in a box, made of network namespaces", ABOUT, actions)


def _parser(name: str, summary: str, about: str, *examples: str, named: bool = True) -> Parser:
    lines = [f"{PROG} {example}" for example in examples]
    parser = Parser(f"{PROG} {name}", summary, about, examples=lines)
    if named:
        parser.add_argument("--name", default="default", metavar="LAB", help="which lab")
    return parser


def _json(parser: Parser) -> Parser:
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _demo() -> Parser:
    parser = _parser(
        "demo",
        "show what flannel does, on a few nodes, and clean up",
        "Exit code 0 only if every pair of pods answered.",
        "demo --nodes 5",
        "demo --svg demo.svg",
        named=False,
    )
    parser.add_argument("--nodes", type=int, default=3, metavar="N", help="how many")
    _datapath(parser)
    parser.add_argument(
        "--svg", default="", metavar="FILE", help="write what is shown to FILE, as a picture"
    )
    return parser


def _datapath(parser: Parser) -> None:
    parser.add_argument(
        "--datapath",
        default="",
        metavar="DATAPATH",
        help="data path of the daemons (default: the daemon's)",
    )


def _up() -> Parser:
    up = _parser(
        "up",
        "make a lab and leave it running",
        "A wrong config, flag or program is told before anything is made.",
        "up --nodes 3 --backend vxlan",
        "up --name other --config config/vxlan.json",
    )
    up.add_argument("--nodes", type=int, default=3, metavar="N", help="how many")
    up.add_argument("--backend", default="udp", metavar="TYPE", help=", ".join(KINDS.names()))
    up.add_argument(
        "--network", default=topology.DEFAULT_NETWORK, metavar="CIDR", help="of the overlay"
    )
    up.add_argument("--config", metavar="FILE", help="the whole network config; - is stdin")
    up.add_argument(
        "--node-command",
        action="append",
        default=[],
        metavar="K=CMD",
        help="node K runs CMD (with upstream's -etcd-endpoints, -etcd-prefix, -subnet-file and "
        "-iface appended) in the place of pyflanneld; may be given again",
    )
    _datapath(up)
    up.add_argument(
        DAEMON_ARG,
        action="append",
        default=[],
        metavar="ARG",
        help="one more argument for each pyflanneld, as --daemon-arg --ip-masq; may be given again",
    )
    up.add_argument("--no-daemons", action="store_true", help="stop when etcd has the config")
    up.add_argument(
        "--underlay",
        choices=[mode.value for mode in Underlay],
        default=Underlay.AS_IT_COMES.value,
        help="segmentation offload of the underlay: all, none to send, none at all",
    )
    up.add_argument(
        "--underlay-mtu", type=int, default=1500, metavar="BYTES", help="of its interfaces"
    )
    up.add_argument(
        "--tx-checksums-off",
        action="store_true",
        help="finish checksums before the underlay, as a card without that offload",
    )
    up.add_argument(
        "--store",
        choices=topology.STORES,
        default="etcd",
        help="who keeps the leases: etcd, or a static network file on each node",
    )
    up.add_argument(
        "--etcd", default="", metavar="FILE", help="the etcd server program (default: the first)"
    )
    up.add_argument(
        "--etcd-prefix", default=topology.DEFAULT_PREFIX, metavar="PREFIX", help="of the keys"
    )
    return _json(up)


def _ping() -> Parser:
    parser = _parser(
        "ping",
        "ping between all pairs of pods",
        "Exit code 1 if a pair does not answer.",
        "ping --count 1 --deadline 2",
    )
    parser.add_argument("--count", type=count, default=3, metavar="N", help="answers wanted a pair")
    parser.add_argument(
        "--deadline", type=seconds, default=5.0, metavar="SECONDS", help="how long to try"
    )
    parser.add_argument(
        "-6", dest="version", action="store_const", const=6, default=4, help="over IPv6"
    )
    return _json(parser)


def _exec() -> Parser:
    parser = _parser(
        "exec",
        "run a command on a node, in its pod, or on the switch",
        "Terminal, signals and exit code are the command's own. It finds the lab's etcd by its\n"
        "environment. Options of this command come before CMD.",
        "exec 1 -- ip route",
        "exec pod2 ping -c1 10.0.1.2",
        "exec switch -- tcpdump -ni any",
    )
    parser.add_argument("--pod", action="store_true", help="in the node's pod")
    parser.add_argument("node", metavar="PLACE", help="1, node1, pod1 or switch")
    parser.add_argument(
        "argv",
        nargs="*",
        metavar="CMD",
        help="the command and its arguments; a shell if none",
    )
    parser.usage = f"{parser.prog} [OPTION]... PLACE [--] [CMD [ARGUMENT]...]"
    return parser


def _bench() -> Parser:
    parser = _parser(
        "bench",
        "measure throughput and latency between two pods of a lab",
        "",
        "bench --from 1 --to 3 --seconds 5",
    )
    parser.add_argument(
        "--from", dest="source", type=int, default=1, metavar="NODE", help="who sends"
    )
    parser.add_argument("--to", dest="target", type=int, default=2, metavar="NODE", help="to whom")
    parser.add_argument(
        "--seconds",
        type=seconds,
        default=2.0,
        metavar="SECONDS",
        help="of each of four measurements",
    )
    return _json(parser)


def _break() -> Parser:
    parser = _parser(
        "break",
        "break something in a lab, to see it heal or to find it",
        "The daemons repair some faults at once; others stay until they are found.",
        "break route-deleted --node 2",
        "break --random --hide",
        "break --list",
    )
    parser.add_argument("fault", nargs="*", metavar="FAULT", help="what; --list has them all")
    parser.add_argument("--list", action="store_true", help="print all faults, break nothing")
    parser.add_argument("--random", action="store_true", help="choose one that stays broken")
    parser.add_argument("--hide", action="store_true", help="do not say what is broken, or where")
    parser.add_argument("--node", metavar="NODE", help="where (default: 1; with --random any)")
    parser.add_argument("--seed", metavar="TEXT", help="with --random: the same choice each time")
    return parser


def _heal() -> Parser:
    about = "Exit code 1 if a pair of pods does not answer afterwards."
    return _parser("heal", "undo whatever `break` did", about, "heal")


def _list() -> Parser:
    return _json(
        _parser("list", "the labs of this machine that are up", "", "list --json", named=False)
    )


def _status() -> Parser:
    about = "Exit code 1 if one has a problem."
    return _json(_parser("status", "how each node of a lab is", about, "status"))


def _logs() -> Parser:
    parser = _parser("logs", "what the daemons have logged, and etcd", "", "logs 2 --follow")
    parser.add_argument("node", nargs="*", metavar="NODE", help="1, node1 or etcd; all if none")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what is added")
    parser.add_argument("-n", "--lines", type=count, default=20, metavar="N", help="of each")
    return parser


def _web() -> Parser:
    about = "As `pyflannel web`, with a choice among the lab's nodes."
    parser = _parser("web", "the status of a lab's nodes as a page, live", about, "web")
    add_address(parser)
    return parser


def _down() -> Parser:
    return _parser(
        "down", "take a lab away, also one that is only half made", "", "down --name other"
    )


def seconds(text: str) -> float:
    """A length of time, for argparse."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: expected seconds, more than 0")
    return value


def count(text: str) -> int:
    """A number of things, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 or more")
    return value
