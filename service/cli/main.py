"""The command line: ``python -m service`` or ``autoenhance-batch``."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import click
import structlog
from pydantic import SecretStr
from yarl import URL

from service.cli.order import order
from service.cli.service_client import ProblemResponse, ServiceClient, TransferError
from service.errors import SettingsError
from service.monitoring.log_writer import LogWriter
from service.monitoring.logs import configure_logs, stderr_captured
from service.server.run import serve, serving
from service.settings import Settings, describe_settings, load_settings

EXIT_SETTINGS = 2
# Wildcard addresses: valid to listen on, not to connect to.
WILDCARD_HOSTS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared, not bound

log = structlog.get_logger(__name__)


@click.group()
def main() -> None:
    """Stream every enhanced image of an Autoenhance.ai order into one ZIP."""


main.add_command(order)


@main.command("serve")
@click.option("--host", help="Address to listen on, instead of HOST.")
@click.option("--port", type=int, help="Port to listen on, instead of PORT; 0 for any free port.")
@click.option("--sandbox", is_flag=True, help="Start a sandbox of the API too: test orders, no key, no credits.")
def serve_command(host: str | None, port: int | None, *, sandbox: bool) -> None:
    """Start the service. It logs to standard output, drains on SIGTERM, and stops at once on a second SIGTERM."""
    overrides = {name: value for name, value in {"host": host, "port": port}.items() if value is not None}
    _run(_serve_sandbox if sandbox else serve, **overrides)


@main.command("settings")
def settings_command() -> None:
    """Print every setting: environment variable, default and meaning."""
    for name, default, meaning in describe_settings():
        click.echo(f"{name}  [{default}]\n    {meaning}")


@main.command("health")
def health_command() -> None:
    """Check the health of the service that runs on this machine with these settings; exit code 1 if it is not live."""

    async def check_health(settings: Settings) -> None:
        host = "127.0.0.1" if settings.host in WILDCARD_HOSTS else settings.host
        async with ServiceClient(str(URL.build(scheme="http", host=host, port=settings.port))) as service:
            click.echo(json.dumps(await service.health()))

    try:
        _run(check_health, log_level="error")
    except (ProblemResponse, TransferError) as error:
        raise click.ClickException(str(error)) from error


@main.command("demo")
@click.option("--output", default="images.zip", show_default=True, help="File of the archive.")
def demo_command(output: str) -> None:
    """Download a sandbox order through the real service, and verify the archive."""
    from service.sandbox import DEMO_ORDER_ID  # noqa: PLC0415 - see _sandboxed
    from service.sandbox.demo import DemoFailed, run_demo  # noqa: PLC0415 - the sandbox and its Pillow are an extra

    async def demo(settings: Settings) -> None:
        async with (
            _sandboxed(settings) as (sandbox_settings, sandbox),
            serving(sandbox_settings, demo_order_id=DEMO_ORDER_ID) as url,
        ):
            await run_demo(url, sandbox, Path(output))

    try:
        _run(demo, host="127.0.0.1", port=0, log_format="console", log_level="error")
    except DemoFailed as error:
        raise click.ClickException(str(error)) from error


async def _serve_sandbox(settings: Settings) -> None:
    from service.sandbox import DEMO_ORDER_ID  # noqa: PLC0415 - see _sandboxed

    async with _sandboxed(settings) as (sandbox_settings, sandbox):
        log.info("sandbox.started", api_base=sandbox.api_base, demo_order=DEMO_ORDER_ID)
        await serve(sandbox_settings, demo_order_id=DEMO_ORDER_ID)


@asynccontextmanager
async def _sandboxed(settings: Settings) -> AsyncIterator[tuple[Settings, Any]]:
    """Start the sandbox and point the settings at it; the configured API key is not used."""
    from service.sandbox import Sandbox, SandboxUnavailableError  # noqa: PLC0415 - an extra, and never in production

    sandbox = Sandbox()
    try:
        await sandbox.start()
    except SandboxUnavailableError as error:
        raise click.ClickException(str(error)) from error
    try:
        yield (
            settings.model_copy(
                update={
                    "autoenhance_api_base": sandbox.api_base,
                    "autoenhance_api_key": SecretStr(sandbox.api_key),
                    "allow_private_upstream": True,
                }
            ),
            sandbox,
        )
    finally:
        await sandbox.close()


def _run(start: Callable[[Settings], Coroutine[Any, Any, None]], **overrides: object) -> None:
    """Read the settings, configure the log, and run ``start`` to its end."""
    try:
        settings = load_settings(**overrides)
    except SettingsError as error:
        for line in error.problems:
            click.echo(f"settings: {line}", err=True)
        sys.exit(EXIT_SETTINGS)
    with ExitStack() as stack:
        # sys.stdout is None if its descriptor was closed at the start, and a socket may get that descriptor.
        stdout = sys.stdout or stack.enter_context(Path(os.devnull).open("w"))
        writer = stack.enter_context(LogWriter(stdout.fileno()))
        configure_logs(
            log_format=settings.log_format, level=settings.log_level, secrets=settings.secrets(), stream=writer
        )
        stack.enter_context(stderr_captured())
        asyncio.run(start(settings))
