"""``POST /api/create-order`` and ``/api/create-sample-order``: create an order from uploaded photos.

One request, one photo at a time: it is spooled to disk, checked, registered and put to storage; only then is the next
one read. A client that disconnects cancels the handler, which deletes its temporary file.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web

from service.errors import InvalidBody, NoFilesUploaded, RequestBodyTimeout, ServiceError
from service.monitoring.metrics import Metrics
from service.upstream.uploads import UploadClient, UploadFailed
from service.web.auth.guards import require_admin, require_upstream
from service.web.uploads.context import UPLOADS
from service.web.uploads.form_parts import FILES, MAX_FIELDS, ORDER_NAME, FormParts, SpooledFile

SAMPLES = Path(__file__).parent / "samples"
SAMPLE_ORDER_NAME = "Sample order"
# Files beyond MAX_UPLOAD_FILES are read and listed, so that the client knows which are missing; up to this many.
MAX_EXCESS_FILES = 1000
# The API documents no limit; longer names are cut.
MAX_ORDER_NAME_CHARACTERS = 200
# The enhancement options that clients may set, as the API documents them (POST /v3/images/).
_BOOLEAN = {"true": True, "false": False}
ENHANCEMENT_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "enhance_type": {word: word for word in ("property", "property_usa", "warm", "neutral", "modern")},
    "cloud_type": {word: word for word in ("CLEAR", "LOW_CLOUD", "HIGH_CLOUD")},
    "window_pull_type": {word: word for word in ("NONE", "ONLY_WINDOWS", "WINDOWS_WITH_SKIES")},
    **dict.fromkeys(("sky_replacement", "vertical_correction", "lens_correction", "upscale", "privacy"), _BOOLEAN),
}
REJECTION_DETAILS = {
    "incomplete": "the upload ended before the file did",
    "empty": "the file is empty",
    "too_large": "the file is larger than MAX_UPLOAD_BYTES",
    "too_many": "more files than MAX_UPLOAD_FILES",
    "no_room": "the service has no room for the file",
    "not_a_photo": "the first bytes are not those of a photo that can be enhanced",
}

log = structlog.get_logger(__name__)


async def create_order(request: web.Request) -> web.Response:
    """Create an order from the photos of a multipart form."""
    context = request.app[UPLOADS]
    with _admitted_upload(request) as upload:
        form = FormParts(
            request, max_file_bytes=context.max_file_bytes, idle_timeout_seconds=context.client_stall_seconds
        )
        try:
            await _read_form(upload, form, max_files=context.max_files)
        except (InvalidBody, RequestBodyTimeout) as error:
            raise _with_extensions(error, upload.progress()) from error
        return upload.response()


async def create_sample_order(request: web.Request) -> web.Response:
    """Create an order from the sample photos of the service."""
    with _admitted_upload(request) as upload:
        upload.name = SAMPLE_ORDER_NAME
        for path in sorted(SAMPLES.glob("*.jpg")):
            await upload.add_file(SpooledFile(path.name, path.stat().st_size, None, path))
        return upload.response()


@contextmanager
def _admitted_upload(request: web.Request) -> Iterator["_OrderUpload"]:
    """Hold one of the MAX_CONCURRENT_UPLOADS slots for a new order of the operator."""
    context = request.app[UPLOADS]
    require_admin(request)
    upstream = require_upstream(context.upstream)
    with context.admission.admit():
        yield _OrderUpload(upstream, context.metrics)


async def _read_form(upload: "_OrderUpload", form: FormParts, *, max_files: int) -> None:
    field_count = 0
    async for part in form.parts():
        if part.name == FILES:
            if len(upload.images) >= max_files + MAX_EXCESS_FILES:
                raise InvalidBody(f"The form has more than {MAX_EXCESS_FILES} files on top of MAX_UPLOAD_FILES.")
            rejection = "too_many" if len(upload.images) >= max_files else None
            async with form.spool(part, rejection=rejection) as file:
                await upload.add_file(file)
            continue
        field_count += 1
        if upload.images or field_count > MAX_FIELDS:
            raise InvalidBody(
                "Fields must come before the files, and each once." if upload.images else "Too many fields."
            )
        name = part.name or ""
        if name == ORDER_NAME:
            upload.name = (await form.read_text(part))[:MAX_ORDER_NAME_CHARACTERS]
        elif name in ENHANCEMENT_OPTIONS:
            upload.options[name] = _parse_option(name, await form.read_text(part))
        else:
            known = ", ".join((FILES, ORDER_NAME, *ENHANCEMENT_OPTIONS))
            raise InvalidBody(f"There is no field {name!r}; known are {known}.")
    if not upload.images:
        raise InvalidBody("There is no file in the field 'files'.")


class _OrderUpload:
    """An order in progress and the outcome of each file. The order is created with the first valid photo."""

    def __init__(self, upstream: UploadClient, metrics: Metrics) -> None:
        self._upstream = upstream
        self._metrics = metrics
        self.order_id: str | None = None
        self.name = ""
        self.options: dict[str, Any] = {}
        self.images: list[dict[str, Any]] = []

    async def add_file(self, file: SpooledFile) -> None:
        """Upload one file, unless it was rejected, and record its outcome."""
        image: dict[str, Any] = {
            "file": file.name,
            "image_id": None,
            "outcome": "uploaded",
            "reason": None,
            "detail": None,
        }
        image["bytes"] = file.size
        try:
            if file.rejection is not None:
                detail = REJECTION_DETAILS[file.rejection]
                image |= {"outcome": "failed", "reason": file.rejection, "detail": detail}
            else:
                image["image_id"] = await self._upload(file)
        except UploadFailed as error:
            failure = error.failure
            image |= {"outcome": "failed", "reason": failure.reason.value, "detail": failure.detail}
        self.images.append(image)
        self._metrics.uploads.labels(image["outcome"], image["reason"] or "").inc()
        if image["outcome"] == "uploaded":
            self._metrics.upload_bytes.inc(file.size)
            log.info("upload.finished", order_id=self.order_id, image_id=image["image_id"], bytes=file.size)
        else:
            log.warning("upload.failed", order_id=self.order_id, reason=image["reason"], detail=image["detail"])

    async def _upload(self, file: SpooledFile) -> str:
        if self.order_id is None:
            self.order_id = await self._upstream.create_order(self.name)
            log.info("order.created", order_id=self.order_id)
        registered = await self._upstream.register(self.order_id, file.name, self.options)
        await self._upstream.put(registered, file.path, file.size)
        return registered.image_id

    def progress(self) -> dict[str, Any]:
        """Return what has been uploaded so far, as extension members of a problem document."""
        return {"order_id": self.order_id, "images": self.images} if self.images else {}

    def response(self) -> web.Response:
        """Return 201 with the order and each file's outcome.

        Raises:
            NoFilesUploaded: every file failed.
        """
        failed = sum(image["outcome"] == "failed" for image in self.images)
        if failed == len(self.images):
            raise NoFilesUploaded("Not one file could be uploaded.", failures=self.images, order_id=self.order_id)
        download = f"/orders/{self.order_id}/images"
        document = {
            "order_id": self.order_id,
            "name": self.name,
            "images": self.images,
            "uploaded": len(self.images) - failed,
            "failed": failed,
            "download": download,
        }
        return web.json_response(document, status=201, headers={"Location": download})


def _parse_option(name: str, text: str) -> Any:
    values = ENHANCEMENT_OPTIONS[name]
    if text not in values:
        raise InvalidBody(f"The field {name!r} must be one of {', '.join(values)}.")
    return values[text]


def _with_extensions(error: ServiceError, extensions: Mapping[str, Any]) -> ServiceError:
    """Return a copy of an error with more extension members."""
    make: Callable[..., ServiceError] = type(error)
    return make(error.detail, **error.extensions, **extensions)
