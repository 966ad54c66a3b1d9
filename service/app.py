"""The composition root: what exists, how it is wired, and the table of routes.

``create_app`` builds everything from the settings; nothing happens at import, so two apps fit one process.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

from aiohttp import ClientSession, web
from yarl import URL

from service.errors import ApiKeyNotConfigured
from service.model import Order
from service.monitoring.log_writer import dropped_lines
from service.monitoring.logs import Redactor
from service.monitoring.metrics import Metrics, observe_loop_lag
from service.monitoring.recent_errors import RecentErrors
from service.monitoring.sentry import Report, reporting
from service.settings import FULL_QUALITY, Settings
from service.streaming.admission import Admission
from service.streaming.archive_stream import StreamLimits
from service.streaming.budgets import DownloadShare, MemoryBudget
from service.streaming.receipts import Receipts
from service.upstream.api import UpstreamClient
from service.upstream.health import UpstreamHealth
from service.upstream.http.fetcher import Fetcher
from service.upstream.http.session import open_session
from service.upstream.image_download import DownloadPolicy
from service.upstream.order_watcher import FetchOrder, OrderWatcher
from service.upstream.rate_limiter import RateLimiter
from service.upstream.sentry_api import SentryApi
from service.upstream.uploads import UploadClient
from service.upstream.url_policy import UrlPolicy
from service.web.auth.client_ip import ClientAddresses
from service.web.auth.credentials import Access, AuthFailureLimit, Credentials, Links, ServiceKey, Sessions
from service.web.auth.links import create_link
from service.web.auth.sessions import end_session, get_session, start_session
from service.web.downloads.archive import get_order_archive
from service.web.downloads.receipts import get_events, get_receipt
from service.web.middleware import access_log, add_headers, render_problems
from service.web.operations import health as ops
from service.web.operations.sentry_issues import sentry_issues
from service.web.operations.stats import stats
from service.web.orders.orders import get_order
from service.web.orders.thumbnails import THUMBNAILS_IN_FLIGHT, THUMBNAILS_WAITING, get_thumbnail
from service.web.orders.webhooks import receive_webhook
from service.web.services import SERVICES, Services
from service.web.site.docs import get_docs, get_docs_asset, openapi_handler
from service.web.site.page import page, page_config, page_file
from service.web.uploads.create_order import create_order, create_sample_order

# What aiohttp's own ways to read a body take; handlers use ``read_body``, each with its own limit.
MAX_REQUEST_BODY_BYTES = 64 * 1024
# Watchers cost a connection and a timer each; a page opens one for each download.
MAX_EVENT_STREAMS = 256
# What /api/stats tells of the settings: bounds, and nothing that says where the upstream is.
PUBLIC_LIMITS = (
    "max_archives",
    "max_images_per_order",
    "images_in_flight",
    "image_attempts",
    "image_timeout_seconds",
    "first_byte_seconds",
    "client_stall_seconds",
    "give_up_after",
    "read_ahead_bytes",
    "read_ahead_total_bytes",
    "max_concurrent_downloads",
    "upstream_requests_per_second",
    "drain_seconds",
    "max_concurrent_uploads",
    "max_upload_files",
    "max_upload_bytes",
)


def create_app(settings: Settings, *, demo_order_id: str | None = None) -> web.Application:
    """Return the app; its resources open when it starts and close when it stops.

    Only the sandbox has a demo order: with one, nothing behind the app is real, and everybody is the operator.
    """
    app = _bare_app()
    # Any segment is taken as an order id, so that a bad one is told what is wrong with it.
    app.router.add_get("/orders/{order_id:[^/]+}/images", get_order_archive)
    app.router.add_get("/orders/{order_id:[^/]+}", get_order)
    app.router.add_post("/orders/{order_id:[^/]+}/links", create_link)
    app.router.add_post("/orders/{order_id:[^/]+}/images", get_order_archive)
    app.router.add_post("/webhooks/autoenhance", receive_webhook)
    app.router.add_get("/archives/{archive_id:[^/]+}", get_receipt)
    # HEAD would begin to stream, and what has no end has no use for it.
    app.router.add_get("/archives/{archive_id:[^/]+}/events", get_events, allow_head=False)
    app.router.add_post("/api/create-order", create_order)
    app.router.add_post("/api/create-sample-order", create_sample_order)
    app.router.add_get("/images/{image_id:[A-Za-z0-9_-]{1,64}}/preview", get_thumbnail)
    app.router.add_get("/", page)
    app.router.add_get("/api/page", page_config)
    app.router.add_get("/static/{name:[a-z0-9-]+[.][a-z0-9.-]+}", page_file)
    app.router.add_get("/session", get_session)
    app.router.add_post("/session", start_session)
    app.router.add_delete("/session", end_session)
    app.router.add_get("/api/stats", stats)
    app.router.add_get("/api/sentry/issues", sentry_issues)
    app.router.add_get("/problems/{slug}", ops.explain_problem)
    app.router.add_get("/openapi.json", openapi_handler(_version()))
    app.router.add_get("/docs", get_docs)
    app.router.add_get("/docs/{asset}", get_docs_asset)
    _add_health_routes(app)
    if settings.metrics_port is None:
        app.router.add_get("/metrics", ops.metrics)

    async def services(app: web.Application) -> AsyncIterator[None]:
        session = open_session(
            allow_private=settings.allow_private_upstream,
            connect_timeout_seconds=settings.connect_timeout_seconds,
        )
        # Where Sentry is, the operator alone says, and nothing redirects there: it may well be in a private network.
        sentry_session = open_session(allow_private=True, connect_timeout_seconds=settings.connect_timeout_seconds)
        dsn, redactor = settings.sentry_dsn, Redactor(settings.secrets())
        release = f"autoenhance-batch@{_version()}"
        async with (
            session,
            sentry_session,
            reporting(dsn.get_secret_value() if dsn else None, release=release, redactor=redactor) as report_fault,
        ):
            access = _access(settings, sandbox=demo_order_id is not None)
            sentry = _sentry_api(settings, sentry_session)
            app[SERVICES] = _services(
                settings, session, access, redactor, report_fault, sentry=sentry, demo_order_id=demo_order_id
            )
            async with _loop_lag_watched(app[SERVICES].metrics):
                yield

    app.cleanup_ctx.append(services)
    return app


def create_ops_app(services: Services) -> web.Application:
    """Return what METRICS_PORT serves: health and metrics of a running app, which owns the services."""
    app = _bare_app()
    app[SERVICES] = services
    _add_health_routes(app)
    app.router.add_get("/metrics", ops.metrics)
    return app


def _bare_app() -> web.Application:
    app = web.Application(middlewares=[access_log, render_problems], client_max_size=MAX_REQUEST_BODY_BYTES)
    app.on_response_prepare.append(add_headers)
    return app


def _add_health_routes(app: web.Application) -> None:
    app.router.add_get("/health", ops.health)
    app.router.add_get("/health/live", ops.live)
    app.router.add_get("/health/ready", ops.ready)


def _access(settings: Settings, *, sandbox: bool) -> Access:
    admin_token = settings.admin_token
    credentials = Credentials(
        [
            ServiceKey(key.removesuffix(FULL_QUALITY), full=key.endswith(FULL_QUALITY))
            for key in (one.get_secret_value() for one in settings.all_service_keys())
        ],
        admin_token.get_secret_value() if admin_token else None,
        allow_full_quality=settings.allow_full_quality,
        open_to_all=sandbox,
    )
    signing_keys = [key.get_secret_value() for key in settings.signing_keys]
    if sandbox and not signing_keys:
        signing_keys = [secrets.token_urlsafe()]
    return Access(
        credentials,
        Sessions(credentials, seconds=settings.session_ttl_seconds),
        Links(signing_keys, clock=time.time),
        AuthFailureLimit(settings.auth_failures_per_minute, time.monotonic),
        callers=ClientAddresses(settings.trusted_proxy_hops),
        max_link_seconds=settings.max_link_seconds,
    )


def _services(
    settings: Settings,
    session: ClientSession,
    access: Access,
    redactor: Redactor,
    report_fault: Report,
    *,
    sentry: SentryApi,
    demo_order_id: str | None,
) -> Services:
    running_version = _version()
    metrics = Metrics(version=running_version)
    metrics.watch_log(dropped_lines)
    breaker = UpstreamHealth(time.monotonic)
    metrics.upstream_failing.set_function(lambda: breaker.is_failing)
    total_budget = MemoryBudget(settings.read_ahead_total_bytes)
    metrics.watch_read_ahead(lambda: total_budget.held_bytes, total_budget.limit_bytes)
    receipts = Receipts(limit=settings.max_receipts, ttl_seconds=settings.receipt_ttl_seconds)
    event_admission = Admission(MAX_EVENT_STREAMS, "event streams are open")
    metrics.receipts_held.set_function(lambda: len(receipts))
    metrics.sse_connections.set_function(lambda: event_admission.active)
    admission = Admission(settings.max_archives)
    metrics.archive_slots_in_use.set_function(lambda: admission.active)
    metrics.archives_limit.set(settings.max_archives)
    key = settings.autoenhance_api_key
    upstream, uploads = _upstream_clients(settings, session, metrics, breaker) if key else (None, None)
    return Services(
        upstream=upstream,
        breaker=breaker,
        metrics=metrics,
        recent_errors=RecentErrors(redactor.clean),
        report_fault=report_fault,
        sentry=sentry,
        access=access,
        allowed_origins=frozenset(settings.allowed_origins),
        admission=admission,
        event_admission=event_admission,
        receipts=receipts,
        demo_order_id=demo_order_id,
        thumbnail_admission=Admission(THUMBNAILS_WAITING, "pictures are being waited for"),
        thumbnail_slots=asyncio.Semaphore(THUMBNAILS_IN_FLIGHT),
        live_orders=OrderWatcher(_fetch_order(upstream)),
        wait_max_seconds=settings.wait_max_seconds,
        webhook_secret=settings.webhook_secret.get_secret_value() if settings.webhook_secret else None,
        upload_admission=Admission(settings.max_concurrent_uploads, "uploads are being taken"),
        uploads=uploads,
        max_upload_files=settings.max_upload_files,
        max_upload_bytes=settings.max_upload_bytes,
        limits=StreamLimits(
            images_in_flight=settings.images_in_flight,
            read_ahead_bytes=settings.read_ahead_bytes,
            give_up_after=settings.give_up_after,
        ),
        total_budget=total_budget,
        connections=DownloadShare(settings.max_concurrent_downloads),
        max_images=settings.max_images_per_order,
        public_url=settings.public_url,
        first_byte_seconds=settings.first_byte_seconds,
        client_stall_seconds=settings.client_stall_seconds,
        request_body_timeout_seconds=settings.request_body_timeout_seconds,
        version=running_version,
        started=time.monotonic(),
        public_limits={name: getattr(settings, name) for name in PUBLIC_LIMITS},
    )


def _sentry_api(settings: Settings, session: ClientSession) -> SentryApi:
    token = settings.sentry_auth_token
    return SentryApi(
        session,
        base=settings.sentry_api_base,
        token=token.get_secret_value() if token else None,
        organization=settings.sentry_org,
        project=settings.sentry_project,
    )


@asynccontextmanager
async def _loop_lag_watched(metrics: Metrics) -> AsyncIterator[None]:
    watching = asyncio.create_task(
        observe_loop_lag(metrics.event_loop_lag.observe, clock=asyncio.get_running_loop().time)
    )
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.wait([watching])


def _version() -> str:
    try:
        return version("autoenhance-batch")
    except PackageNotFoundError:  # run from a folder of sources
        return "unknown"


def _fetch_order(upstream: UpstreamClient | None) -> FetchOrder:
    async def fetch_order(order_id: str, seconds: float) -> Order:
        if upstream is None:
            raise ApiKeyNotConfigured("There is no API key.")
        return await upstream.find_order(order_id, deadline=asyncio.get_running_loop().time() + seconds)

    return fetch_order


def _upstream_clients(
    settings: Settings, session: ClientSession, metrics: Metrics, breaker: UpstreamHealth
) -> tuple[UpstreamClient, UploadClient]:
    key = settings.autoenhance_api_key
    headers = {
        "x-api-key": key.get_secret_value() if key else "",
        "x-api-version": settings.autoenhance_api_version,
    }
    rules = UrlPolicy(
        api_origin=URL(settings.autoenhance_api_base).origin(),
        allow_private=settings.allow_private_upstream,
        allowed_hosts=settings.upstream_allowed_hosts,
    )
    transport = Fetcher(
        session,
        rules,
        rate_limiter=RateLimiter(settings.upstream_requests_per_second, clock=asyncio.get_running_loop().time),
        api_headers=headers,
        idle_timeout_seconds=settings.image_timeout_seconds,
        metrics=metrics,
        health=breaker,
    )
    policy = DownloadPolicy(attempts=settings.image_attempts)
    base = settings.autoenhance_api_base
    return (
        UpstreamClient(transport, api_base=base, policy=policy, metrics=metrics, health=breaker),
        UploadClient(transport, api_base=base, attempts=settings.image_attempts),
    )
