"""Shared state of authentication and authorization."""

import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from aiohttp import web

from service.web.auth.client_ip import ClientIpResolver
from service.web.auth.credentials import Credentials, ServiceKey
from service.web.auth.rate_limit import AuthFailureLimit
from service.web.auth.tokens import LinkTokens, SessionTokens


@dataclass(frozen=True, slots=True)
class AuthContext:
    """What guards, sessions and links need. ``public_url`` is where clients reach the service, if it is known."""

    credentials: Credentials
    sessions: SessionTokens
    links: LinkTokens
    failures: AuthFailureLimit
    client_ips: ClientIpResolver
    max_link_seconds: int
    public_url: str | None

    @classmethod
    def create(
        cls,
        *,
        service_keys: Iterable[ServiceKey],
        admin_token: str | None,
        allow_full_quality: bool,
        signing_keys: Sequence[str],
        session_ttl_seconds: int,
        auth_failures_per_minute: int,
        trusted_proxy_hops: int,
        max_link_seconds: int,
        public_url: str | None,
        sandbox: bool,
    ) -> Self:
        """Build the parts. In the sandbox every client is an admin, and links have a key for this process."""
        credentials = Credentials(
            list(service_keys), admin_token, allow_full_quality=allow_full_quality, open_to_all=sandbox
        )
        if sandbox and not signing_keys:
            signing_keys = [secrets.token_urlsafe()]
        return cls(
            credentials=credentials,
            sessions=SessionTokens(credentials, ttl_seconds=session_ttl_seconds),
            links=LinkTokens(signing_keys, clock=time.time),
            failures=AuthFailureLimit(auth_failures_per_minute, time.monotonic),
            client_ips=ClientIpResolver(trusted_proxy_hops),
            max_link_seconds=max_link_seconds,
            public_url=public_url,
        )


AUTH = web.AppKey("auth", AuthContext)
