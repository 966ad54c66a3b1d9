"""``GET /orders/{order_id}``: an order before it is downloaded. One look-up; no image is touched."""

import asyncio

from aiohttp import web
from yarl import URL

from service.archive.parameters import check_order_id, parse_parameters
from service.archive.summary import summarize_order
from service.web.auth.guards import require_download
from service.web.services import SERVICES


async def get_order(request: web.Request) -> web.Response:
    """Answer with what a download with the same parameters would hold, and what it would cost."""
    services = request.app[SERVICES]
    require_download(request)
    order_id = check_order_id(request.match_info["order_id"])
    options = parse_parameters(request.query.items())
    upstream = services.require_upstream()
    deadline = asyncio.get_running_loop().time() + services.first_byte_seconds
    order = await upstream.find_order(order_id, deadline=deadline)
    download = URL(f"/orders/{order_id}/images").with_query(list(request.query.items()))
    return web.json_response({**summarize_order(order, options), "download": str(download)})
