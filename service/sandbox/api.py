"""The API origin: orders, images, downloads up to the asset hop, and the registration of uploads."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from urllib.parse import quote

from aiohttp import web

from service.sandbox.config import SandboxConfig
from service.sandbox.fault_injection import before_headers, next_hop, redirect, redirect_instead, take_fault
from service.sandbox.faults import FaultPlan
from service.sandbox.image_bodies import ImageBodies
from service.sandbox.payloads import image_json, invalid, order_json, problem
from service.sandbox.queries import InvalidQueryError, read_page, read_variant
from service.sandbox.records import RECORD
from service.sandbox.state import OutOfCreditsError, RedirectTarget, SandboxImage, SandboxState
from service.sandbox.variants import Variant

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Api:
    """Handlers of ``/v3`` and of the asset hop."""

    def __init__(self, state: SandboxState, config: SandboxConfig, faults: FaultPlan, bodies: ImageBodies) -> None:
        self._state = state
        self._config = config
        self._faults = faults
        self._bodies = bodies
        # Both are set once the sockets are bound.
        self.storage_origin = ""
        self.closed_origin = ""

    def routes(self) -> list[web.RouteDef]:
        """Return the routes, each path with and without a trailing slash."""
        table: list[tuple[str, Handler]] = [
            ("/v3/orders", self.list_orders),
            ("/v3/orders/{order_id}", self.get_order),
            ("/v3/images/{image_id}", self.get_image),
            ("/v3/images/{image_id}/enhanced", self.enhanced),
            ("/v3/images/{image_id}/preview", self.preview),
            ("/v3/images/{image_id}/original", self.original),
            ("/asset/{token}/{file}", self.asset),
        ]
        return [web.get(path + slash, handler) for path, handler in table for slash in ("", "/")]

    def authorized(self, request: web.Request) -> bool:
        """Return whether a request carries the API key."""
        return request.headers.get("x-api-key") == self._config.api_key

    async def list_orders(self, request: web.Request) -> web.StreamResponse:
        """List orders page by page; the offset is opaque to clients."""
        if not self.authorized(request):
            return problem(401)
        try:
            offset, per_page = read_page(request.query)
        except InvalidQueryError as error:
            return invalid("query", error.problems)
        orders = list(self._state.orders.values())
        page = orders[offset : offset + per_page]
        next_offset = str(offset + per_page) if offset + per_page < len(orders) else None
        version = request.headers.get("x-api-version", "")
        return web.json_response(
            {
                "orders": [order_json(order, version) for order in page],
                "pagination": {"next_offset": next_offset, "per_page": per_page},
            }
        )

    async def get_order(self, request: web.Request) -> web.StreamResponse:
        """Return an order; no key needed. Every request counts as a poll."""
        order_id = request.match_info["order_id"]
        fault = take_fault(request, self._faults, order_id, "order")
        if (response := await before_headers(request, fault)) is not None:
            return response
        order = self._state.orders.get(order_id)
        if order is None or order.is_deleted:
            return problem(404)
        self._state.before_poll(order)
        document = order_json(order, request.headers.get("x-api-version", ""))
        self._state.after_poll(order)
        return web.json_response(document)

    async def get_image(self, request: web.Request) -> web.StreamResponse:
        """Return an image; no key needed."""
        image = self._state.images.get(request.match_info["image_id"])
        if image is None:
            return problem(404)
        document = image_json(image, request.headers.get("x-api-version", ""))
        image.count_poll()
        return web.json_response(document)

    async def enhanced(self, request: web.Request) -> web.StreamResponse:
        """Redirect to the enhanced image; ``preview=false`` outside dev mode buys it, HEAD included."""
        if not self.authorized(request):
            return problem(401)
        return await self._download(request, _unchanged)

    async def preview(self, request: web.Request) -> web.StreamResponse:
        """Redirect to the preview, under the URL of old clients: no key needed."""
        return await self._download(request, _as_preview)

    async def original(self, request: web.Request) -> web.StreamResponse:
        """Redirect to the picture before its enhancement; never buys anything."""
        return await self._download(request, _as_original)

    async def asset(self, request: web.Request) -> web.StreamResponse:
        """Redirect from the asset server to the storage."""
        target = self._state.target_by_token(request.match_info["token"])
        if target is None:
            return problem(404)
        record = request[RECORD]
        record.image_id, record.token = target.image.image_id, target.token
        if (location := next_hop(target, request.rel_url.raw_path)) is not None:
            return redirect(location)
        fault = take_fault(request, self._faults, target.image.image_id, "asset")
        if (response := await before_headers(request, fault)) is not None:
            return response
        location = redirect_instead(fault, target, request.rel_url.raw_path, self.closed_origin)
        return redirect(location or f"{self.storage_origin}{storage_path(target)}")

    async def _download(self, request: web.Request, adapt: Callable[[Variant], Variant]) -> web.StreamResponse:
        # 1. The fault that is scripted for this request
        fault = take_fault(request, self._faults, request.match_info["image_id"], "api")
        if (response := await before_headers(request, fault)) is not None:
            return response
        # 2. Validate the parameters and find the image
        try:
            variant = adapt(self._variant(request))
        except InvalidQueryError as error:
            return invalid("query", error.problems)
        image = self._state.images.get(request.match_info["image_id"])
        if image is None:
            return problem(404)
        if image.status != "processed":
            return problem(self._config.not_ready_status)
        # 3. Pay, then redirect to the asset
        if not self._paid(image, variant):
            return problem(self._config.no_credits_status)
        target = self._state.create_target(image, variant)
        request[RECORD].token = target.token
        here = f"/asset/{target.token}/{quote(image.image_id, safe='')}"
        return redirect(redirect_instead(fault, target, here, self.closed_origin) or here)

    def _variant(self, request: web.Request) -> Variant:
        dev_mode = request.headers.get("x-dev-mode", "").lower() == "true"
        return read_variant(request.query, dev_mode=dev_mode, formats=self._bodies.formats)

    def _paid(self, image: SandboxImage, variant: Variant) -> bool:
        if not variant.buys:
            return True
        try:
            self._state.buy(image, self._config.credits, again=self._config.repeats_cost)
        except OutOfCreditsError:
            return False
        return True


def _unchanged(variant: Variant) -> Variant:
    return variant


def _as_preview(variant: Variant) -> Variant:
    return replace(variant, preview=True)


def _as_original(variant: Variant) -> Variant:
    return replace(variant, preview=False, dev_mode=False, original=True)


def storage_path(target: RedirectTarget) -> str:
    """Return path and query of a target's presigned storage URL."""
    image_id = quote(target.image.image_id, safe="")
    signed = f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Expires=300&X-Amz-Signature={target.signature}"
    return f"/enhanced/{image_id}?{signed}"
