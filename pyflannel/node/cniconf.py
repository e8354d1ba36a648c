"""What `--cni-conflist` writes: the cluster's own `cni-conf.json`, or flannel's usual one."""

from __future__ import annotations

from pathlib import Path

from pyflannel.core.cni import CONFLIST, SOURCE, conflist_problem
from pyflannel.core.errors import ConfigError
from pyflannel.kernel.files import FileMissing, FileText, read_text_if_exists


def conflist(net_config_path: str) -> bytes:
    """The configuration, as it is now.

    Args:
        net_config_path: of `net-conf.json`, which has the other one beside it.

    Raises:
        ConfigError: there is one that cannot be used.
    """
    source = Path(net_config_path).with_name(SOURCE)
    found = read_text_if_exists(source)
    if isinstance(found, FileMissing):
        return CONFLIST
    if not isinstance(found, FileText):
        raise ConfigError(found.reason)
    if problem := conflist_problem(found.text):
        raise ConfigError(f"{source} is no configuration for CNI: {problem}")
    return found.text.encode()
