"""Client IP addresses, as keys for rate limiting: from the connection, or from trusted proxies' X-Forwarded-For."""

import ipaddress

import structlog
from aiohttp import web

FORWARDED = "X-Forwarded-For"
# The least that one customer of a provider has (RFC 6177): a client with one address of a /64 has all of them.
IPV6_PREFIX_BITS = 64

log = structlog.get_logger(__name__)


class ClientIpResolver:
    """Resolves client IPs behind ``trusted_proxy_hops`` proxies, each of which appends to X-Forwarded-For."""

    def __init__(self, trusted_proxy_hops: int) -> None:
        self.trusted_proxy_hops = trusted_proxy_hops
        self._warned = False

    def resolve(self, request: web.Request) -> str:
        """Return the rate limit key of the client: its IPv4 address, or its IPv6 /64.

        Each trusted proxy appends its peer's address to X-Forwarded-For. Entries further left may be forged.
        """
        entries = [entry.strip() for value in request.headers.getall(FORWARDED, []) for entry in value.split(",")]
        return rate_limit_key(
            entries[-self.trusted_proxy_hops] if 0 < self.trusted_proxy_hops <= len(entries) else (request.remote or "")
        )

    def warn_of_untrusted_proxy(self, request: web.Request) -> None:
        """Log once that X-Forwarded-For arrives although no proxy is configured."""
        if self.trusted_proxy_hops or self._warned or FORWARDED not in request.headers:
            return
        self._warned = True
        log.warning(
            "proxy.ignored",
            detail="X-Forwarded-For arrives, but TRUSTED_PROXY_HOPS is 0: all clients of a proxy share one limit",
        )


def rate_limit_key(address: str) -> str:
    """Return the unit that failures are counted for: an IPv4 address, an IPv6 network, or other text unchanged."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed), IPV6_PREFIX_BITS), strict=False))
