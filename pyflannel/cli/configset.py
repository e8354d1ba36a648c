"""`pyflannel config set`: writes a network config, and shows first what it would change."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, TextIO

from pyflannel.backend.kinds import KINDS
from pyflannel.cli.common import with_store
from pyflannel.core.config import NetworkConfig
from pyflannel.core.configchange import changes, consequences
from pyflannel.core.configparse import parse_network_config
from pyflannel.core.errors import EXIT_OK, ConfigError, StoreConflict, StoreError
from pyflannel.core.lease import Lease
from pyflannel.core.options import EtcdOptions
from pyflannel.foreign import MOST_IN_LOG, shown
from pyflannel.records import dataclass
from pyflannel.store.etcd import codec
from pyflannel.store.etcd.base import KeyValue, Store

EXIT_DECLINED: Final = 1
"""The question was answered with no."""
TERMINAL: Final = "/dev/tty"


@dataclass(frozen=True, slots=True)
class _Found:
    """What etcd holds now."""

    config: KeyValue | None
    leases: Sequence[Lease]
    unread: str
    """Why there are no leases to compare; empty if there is nothing to say."""


def run(
    options: EtcdOptions,
    raw: bytes,
    config: NetworkConfig | None,
    *,
    yes: bool,
    dry_run: bool,
) -> int:
    """Writes a config, unless the operator is asked and says no; returns the exit code.

    Args:
        options: where etcd is.
        raw: what to write.
        config: what it means; `None` if it has errors and is written all the same.
        yes: do not ask.
        dry_run: write nothing.

    Raises:
        ConfigError: another user wrote another one meanwhile.
        StoreError: etcd failed.
    """
    key = codec.config_key(options.prefix)
    found = with_store(options, lambda store: _look(store, options.prefix))
    if found.config is not None:
        if found.config.value == raw:
            print(f"{shown(key)} has this config already")
            return EXIT_OK
        print(_difference(found, config))
    if dry_run:
        print(f"nothing was written to {shown(key)}")
        return EXIT_OK
    if found.config is not None and not yes and not _confirmed():
        print("pyflannel config: nothing was written", file=sys.stderr)
        return EXIT_DECLINED
    revision = found.config.mod_revision if found.config is not None else 0
    try:
        with_store(options, lambda store: store.put(key, raw, if_mod_revision=revision))
    except StoreConflict:
        raise ConfigError(
            f"{shown(key)} was written by another user meanwhile; look at it, then try again"
        ) from None
    print(f"written to {shown(key)}")
    return EXIT_OK


async def _look(store: Store, prefix: str) -> _Found:
    got = await store.get(codec.config_key(prefix))
    if not got.kvs:
        return _Found(None, (), "")
    try:
        listed = await store.range_prefix(codec.subnets_prefix(prefix))
    except StoreError as error:
        return _Found(got.kvs[0], (), str(error))
    decoded = (codec.decode_lease(prefix, kv) for kv in listed.kvs)
    return _Found(got.kvs[0], [each for each in decoded if isinstance(each, Lease)], "")


def _difference(found: _Found, after: NetworkConfig | None) -> str:
    before = parse_network_config(found.config.value, KINDS).config if found.config else None
    lines = []
    if before is None:
        lines.append("etcd holds a config that has errors")
    else:
        different = changes(before, after) if after is not None else ()
        width = max((len(each.key) for each in different), default=0)
        lines += [
            f"  {each.key:<{width}}  {_value(each.before)} -> {_value(each.after)}"
            for each in different
        ]
        if lines:
            lines.insert(0, "this changes the network config in etcd:")
        elif after is not None:
            lines.append("this means the same as what etcd holds")
    lines += consequences(before, after, found.leases)
    if found.unread:
        lines.append(f"leases were not compared: {found.unread}")
    return "\n".join(shown(line, MOST_IN_LOG) for line in lines)


def _value(value: object) -> str:
    return "(none)" if value is None else json.dumps(value)


def _confirmed() -> bool:
    """Asks if a user is at a terminal; a script goes on."""
    if not sys.stdout.isatty():
        return True
    if sys.stdin.isatty():
        return _answer(sys.stdin)
    try:  # the config came by stdin
        with Path(TERMINAL).open(encoding="utf-8") as terminal:
            return _answer(terminal)
    except OSError:
        return True


def _answer(terminal: TextIO) -> bool:
    print("replace it? [y/N] ", end="", flush=True)
    return terminal.readline().strip().lower() in {"y", "yes"}
