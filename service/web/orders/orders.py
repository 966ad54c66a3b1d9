"""``GET /orders/{order_id}``: the summary of an order before its download. One API request; no image is fetched."""

import asyncio

from aiohttp import web
from yarl import URL

from service.archive.parameters import check_order_id, parse_parameters
from service.archive.summary import summarize_order
from service.web.auth.guards import require_download, require_upstream
from service.web.orders.context import ORDERS


async def get_order(request: web.Request) -> web.Response:
    """Return what a download with the same parameters would contain and cost."""
    context = request.app[ORDERS]
    require_download(request)
    order_id = check_order_id(request.match_info["order_id"])
    options = parse_parameters(request.query.items())
    upstream = require_upstream(context.upstream)
    deadline = asyncio.get_running_loop().time() + context.first_byte_seconds
    order = await upstream.find_order(order_id, deadline=deadline)
    download = URL(f"/orders/{order_id}/images").with_query(list(request.query.items()))
    return web.json_response({**summarize_order(order, options), "download": str(download)})
