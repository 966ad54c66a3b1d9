"""The SSRF policy at name resolution: host names resolve to public addresses only."""

import socket

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from service.upstream.url_policy import is_private


class AddressRejected(OSError):
    """A host name resolves to an address that is not public."""


class PublicResolver(AbstractResolver):
    """Resolves host names, and rejects those with any address that is not public.

    Checking here, and not before the request, leaves no moment in which the name could change its address. The
    odd spellings of IPv4 (decimal, octal, short) arrive here too, as names that the system's resolver understands.
    """

    def __init__(self, *, allow_private: bool) -> None:
        self._resolver = aiohttp.ThreadedResolver()
        self._allow_private = allow_private

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the host's addresses.

        Raises:
            OSError: it cannot be resolved, or has an address that is not public.
        """
        results = await self._resolver.resolve(host, port, family)
        if not self._allow_private:
            for result in results:
                if is_private(result["host"]):
                    raise AddressRejected(f"{host} has an address that is not public")
        return results

    async def close(self) -> None:
        """Close the system's resolver."""
        await self._resolver.close()
