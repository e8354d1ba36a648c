"""Writes what nodes tell into docs/reference/: problem codes, metrics, data paths.

`python tools/reportpages.py [DIRECTORY]`. Codes come from the tables of those who find them,
metrics from their declarations, abilities from the data paths' table.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from pyflannel.datapath.abilities import ABILITIES
from pyflannel.diagnose import finding
from pyflannel.docker import checks as docker
from pyflannel.report import problems
from pyflannel.report.metrics import MOST_PEERS, described

DIRECTORY: Final = Path(__file__).parents[1] / "docs" / "reference"
MADE: Final = "Made by `tools/reportpages.py`.\n"


def pages() -> dict[str, str]:
    """Every page, by its file name."""
    return {
        "problems.md": "".join(_problems()),
        "metrics.md": "".join(_metrics()),
        "datapaths.md": "".join(_datapaths()),
    }


def _table(codes: Mapping[str, str]) -> str:
    rows = [f"| {code} | {meaning} |\n" for code, meaning in sorted(codes.items())]
    return "| code | meaning |\n|---|---|\n" + "".join(rows)


def _problems() -> Iterator[str]:
    yield f"""\
# Problem codes

{MADE}
What `pyflannel status` finds wrong has a code that does not change. `pyflannel status` says with
each since when it is so, what comes of it and what to do.

"""
    yield _table(problems.CODES)
    yield """
`pyflannel doctor` tells these too, and what it sees of the node itself. It reads the daemon's
report, the devices, sysctls and every chain of nftables, iptables and iptables-legacy that IP
packets meet, and follows the overlay's packets through them, in both versions. A rule whose match
it cannot decide (a limit, a set of ipset) is told as *may*, with severity `info`; that alone is
exit code 0. Bridge and netdev chains are not read.

"""
    yield _table({code: text for code, text in finding.CODES.items() if code < "PF3"})
    yield """
Where dockerd runs, subject `node` tells what `pyflannel doctor docker` finds, too:

"""
    yield _table(docker.CODES)
    yield """
`pyflannel doctor --cluster` compares what nodes say.

"""
    yield _table({code: text for code, text in finding.CODES.items() if code > "PF4"})
    yield "\n`pyflannel doctor datapath` has no codes; see `docs/reference/datapaths.md`.\n"


def _metrics() -> Iterator[str]:
    yield f"""\
# Metrics

{MADE}
`pyflanneld --healthz-port PORT` (unless `--metrics=false`) answers `GET /metrics` in Prometheus'
text format. An answer is made at most once a second. What was not measured has no series; a
number of things by state has all states.

| metric | labels | meaning |
|---|---|---|
"""
    for family in described():
        labels = ", ".join(family.labels)
        text = family.help.removesuffix(".")
        yield f"| {family.name} | {labels}{' ' if labels else ''}| {text} |\n"
    yield f"""
`process_…` are prometheus_client's own. Series of single peers are there for {MOST_PEERS} of
them, those with trouble first. They end with the peer's lease.
"""


def _datapaths() -> Iterator[str]:
    yield f"""\
# Data paths

{MADE}
`pyflannel doctor datapath` starts each data path of backend udp in a network namespace of its
own, without a packet, and says what the kernel granted. It needs root. It does not touch the
node, and it does not look at the external interface; what is in use there is in `pyflannel
status`, under the same names.

Exit code: 0 if `--datapath auto` takes `ebpf` or `native`; 1 if it takes `python`, or none; 3
without the rights to look. With `--json`, `can` has these names.

| data path | name | what it means |
|---|---|---|
"""
    for path, abilities in ABILITIES.items():
        if not abilities:
            yield f"| {path} | | always there; some hundred Mbit/s |\n"
        for number, (name, meaning) in enumerate(abilities.items()):
            yield f"| {'' if number else path} | `{name}` | {meaning} |\n"
    yield """
`auto` takes the first that can be used, in this order, but passes `ebpf` over where it would be
no faster than `native`: where the external interface's packets have no Ethernet header (TUN,
WireGuard, IP in IP), for then what comes in takes its slow path; where it carries packets longer
than the programs handle (15,346 bytes); and on kernels where it was measured to be slower, or was
not measured (`pyflannel/datapath/advice.py` has the figures). The reason is in `pyflannel
status`, and in the log when it is chosen. `--datapath ebpf` takes it in any case. While the
daemon runs `auto` goes on to the next one if the chosen one cannot start, or turns out to be
slow: policies of IPsec are for most of the peers, or most packets take its slow path
(docs/ebpf.md).
"""


if __name__ == "__main__":
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else DIRECTORY
    for name, text in pages().items():
        (directory / name).write_text(text)
