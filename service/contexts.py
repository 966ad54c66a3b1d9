"""Builds every part of the service from the settings, and gives each feature its context.

Only this module and ``service.app`` read the settings of the service; the parts get plain values.
"""

import asyncio
import time
from collections.abc import Callable

from aiohttp import ClientSession, web
from pydantic import SecretStr

from service.errors import ApiKeyNotConfigured
from service.model import Order
from service.monitoring.log_writer import dropped_lines
from service.monitoring.metrics import Metrics
from service.monitoring.recent_errors import RecentErrors
from service.monitoring.sentry import Report
from service.settings import FULL_QUALITY, Settings
from service.streaming.admission import Admission
from service.streaming.interfaces import StreamLimits
from service.upstream.api import UpstreamClient
from service.upstream.clients import create_clients
from service.upstream.health import UpstreamHealth
from service.upstream.http.connection import ConnectionPool
from service.upstream.order_watcher import FetchOrder, OrderWatcher
from service.upstream.sentry_api import SentryApi
from service.upstream.uploads import UploadClient
from service.web.auth.context import AUTH, AuthContext
from service.web.auth.credentials import ServiceKey
from service.web.downloads.context import DOWNLOADS, DownloadsContext
from service.web.http.context import HTTP, HttpContext
from service.web.operations.context import OPERATIONS, OperationsContext
from service.web.operations.stats import PUBLIC_LIMITS
from service.web.orders.context import ORDERS, OrdersContext
from service.web.site.context import SITE, SiteContext
from service.web.uploads.context import UPLOADS, UploadsContext


def add_contexts(
    app: web.Application,
    settings: Settings,
    metrics: Metrics,
    *,
    version: str,
    api_session: ClientSession,
    api_connections: ConnectionPool,
    sentry_session: ClientSession,
    redact: Callable[[str], str],
    report_fault: Report,
    demo_order_id: str | None,
) -> None:
    """Set the context of each feature. Needs a running event loop."""
    recent_errors = RecentErrors(redact)
    health = UpstreamHealth(time.monotonic)
    metrics.upstream_failing.set_function(lambda: health.is_failing)
    metrics.watch_log(dropped_lines)
    api, uploads = _upstream_clients(settings, api_session, api_connections, metrics, health)
    watcher = OrderWatcher(_order_fetcher(api))
    app[HTTP] = HttpContext(
        metrics=metrics,
        recent_errors=recent_errors,
        report_fault=report_fault,
        allowed_origins=frozenset(settings.allowed_origins),
        request_body_timeout_seconds=settings.request_body_timeout_seconds,
    )
    app[AUTH] = _auth_context(settings, sandbox=demo_order_id is not None)
    app[DOWNLOADS] = downloads = _downloads_context(settings, api, watcher, metrics)
    app[ORDERS] = OrdersContext.create(
        api,
        watcher,
        webhook_secret=_value(settings.webhook_secret),
        first_byte_seconds=settings.first_byte_seconds,
    )
    app[UPLOADS] = UploadsContext(
        upstream=uploads,
        metrics=metrics,
        admission=Admission(settings.max_concurrent_uploads, "uploads are in progress"),
        max_files=settings.max_upload_files,
        max_file_bytes=settings.max_upload_bytes,
        client_stall_seconds=settings.client_stall_seconds,
    )
    app[OPERATIONS] = OperationsContext(
        version=version,
        started=time.monotonic(),
        public_limits={name: getattr(settings, name) for name in PUBLIC_LIMITS},
        api_key_configured=api is not None,
        metrics=metrics,
        recent_errors=recent_errors,
        admission=downloads.admission,
        total_budget=downloads.total_budget,
        upstream_health=health,
        sentry=_sentry_api(settings, sentry_session),
    )
    app[SITE] = SiteContext.create(
        version=version,
        api_key_configured=api is not None,
        demo_order_id=demo_order_id,
        wait_max_seconds=settings.wait_max_seconds,
        max_upload_files=settings.max_upload_files,
        max_upload_bytes=settings.max_upload_bytes,
    )


def _upstream_clients(
    settings: Settings, session: ClientSession, pool: ConnectionPool, metrics: Metrics, health: UpstreamHealth
) -> tuple[UpstreamClient, UploadClient] | tuple[None, None]:
    api_key = _value(settings.autoenhance_api_key)
    if api_key is None:
        return None, None
    return create_clients(
        session,
        pool,
        metrics,
        health,
        api_base=settings.autoenhance_api_base,
        api_key=api_key,
        api_version=settings.autoenhance_api_version,
        allow_private=settings.allow_private_upstream,
        allowed_hosts=settings.upstream_allowed_hosts,
        requests_per_second=settings.upstream_requests_per_second,
        idle_timeout_seconds=settings.image_timeout_seconds,
        image_attempts=settings.image_attempts,
    )


def _auth_context(settings: Settings, *, sandbox: bool) -> AuthContext:
    keys = [key.get_secret_value() for key in settings.all_service_keys()]
    return AuthContext.create(
        service_keys=[ServiceKey(key.removesuffix(FULL_QUALITY), full=key.endswith(FULL_QUALITY)) for key in keys],
        admin_token=_value(settings.admin_token),
        allow_full_quality=settings.allow_full_quality,
        signing_keys=[key.get_secret_value() for key in settings.signing_keys],
        session_ttl_seconds=settings.session_ttl_seconds,
        auth_failures_per_minute=settings.auth_failures_per_minute,
        trusted_proxy_hops=settings.trusted_proxy_hops,
        max_link_seconds=settings.max_link_seconds,
        public_url=settings.public_url,
        sandbox=sandbox,
    )


def _downloads_context(
    settings: Settings, api: UpstreamClient | None, watcher: OrderWatcher, metrics: Metrics
) -> DownloadsContext:
    return DownloadsContext.create(
        api,
        watcher,
        metrics,
        limits=StreamLimits(
            images_in_flight=settings.images_in_flight,
            max_images_in_flight=settings.max_images_in_flight,
            read_ahead_bytes=settings.read_ahead_bytes,
            give_up_after=settings.give_up_after,
        ),
        max_archives=settings.max_archives,
        max_concurrent_downloads=settings.max_concurrent_downloads,
        read_ahead_total_bytes=settings.read_ahead_total_bytes,
        max_receipts=settings.max_receipts,
        receipt_ttl_seconds=settings.receipt_ttl_seconds,
        max_images=settings.max_images_per_order,
        wait_max_seconds=settings.wait_max_seconds,
        first_byte_seconds=settings.first_byte_seconds,
        client_stall_seconds=settings.client_stall_seconds,
        public_url=settings.public_url,
    )


def _sentry_api(settings: Settings, session: ClientSession) -> SentryApi:
    return SentryApi(
        session,
        base=settings.sentry_api_base,
        token=_value(settings.sentry_auth_token),
        organization=settings.sentry_org,
        project=settings.sentry_project,
    )


def _order_fetcher(api: UpstreamClient | None) -> FetchOrder:
    async def fetch_order(order_id: str, seconds: float) -> Order:
        if api is None:
            raise ApiKeyNotConfigured("There is no API key.")
        return await api.find_order(order_id, deadline=asyncio.get_running_loop().time() + seconds)

    return fetch_order


def _value(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret is not None else None
