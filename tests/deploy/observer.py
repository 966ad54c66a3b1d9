"""A real Prometheus with the shipped configuration that scrapes one service, and PromQL queries to it."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from aiohttp import web

from tests.deploy.shipped import CONFIG, load, require_tool

# With one scrape a second, the bound for a change to appear: far more than it takes, even on a busy machine.
MAX_SCRAPES = 45


class Scrapes:
    """Forwards scrapes to the service, so that a test can wait for a scrape instead of for a time."""

    def __init__(self, client: aiohttp.ClientSession, service: str) -> None:
        self._client = client
        self._service = service
        self._scraped = asyncio.Event()

    async def forward(self, request: web.Request) -> web.Response:
        """Forward one scrape to the service."""
        async with self._client.get(f"{self._service}{request.path}", headers=_accepted(request)) as response:
            body, content_type = await response.read(), response.headers["Content-Type"]
        self._scraped.set()
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def next(self) -> None:
        """Wait for the next scrape. The previous one has then been stored."""
        self._scraped.clear()
        await self._scraped.wait()


def _accepted(request: web.Request) -> dict[str, str]:
    return {name: value for name, value in request.headers.items() if name.lower() == "accept"}


@dataclass(frozen=True, slots=True)
class Observer:
    """A running Prometheus and the scrapes that reach the service."""

    url: str
    client: aiohttp.ClientSession
    scrapes: Scrapes

    async def get(self, path: str, **parameters: str) -> Any:
        """Return the data of a response of Prometheus's HTTP API."""
        async with self.client.get(f"{self.url}/api/v1/{path}", params=parameters) as response:
            document = await response.json()
        assert document["status"] == "success", (path, parameters, document)
        return document["data"]

    async def query(self, expression: str) -> dict[tuple[str, ...], float]:
        """Return the current values of an expression by label values, in the order of the label names."""
        data = await self.get("query", query=expression)
        assert data["resultType"] == "vector", expression
        return {
            tuple(value for _, value in sorted(series["metric"].items())): float(series["value"][1])
            for series in data["result"]
        }

    async def until(self, condition: Callable[[], Awaitable[object]], message: Callable[[], str]) -> None:
        """Wait for the condition, evaluated after each scrape; fail after MAX_SCRAPES."""
        for _ in range(MAX_SCRAPES):
            if await condition():
                return
            await self.scrapes.next()
        raise AssertionError(message())


@asynccontextmanager
async def observing(client: aiohttp.ClientSession, service: str, folder: Path) -> AsyncIterator[Observer]:
    """Start Prometheus with the shipped configuration, scraping the service at this URL."""
    binary = require_tool("prometheus")
    async with AsyncExitStack() as stack:
        scrapes = Scrapes(client, service)
        target = await stack.enter_async_context(_serving(scrapes.forward))
        config = folder / "prometheus.yml"
        config.write_text(yaml.safe_dump(_config_for(target)), encoding="utf-8")
        address = await stack.enter_async_context(_prometheus(binary, config, folder / "data"))
        yield Observer(f"http://{address}", client, scrapes)


def _config_for(target: str) -> dict[str, Any]:
    """Return the shipped configuration with another target, a scrape every second, and absolute paths of the rules."""
    config: dict[str, Any] = dict(load(CONFIG))
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(CONFIG.parent / pattern) for pattern in config["rule_files"]]
    (job,) = config["scrape_configs"]
    config["scrape_configs"] = [{**job, "static_configs": [{"targets": [target]}]}]
    return config


@asynccontextmanager
async def _serving(handler: Callable[[web.Request], Awaitable[web.Response]]) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/metrics", handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        yield f"{host}:{port}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def _prometheus(binary: str, config: Path, data: Path) -> AsyncIterator[str]:
    process = await asyncio.create_subprocess_exec(
        binary, f"--config.file={config}", f"--storage.tsdb.path={data}", "--web.listen-address=127.0.0.1:0",
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    reading = asyncio.create_task(_read_log(process.stderr, ready))
    try:
        yield await ready
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await reading
        await process.wait()


async def _read_log(stream: asyncio.StreamReader, ready: asyncio.Future[str]) -> None:
    """Read all of the log, because a full pipe would block the process; set the address once it is ready."""
    lines, address = [], ""
    while line := (await stream.readline()).decode():
        lines.append(line)
        if match := re.search(r'msg="Listening on" address=(\S+)', line):
            address = match[1]
        if "Server is ready" in line and not ready.done():
            ready.set_result(address)
    if not ready.done():
        ready.set_exception(AssertionError("".join(lines)))
