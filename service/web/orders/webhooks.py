"""``POST /webhooks/autoenhance``: the API tells that an image is processed; archives that wait for it look at once.

The secret comes in the header ``Authentication``, as the API sends it (docs.autoenhance.ai/webhooks). Wrong ones count
against the same limit as wrong keys.
"""

import hmac
import json

import structlog
from aiohttp import web

from service.errors import InvalidBody, WebhooksNotConfigured, WebhookUnauthorized
from service.web.auth.guards import check_auth_rate_limit, client_ip
from service.web.http.bodies import read_body
from service.web.services import SERVICES

# As far as it is logged; the API's own events are shorter.
MAX_EVENT_CHARACTERS = 50
# A notice names an image and an order.
MAX_NOTICE_BYTES = 64 * 1024

log = structlog.get_logger(__name__)


async def receive_webhook(request: web.Request) -> web.Response:
    """Take a notice. What it says is not believed, only taken as a reason to look."""
    services = request.app[SERVICES]
    if services.webhook_secret is None:
        raise WebhooksNotConfigured("The operator must set WEBHOOK_SECRET before notices are taken.")
    given = request.headers.get("Authentication", "").encode("utf-8", "surrogateescape")
    check_auth_rate_limit(request)
    if not hmac.compare_digest(given, services.webhook_secret.encode()):
        if given:
            services.access.failures.note(client_ip(request))
        raise WebhookUnauthorized("The header Authentication does not have the secret.")
    body = await read_body(request, max_bytes=MAX_NOTICE_BYTES)
    try:
        notice = json.loads(body or b"{}")  # saving the settings of the API sends an empty one
    except (ValueError, RecursionError) as error:
        raise InvalidBody("The body is not JSON.") from error
    order_id = notice.get("order_id") if isinstance(notice, dict) else None
    woken = isinstance(order_id, str) and services.live_orders.poke(order_id)
    event = notice.get("event") if isinstance(notice, dict) else None
    log.info("webhook.received", notice=str(event)[:MAX_EVENT_CHARACTERS], woken=woken)
    return web.Response(status=204)
