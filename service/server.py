"""Runs the app on a socket until it is told to stop."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from aiohttp import web

from service.app import create_app
from service.settings import Settings

# Between SIGTERM and the end of the process: connections that are still open are closed after this.
SHUTDOWN_SECONDS = 5.0

log = structlog.get_logger(__name__)


def make_runner(app: web.Application) -> web.AppRunner:
    """Return the runner. A client that goes away cancels its handler, which is what stops the upstream's work."""
    return web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[str]:
    """Serve while the context is open; yields the URL, with the port that was really taken."""
    runner = make_runner(create_app(settings))
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.host, settings.port)
        await site.start()
        host, port = runner.addresses[0][:2]
        reachable = "127.0.0.1" if host == "0.0.0.0" else host  # noqa: S104 - compared, not bound
        url = f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"
        log.info("service.started", url=url, api_key_configured=settings.autoenhance_api_key is not None)
        yield url
    finally:
        await runner.cleanup()
        log.info("service.stopped")


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if settings.autoenhance_api_key is None:
        log.warning("service.not_configured", detail="AUTOENHANCE_API_KEY is not set; orders are answered with 503")
    async with running(settings):
        await stop.wait()
