"""Builds the clients of the Autoenhance API: one fetcher, rate limiter and URL policy for both."""

import asyncio
from collections.abc import Sequence

from aiohttp import ClientSession
from yarl import URL

from service.monitoring.metrics import Metrics
from service.upstream.api import UpstreamClient
from service.upstream.health import UpstreamHealth
from service.upstream.http.connection import ConnectionPool
from service.upstream.http.fetcher import Fetcher
from service.upstream.image_transfer import DownloadPolicy
from service.upstream.rate_limiter import RateLimiter
from service.upstream.uploads import UploadClient
from service.upstream.url_policy import UrlPolicy


def create_clients(
    session: ClientSession,
    pool: ConnectionPool,
    metrics: Metrics,
    health: UpstreamHealth,
    *,
    api_base: str,
    api_key: str,
    api_version: str,
    allow_private: bool,
    allowed_hosts: Sequence[str],
    requests_per_second: float,
    idle_timeout_seconds: float,
    image_attempts: int,
) -> tuple[UpstreamClient, UploadClient]:
    """Return the client for orders and images, and the client for uploads. They share their limits."""
    fetcher = Fetcher(
        session,
        pool,
        UrlPolicy(api_origin=URL(api_base).origin(), allow_private=allow_private, allowed_hosts=allowed_hosts),
        rate_limiter=RateLimiter(requests_per_second, clock=asyncio.get_running_loop().time),
        api_headers={"x-api-key": api_key, "x-api-version": api_version},
        idle_timeout_seconds=idle_timeout_seconds,
        metrics=metrics,
        health=health,
    )
    policy = DownloadPolicy(attempts=image_attempts)
    return (
        UpstreamClient(fetcher, api_base=api_base, policy=policy, metrics=metrics, health=health),
        UploadClient(fetcher, api_base=api_base, attempts=image_attempts),
    )
