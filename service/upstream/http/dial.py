"""Opens connections to upstream servers, with SSRF protection where the address is known.

A name is resolved and every address of it is checked right before the connection is made: there is no moment in which
the name could change its address in between.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import aiohappyeyeballs

from service.model import Failure, Reason
from service.upstream.http.resolver import AddressRejected
from service.upstream.retry import AttemptFailed
from service.upstream.url_policy import Origin, is_private

# Name resolution blocks a thread of its own pool: a dead name server holds up nothing else.
RESOLVER_THREADS = 8
# Long enough that an archive resolves once, short enough to follow a change of address.
DNS_CACHE_SECONDS = 60.0
MAX_CACHED_NAMES = 256
# RFC 8305 section 5: when the next address is tried beside one that does not respond.
_NEXT_ADDRESS_SECONDS = 0.25

ProtocolT = TypeVar("ProtocolT", bound=asyncio.Protocol)
AddressInfo = tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int]]


class Dialer:
    """Opens connections; ``tls`` is used for https. Its owner closes it."""

    def __init__(
        self, *, allow_private: bool, connect_timeout_seconds: float, tls: ssl.SSLContext | None = None
    ) -> None:
        self._allow_private = allow_private
        self._timeout_seconds = connect_timeout_seconds
        self._tls = tls or ssl.create_default_context()
        self._threads = ThreadPoolExecutor(RESOLVER_THREADS, thread_name_prefix="resolver")
        self._names: dict[tuple[str, int], tuple[float, asyncio.Future[Sequence[AddressInfo]]]] = {}

    async def connect(self, origin: Origin, protocol_factory: Callable[[], ProtocolT]) -> ProtocolT:
        """Return a fresh connection.

        Raises:
            AttemptFailed: no connection in time, or none to this address.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout_seconds):
                sock = await aiohappyeyeballs.start_connection(
                    await self._resolve(origin), happy_eyeballs_delay=_NEXT_ADDRESS_SECONDS, interleave=1
                )
                is_https = origin.scheme == "https"
                _, connection = await loop.create_connection(
                    protocol_factory,
                    sock=sock,
                    ssl=self._tls if is_https else None,
                    server_hostname=origin.host if is_https else None,
                )
                return connection
        except AddressRejected as error:
            raise AttemptFailed(Failure(Reason.REDIRECT_REFUSED, str(error))) from error
        except TimeoutError as error:
            raise AttemptFailed(Failure(Reason.TIMEOUT, "no connection to the upstream in time")) from error
        except (OSError, ssl.CertificateError, UnicodeError) as error:
            raise AttemptFailed(Failure(Reason.CONNECTION_FAILED, f"no connection to {origin.host}")) from error

    def close(self) -> None:
        """Start no further name resolution."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _resolve(self, origin: Origin) -> Sequence[AddressInfo]:
        """Return the addresses of a host, the same look-up for all who wait for it.

        Raises:
            OSError: it cannot be resolved, or has an address in a private range.
        """
        loop = asyncio.get_running_loop()
        name, now = (origin.host, origin.port), loop.time()
        expires, lookup = self._names.get(name, (0.0, None))
        if lookup is None or now >= expires or (lookup.done() and (lookup.cancelled() or lookup.exception())):
            if len(self._names) >= MAX_CACHED_NAMES:
                self._names.clear()
            lookup = loop.run_in_executor(self._threads, _addresses, *name)
            lookup.add_done_callback(_retrieve_exception)
            self._names[name] = now + DNS_CACHE_SECONDS, lookup
        addresses = await asyncio.shield(lookup)
        if not self._allow_private and any(is_private(str(address[4][0])) for address in addresses):
            raise AddressRejected(f"{origin.host} has an address that is not public")
        return addresses


def _addresses(host: str, port: int) -> Sequence[AddressInfo]:
    # Odd spellings of IPv4 (decimal, octal, short) arrive here too, as names that the system's resolver understands.
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)  # type: ignore[return-value]


def _retrieve_exception(lookup: "asyncio.Future[Sequence[AddressInfo]]") -> None:
    """Keep asyncio from logging the failure of a look-up for which nothing waits any more."""
    if not lookup.cancelled():
        lookup.exception()
