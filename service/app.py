"""The composition root: ``create_app`` opens and closes what the service needs while it runs.

Nothing happens at import, so two apps fit one process. ``service.contexts`` wires the parts; the routes are in
``service.web.routes``.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from importlib.metadata import PackageNotFoundError, version

from aiohttp import web

from service.contexts import add_contexts
from service.monitoring.logs import Redactor
from service.monitoring.metrics import Metrics, observe_loop_lag
from service.monitoring.sentry import reporting
from service.settings import Settings
from service.upstream.http.connection import ConnectionPool
from service.upstream.http.dial import Dialer
from service.upstream.http.session import open_session
from service.web.auth.context import AUTH
from service.web.http.context import HTTP
from service.web.middleware import access_log, add_headers, render_problems
from service.web.operations.context import OPERATIONS
from service.web.routes import add_health_routes, add_metrics_route, add_routes

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
        api_session = open_session(
            allow_private=settings.allow_private_upstream,
            connect_timeout_seconds=settings.connect_timeout_seconds,
        )
        # Sentry may be self-hosted on a private network. Its URL comes from the settings alone, without redirects.
        sentry_session = open_session(allow_private=True, connect_timeout_seconds=settings.connect_timeout_seconds)
        dialer = Dialer(
            allow_private=settings.allow_private_upstream, connect_timeout_seconds=settings.connect_timeout_seconds
        )
        dsn, redactor = settings.sentry_dsn, Redactor(settings.secrets())
        async with (
            api_session,
            sentry_session,
            reporting(
                dsn.get_secret_value() if dsn else None,
                release=f"autoenhance-batch@{_version()}",
                redactor=redactor,
            ) as report_fault,
        ):
            metrics = Metrics(version=_version())
            with closing(ConnectionPool(dialer)) as api_connections:
                add_contexts(
                    app,
                    settings,
                    metrics,
                    version=_version(),
                    api_session=api_session,
                    api_connections=api_connections,
                    sentry_session=sentry_session,
                    redact=redactor.clean,
                    report_fault=report_fault,
                    demo_order_id=demo_order_id,
                )
                async with _observing_loop_lag(metrics):
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


@asynccontextmanager
async def _observing_loop_lag(metrics: Metrics) -> AsyncIterator[None]:
    task = asyncio.create_task(observe_loop_lag(metrics.event_loop_lag.observe, clock=asyncio.get_running_loop().time))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def _version() -> str:
    try:
        return version("autoenhance-batch")
    except PackageNotFoundError:  # run from a source checkout
        return "unknown"
