"""Starts and stops the two origins of the sandbox and hands out everything a test may script or ask."""

import asyncio
import socket
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Self

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from service.sandbox.api import Api
from service.sandbox.bodies import crc32_of, pieces
from service.sandbox.config import DEFAULT_API_KEY, DEFAULT_RATE_LIMIT, Switches
from service.sandbox.faults import FaultPlan
from service.sandbox.image_bodies import MAX_BODY_BYTES, Gallery
from service.sandbox.orders import fixed_orders
from service.sandbox.payloads import problem
from service.sandbox.raw_response import Sent
from service.sandbox.records import Limiter, RequestLog, RequestRecord
from service.sandbox.state import SandboxImage, SandboxOrder, World
from service.sandbox.storage import Storage, xml_error
from service.sandbox.uploads import Uploads
from service.sandbox.variants import Variant

# Loopback only: the sandbox must never be reachable from elsewhere.
HOST = "127.0.0.1"
# Loop turns within which aborted handlers have ended; each needs a handful.
_CLOSING_TURNS = 1000


class Sandbox(Switches):
    """A stand-in of the API on two loopback ports, with the fixed orders in it.

    A port of 0 takes any free one. The same ``seed`` gives the same pictures and ids. All switches may be turned at
    any time.
    """

    def __init__(
        self,
        api_port: int = 0,
        storage_port: int = 0,
        *,
        seed: int = 1,
        api_key: str = DEFAULT_API_KEY,
        rate_limit: int | None = DEFAULT_RATE_LIMIT,
        latency_seconds: float = 0.0,
    ) -> None:
        super().__init__(api_key=api_key, rate_limit=rate_limit, latency_seconds=latency_seconds)
        self.faults = FaultPlan()
        self.log = RequestLog()
        self.api_origin = ""
        self.storage_origin = ""
        self._ports = (api_port, storage_port)
        self._world = World(seed)
        for order in fixed_orders():
            self._world.add_order(order)
        self._gallery = Gallery(seed)
        self._api = Api(self._world, self, self.faults, self._gallery)
        self._storage = Storage(self._world, self, self.faults, self._gallery)
        self._uploads = Uploads(self._world, self, self.faults, self._api)
        self._limiter = Limiter()
        self._runners: list[web.AppRunner] = []
        self._closed_port: socket.socket | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # Starting and stopping

    async def start(self) -> None:
        """Open both origins.

        Raises:
            SandboxUnavailableError: Pillow is not installed.
        """
        self._gallery.open()
        api_app = web.Application(middlewares=[self._observed(api=True)])
        api_app.add_routes([*self._api.routes(), *self._uploads.api_routes()])
        storage_app = web.Application(middlewares=[self._observed(api=False)])
        storage_app.add_routes([*self._storage.routes(), *self._uploads.storage_routes()])
        try:
            self.api_origin = await self._listen(api_app, self._ports[0])
            self.storage_origin = await self._listen(storage_app, self._ports[1])
            closed_origin = self._bind_closed_port()
        except OSError:
            await self.close()
            raise
        self._api.storage_origin = self._storage.origin = self._uploads.storage_origin = self.storage_origin
        self._api.closed_origin = self._storage.closed_origin = closed_origin

    async def close(self) -> None:
        """Close both origins at once, whatever their handlers are doing."""
        self.faults.release_all()
        for runner in self._runners:
            for site in runner.sites:
                await site.stop()
        for _ in range(_CLOSING_TURNS):
            if not self._abort_connections():
                break
            await asyncio.sleep(0)
        for runner in self._runners:
            await runner.cleanup()
        self._runners.clear()
        if self._closed_port is not None:
            self._closed_port.close()
            self._closed_port = None
        self._uploads.close()

    async def _listen(self, app: web.Application, port: int) -> str:
        # Cancellation is what makes a handler end when its client leaves.
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1)
        await runner.setup()
        self._runners.append(runner)
        await web.TCPSite(runner, HOST, port).start()
        return f"http://{HOST}:{runner.addresses[0][1]}"

    def _bind_closed_port(self) -> str:
        # Bound but not listening: connections are refused, and nobody else gets the port.
        self._closed_port = socket.socket()
        self._closed_port.bind((HOST, 0))
        return f"http://{HOST}:{self._closed_port.getsockname()[1]}"

    def _abort_connections(self) -> bool:
        """Abort what is open and say whether there was anything."""
        connections = [one for runner in self._runners if runner.server for one in runner.server.connections]
        for connection in connections:
            if connection.transport is not None:
                connection.transport.abort()
        return bool(connections)

    # What every request goes through

    def _observed(self, *, api: bool) -> Middleware:
        @web.middleware
        async def observed(request: web.Request, handler: Handler) -> web.StreamResponse:
            hop = "asset" if request.path.startswith("/asset/") else "api"
            record = self.log.begin(request, hop if api else "storage")
            try:
                response = await self._answer(request, handler, api=api)
            except ConnectionError:
                # The client left while it was written to.
                return Sent(record.status, reusable=False)
            finally:
                self.log.finish(record)
            record.status = response.status
            if isinstance(response, web.Response):
                record.bytes_sent = response.content_length or 0
            return response

        return observed

    async def _answer(self, request: web.Request, handler: Handler, *, api: bool) -> web.StreamResponse:
        if api and not self._limiter.allows(request.remote or "", self.rate_limit, self.clock()):
            return problem(429)
        try:
            return await handler(request)
        except web.HTTPException as error:
            # Unknown paths and methods, in the words of the origin.
            return problem(error.status) if api else xml_error(error.status, "MethodNotAllowed", error.reason)

    # What tests, demo and benchmark ask and change

    @property
    def api_base(self) -> str:
        """The base address of the API."""
        return f"{self.api_origin}/v3"

    @property
    def orders(self) -> dict[str, SandboxOrder]:
        """All orders by id."""
        return self._world.orders

    @property
    def ledger(self) -> dict[str, int]:
        """Credits spent, by image id."""
        return self._world.ledger

    @property
    def credits_spent(self) -> int:
        """Credits spent in all."""
        return self._world.credits_spent

    @property
    def reused_targets(self) -> int:
        """How often a storage URL was asked for again."""
        return self._world.reused_targets

    @property
    def formats(self) -> frozenset[str]:
        """The picture formats which this installation can write."""
        return self._gallery.formats

    @property
    def requests(self) -> list[RequestRecord]:
        """Every request seen at either origin, oldest first."""
        return list(self.log.records)

    @property
    def key_leaks(self) -> list[RequestRecord]:
        """Requests which brought the API's key to the storage origin: there must be none."""
        return [record for record in self.log.records if record.origin == "storage" and "x-api-key" in record.headers]

    def requests_for(self, image_id: str, origin: str | None = None) -> list[RequestRecord]:
        """Return the requests for one image, at one origin (``api``, ``asset``, ``storage``) or at all."""
        records = (record for record in self.log.records if record.image_id == image_id)
        return [record for record in records if origin in (None, record.origin)]

    @property
    def open_connections(self) -> int:
        """TCP connections open at the storage origin, idle ones included."""
        server = self._runners[1].server if len(self._runners) > 1 else None
        return len(server.connections) if server is not None else 0

    @property
    def active_requests(self) -> int:
        """Requests which the storage origin is working on."""
        return self.log.running["storage"]

    async def wait_until(self, holds: Callable[[], bool]) -> None:
        """Return as soon as a condition holds; it is asked whenever a request begins or ends."""
        await self.log.wait_until(holds)

    def add_order(
        self,
        images: Sequence[SandboxImage] = (),
        name: str | None = "Order",
        *,
        order_id: str | None = None,
        merging: bool = False,
        processing: bool | None = None,
    ) -> SandboxOrder:
        """Add an order; ids are made up where none is given."""
        order_id = self._world.new_id() if order_id is None else order_id
        order = SandboxOrder(order_id, name, list(images), is_merging=merging, is_processing=processing)
        return self._world.add_order(order)

    def image(self, image_id: str) -> SandboxImage:
        """Return an image by its id."""
        return self._world.images[image_id]

    def add_image(self, order_id: str, image: SandboxImage) -> SandboxImage:
        """Append an image to an order."""
        self._world.add_images(self._world.orders[order_id], [image])
        return image

    def remove_image(self, image_id: str) -> None:
        """Take an image out of its order and forget it."""
        self._world.remove_image(image_id)

    def set_status(self, image_id: str, status: str | None, reason: str | None = None) -> None:
        """Set the status of an image."""
        image = self._world.images[image_id]
        image.status, image.status_reason, image.ready_after_polls = status, reason, None

    def set_merging(self, order_id: str, merging: bool) -> None:  # noqa: FBT001 - a setter
        """Say whether an order's brackets are being merged; meanwhile it shows no images."""
        self._world.orders[order_id].is_merging = merging

    def on_poll(self, order_id: str, number: int, action: Callable[[], object]) -> None:
        """Run an action right before the look-up of an order with that number (from 1) is answered."""
        self._world.on_poll(order_id, number, action)

    def hide_images(self, order_id: str, look_ups: Iterable[int], image_ids: Iterable[str] | None = None) -> None:
        """Leave images out of the look-ups with these numbers (from 1); without ids they list null instead."""
        hidden = None if image_ids is None else frozenset(image_ids)
        self._world.orders[order_id].hidden |= dict.fromkeys(look_ups, hidden)

    def expire_targets(self) -> None:
        """Make every storage URL handed out so far answer as expired."""
        self._world.expire_targets()

    def body(
        self,
        image_id: str,
        format: str = "jpeg",  # noqa: A002 - the name of the API's parameter
        quality: int | None = None,
        *,
        preview: bool = True,
        dev_mode: bool = False,
        max_width: int | None = None,
        scale: float | None = None,
        watermark: bool | None = None,
    ) -> bytes:
        """Return exactly the bytes which the storage serves for these parameters.

        Raises:
            ValueError: they are more than anyone should hold in memory.
        """
        variant = Variant(format, quality, preview, dev_mode, max_width, scale, watermark)
        body = self._gallery.body_now(self._world.images[image_id], variant)
        if body.size > MAX_BODY_BYTES:
            raise ValueError(f"the body has {body.size} bytes, more than {MAX_BODY_BYTES}: see expected_crc()")
        return b"".join(pieces(body, 0, body.size))

    def expected_crc(self, image_id: str) -> int:
        """Return the CRC-32 of the bytes which the storage serves for an image by default, whatever their number."""
        return crc32_of(self._gallery.body_now(self._world.images[image_id], Variant()))
