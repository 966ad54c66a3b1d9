"""Reports unhandled exceptions to Sentry, if SENTRY_DSN is set. Only this file imports the SDK.

Every report passes through the redaction of the logs. Problem responses, failed images and disconnected clients are not
errors of the service and are never reported; neither are bodies, local variables, client addresses, or the requests to
the upstream.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import structlog

from service.monitoring.logs import Redactor

log = structlog.get_logger(__name__)

Report = Callable[[BaseException], None]

# Maximum wait for the last reports when the service stops.
FLUSH_SECONDS = 2.0
# Reports that wait to be sent; further ones are dropped. An exception that is raised this often needs no more copies.
QUEUED_REPORTS = 50
# Allow-list of reported request headers. Proxies add others with addresses (X-Forwarded-For), URLs with a link's token
# (X-Original-URI), or session tokens (Cf-Access-Jwt-Assertion): no deny-list of them is complete.
REPORTED_HEADERS = frozenset(
    {"accept", "accept-encoding", "content-length", "content-type", "host", "traceparent", "user-agent", "x-request-id"}
)


def report_nothing(_error: BaseException) -> None:
    """Drop an exception: Sentry is not configured."""


@asynccontextmanager
async def reporting(dsn: str | None, *, release: str, redactor: Redactor) -> AsyncIterator[Report]:
    """Yield the function that reports an exception; it does nothing without a usable ``dsn``.

    A missing SDK or an invalid DSN is logged, and does not keep the service from starting.
    """
    if dsn is None:
        yield report_nothing
        return
    try:
        import sentry_sdk  # noqa: PLC0415 - an extra, and importing it installs hooks
        from sentry_sdk.integrations.aiohttp import AioHttpIntegration  # noqa: PLC0415
    except ImportError:
        log.warning("sentry.not_installed", detail="SENTRY_DSN is set, but the package's extra 'sentry' is missing")
        yield report_nothing
        return

    def before_send(event: Any, _hint: Any) -> Any:
        if (request := event.get("request")) is not None:
            event["request"] = {name: request[name] for name in ("url", "method") if name in request}
            event["request"]["headers"] = {
                name: value for name, value in request.get("headers", {}).items() if name.lower() in REPORTED_HEADERS
            }
        return redactor.clean(event)

    try:
        sentry_sdk.init(
            dsn=dsn,
            release=release,
            # The aiohttp integration adds the request; the others would send the command line, or every logged error.
            default_integrations=False,
            auto_enabling_integrations=False,
            integrations=[AioHttpIntegration(transaction_style="method_and_path_pattern")],
            before_send=before_send,
            max_breadcrumbs=0,
            include_local_variables=False,
            include_source_context=False,
            max_request_body_size="never",
            auto_session_tracking=False,
            send_client_reports=False,
            enable_backpressure_handling=False,  # it starts a thread for traces, which are not used
            trace_propagation_targets=[],  # no Sentry headers to the upstream
            transport_queue_size=QUEUED_REPORTS,
            shutdown_timeout=FLUSH_SECONDS,
        )
    except sentry_sdk.utils.BadDsn as error:
        log.warning("sentry.bad_dsn", detail=redactor.clean(str(error)))
        yield report_nothing
        return
    log.info("sentry.started", release=release)

    def report(error: BaseException) -> None:
        with sentry_sdk.new_scope() as scope:
            scope.set_tags(structlog.contextvars.get_contextvars())
            sentry_sdk.capture_exception(error)

    try:
        yield report
    finally:
        # close() blocks; in a thread, so that running archives continue.
        await asyncio.to_thread(sentry_sdk.get_client().close, timeout=FLUSH_SECONDS)
        sentry_sdk.get_global_scope().set_client(None)
