"""Finds what nothing in the product uses: `make check` runs it.

What only tests use is dead as well. So vulture reads the product, bench/ and tools/; of what it
finds the lab and the fakes are left out, which are there for tests, and what libraries call.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from vulture import Vulture

ROOT: Final = Path(__file__).resolve().parents[1]
READ: Final = ("pyflannel", "bench", "tools")
FOR_TESTS: Final = ("pyflannel/lab", "pyflannel/testing")
KNOWN: Final = {
    # Read by name, by a library or by the kernel.
    "__call__", "__path__", "mtime", "iov", "iov_length", "trust_env", "pool_classes_by_scheme",
    "__repr__", "__eq__", "__hash__", "handle_starttag", "on_page_markdown",
    "gid", "gname", "cert_verify", "conn", "verify", "ConnectionCls", "written_ns", "sport",
    # Parts of a report or of a protocol that documents and tests read.
    "notification_overflows", "member_id", "CODES", "ECHO_REPLY", "ECHO_REQUEST", "NUD_STALE",
    "IP_PMTUDISC_WANT",
    # Members of JSON objects, which programs and the page's script read.
    "silent_s", "rate_in", "rate_out", "more_problems", "more_peers",
    # The whole of what the product does in parts.
    "replace_actual",
    # Bounds that the models in tests hold the product to, and a look into the kernel for them.
    "LONGEST_WAIT_S", "attached_tcx",
}  # fmt: skip
"""Names that are used in a way that cannot be seen in the code."""


def main() -> int:
    """Prints what is dead; returns the exit code."""
    vulture = Vulture()
    vulture.scavenge([str(ROOT / name) for name in READ])
    dead = [
        item
        for item in vulture.get_unused_code(min_confidence=60)
        if item.name not in KNOWN
        and not str(Path(item.filename).relative_to(ROOT)).startswith(FOR_TESTS)
    ]
    for item in dead:
        print(f"{Path(item.filename).relative_to(ROOT)}:{item.first_lineno}: {item.message}")
    return 1 if dead else 0


if __name__ == "__main__":
    sys.exit(main())
