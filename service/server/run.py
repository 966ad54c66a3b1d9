"""The server: listens, and drains running archives when it is stopped (graceful shutdown).

States::

    serving ──SIGTERM──▶ draining: readiness 503, new downloads and uploads 503, everything else still served
                            │ idle, or DRAIN_SECONDS over, or a second SIGTERM or SIGINT
                            ▼
                         closing: unfinished archives are aborted, never ended cleanly ──▶ exit code 0
"""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from aiohttp import web

from service.app import create_app, create_ops_app
from service.server.runtime import tune_gc, tune_malloc
from service.settings import Settings
from service.streaming.admission import Admission
from service.web.auth.context import AUTH
from service.web.auth.credentials import Credentials, Role
from service.web.downloads.context import DOWNLOADS
from service.web.http.connection import connection_factory
from service.web.http.context import HTTP
from service.web.uploads.context import UPLOADS

# How long handlers that are cancelled at shutdown may take to clean up.
CLOSE_TIMEOUT_SECONDS = 1.0
BACKLOG = 1024

log = structlog.get_logger(__name__)


async def serve(settings: Settings, *, demo_order_id: str | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then drain. A second signal stops the drain."""
    tune_malloc()
    stop, force_stop = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def handle_signal() -> None:
        (force_stop if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, handle_signal)
    if settings.autoenhance_api_key is None:
        log.warning("service.not_configured", detail="AUTOENHANCE_API_KEY is not set; orders get a 503")
    async with serving(settings, demo_order_id=demo_order_id, force_stop=force_stop):
        tune_gc()
        await stop.wait()


@asynccontextmanager
async def serving(
    settings: Settings, *, demo_order_id: str | None = None, force_stop: asyncio.Event | None = None
) -> AsyncIterator[str]:
    """Serve while the context is open, and drain when it is left. Yields the URL, with the actual port.

    ``demo_order_id`` marks the upstream as the sandbox, see ``create_app``; ``force_stop`` ends the drain at once.
    """
    app = create_app(settings, demo_order_id=demo_order_id)
    # A client that disconnects cancels its handler, and with it the handler's upstream requests.
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=CLOSE_TIMEOUT_SECONDS)
    await runner.setup()
    try:
        async with _serving_ops(app, settings):
            server = await _listen(runner, app, settings, settings.port)
            try:
                url = _url(server)
                log.info("service.started", url=url, api_key_configured=settings.autoenhance_api_key is not None)
                if demo_order_id is None:
                    _warn_if_open(app[AUTH].credentials)
                yield url
                await _drain(app, settings.drain_seconds, force_stop or asyncio.Event())
            finally:
                server.close()
    finally:
        await runner.cleanup()
        log.info("service.stopped")


@asynccontextmanager
async def _serving_ops(app: web.Application, settings: Settings) -> AsyncIterator[None]:
    """Serve health and metrics on METRICS_PORT, if it is set, until after the drain."""
    if settings.metrics_port is None:
        yield
        return
    runner = web.AppRunner(create_ops_app(app), access_log=None, shutdown_timeout=CLOSE_TIMEOUT_SECONDS)
    await runner.setup()
    try:
        server = await _listen(runner, app, settings, settings.metrics_port)
        try:
            log.info("service.metrics_started", url=_url(server))
            yield
        finally:
            server.close()
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, app: web.Application, settings: Settings, port: int) -> asyncio.Server:
    """Listen on a port with our own connection class."""
    if runner.server is None:
        raise RuntimeError("the runner is not set up")
    connect = connection_factory(
        runner.server,
        header_timeout_seconds=settings.request_header_timeout_seconds,
        stall_seconds=settings.client_stall_seconds,
        on_malformed=app[HTTP].metrics.malformed_requests.inc,
    )
    return await asyncio.get_running_loop().create_server(connect, settings.host, port, backlog=BACKLOG)


def _warn_if_open(credentials: Credentials) -> None:
    """Log that no key is required, also on loopback: a proxy in front may make that address public."""
    if credentials.anonymous is None:
        return
    may = "download in full quality and spend credits" if credentials.anonymous >= Role.FULL else "download previews"
    log.warning("access.open", detail=f"SERVICE_API_KEYS is not set; every client that reaches the port may {may}")


def _url(server: asyncio.Server) -> str:
    host, port = server.sockets[0].getsockname()[:2]
    reachable = "127.0.0.1" if host == "0.0.0.0" else host  # noqa: S104 - compared, not bound
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


async def _drain(app: web.Application, drain_seconds: float, force_stop: asyncio.Event) -> None:
    archives, uploads = app[DOWNLOADS].admission, app[UPLOADS].admission
    archives.drain()
    uploads.drain()
    app[DOWNLOADS].order_watcher.stop()  # archives that wait for images finish with those that are ready, and a report
    if archives.active or uploads.active:
        log.info("service.draining", archives=archives.active, drain_seconds=drain_seconds)
        ends = [asyncio.create_task(_wait_until_idle(archives, uploads)), asyncio.create_task(force_stop.wait())]
        try:
            await asyncio.wait(ends, timeout=drain_seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
            await asyncio.wait(ends)
    if force_stop.is_set() and (archives.active or uploads.active):
        log.warning("service.drain_aborted", archives=archives.active)
    elif archives.active:
        log.warning("service.drain_expired", archives=archives.active)


async def _wait_until_idle(*admissions: Admission) -> None:
    for admission in admissions:
        await admission.wait_until_idle()
