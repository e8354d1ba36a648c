"""A cluster in a box: nodes in network namespaces, a real etcd, real packets.

For demonstrations, tests and benchmarks. `Lab` and `LabSpec` are all that most callers need.
"""

from pyflannel.lab.cluster import Lab
from pyflannel.lab.errors import LabError, LabExists, LabNotPermitted, LabTimeout, NoSuchLab
from pyflannel.lab.etcd import EtcdError, LabEtcd, StoredKey
from pyflannel.lab.nodes import Node
from pyflannel.lab.ping import PingMatrix, PingResult
from pyflannel.lab.topology import LabSpec, Underlay

__all__ = [
    "EtcdError",
    "Lab",
    "LabError",
    "LabEtcd",
    "LabExists",
    "LabNotPermitted",
    "LabSpec",
    "LabTimeout",
    "NoSuchLab",
    "Node",
    "PingMatrix",
    "PingResult",
    "StoredKey",
    "Underlay",
]
