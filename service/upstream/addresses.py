"""Where requests may go: redirects, schemes, hosts and addresses. Pure decisions.

The addresses a name resolves to are checked where the connection is made (``transport.GuardedResolver``), so
that what is checked is what is dialled.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from yarl import URL

# Two hops are normal (API → asset server → S3); a few more leave room for a change on their side.
MAX_REDIRECTS = 5
REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})

# Ranges that embed an IPv4 address, through which a private one could be reached: RFC 6052 (NAT64), RFC 3056 (6to4),
# RFC 4380 (Teredo). None of them is where a photo store lives.
_TRANSLATED = tuple(ipaddress.ip_network(text) for text in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32"))


class TargetRefused(Exception):
    """A request target that the rules forbid; the message is fit for a report."""


@dataclass(frozen=True, slots=True)
class TargetRules:
    """Which targets are allowed besides the API's own origin."""

    api_origin: URL
    allow_private: bool = False
    allowed_hosts: Sequence[str] = ()

    def is_api(self, url: URL) -> bool:
        """Whether the URL belongs to the API's origin (RFC 6454 section 4): only there the API key may go."""
        return url.origin() == self.api_origin

    def check(self, url: URL) -> URL:
        """Return the URL.

        Raises:
            TargetRefused: its scheme, host or literal address is not allowed.
        """
        if url.scheme not in {"http", "https"} or not url.host:
            raise TargetRefused(f"only http and https can be fetched, not {url.scheme or 'a relative address'}")
        if url.user is not None or url.password is not None:
            raise TargetRefused("an address with a user name is refused")
        if url.scheme == "http" and not self.allow_private:
            raise TargetRefused("an unencrypted address is refused")
        if self.allowed_hosts and not self.is_api(url) and not _host_matches(url.host, self.allowed_hosts):
            raise TargetRefused(f"the host {url.host} is not in UPSTREAM_ALLOWED_HOSTS")
        if not self.allow_private and _literal_is_private(url.host):
            raise TargetRefused(f"the address {url.host} is not a public one")
        return url

    def follow(self, current: URL, location: str | None, hops: int) -> URL:
        """Return the target of a redirect, ``hops`` of which have been followed before.

        Raises:
            TargetRefused: no target, too many hops, a step from https to http, or a target the rules forbid.
        """
        if hops >= MAX_REDIRECTS:
            raise TargetRefused(f"more than {MAX_REDIRECTS} redirects")
        if not location:
            raise TargetRefused("a redirect without a target")
        try:
            # The target comes percent-encoded and may be signed: it must be sent back as it is.
            target = current.join(URL(location, encoded=True))
        except ValueError:
            raise TargetRefused("a redirect to something that is not an address") from None
        if current.scheme == "https" and target.scheme == "http":
            raise TargetRefused("a redirect from https to http")
        return self.check(target.with_fragment(None))


def is_private(address: str) -> bool:
    """Whether an IP address is anything but a public unicast one, also when wrapped in an IPv6 transition range."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return True
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        elif any(ip in network for network in _TRANSLATED):
            return True
    return not ip.is_global or ip.is_multicast


def _literal_is_private(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False  # a name, or a spelling only the resolver understands: judged when it is resolved
    return is_private(host)


def _host_matches(host: str, patterns: Sequence[str]) -> bool:
    host = host.lower().rstrip(".")
    return any(host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern for pattern in patterns)
