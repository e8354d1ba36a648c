"""Where etcd is, by the SRV records of a domain (`--etcd-discovery-srv`).

The names that are asked for, and what a certificate is checked against, are those of etcd's own
tools: `_etcd-client-ssl._tcp` and `_etcd-client._tcp`; the name that the record gives, or, if the
records are not trusted (`--etcd-insecure-discovery=false`), the domain. What comes by plain HTTP is
then not used at all; nor is it where certificates are given, or the domain offers TLS as well:
an attacker who answers for DNS must not be able to take the encryption away.

dnspython is imported with the first look-up, in a thread.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from pyflannel.aio.threads import ThreadPool
from pyflannel.core.options import EtcdOptions
from pyflannel.core.srv import Record, in_order, service
from pyflannel.store.etcd.endpoints import Endpoint

if TYPE_CHECKING:
    import dns.asyncresolver
    import dns.resolver
    from dns.rdtypes.IN.SRV import SRV

LOOK_UP_S: Final = 3.0
"""For both questions together. What gives no answer is asked again with the next request."""


class DiscoveryError(Exception):
    """The domain names no endpoint that can be used; the text says why."""


class Discovery:
    """The endpoints of one domain; belongs to one event loop.

    Args:
        threads: for the import.
    """

    def __init__(self, options: EtcdOptions, threads: ThreadPool, rng: random.Random) -> None:
        self._domain = options.discovery_srv
        self._name = options.discovery_srv_name
        self._trusting = options.insecure_discovery
        self._tls_only = not options.insecure_discovery or bool(options.cafile or options.certfile)
        self._threads = threads
        self._random = rng

    def describe(self) -> str:
        """What is asked, for a log line."""
        return f"the SRV records of {self._domain}"

    async def endpoints(self) -> tuple[Endpoint, ...]:
        """What the records name now, in the order in which it is to be tried.

        Raises:
            DiscoveryError: nothing that can be used.
        """
        resolver = await self._threads.run(
            lambda: importlib.import_module("dns.asyncresolver").Resolver()
        )
        reasons: list[str] = []
        for tls in (True, False):
            asked = service(self._domain, self._name, tls=tls)
            if not tls and self._tls_only:
                reasons.append(f"{asked}: not used, as TLS is asked for")
                continue
            try:
                records = in_order(await _look_up(resolver, asked), self._random)
            except DiscoveryError as error:
                reasons.append(f"{asked}: {error}")
                continue
            if records:
                return tuple(dict.fromkeys(self._endpoint(record, tls=tls) for record in records))
            reasons.append(f"{asked}: offered nowhere")
        raise DiscoveryError("; ".join(reasons))

    def _endpoint(self, record: Record, *, tls: bool) -> Endpoint:
        certified = "" if self._trusting or not tls else self._domain.rstrip(".")
        return Endpoint("https" if tls else "http", record.target, record.port, certified)


async def _look_up(resolver: dns.asyncresolver.Resolver, name: str) -> Sequence[Record]:
    """The records of one service.

    Raises:
        DiscoveryError: there are none, or DNS does not answer.
    """
    from dns import exception
    from dns.resolver import NXDOMAIN, NoAnswer

    try:
        answer = await resolver.resolve(name, "SRV", lifetime=LOOK_UP_S / 2, search=False)
    except (NXDOMAIN, NoAnswer):
        raise DiscoveryError("no such record") from None
    except exception.Timeout:
        raise DiscoveryError("DNS does not answer in time") from None
    except (exception.DNSException, OSError) as error:
        raise DiscoveryError(str(error) or type(error).__name__) from error
    found: Sequence[SRV] = list(answer)
    return [
        Record(
            priority=one.priority,
            weight=one.weight,
            port=one.port,
            target=one.target.to_text(omit_final_dot=True).rstrip("."),
        )
        for one in found
    ]
