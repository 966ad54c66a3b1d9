"""Who is calling, as far as guesses are counted: by the connection, or by what our own proxies say."""

import ipaddress

import structlog
from aiohttp import web

FORWARDED = "X-Forwarded-For"
# What one customer of a provider has at the least (RFC 6177): the addresses in it are free to whoever has one.
IPV6_GROUP_BITS = 64

log = structlog.get_logger(__name__)


class ClientAddresses:
    """Finds client addresses; ``trusted_proxy_hops`` proxies in front append theirs to X-Forwarded-For."""

    def __init__(self, trusted_proxy_hops: int) -> None:
        self.trusted_proxy_hops = trusted_proxy_hops
        self._told = False

    def address(self, request: web.Request) -> str:
        """Return the caller's address, of IPv6 its /64: the connection's, or what our outermost proxy says it is.

        Each proxy appends to X-Forwarded-For whom it was called by; what stands further left, anybody may have written.
        """
        named = [one.strip() for value in request.headers.getall(FORWARDED, []) for one in value.split(",")]
        return group_of(
            named[-self.trusted_proxy_hops] if 0 < self.trusted_proxy_hops <= len(named) else (request.remote or "")
        )

    def notice(self, request: web.Request) -> None:
        """Tell the operator, once, of a proxy that the settings do not know of."""
        if self.trusted_proxy_hops or self._told or FORWARDED not in request.headers:
            return
        self._told = True
        log.warning(
            "proxy.ignored",
            detail="X-Forwarded-For arrives, but TRUSTED_PROXY_HOPS is 0: all clients of a proxy share one limit",
        )


def group_of(address: str) -> str:
    """Return what counts as one caller: an IPv4 address, an IPv6 network, or what is neither as it is."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed), IPV6_GROUP_BITS), strict=False))
