"""``GET /images/{image_id}/preview``: a small, free picture of one image, for the page. It never spends a credit."""

import asyncio

from aiohttp import web

from service.errors import ImageFailed, ThumbnailUnavailable
from service.model import ImageOptions
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
    image_id = request.match_info["image_id"]
    with context.thumbnail_admission.admit():
        try:
            async with asyncio.timeout(context.first_byte_seconds), context.thumbnail_slots:
                source = upstream.images(_OPTIONS)
                extension, content = await source.fetch(image_id, max_bytes=MAX_THUMBNAIL_BYTES)
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
