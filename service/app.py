"""The composition root: ``create_app`` builds every part from the settings, wires and closes them.

Nothing happens at import, so two apps fit one process. The routes are in ``service.web.routes``.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

from aiohttp import ClientSession, web
from pydantic import SecretStr

from service.errors import ApiKeyNotConfigured
from service.model import Order
from service.monitoring.log_writer import dropped_lines
from service.monitoring.logs import Redactor
from service.monitoring.metrics import Metrics, observe_loop_lag
from service.monitoring.recent_errors import RecentErrors
from service.monitoring.sentry import reporting
from service.settings import FULL_QUALITY, Settings
from service.streaming.admission import Admission
from service.streaming.archive_stream import StreamLimits
from service.upstream.api import UpstreamClient
from service.upstream.clients import create_clients
from service.upstream.health import UpstreamHealth
from service.upstream.http.fetcher import open_session
from service.upstream.order_watcher import Look, OrderWatcher
from service.upstream.sentry_api import SentryApi
from service.upstream.uploads import UploadClient
from service.web.auth.context import AUTH, AuthContext
from service.web.auth.credentials import ServiceKey
from service.web.downloads.context import DOWNLOADS, DownloadsContext
from service.web.http.context import HTTP, HttpContext
from service.web.middleware import access_log, add_headers, render_problems
from service.web.operations.context import OPERATIONS, OperationsContext
from service.web.operations.stats import PUBLIC_LIMITS
from service.web.orders.context import ORDERS, OrdersContext
from service.web.routes import add_health_routes, add_metrics_route, add_routes
from service.web.site.context import SITE, SiteContext
from service.web.uploads.context import UPLOADS, UploadsContext

# Limit of aiohttp's own body readers; handlers use ``read_body``, each with its own limit.
MAX_REQUEST_BODY_BYTES = 64 * 1024


def create_app(settings: Settings, *, demo_order_id: str | None = None) -> web.Application:
    """Return the app. Its resources open when it starts and close when it stops.

    ``demo_order_id`` marks the upstream as the sandbox: its images are not real, and every client is an admin.
    """
    app = _bare_app()
    add_routes(app)
    add_health_routes(app)
    if settings.metrics_port is None:
        add_metrics_route(app)

    async def resources(app: web.Application) -> AsyncIterator[None]:
        session = open_session(
            allow_private=settings.allow_private_upstream,
            connect_timeout_seconds=settings.connect_timeout_seconds,
        )
        # Sentry may be self-hosted on a private network. Its URL comes from the settings alone, without redirects.
        sentry_session = open_session(allow_private=True, connect_timeout_seconds=settings.connect_timeout_seconds)
        redactor = Redactor(settings.secrets())
        release = f"autoenhance-batch@{_version()}"
        async with (
            session,
            sentry_session,
            reporting(_value(settings.sentry_dsn), release=release, redactor=redactor) as report_fault,
        ):
            metrics = Metrics(version=_version())
            metrics.watch_log(dropped_lines)
            recent_errors = RecentErrors(redactor.clean)
            health = UpstreamHealth(time.monotonic)
            metrics.upstream_failing.set_function(lambda: health.is_open)
            api, uploads = _upstream_clients(settings, session, metrics, health)
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
                version=_version(),
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
                version=_version(),
                api_key_configured=api is not None,
                demo_order_id=demo_order_id,
                wait_max_seconds=settings.wait_max_seconds,
                max_upload_files=settings.max_upload_files,
                max_upload_bytes=settings.max_upload_bytes,
            )
            async with _observe_loop_lag(metrics):
                yield

    app.cleanup_ctx.append(resources)
    return app


def create_ops_app(main_app: web.Application) -> web.Application:
    """Return the app on METRICS_PORT: health and metrics of a running app, whose contexts it shares."""
    app = _bare_app()
    app[HTTP], app[AUTH], app[OPERATIONS] = main_app[HTTP], main_app[AUTH], main_app[OPERATIONS]
    add_health_routes(app)
    add_metrics_route(app)
    return app


def _bare_app() -> web.Application:
    app = web.Application(middlewares=[access_log, render_problems], client_max_size=MAX_REQUEST_BODY_BYTES)
    app.on_response_prepare.append(add_headers)
    return app


def _upstream_clients(
    settings: Settings, session: ClientSession, metrics: Metrics, health: UpstreamHealth
) -> tuple[UpstreamClient, UploadClient] | tuple[None, None]:
    api_key = _value(settings.autoenhance_api_key)
    if api_key is None:
        return None, None
    return create_clients(
        session,
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


def _order_fetcher(api: UpstreamClient | None) -> Look:
    async def fetch_order(order_id: str, seconds: float) -> Order:
        if api is None:
            raise ApiKeyNotConfigured("There is no API key.")
        return await api.find_order(order_id, deadline=asyncio.get_running_loop().time() + seconds)

    return fetch_order


@asynccontextmanager
async def _observe_loop_lag(metrics: Metrics) -> AsyncIterator[None]:
    task = asyncio.create_task(observe_loop_lag(metrics.event_loop_lag.observe, clock=asyncio.get_running_loop().time))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def _value(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret is not None else None


def _version() -> str:
    try:
        return version("autoenhance-batch")
    except PackageNotFoundError:  # run from a source checkout
        return "unknown"
