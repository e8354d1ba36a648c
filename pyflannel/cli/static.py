"""`pyflannel static check|from-etcd`: the static network file, checked and made."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Final

from pyflannel.backend.kinds import KINDS
from pyflannel.cli.common import split_etcd, with_store
from pyflannel.cli.parsers import ETCD, Branch, Parser, group
from pyflannel.cli.shapes import StaticJson, StaticNodeJson, problems_json
from pyflannel.core.config import effective
from pyflannel.core.configparse import load_network_config
from pyflannel.core.errors import EXIT_CONFIG, EXIT_OK, ConfigError
from pyflannel.core.lease import Lease
from pyflannel.core.staticnet import ParsedStatic, StaticNode, parse_static, render_static
from pyflannel.foreign import shown
from pyflannel.kernel.files import FileMissing, FileText, read_text_if_exists
from pyflannel.store.etcd import codec
from pyflannel.store.etcd.base import Store
from pyflannel.store.static import MOST_BYTES

ABOUT: Final = "Exit code 78 if the file has an error."


def branch() -> Branch:
    """The command line."""
    prog = "pyflannel static"
    check = Parser(
        f"{prog} check",
        "say what is wrong with FILE, the static network file",
        "Needs no etcd. Exit code 78 if the file has an error.",
        examples=("pyflannel static check /etc/pyflannel/network.json",),
    )
    check.add_argument("file", metavar="FILE", help="'-' is standard input")
    check.add_argument("--json", action="store_true", help="print JSON")
    made = Parser(
        f"{prog} from-etcd",
        "print such a file with the config and the leases in etcd",
        "Exit code 78 if etcd holds no config.",
        flags=ETCD,
        examples=(
            "pyflannel static from-etcd --etcd-endpoints=http://192.0.2.10:2379 >network.json",
        ),
    )
    return group(
        prog, "the static network file, config and nodes without etcd", ABOUT, (check, made)
    )


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    options, rest = split_etcd(argv)
    here = branch()
    action, words = here.choose(rest)
    given = here.actions[action].parse_args(words)
    if action == "from-etcd":
        print(with_store(options, lambda store: _made_from(store, options.prefix)), end="")
        return EXIT_OK
    return _check(parse_static(_read(given.file), KINDS), as_json=given.json)


def _read(name: str) -> bytes | str:
    if name == "-":
        return sys.stdin.buffer.read()
    content = read_text_if_exists(name, most_bytes=MOST_BYTES)
    if isinstance(content, FileText):
        return content.text
    if isinstance(content, FileMissing):
        raise ConfigError(f"{name}: there is no such file")
    raise ConfigError(content.reason)


def _check(parsed: ParsedStatic, *, as_json: bool) -> int:
    network = parsed.network
    if as_json:
        report: StaticJson = {
            "config": effective(network.config) if network is not None else None,
            "nodes": [_node(node) for node in network.nodes] if network is not None else [],
            "problems": problems_json(parsed.problems),
        }
        print(json.dumps(report, indent=2))
    else:
        for problem in parsed.problems:
            print(shown(f"{problem.severity}: {problem}"), file=sys.stderr)
        if network is not None:
            kind = network.config.backend_type
            print(f"{len(network.nodes)} nodes, backend {kind}: fit for use")
    return EXIT_OK if network is not None else EXIT_CONFIG


def _node(node: StaticNode) -> StaticNodeJson:
    key, attrs = node.lease.key, node.lease.attrs
    return {
        "name": node.name or None,
        "subnet": _text(key.v4),
        "ipv6_subnet": _text(key.v6),
        "public_ip": _text(attrs.public_ip),
        "public_ipv6": _text(attrs.public_ipv6),
        "backend_data": attrs.backend_data,
        "backend_v6_data": attrs.backend_v6_data,
    }


def _text(value: object) -> str | None:
    return None if value is None else str(value)


async def _made_from(store: Store, prefix: str) -> str:
    key = codec.config_key(prefix)
    found = await store.get(key)
    if not found.kvs:
        raise ConfigError(f"no network config under {key.decode()}; write one with config set")
    config = load_network_config(found.kvs[0].value, KINDS)
    listed = await store.range_prefix(codec.subnets_prefix(prefix))
    leases: list[Lease] = []
    for kv in listed.kvs:
        lease = codec.decode_lease(prefix, kv)
        if isinstance(lease, Lease):
            leases.append(lease)
        else:
            print(f"warning: left out {shown(kv.key)}: {lease.reason}", file=sys.stderr)
    return render_static(config, leases)
