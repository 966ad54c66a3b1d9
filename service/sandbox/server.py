"""Starts and stops the two origins of the sandbox; its public interface for tests, demo and benchmark."""

import asyncio
import socket
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Self

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from service.sandbox.api import Api
from service.sandbox.bodies import chunks, crc32_of
from service.sandbox.config import DEFAULT_API_KEY, DEFAULT_RATE_LIMIT, SandboxConfig
from service.sandbox.faults import FaultPlan
from service.sandbox.image_bodies import MAX_BODY_BYTES, ImageBodies
from service.sandbox.orders import fixed_orders
from service.sandbox.payloads import problem
from service.sandbox.raw_response import Sent
from service.sandbox.records import RateLimiter, RequestLog, RequestRecord
from service.sandbox.state import SandboxImage, SandboxOrder, SandboxState
from service.sandbox.storage import Storage, xml_error
from service.sandbox.uploads import Uploads
from service.sandbox.variants import Variant

# Loopback only: the sandbox must never be reachable from elsewhere.
HOST = "127.0.0.1"
# Event loop iterations within which aborted handlers end; each needs a handful.
_CLOSING_TURNS = 1000


class Sandbox(SandboxConfig):
    """The test double on two loopback ports, with the fixed orders.

    Port 0 is any free port. The same ``seed`` gives the same pictures and ids. The configuration may be changed at any
    time.
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
        self._state = SandboxState(seed)
        for order in fixed_orders():
            self._state.add_order(order)
        self._bodies = ImageBodies(seed)
        self._api = Api(self._state, self, self.faults, self._bodies)
        self._storage = Storage(self._state, self, self.faults, self._bodies)
        self._uploads = Uploads(self._state, self, self.faults, self._api)
        self._limiter = RateLimiter()
        self._runners: list[web.AppRunner] = []
        self._closed_port: socket.socket | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # Starting and stopping

    async def start(self) -> None:
        """Open both origins.

        Raises:
            SandboxUnavailableError: Pillow is not installed.
        """
        self._bodies.open()
        api_app = web.Application(middlewares=[self._record_requests(api=True)])
        api_app.add_routes([*self._api.routes(), *self._uploads.api_routes()])
        storage_app = web.Application(middlewares=[self._record_requests(api=False)])
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
        """Close both origins immediately; running handlers are cancelled."""
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
        # Handlers end by cancellation when their client disconnects.
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1)
        await runner.setup()
        self._runners.append(runner)
        await web.TCPSite(runner, HOST, port).start()
        return f"http://{HOST}:{runner.addresses[0][1]}"

    def _bind_closed_port(self) -> str:
        # Bound but not listening: connections are refused, and no other process gets the port.
        self._closed_port = socket.socket()
        self._closed_port.bind((HOST, 0))
        return f"http://{HOST}:{self._closed_port.getsockname()[1]}"

    def _abort_connections(self) -> bool:
        """Abort all open connections and return whether there were any."""
        connections = [item for runner in self._runners if runner.server for item in runner.server.connections]
        for connection in connections:
            if connection.transport is not None:
                connection.transport.abort()
        return bool(connections)

    # Middleware

    def _record_requests(self, *, api: bool) -> Middleware:
        @web.middleware
        async def record_request(request: web.Request, handler: Handler) -> web.StreamResponse:
            hop = "asset" if request.path.startswith("/asset/") else "api"
            record = self.log.begin(request, hop if api else "storage")
            try:
                response = await self._handle(request, handler, api=api)
            except ConnectionError:
                # The client disconnected during a write.
                return Sent(record.status, reusable=False)
            finally:
                self.log.finish(record)
            record.status = response.status
            if isinstance(response, web.Response):
                record.bytes_sent = response.content_length or 0
            return response

        return record_request

    async def _handle(self, request: web.Request, handler: Handler, *, api: bool) -> web.StreamResponse:
        if api and not self._limiter.allows(request.remote or "", self.rate_limit, self.clock()):
            return problem(429)
        try:
            return await handler(request)
        except web.HTTPException as error:
            # Unknown paths and methods, in the error format of the origin.
            return problem(error.status) if api else xml_error(error.status, "MethodNotAllowed", error.reason)

    # The interface for tests, demo and benchmark

    @property
    def api_base(self) -> str:
        """The base address of the API."""
        return f"{self.api_origin}/v3"

    @property
    def orders(self) -> dict[str, SandboxOrder]:
        """All orders by id."""
        return self._state.orders

    @property
    def ledger(self) -> dict[str, int]:
        """Credits spent, by image id."""
        return self._state.ledger

    @property
    def credits_spent(self) -> int:
        """Credits spent in all."""
        return self._state.credits_spent

    @property
    def reused_targets(self) -> int:
        """How often a storage URL was requested again."""
        return self._state.reused_targets

    @property
    def formats(self) -> frozenset[str]:
        """The picture formats that this installation can encode."""
        return self._bodies.formats

    @property
    def requests(self) -> list[RequestRecord]:
        """All requests at both origins, oldest first."""
        return list(self.log.records)

    @property
    def key_leaks(self) -> list[RequestRecord]:
        """Requests that sent the API key to the storage origin: there must be none."""
        return [record for record in self.log.records if record.origin == "storage" and "x-api-key" in record.headers]

    def requests_for(self, image_id: str, origin: str | None = None) -> list[RequestRecord]:
        """Return the requests for one image, at one origin (``api``, ``asset``, ``storage``) or at all of them."""
        records = (record for record in self.log.records if record.image_id == image_id)
        return [record for record in records if origin in (None, record.origin)]

    @property
    def open_connections(self) -> int:
        """TCP connections open at the storage origin, idle ones included."""
        server = self._runners[1].server if len(self._runners) > 1 else None
        return len(server.connections) if server is not None else 0

    @property
    def active_requests(self) -> int:
        """Number of requests that the storage origin is handling."""
        return self.log.running["storage"]

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds; it is checked whenever a request starts or ends."""
        await self.log.wait_until(condition)

    def add_order(
        self,
        images: Sequence[SandboxImage] = (),
        name: str | None = "Order",
        *,
        order_id: str | None = None,
        merging: bool = False,
        processing: bool | None = None,
    ) -> SandboxOrder:
        """Add an order; missing ids are generated."""
        order_id = self._state.new_id() if order_id is None else order_id
        order = SandboxOrder(order_id, name, list(images), is_merging=merging, is_processing=processing)
        return self._state.add_order(order)

    def image(self, image_id: str) -> SandboxImage:
        """Return an image by its id."""
        return self._state.images[image_id]

    def add_image(self, order_id: str, image: SandboxImage) -> SandboxImage:
        """Append an image to an order."""
        self._state.add_images(self._state.orders[order_id], [image])
        return image

    def remove_image(self, image_id: str) -> None:
        """Remove an image from its order and from the sandbox."""
        self._state.remove_image(image_id)

    def set_status(self, image_id: str, status: str | None, reason: str | None = None) -> None:
        """Set the status of an image."""
        image = self._state.images[image_id]
        image.status, image.status_reason, image.ready_after_polls = status, reason, None

    def set_merging(self, order_id: str, merging: bool) -> None:  # noqa: FBT001 - a setter
        """Set whether an order's brackets are being merged; it lists no images meanwhile."""
        self._state.orders[order_id].is_merging = merging

    def on_poll(self, order_id: str, number: int, action: Callable[[], object]) -> None:
        """Run an action right before the response to the poll of an order with that number (from 1)."""
        self._state.on_poll(order_id, number, action)

    def hide_images(self, order_id: str, look_ups: Iterable[int], image_ids: Iterable[str] | None = None) -> None:
        """Omit images from the polls with these numbers (from 1); without ids their ``images`` is null."""
        hidden = None if image_ids is None else frozenset(image_ids)
        self._state.orders[order_id].hidden |= dict.fromkeys(look_ups, hidden)

    def expire_targets(self) -> None:
        """Expire every storage URL issued so far."""
        self._state.expire_targets()

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
        """Return exactly the bytes that the storage serves for these parameters.

        Raises:
            ValueError: they are more than ``MAX_BODY_BYTES``.
        """
        variant = Variant(format, quality, preview, dev_mode, max_width, scale, watermark)
        body = self._bodies.body_blocking(self._state.images[image_id], variant)
        if body.size > MAX_BODY_BYTES:
            raise ValueError(f"the body has {body.size} bytes, more than {MAX_BODY_BYTES}: see expected_crc()")
        return b"".join(chunks(body, 0, body.size))

    def expected_crc(self, image_id: str) -> int:
        """Return the CRC-32 of the bytes that the storage serves for an image by default, of any size."""
        return crc32_of(self._bodies.body_blocking(self._state.images[image_id], Variant()))
