"""Prints `docs/troubleshooting.md`: what people see, the codes behind it, and what helps."""

from __future__ import annotations

from collections.abc import Iterator

from pyflannel.diagnose import finding
from pyflannel.diagnose.guide import GUIDES
from pyflannel.docker import checks as docker
from pyflannel.report import problems

HEAD = """\
# Troubleshooting

Made by `python -m tools.troubleshooting` from the codes of `pyflannel status` and `doctor`.

Two containers do not reach each other? In this order:

1. `pyflannel status` on both nodes: the verdict is the first line, what is wrong comes next.
2. `pyflannel doctor` on both nodes: firewall, kernel, routes, devices.
3. `pyflannel ping POD` from the other one's node: the first layer that does not answer is the
   place.
4. `pyflannel trace POD POD` on both nodes: every hop, with the kernel's object that decides.
5. Nothing? What a cloud or a switch drops between the nodes no node can see: `pyflannel ping` says
   that it does not arrive. Open the overlay's port in the provider's firewall, both ways.

To report it: `pyflannel bundle`.

What answers what:

| passes | does not | look at |
|---|---|---|
| node to node | node to overlay address | PF205, the provider's firewall |
| node to overlay address | node to container | there: PF202, PF203, PF204, PF207 |
| node to container | container to container | here: PF202, PF203, PF204, PF217 |
| ping | TCP | vxlan: `"TxChecksumOffload": false` in `Backend` of the network config |
| small packets | large ones | PF172, PF220 |
| IPv4 | IPv6 | PF213, PF214, PF215 |
| all peers but one | one | PF171, PF132, PF133, PF225 |

## Codes

| code | meaning | what one sees | what helps |
|---|---|---|---|
"""


def page() -> str:
    """The whole page."""
    return HEAD + "".join(_rows())


def all_codes() -> dict[str, str]:
    """Every code with its meaning, in order."""
    return dict(sorted({**problems.CODES, **finding.CODES, **docker.CODES}.items()))


def _rows() -> Iterator[str]:
    for code, meaning in all_codes().items():
        guide = GUIDES[code]
        yield f"| {code} | {meaning} | {guide.symptom} | {guide.action} |\n"


if __name__ == "__main__":
    print(page(), end="")
