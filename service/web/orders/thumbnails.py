"""``GET /images/{image_id}/preview``: a small, free picture of one image, for the page. It never spends a credit."""

import asyncio
from contextlib import aclosing

from aiohttp import web

from service.errors import ImageFailed, ThumbnailUnavailable
from service.model import Image, ImageOptions, Opened, Readiness
from service.upstream.api import UpstreamClient
from service.web.auth.guards import require_download
from service.web.services import SERVICES

# Twice what the page shows, for fine screens.
MAX_WIDTH_PIXELS = 480
# Pictures of that width have some 50 KB; what is larger is none of them.
MAX_THUMBNAIL_BYTES = 2 * 1024 * 1024
# Fetched at a time, beside the images of archives; with those that wait for their turn.
THUMBNAILS_IN_FLIGHT, THUMBNAILS_WAITING = 6, 256
# What somebody looks at now is looked at again soon, and the free preview changes only with the image.
CACHE_SECONDS = 300

_OPTIONS = ImageOptions(preview=True, max_width=MAX_WIDTH_PIXELS)


async def get_thumbnail(request: web.Request) -> web.Response:
    """Answer with the picture, checked like every image."""
    services = request.app[SERVICES]
    require_download(request)
    upstream = services.require_upstream()
    image = Image(request.match_info["image_id"], "", Readiness.READY)
    with services.thumbnail_admission.admit():
        try:
            async with asyncio.timeout(services.first_byte_seconds), services.thumbnail_slots:
                extension, content = await _fetch(upstream, image)
        except TimeoutError as error:
            raise ThumbnailUnavailable("The picture did not come in time.", reason="timeout") from error
        except ImageFailed as error:
            failure = error.failure
            raise ThumbnailUnavailable(
                f"The picture cannot be had: {failure.detail}.",
                reason=failure.reason.value,
                upstream_status=failure.upstream_status,
            ) from error
    return web.Response(
        body=content,
        content_type="image/jpeg" if extension == "jpg" else f"image/{extension}",
        headers={"Cache-Control": f"private, max-age={CACHE_SECONDS}"},
    )


async def _fetch(upstream: UpstreamClient, image: Image) -> tuple[str, bytes]:
    """Return the picture's extension and its bytes.

    Raises:
        ImageFailed: it cannot be had.
        ThumbnailUnavailable: it is too large.
    """
    extension, content = "", bytearray()
    async with aclosing(upstream.open_image(image, _OPTIONS).events()) as events:
        async for event in events:
            if isinstance(event, Opened):
                extension, content = event.extension, bytearray()
            elif isinstance(event, bytes):
                content += event
            if len(content) > MAX_THUMBNAIL_BYTES:
                raise ThumbnailUnavailable("The picture is larger than a preview.", reason="rejected")
    return extension, bytes(content)
