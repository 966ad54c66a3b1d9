"""``POST /api/create-order`` and ``/api/create-sample-order``: photos in, an order out.

One request, one photo at a time: it arrives on disk, is looked at, registered and put, and only then the next is read.
A client that leaves cancels this, and its temporary file goes with it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web

from service.errors import ApiKeyNotConfigured, InvalidBody, NoFilesUploaded, RequestBodyTimeout, ServiceError
from service.upstream.uploads import UploadClient, UploadFailed
from service.web.auth.guards import require_admin
from service.web.services import SERVICES, Services
from service.web.uploads.form_parts import FILES, MAX_FIELDS, ORDER_NAME, Spooled, UploadParts

SAMPLES = Path(__file__).parent / "samples"
SAMPLE_ORDER_NAME = "Sample order"
# Files beyond MAX_UPLOAD_FILES are read and listed, so that the caller knows what is not there; but not without end.
MAX_FILES_REFUSED = 1000
# Longer names are no names; the API states no limit.
MAX_ORDER_NAME_CHARACTERS = 200
# What callers may choose of the enhancement, as the API documents it (POST /v3/images/).
_TRUTH = {"true": True, "false": False}
CHOICES: Mapping[str, Mapping[str, Any]] = {
    "enhance_type": {word: word for word in ("property", "property_usa", "warm", "neutral", "modern")},
    "cloud_type": {word: word for word in ("CLEAR", "LOW_CLOUD", "HIGH_CLOUD")},
    "window_pull_type": {word: word for word in ("NONE", "ONLY_WINDOWS", "WINDOWS_WITH_SKIES")},
    **dict.fromkeys(("sky_replacement", "vertical_correction", "lens_correction", "upscale", "privacy"), _TRUTH),
}
REFUSALS = {
    "incomplete": "the upload ended before the file did",
    "empty": "the file is empty",
    "too_large": "the file is larger than MAX_UPLOAD_BYTES",
    "too_many": "more files than MAX_UPLOAD_FILES",
    "no_room": "the service has no room for the file",
    "not_a_photo": "the first bytes are not those of a photo that can be enhanced",
}

log = structlog.get_logger(__name__)


class _NewOrder:
    """An order in the making: created when the first photo is worth it; what became of each file."""

    def __init__(self, services: Services, upstream: UploadClient) -> None:
        self._metrics = services.metrics
        self._upstream = upstream
        self.order_id: str | None = None
        self.name = ""
        self.choices: dict[str, Any] = {}
        self.images: list[dict[str, Any]] = []

    async def take(self, file: Spooled) -> None:
        """Pass one file on, and note what became of it."""
        note: dict[str, Any] = {
            "file": file.name,
            "image_id": None,
            "outcome": "uploaded",
            "reason": None,
            "detail": None,
        }
        note["bytes"] = file.size
        try:
            if file.refusal is not None:
                note |= {"outcome": "failed", "reason": file.refusal, "detail": REFUSALS[file.refusal]}
            else:
                note["image_id"] = await self._pass_on(file)
        except UploadFailed as error:
            failure = error.failure
            note |= {"outcome": "failed", "reason": failure.reason.value, "detail": failure.detail}
        self.images.append(note)
        self._metrics.uploads.labels(note["outcome"], note["reason"] or "").inc()
        if note["outcome"] == "uploaded":
            self._metrics.upload_bytes.inc(file.size)
            log.info("upload.finished", order_id=self.order_id, image_id=note["image_id"], bytes=file.size)
        else:
            log.warning("upload.failed", order_id=self.order_id, reason=note["reason"], detail=note["detail"])

    async def _pass_on(self, file: Spooled) -> str:
        if self.order_id is None:
            self.order_id = await self._upstream.create_order(self.name)
            log.info("order.created", order_id=self.order_id)
        registered = await self._upstream.register(self.order_id, file.name, self.choices)
        await self._upstream.put(registered, file.path, file.size)
        return registered.image_id

    def so_far(self) -> dict[str, Any]:
        """Return what an error that comes in between must tell, so that nothing is lost sight of."""
        return {"order_id": self.order_id, "images": self.images} if self.images else {}

    def answer(self) -> web.Response:
        """Answer with the order and each file's outcome.

        Raises:
            NoFilesUploaded: there is no photo in it.
        """
        failed = sum(one["outcome"] == "failed" for one in self.images)
        if failed == len(self.images):
            raise NoFilesUploaded("Not one file could be uploaded.", failures=self.images, order_id=self.order_id)
        here = f"/orders/{self.order_id}"
        answer = {
            "order_id": self.order_id,
            "name": self.name,
            "images": self.images,
            "uploaded": len(self.images) - failed,
            "failed": failed,
            "download": f"{here}/images",
        }
        return web.json_response(answer, status=201, headers={"Location": f"{here}/images"})


async def create_order(request: web.Request) -> web.Response:
    """Take a form with photos, and answer with the order that they are in now."""
    services = request.app[SERVICES]
    require_admin(request)
    upstream = _upstream(services)
    with services.upload_admission.admit():
        order = _NewOrder(services, upstream)
        parts = UploadParts(
            request, max_file_bytes=services.max_upload_bytes, stall_seconds=services.client_stall_seconds
        )
        try:
            await _take_all(order, parts, max_files=services.max_upload_files)
        except (InvalidBody, RequestBodyTimeout) as error:
            raise _with(error, order.so_far()) from error
        return order.answer()


async def create_sample_order(request: web.Request) -> web.Response:
    """Make an order of the photos that come with the service."""
    services = request.app[SERVICES]
    require_admin(request)
    upstream = _upstream(services)
    with services.upload_admission.admit():
        order = _NewOrder(services, upstream)
        order.name = SAMPLE_ORDER_NAME
        for path in sorted(SAMPLES.glob("*.jpg")):
            await order.take(Spooled(path.name, path.stat().st_size, None, path))
        return order.answer()


async def _take_all(order: _NewOrder, parts: UploadParts, *, max_files: int) -> None:
    fields = 0
    async for part in parts.parts():
        if part.name == FILES:
            if len(order.images) >= max_files + MAX_FILES_REFUSED:
                raise InvalidBody(f"The form has more than {MAX_FILES_REFUSED} files on top of MAX_UPLOAD_FILES.")
            refusal = "too_many" if len(order.images) >= max_files else None
            async with parts.spooled(part, refusal=refusal) as file:
                await order.take(file)
            continue
        fields += 1
        if order.images or fields > MAX_FIELDS:
            raise InvalidBody(
                "Fields must come before the files, and each once." if order.images else "Too many fields."
            )
        name = part.name or ""
        if name == ORDER_NAME:
            order.name = (await parts.text(part))[:MAX_ORDER_NAME_CHARACTERS]
        elif name in CHOICES:
            order.choices[name] = _chosen(name, await parts.text(part))
        else:
            raise InvalidBody(f"There is no field {name!r}; known are {', '.join((FILES, ORDER_NAME, *CHOICES))}.")
    if not order.images:
        raise InvalidBody("There is no file in the field 'files'.")


def _chosen(name: str, text: str) -> Any:
    values = CHOICES[name]
    if text not in values:
        raise InvalidBody(f"The field {name!r} must be one of {', '.join(values)}.")
    return values[text]


def _upstream(services: Services) -> UploadClient:
    if services.uploads is None:
        raise ApiKeyNotConfigured("The operator must set AUTOENHANCE_API_KEY; until then no order can be created.")
    return services.uploads


def _with(error: ServiceError, extensions: Mapping[str, Any]) -> ServiceError:
    """Return an error that tells more."""
    make: Callable[..., ServiceError] = type(error)
    return make(error.detail, **error.extensions, **extensions)
