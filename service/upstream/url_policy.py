"""The SSRF policy: which URLs, redirects, schemes, hosts and addresses are allowed. Pure decisions.

The addresses of a host name are checked when it is resolved for the connection (``http.resolver.PublicResolver``), so
that the checked address is the one that is dialled.
"""

import ipaddress
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import quote

from yarl import URL

# Two hops are normal (API → asset server → S3); a few more leave room for a change on their side.
MAX_REDIRECTS = 5
REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})

# All public IPv6 addresses so far are in here (RFC 4291 section 2.4). Outside are, besides the private ones, NAT64
# (RFC 6052) and the deprecated site-local and IPv4-compatible addresses, which Python calls global.
_PUBLIC_IPV6 = ipaddress.ip_network("2000::/3")
# Ranges that some Python versions call global. 6to4 (RFC 3056, with its relays) and Teredo (RFC 4380) embed an IPv4
# address, which may be a private one; 192.0.0.0/24 is for protocols (RFC 6890), 3fff::/20 for books (RFC 9637).
_NOT_PUBLIC = tuple(
    map(ipaddress.ip_network, ("192.0.0.0/24", "192.88.99.0/24", "2001::/32", "2002::/16", "3fff::/20"))
)
# A host whose last label is a number is an IPv4 address, however oddly it is spelt (WHATWG URL, "ends in a number").
_ENDS_IN_A_NUMBER = re.compile(r"(.*\.)?([0-9]+|0[xX][0-9a-fA-F]*)\.?")


# Locations without a user name, dot segments, an empty query, or characters that need encoding, as signed URLs are.
# Anything else goes through yarl, with the same result in ten times as long.
_PLAIN_ORIGIN = re.compile(r"https?://[a-z0-9-]+(?:\.[a-z0-9-]+)*(?::[0-9]{1,5})?")
_PLAIN_PATH = re.compile(r"/(?![/.]|[^?]*\?\Z)(?:[!$&'()*+,;=:@?%A-Za-z0-9._~-]|/(?!\.))*")
# The origins of a normal day: the API's, its asset server's, the storage's.
_MAX_CACHED_ORIGINS = 64


class UrlRejected(Exception):
    """A URL that the policy rejects; the message is fit for a report."""


class Origin(NamedTuple):
    """Where a connection leads (RFC 6454 section 4): ``host`` in ASCII; ``is_api`` if it is the API's own."""

    scheme: str
    host: str
    port: int
    is_api: bool


class Target(NamedTuple):
    """The target of one request: a server that the policy allows, and a path with its query, encoded as it is sent."""

    origin: Origin
    path: str


@dataclass(frozen=True, slots=True)
class UrlPolicy:
    """Which URLs are allowed besides the API's own origin."""

    api_origin: URL
    allow_private: bool = False
    allowed_hosts: Sequence[str] = ()
    _origins: dict[str, Origin] = field(default_factory=dict, compare=False, repr=False)

    def target(self, url: URL) -> Target:
        """Return a URL as a target.

        Raises:
            UrlRejected: its scheme, host or literal address is not allowed.
        """
        self.check(url)
        # What may not stand in a request line is encoded, so that a redirect can neither end the line nor break it.
        path = quote(url.raw_path_qs, safe=string.punctuation)
        return Target(Origin(url.scheme, url.raw_host or "", url.port or 0, self.is_api(url)), path)

    def redirect(self, current: Target, location: str | None, hops: int) -> Target:
        """Return the target of a redirect, after ``hops`` earlier ones.

        Raises:
            UrlRejected: no target, too many hops, a downgrade from https to http, or a target that is not allowed.
        """
        start = _PLAIN_ORIGIN.match(location or "")
        path = _PLAIN_PATH.fullmatch(location or "", start.end() if start else 0)
        if location is None or path is None or hops >= MAX_REDIRECTS:
            return self.target(self.resolve_redirect(_url(current), location, hops))
        origin = self._plain_origin(start[0]) if start else current.origin
        if current.origin.scheme == "https" and origin.scheme == "http":
            raise UrlRejected("a redirect from https to http")
        return Target(origin, path[0])

    def _plain_origin(self, text: str) -> Origin:
        origin = self._origins.get(text)
        if origin is None:
            try:
                origin = self.target(URL(text)).origin
            except ValueError:
                raise UrlRejected("a redirect to an invalid URL") from None
            if len(self._origins) >= _MAX_CACHED_ORIGINS:
                self._origins.clear()
            self._origins[text] = origin
        return origin

    def is_api(self, url: URL) -> bool:
        """Whether the URL has the API's origin (RFC 6454 section 4): the API key goes there only."""
        return _origin(url) == _origin(self.api_origin)

    def check(self, url: URL) -> URL:
        """Return the URL if it is allowed.

        Raises:
            UrlRejected: its scheme, host or literal address is not allowed.
        """
        # Checked first: a host that is not encoded makes yarl fail, or means something else where it is resolved.
        if not (url.raw_host or "").isascii() or url.port == 0:
            raise UrlRejected("a URL with an ambiguous host or port is rejected")
        if url.scheme not in {"http", "https"} or not url.host:
            raise UrlRejected(f"only http and https can be fetched, not {url.scheme or 'a relative URL'}")
        if url.user is not None or url.password is not None:
            raise UrlRejected("a URL with a user name is rejected")
        if url.scheme == "http" and not self.allow_private:
            raise UrlRejected("an unencrypted URL is rejected")
        if self.allowed_hosts and not self.is_api(url) and not _host_matches(url.host, self.allowed_hosts):
            raise UrlRejected(f"the host {url.host} is not in UPSTREAM_ALLOWED_HOSTS")
        if not self.allow_private and _literal_is_private(url.host):
            raise UrlRejected(f"the address {url.host} is not a public one")
        return url

    def resolve_redirect(self, current: URL, location: str | None, hops: int) -> URL:
        """Return the target of a redirect, after ``hops`` earlier ones.

        Raises:
            UrlRejected: no target, too many hops, a downgrade from https to http, or a target that is not allowed.
        """
        if hops >= MAX_REDIRECTS:
            raise UrlRejected(f"more than {MAX_REDIRECTS} redirects")
        if not location:
            raise UrlRejected("a redirect without a target")
        target = _join(current, location)
        if target is None:
            raise UrlRejected("a redirect to an invalid URL")
        if current.scheme == "https" and target.scheme == "http":
            raise UrlRejected("a redirect from https to http")
        return self.check(target)


def _url(target: Target) -> URL:
    origin = target.origin
    return URL(f"{origin.scheme}://{_bracketed(origin.host)}:{origin.port}{target.path}", encoded=True)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def is_private(address: str) -> bool:
    """Whether an IP address is not a public unicast one, also when embedded in an IPv6 transition range."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return True
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        elif ip not in _PUBLIC_IPV6:
            return True
    return not ip.is_global or ip.is_multicast or any(ip in network for network in _NOT_PUBLIC)


def _origin(url: URL) -> tuple[str, str | None, int | None]:
    # Not URL.origin(): two of those differ if one names the default port, or was encoded with capital letters.
    return url.scheme, url.host, url.port


def _join(current: URL, location: str) -> URL | None:
    """Return the target of a redirect, or ``None`` if it is no URL or an ambiguous one."""
    try:
        # The target is percent-encoded and may be signed: it must be requested unchanged.
        target = current.join(URL(location, encoded=True)).with_fragment(None)
        # yarl detects bad hosts and ports only when they are read.
        unambiguous = (target.raw_host or "").isascii() and target.port != 0
    except ValueError:
        return None
    return target if unambiguous else None


def _literal_is_private(host: str) -> bool:
    """Whether a literal IP address is private. Host names are checked when they are resolved."""
    return (":" in host or _ENDS_IN_A_NUMBER.fullmatch(host) is not None) and is_private(host)


def _host_matches(host: str, patterns: Sequence[str]) -> bool:
    host = host.lower().rstrip(".")
    return any(host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern for pattern in patterns)
