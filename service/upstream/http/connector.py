"""aiohttp's connection pool, without connections on which anything has arrived while they were idle.

Internals of aiohttp that are used: ``BaseConnector.connect``, ``Connection.protocol``, and of that protocol
``should_close`` and ``transport`` (tests/test_aiohttp_contract.py names each).
"""

import asyncio
import select
import ssl
from weakref import WeakSet

import aiohttp
from aiohttp.abc import AbstractResolver
from aiohttp.tracing import Trace

DNS_CACHE_SECONDS = 60


class GuardedConnector(aiohttp.TCPConnector):
    """Reuses an idle connection only if nothing has arrived on it since its last response.

    aiohttp only checks that the connection is open. An unrequested response would be read as that of the next request,
    and a connection that the server has closed would fail it.
    """

    def __init__(self, resolver: AbstractResolver, tls: ssl.SSLContext | None) -> None:
        # The number of downloads is bounded where they are started.
        super().__init__(limit=0, resolver=resolver, ttl_dns_cache=DNS_CACHE_SECONDS, ssl=tls or True)
        self._used: WeakSet[asyncio.Protocol] = WeakSet()

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - its name is aiohttp's
    ) -> aiohttp.connector.Connection:
        """Return an idle or a new connection, for aiohttp's client.

        Raises:
            aiohttp.ClientError, TimeoutError: there is no connection.
        """
        while True:
            connection = await super().connect(req, traces, timeout)
            protocol = connection.protocol
            if protocol is None or protocol not in self._used:
                if protocol is not None:
                    self._used.add(protocol)
                return connection
            if not protocol.should_close and not is_readable(protocol.transport):
                return connection
            connection.close()


def is_readable(transport: asyncio.BaseTransport | None) -> bool:
    """Return whether bytes, an end or an error wait in the kernel, which the event loop may not have noticed yet.

    On an idle TLS connection they may be a harmless record, but those of the handshake were read with the response.
    """
    found = None if transport is None else transport.get_extra_info("socket")
    if found is None:
        return True
    readiness = select.poll()  # select() knows no descriptor above 1023
    readiness.register(found.fileno(), select.POLLIN)
    return bool(readiness.poll(0))
