"""The packet path inside the kernel; see `flannel.bpf.c` for what the programs do.

This side loads them, attaches them (`attachment.py`: by tcx, or as filters of tc), fills the peer
table, and runs a user-space data path beside them for all other packets. Programs, maps and links
are pinned in bpffs where there is one; then they go on forwarding while no daemon runs, and the
next daemon takes them over: it opens the maps, keeps the peers in them until it has read the
leases, and replaces the running programs without a gap. Without bpffs all of it ends with the
process, and forwarding stops.

Pins live below `<bpffs>/pyflannel/<network namespace>/`: `peers`, `lengths`, `config`, `counters`,
`traffic`, and with tcx a link per program and interface, named after both.
"""

from __future__ import annotations

from pyflannel.datapath.ebpf.path import EbpfDatapath
from pyflannel.datapath.ebpf.survey import probe, remove_leftovers

__all__ = ["EbpfDatapath", "probe", "remove_leftovers"]
