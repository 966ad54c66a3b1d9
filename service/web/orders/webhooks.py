"""``POST /webhooks/autoenhance``: the API reports a processed image; archives that wait for it poll at once.

The secret is in the header ``Authentication``, as the API sends it (docs.autoenhance.ai/webhooks). Wrong ones count
against the same rate limit as wrong keys.
"""

import hmac
import json

import structlog
from aiohttp import web

from service.errors import InvalidBody, WebhooksNotConfigured, WebhookUnauthorized
from service.web.auth.guards import check_auth_rate_limit, record_auth_failure
from service.web.http.bodies import read_body
from service.web.orders.context import ORDERS

# The logged part of an event's name; the API's own are shorter.
MAX_EVENT_CHARACTERS = 50
# A webhook names an image and an order.
MAX_WEBHOOK_BYTES = 64 * 1024

log = structlog.get_logger(__name__)


async def receive_webhook(request: web.Request) -> web.Response:
    """Poll the order that a webhook names, if an archive waits for it. Nothing else in the webhook is trusted."""
    context = request.app[ORDERS]
    if context.webhook_secret is None:
        raise WebhooksNotConfigured("The operator must set WEBHOOK_SECRET to enable webhooks.")
    given = request.headers.get("Authentication", "").encode("utf-8", "surrogateescape")
    check_auth_rate_limit(request)
    if not hmac.compare_digest(given, context.webhook_secret.encode()):
        if given:
            record_auth_failure(request)
        raise WebhookUnauthorized("The header Authentication does not contain the secret.")
    body = await read_body(request, max_bytes=MAX_WEBHOOK_BYTES)
    try:
        webhook = json.loads(body or b"{}")  # saving the settings of the API sends an empty one
    except (ValueError, RecursionError) as error:
        raise InvalidBody("The body is not JSON.") from error
    order_id = webhook.get("order_id") if isinstance(webhook, dict) else None
    woken = isinstance(order_id, str) and context.order_watcher.poke(order_id)
    event = webhook.get("event") if isinstance(webhook, dict) else None
    log.info("webhook.received", notice=str(event)[:MAX_EVENT_CHARACTERS], woken=woken)
    return web.Response(status=204)
