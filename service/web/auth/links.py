"""``POST /orders/{order_id}/links``: an expiring address for one download, for somebody who has no key."""

import json
from datetime import UTC, datetime
from typing import Any

from aiohttp import web
from yarl import URL

from service.archive.parameters import check_order_id, parse_parameters
from service.errors import InvalidBody, LinksNotConfigured
from service.web.auth.credentials import Role
from service.web.auth.guards import LINK, NOT_SIGNED, require_download, require_full_quality
from service.web.http.bodies import read_body
from service.web.services import SERVICES

DEFAULT_LINK_SECONDS = 24 * 3600
# Some hundred image ids fit, as into a URL; more than that is no link that anything could follow.
MAX_LINK_BODY_BYTES = 64 * 1024


async def create_link(request: web.Request) -> web.Response:
    """Answer with the address of an archive with exactly the given parameters, which needs no key until its end."""
    services = request.app[SERVICES]
    role = require_download(request)
    order_id = check_order_id(request.match_info["order_id"])
    if not services.access.links.enabled:
        raise LinksNotConfigured("The operator must set SIGNING_KEYS before links can be made.")
    body = await read_body(request, max_bytes=MAX_LINK_BODY_BYTES)
    query, seconds = _asked(body, services.access.max_link_seconds)
    options = parse_parameters(query)
    require_full_quality(role, options.image)
    full = role >= Role.FULL and options.image.spends_credits
    token, expires_at = services.access.links.make(order_id, query, seconds=seconds, full=full)
    here = URL(services.public_url) if services.public_url else request.url.origin()
    url = (here / "orders" / order_id / "images").with_query([*query, (LINK, token)])
    expires = datetime.fromtimestamp(expires_at, UTC).isoformat()
    return web.json_response({"url": str(url), "expires_at": expires}, status=201)


def _asked(body: bytes, max_seconds: int) -> tuple[list[tuple[str, str]], int]:
    """Return the parameters and the time that a link is asked for.

    Raises:
        InvalidBody: it is not such a request; the detail says why.
    """
    try:
        asked = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise InvalidBody("The body is not JSON.") from error
    if not isinstance(asked, dict) or asked.keys() - {"parameters", "expires_in_seconds"}:
        raise InvalidBody("The body must be an object with 'parameters' and 'expires_in_seconds', both optional.")
    seconds = asked.get("expires_in_seconds", min(DEFAULT_LINK_SECONDS, max_seconds))
    if not isinstance(seconds, int) or isinstance(seconds, bool) or not 0 < seconds <= max_seconds:
        raise InvalidBody(f"'expires_in_seconds' must be a whole number from 1 to {max_seconds}.")
    parameters = asked.get("parameters", {})
    if not isinstance(parameters, dict):
        raise InvalidBody("'parameters' must be an object: the query parameters of the download.")
    return [pair for name, value in parameters.items() for pair in _pairs(name, value)], seconds


def _pairs(name: str, value: Any) -> list[tuple[str, str]]:
    if name in NOT_SIGNED:
        raise InvalidBody(f"'{name}' is no parameter of a link.")
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(one, str | int | float) for one in values):
        raise InvalidBody(f"The parameter '{name}' must be text, a number, a truth value or a list of these.")
    return [(name, str(one).lower() if isinstance(one, bool) else str(one)) for one in values]
