"""``GET /metrics``: the Prometheus endpoint."""

from aiohttp import web
from prometheus_client.exposition import choose_encoder

from service.web.operations.context import OPERATIONS


async def get_metrics(request: web.Request) -> web.Response:
    """Return all metrics, in the format that ``Accept`` prefers: OpenMetrics or Prometheus text."""
    try:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    except (TypeError, ValueError):  # it fails on a version that is no number
        encode, content_type = choose_encoder("")
    body = encode(request.app[OPERATIONS].metrics.registry)
    return web.Response(body=body, headers={"Content-Type": content_type})
