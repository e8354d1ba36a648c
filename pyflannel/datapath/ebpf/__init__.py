"""The packet path inside the kernel; see `flannel.bpf.c` for what the programs do.

This side loads them, attaches them (`attachment.py`: by tcx, or as filters of tc), fills the peer
table, and runs a user-space data path beside them for everything out of the ordinary. Programs,
maps and links are pinned in bpffs where there is one; then they go on forwarding while no daemon
runs, and the next one takes them over: it finds the maps, keeps the peers in them until it knows
better, and puts its programs in the place of those that run, without a gap. Without bpffs all of it
ends with the process, and packets take the slow path or none.

Pins live below `<bpffs>/pyflannel/<network namespace>/`: `peers`, `config`, `counters`, and with
tcx a link per program and interface, named after both.
"""

from __future__ import annotations

from pyflannel.datapath.ebpf.path import EbpfDatapath
from pyflannel.datapath.ebpf.survey import probe, remove_leftovers

__all__ = ["EbpfDatapath", "probe", "remove_leftovers"]
