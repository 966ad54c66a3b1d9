"""Uploads: orders and images are created by POST, the file is sent by PUT to the storage.

A file is written to disk while it arrives; no more than a chunk of it is held in memory.
"""

import asyncio
import hashlib
import json
import secrets
import tempfile
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from aiohttp import web

from service.sandbox.api import Api
from service.sandbox.config import SandboxConfig
from service.sandbox.fault_injection import before_headers, take_fault
from service.sandbox.faults import FaultPlan
from service.sandbox.payloads import image_json, invalid, order_json, problem
from service.sandbox.records import RECORD
from service.sandbox.state import SandboxImage, SandboxOrder, SandboxState
from service.sandbox.storage import reject_credentials, xml_error

# The documented limit for one file name.
SAME_NAME_PER_HOUR = 30
_HOUR_SECONDS = 3600
# From this version on the URL is called ``upload_url`` and always signed for octets.
_UPLOAD_URL_VERSION = "2025-05-05"
_OCTETS = "application/octet-stream"
_OWN_FIELDS = frozenset({"image_name", "image_id", "order_id", "content_type", "contentType"})


class Uploads:
    """Handlers that create orders and images, and receive files."""

    def __init__(self, state: SandboxState, config: SandboxConfig, faults: FaultPlan, api: Api) -> None:
        self._state = state
        self._config = config
        self._faults = faults
        self._api = api
        self._signatures: dict[str, str] = {}
        self._registered: dict[str, deque[float]] = {}
        self._enhanced = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self.storage_origin = ""

    def api_routes(self) -> list[web.RouteDef]:
        """Return the routes of the API origin."""
        table = [("/v3/orders", self.create_order), ("/v3/images", self.create_image)]
        return [web.post(path + slash, handler) for path, handler in table for slash in ("", "/")]

    def storage_routes(self) -> list[web.RouteDef]:
        """Return the routes of the storage origin."""
        return [web.put("/uploads/{image_id}", self.put)]

    def close(self) -> None:
        """Delete the received files."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    async def create_order(self, request: web.Request) -> web.StreamResponse:
        """Create an order; an id chosen by the client must be new."""
        if not self._api.authorized(request):
            return problem(401)
        fields = await _json_object(request)
        if fields is None:
            return invalid("json", {"_schema": ["Invalid input type."]})
        order_id = str(fields.get("order_id") or self._state.new_id())
        if order_id in self._state.orders:
            return problem(409)
        name = fields.get("name")
        order = self._state.add_order(SandboxOrder(order_id, None if name is None else str(name)))
        return web.json_response(order_json(order, request.headers.get("x-api-version", "")))

    async def create_image(self, request: web.Request) -> web.StreamResponse:
        """Create an image and return the upload URL of its file."""
        # 1. Validate the request
        if not self._api.authorized(request):
            return problem(401)
        fields = await _json_object(request)
        if fields is None:
            return invalid("json", {"_schema": ["Invalid input type."]})
        name = fields.get("image_name")
        if not isinstance(name, str):
            return invalid("json", {"image_name": ["Missing data for required field."]})
        if not self._name_allowed(name):
            return problem(429)
        # 2. Create it; an unknown order is created too
        extra = {key: value for key, value in fields.items() if key not in _OWN_FIELDS}
        image = SandboxImage(name, status="waiting", extra=extra)
        order_id = str(fields.get("order_id") or self._state.new_id())
        order = self._state.orders.get(order_id) or self._state.add_order(SandboxOrder(order_id))
        self._state.add_images(order, [image])
        request[RECORD].image_id = image.image_id
        # 3. Return the upload URL
        version = request.headers.get("x-api-version", "")
        old = bool(version) and version < _UPLOAD_URL_VERSION
        declared = str(fields.get("content_type") or fields.get("contentType") or "image/jpeg")
        url = self._signed_url(image, declared if old else _OCTETS)
        return web.json_response(image_json(image, version) | {"s3PutObjectUrl" if old else "upload_url": url})

    async def put(self, request: web.Request) -> web.StreamResponse:
        """Receive a file at its signed URL; processing starts when it is complete."""
        # 1. Check the signature
        image = self._state.images.get(request.match_info["image_id"])
        if (rejection := reject_credentials(request)) is not None:
            return rejection
        if image is None or not self._signed(request, image):
            return xml_error(403, "SignatureDoesNotMatch", "The request signature we calculated does not match.")
        if request.content_length is None:
            return xml_error(411, "MissingContentLength", "You must provide the Content-Length HTTP header.")
        fault = take_fault(request, self._faults, image.image_id, "upload")
        if (response := await before_headers(request, fault)) is not None:
            return response
        # 2. Receive it, then start the enhancement
        path, digest = await self._receive(request)
        await self._start_processing(image, path, digest)
        return web.Response(headers={"ETag": f'"{digest}"'})

    def _name_allowed(self, name: str) -> bool:
        now = self._config.clock()
        times = self._registered.setdefault(name, deque(maxlen=SAME_NAME_PER_HOUR))
        if len(times) == SAME_NAME_PER_HOUR and now - times[0] < _HOUR_SECONDS:
            return False
        times.append(now)
        return True

    def _signed_url(self, image: SandboxImage, content_type: str) -> str:
        signature = hashlib.sha256(f"{image.image_id}/{content_type}".encode()).hexdigest()
        self._signatures[image.image_id] = signature
        # The signed type is part of the query, as in the real URLs.
        encoded = content_type.replace("/", "%2F").replace("+", "%2B")
        return f"{self.storage_origin}/uploads/{image.image_id}?content-type={encoded}&X-Amz-Signature={signature}"

    def _signed(self, request: web.Request, image: SandboxImage) -> bool:
        content_type = request.headers.get("Content-Type", "")
        signature = hashlib.sha256(f"{image.image_id}/{content_type}".encode()).hexdigest()
        return request.query.get("X-Amz-Signature") == self._signatures.get(image.image_id) == signature

    async def _receive(self, request: web.Request) -> tuple[Path, str]:
        path, file = self._new_file()
        digest = hashlib.md5(usedforsecurity=False)
        complete = False
        try:
            async for chunk in request.content.iter_any():
                digest.update(chunk)
                await asyncio.to_thread(file.write, chunk)
            complete = True
        finally:
            file.close()
            if not complete:
                path.unlink(missing_ok=True)
        return path, digest.hexdigest()

    def _new_file(self) -> tuple[Path, BinaryIO]:
        # Not in a thread: a file opened there would be lost if the request is cancelled meanwhile.
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="sandbox-uploads-")
        path = Path(self._folder.name) / secrets.token_hex(8)
        return path, path.open("wb")

    async def _start_processing(self, image: SandboxImage, path: Path, digest: str) -> None:
        previous, image.upload, image.upload_version = image.upload, path, digest
        if previous is not None:
            previous.unlink(missing_ok=True)
        self._enhanced += 1
        if self._enhanced > self._config.daily_enhancements:
            image.status, image.status_reason = "error", "Daily enhancement limit reached"
            return
        image.polls = 0
        image.status = "processing" if self._config.processing_polls else "processed"
        image.ready_after_polls = self._config.processing_polls or None


async def _json_object(request: web.Request) -> Mapping[str, object] | None:
    text = await request.text()
    if not text:
        return {}
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
