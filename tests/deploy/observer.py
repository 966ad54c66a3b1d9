"""A real Prometheus with the shipped configuration, watching one service; and answers to PromQL from it."""

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

# Scraping once a second, this is how long anything may take to show: far longer than it does, also on a busy machine.
MOST_SCRAPES = 45


class Scrapes:
    """Passes Prometheus's scrapes on to the service. So a test can wait for a scrape instead of for the clock."""

    def __init__(self, client: aiohttp.ClientSession, service: str) -> None:
        self._client = client
        self._service = service
        self._scraped = asyncio.Event()

    async def relay(self, request: web.Request) -> web.Response:
        """Answer a scrape with what the service answers."""
        async with self._client.get(f"{self._service}{request.path}", headers=_accepted(request)) as response:
            body, content_type = await response.read(), response.headers["Content-Type"]
        self._scraped.set()
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def next(self) -> None:
        """Wait for a scrape that begins from now on. The one before has then been stored."""
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
        """Return the data of an answer of Prometheus's HTTP API."""
        async with self.client.get(f"{self.url}/api/v1/{path}", params=parameters) as response:
            answer = await response.json()
        assert answer["status"] == "success", (path, parameters, answer)
        return answer["data"]

    async def ask(self, expression: str) -> dict[tuple[str, ...], float]:
        """Return an expression's values now, by the values of their labels (in the order of the labels' names)."""
        data = await self.get("query", query=expression)
        assert data["resultType"] == "vector", expression
        return {
            tuple(value for _, value in sorted(series["metric"].items())): float(series["value"][1])
            for series in data["result"]
        }

    async def until(self, condition: Callable[[], Awaitable[object]], complaint: Callable[[], str]) -> None:
        """Return as soon as the condition holds, asked after each scrape; fail if it does not in good time."""
        for _ in range(MOST_SCRAPES):
            if await condition():
                return
            await self.scrapes.next()
        raise AssertionError(complaint())


@asynccontextmanager
async def observing(client: aiohttp.ClientSession, service: str, folder: Path) -> AsyncIterator[Observer]:
    """Start Prometheus with the shipped configuration, watching the service at this URL."""
    binary = require_tool("prometheus")
    async with AsyncExitStack() as stack:
        scrapes = Scrapes(client, service)
        target = await stack.enter_async_context(_serving(scrapes.relay))
        config = folder / "prometheus.yml"
        config.write_text(yaml.safe_dump(_config_for(target)), encoding="utf-8")
        address = await stack.enter_async_context(_prometheus(binary, config, folder / "data"))
        yield Observer(f"http://{address}", client, scrapes)


def _config_for(target: str) -> dict[str, Any]:
    """Return the shipped configuration: another target, once a second, and the shipped rules where they are."""
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
    """Read all of the log (a full pipe would stop the process); tell the address when it is ready."""
    lines, address = [], ""
    while line := (await stream.readline()).decode():
        lines.append(line)
        if match := re.search(r'msg="Listening on" address=(\S+)', line):
            address = match[1]
        if "Server is ready" in line and not ready.done():
            ready.set_result(address)
    if not ready.done():
        ready.set_exception(AssertionError("".join(lines)))
