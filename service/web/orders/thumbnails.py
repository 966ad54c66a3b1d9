"""``GET /images/{image_id}/preview``: a small, free picture of one image, for the page. It never spends a credit."""

import asyncio
from contextlib import aclosing

from aiohttp import web

from service.errors import ImageFailed, ThumbnailUnavailable
from service.model import Image, ImageOptions, Opened, Readiness
from service.upstream.api import UpstreamClient
from service.web.auth.guards import require_download, require_upstream
from service.web.orders.context import ORDERS

# Twice what the page shows, for high-density screens.
MAX_WIDTH_PIXELS = 480
# Pictures of that width have some 50 KB; a larger response is no thumbnail.
MAX_THUMBNAIL_BYTES = 2 * 1024 * 1024
# A page shows the same thumbnails again within minutes, and a free preview changes only with its image.
CACHE_SECONDS = 300

_OPTIONS = ImageOptions(preview=True, max_width=MAX_WIDTH_PIXELS)


async def get_thumbnail(request: web.Request) -> web.Response:
    """Return the thumbnail, verified like every image."""
    context = request.app[ORDERS]
    require_download(request)
    upstream = require_upstream(context.upstream)
    image = Image(request.match_info["image_id"], "", Readiness.READY)
    with context.thumbnail_admission.admit():
        try:
            async with asyncio.timeout(context.first_byte_seconds), context.thumbnail_slots:
                extension, content = await _fetch(upstream, image)
        except TimeoutError as error:
            raise ThumbnailUnavailable("The picture did not arrive in time.", reason="timeout") from error
        except ImageFailed as error:
            failure = error.failure
            raise ThumbnailUnavailable(
                f"The picture cannot be fetched: {failure.detail}.",
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
        ImageFailed: it cannot be fetched.
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
