"""Reports faults of the service to Sentry, if the operator wants that. The only file that knows the SDK.

What leaves the process has passed through the logs' redaction. Problems, failed images and clients that leave are not
faults and are never reported; neither are bodies, local variables, callers' addresses, or the requests that the service
makes.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import structlog

from service.monitoring.logs import Redactor

log = structlog.get_logger(__name__)

Report = Callable[[BaseException], None]

# How long the end of the service may take to get the last reports out.
FLUSH_SECONDS = 2.0
# Reports that wait to be sent; what comes on top is dropped. A fault that happens this often needs no more copies.
QUEUED_REPORTS = 50
# All that is told of a request's headers. Proxies add others, which hold addresses (X-Forwarded-For), whole URLs with a
# link's token (X-Original-URI), or the proof of who signed in (Cf-Access-Jwt-Assertion): no list of them is complete.
HEADERS_TOLD = frozenset(
    {"accept", "accept-encoding", "content-length", "content-type", "host", "traceparent", "user-agent", "x-request-id"}
)


def report_nothing(_error: BaseException) -> None:
    """Stand where no Sentry is configured."""


@asynccontextmanager
async def reporting(dsn: str | None, *, release: str, redactor: Redactor) -> AsyncIterator[Report]:
    """Yield what takes a fault to Sentry; without ``dsn``, or if it cannot be used, what does nothing.

    Sentry is an aid, so nothing about it keeps the service from starting: the log says what is wrong.
    """
    if dsn is None:
        yield report_nothing
        return
    try:
        import sentry_sdk  # noqa: PLC0415 - an extra, and its hooks are wanted only where it is used
        from sentry_sdk.integrations.aiohttp import AioHttpIntegration  # noqa: PLC0415
    except ImportError:
        log.warning("sentry.not_installed", detail="SENTRY_DSN is set, but the package's extra 'sentry' is missing")
        yield report_nothing
        return

    def before_send(event: Any, _hint: Any) -> Any:
        if (request := event.get("request")) is not None:
            event["request"] = {name: request[name] for name in ("url", "method") if name in request}
            event["request"]["headers"] = {
                name: value for name, value in request.get("headers", {}).items() if name.lower() in HEADERS_TOLD
            }
        return redactor.clean(event)

    try:
        sentry_sdk.init(
            dsn=dsn,
            release=release,
            # The aiohttp integration tells the request; the others would send the command line, or every error line.
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
            enable_backpressure_handling=False,  # a thread for the sake of traces, of which there are none
            trace_propagation_targets=[],  # the upstream learns nothing of it
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
        # It waits in a thread: what still streams must not stand still meanwhile.
        await asyncio.to_thread(sentry_sdk.get_client().close, timeout=FLUSH_SECONDS)
        sentry_sdk.get_global_scope().set_client(None)
